"""Sampling against a float64 oracle, and by its statistics."""

import math

import numpy as np
import pytest

from systolith.sampling import GREEDY, Sampler, SamplingError

SCALE = 1 / 256


def oracle(logits, temperature, top_k, top_p):
    """Probability of every token, one token at a time, from the definitions."""
    real = [int(x) * SCALE / temperature for x in logits]
    order = sorted(range(len(real)), key=lambda i: (-real[i], i))
    kept = order[: top_k or len(order)]
    weight = {i: math.exp(real[i] - real[kept[0]]) for i in kept}
    total = math.fsum(weight.values())
    chosen, reached = [], 0.0
    for i in kept:
        chosen.append(i)
        reached += weight[i] / total
        if top_p < 1 and reached >= top_p:
            break
    total = math.fsum(weight[i] for i in chosen)
    return {i: weight[i] / total for i in chosen}


@pytest.mark.parametrize("temperature", [0.1, 0.8, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [0, 1, 5, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 1e-9])
def test_the_distribution_is_that_of_the_definitions(temperature, top_k, top_p, seed):
    rng = np.random.default_rng(seed)
    for _ in range(20):
        logits = rng.integers(-1500, 1500, 60)
        tokens, probabilities = Sampler(temperature, top_k, top_p).distribution(logits, SCALE)
        expected = oracle(logits, temperature, top_k, top_p)
        assert tokens.tolist() == list(expected)
        np.testing.assert_allclose(probabilities, list(expected.values()), rtol=1e-12)


def test_tokens_come_as_often_as_they_are_likely(seed):
    rng = np.random.default_rng(seed)
    logits = rng.integers(-300, 300, 12)
    sampler = Sampler(temperature=0.9, top_k=8, top_p=0.95, seed=seed)
    draws = 20_000
    counts = np.bincount([sampler.choose(logits, SCALE, i) for i in range(draws)], minlength=12)
    expected = np.zeros(12)
    for token, probability in oracle(logits, 0.9, 8, 0.95).items():
        expected[token] = probability * draws
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    chi2 = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    freedom = kept.sum() - 1
    assert freedom > 2
    assert chi2 < freedom + 5 * math.sqrt(2 * freedom)  # five standard deviations


def test_position_and_seed_decide_and_nothing_else(seed):
    logits = np.random.default_rng(seed).integers(-200, 200, 50)
    first = [Sampler(1.0, seed=3).choose(logits, SCALE, i) for i in range(40)]
    again = [Sampler(1.0, seed=3).choose(logits, SCALE, i) for i in reversed(range(40))]
    assert first == again[::-1]
    assert first != [Sampler(1.0, seed=4).choose(logits, SCALE, i) for i in range(40)]
    assert len(set(first)) > 5


def test_greedy_is_the_first_maximum():
    assert GREEDY.greedy and GREEDY.choose([3, 9, 9, -5], SCALE, 0) == 1
    assert Sampler(temperature=0, top_k=2, top_p=0.5, seed=7).choose([1, 2, 2], SCALE, 5) == 1


def test_extreme_logits():
    logits = [32767, -32768, 32767]
    for sampler in (Sampler(1e-3), Sampler(1e3), Sampler(1.0, top_p=1e-12)):
        tokens, probabilities = sampler.distribution(logits, 1.0)
        assert np.isfinite(probabilities).all() and abs(probabilities.sum() - 1) < 1e-12
        assert sampler.choose(logits, 1.0, 0) in tokens
    assert Sampler(1.0, top_k=1).distribution(logits, 1.0)[0].tolist() == [0]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"temperature": -0.1}, "The temperature must be 0 or above, not -0.1"),
        ({"temperature": float("nan")}, "The temperature must be 0 or above, not nan"),
        ({"temperature": float("inf")}, "The temperature must be 0 or above, not inf"),
        ({"top_k": -1}, "top_k must be at least 1, or 0 for all tokens, not -1"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, not 1.5"),
        ({"seed": -1}, "The seed must be 0 or above, not -1"),
    ],
)
def test_wrong_settings_get_one_sentence(settings, message):
    with pytest.raises(SamplingError) as error:
        Sampler(**settings)
    assert str(error.value) == message


def test_there_are_no_probabilities_without_chance():
    with pytest.raises(SamplingError, match="no probabilities at temperature 0"):
        GREEDY.distribution([1, 2], SCALE)
