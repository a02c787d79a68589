"""Sampling and perplexity, and the figure that the bundled model's README claims."""

import math
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from systolith.quant.checkpoint import BUNDLED, load_model
from systolith.quant.evaluate import float_logits, held_out_tokens, perplexity, sample
from systolith.quant.llama import Llama, LlamaConfig
from systolith.quant.tokenizer import BOS


def make() -> Llama:
    torch.manual_seed(5)
    model = Llama(LlamaConfig(dim=8, hidden_dim=12, n_layers=2, n_heads=2, n_kv_heads=1,
                              vocab_size=20, max_seq_len=40)).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.uniform_(-1, 1)
    return model


def test_sampling_is_a_function_of_the_seed():
    model = make()
    first = sample(model, 40, seed=1)
    assert first.dtype == np.int64
    assert first.shape == (40,)
    assert first[0] == BOS
    assert ((first >= 0) & (first < 20)).all()
    np.testing.assert_array_equal(first, sample(model, 40, seed=1))
    assert (first != sample(model, 40, seed=2)).any()
    np.testing.assert_array_equal(sample(model, 1, seed=1), [BOS])


def test_temperature_zero_is_greedy():
    model = make()
    tokens = [BOS]
    while len(tokens) < 40:
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    np.testing.assert_array_equal(sample(model, 40, seed=9, temperature=0), tokens)
    np.testing.assert_array_equal(sample(model, 40, seed=9, temperature=1e-6), tokens)


def test_samples_follow_the_probabilities():
    model = make()
    for temperature in (1.0, 0.5):
        drawn = [sample(model, 2, seed, temperature)[1] for seed in range(500)]
        expected = (model(torch.tensor([[BOS]]))[0, 0] / temperature).softmax(0).numpy()
        frequency = np.bincount(drawn, minlength=20) / 500
        # Five standard deviations of a binomial share.
        bound = 5 * np.sqrt(expected * (1 - expected) / 500) + 1e-9
        assert (np.abs(frequency - expected) <= bound).all(), (temperature, frequency, expected)


def test_wrong_arguments_are_refused():
    model = make()
    with pytest.raises(ValueError, match="Number of tokens must be 1 to 40, not 41"):
        sample(model, 41, seed=1)
    with pytest.raises(ValueError, match="Temperature must be at least 0, not -1"):
        sample(model, 4, seed=1, temperature=-1)
    with pytest.raises(ValueError, match=r"with T at least 2, not \[1\]"):
        perplexity(float_logits(model), np.array([1]))


def test_perplexity_of_a_guess_is_the_size_of_the_vocabulary():
    tokens = np.random.default_rng(0).integers(0, 20, (3, 11))
    got = perplexity(lambda row: np.full((len(row), 20), 1e4, dtype=np.float32), tokens)
    assert got == pytest.approx(20, rel=1e-12)


def test_perplexity_is_the_exponential_of_the_cross_entropy():
    model = make()
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 20, (3, 11))
    t = torch.from_numpy(tokens)
    loss = F.cross_entropy(model(t)[:, :-1].double().flatten(0, 1), t[:, 1:].flatten()).item()
    assert perplexity(float_logits(model), tokens) == pytest.approx(math.exp(loss), rel=1e-6)
    alone = [perplexity(float_logits(model), row) for row in tokens]
    assert np.log(alone).mean() == pytest.approx(loss, rel=1e-6)


def test_the_bundled_model_predicts_what_its_readme_says():
    model, tokenizer = load_model("bundled")
    tokens = held_out_tokens()
    assert tokens.dtype == np.int64
    assert tokens.shape[1] == 256
    assert (tokens[:, 0] == BOS).all()
    assert "attribute" in tokenizer.decode(tokens[0])
    claimed = re.search(r"perplexity (\d+\.\d+)", (BUNDLED / "README.md").read_text())
    assert perplexity(float_logits(model), tokens) == pytest.approx(float(claimed[1]), rel=1e-3)
    assert (BUNDLED / "held_out.npy").stat().st_size <= 100_000


def test_the_bundled_model_writes_words_of_the_reference():
    model, tokenizer = load_model("bundled")
    text = tokenizer.decode(sample(model, 300, seed=0))
    for word in (" the ", " is ", " a "):
        assert word in text, text
