import numpy as np
import pytest
import torch

from systolith.quant.evaluate import float_logits
from systolith.quant.llama import Llama
from systolith.quant.observe import observe, trace
from systolith.quant.prepare import adjacent_pairs, prepare, turn_pairs
from tests.quant.small import CONTEXT, VOCABULARY, small_llama


def sequences(seed: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, VOCABULARY, (4, CONTEXT)))


@pytest.mark.parametrize("pairs", ["adjacent", "halves"])
@pytest.mark.parametrize("heads, kv_heads", [(4, 2), (2, 2), (2, 1)])
@pytest.mark.parametrize("tied", [False, True])
def test_the_function_stays(pairs, heads, kv_heads, tied, seed):
    model = small_llama(
        seed, rope_pairs=pairs, n_heads=heads, n_kv_heads=kv_heads, tied_embedding=tied)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tokens = sequences(seed)
    changed = prepare(model, tokens)
    assert changed.config.rope_pairs == "adjacent"
    expected, found = (float_logits(m)(tokens[0]) for m in (model, changed))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    # The original is left alone, and the copy is a different one.
    assert all((model.state_dict()[name] == value).all() for name, value in before.items())
    name = "model.layers.0.self_attn.k_proj.weight"
    assert (changed.state_dict()[name] != before[name]).any()


def test_a_shorter_context_is_the_same_function(seed):
    model = small_llama(seed)
    changed = adjacent_pairs(model, 9)
    assert changed.config.max_seq_len == 9
    tokens = sequences(seed)[0][:9]
    expected, found = (float_logits(m)(tokens) for m in (model, changed))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="Sequence length must be at most 9"):
        float_logits(changed)(sequences(seed)[0])


def clustered(seed: int) -> Llama:
    """A model with keys around one point of the plane, as trained models have in slow pairs."""
    model = adjacent_pairs(small_llama(seed))
    first = model.model.layers[0]
    first.input_layernorm.weight[0] = 8
    first.self_attn.k_proj.weight[:, 0] = torch.tensor([0.0, 0, 3, 0] * 2)
    model.model.embed_tokens.weight[:, 0] = 1
    return model


def test_turned_keys_need_a_smaller_range(seed):
    model, tokens = clustered(seed), sequences(seed)
    before, after = (observe(m, tokens)["layers.0.attention.k"].largest.reshape(-1, 2).max(axis=1)
                     for m in (model, turn_pairs(model, tokens)))
    assert (after <= before * 1.002).all(), (before, after)
    # Onto the diagonal: the slow pairs, 1 and 3, gain nearly the square root of two.
    assert (after[1::2] < before[1::2] * 0.8).all(), (before, after)


def test_turning_counts_every_position(seed):
    """A pair on the diagonal leaves it at later positions; the calibration need not show them."""
    fast = clustered(seed)
    fast.model.cos[:, 1], fast.model.sin[:, 1] = fast.model.cos[:, 0], fast.model.sin[:, 0]
    short = [tokens[:3] for tokens in sequences(seed)]
    long = np.tile(sequences(seed)[0][:3], 8)
    before, after = (np.abs(trace(m, long)["layers.0.attention.k"].numpy()).max()
                     for m in (fast, turn_pairs(fast, short)))
    assert after <= before * 1.01
