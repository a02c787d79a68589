import math

import numpy as np
import pytest
import torch

from systolith import bounds
from systolith.forward import IntegerModel
from systolith.graph import Attention, Linear, Norm, Rope
from systolith.quant.checkpoint import load_model
from systolith.quant.evaluate import float_logits, held_out_tokens
from systolith.quant.export import compare, sampled_text, tensor_errors
from systolith.quant.quantize import (
    QuantizeError,
    Recipe,
    multipliers,
    quantize,
    quantize_rows,
    signed_gains,
    silu,
)
from tests.models import model_file
from tests.quant.small import CONTEXT, VOCABULARY, small_llama


def sequences(seed: int, count: int = 30) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, VOCABULARY, (count, CONTEXT)))


def noise(model, quantized, tokens) -> float:
    """Energy of the logits' error as a part of their own."""
    expected = np.concatenate([float_logits(model)(t) for t in tokens])
    integers = IntegerModel(quantized.graph)
    found = np.concatenate([integers.logits(t) for t in tokens])
    return float(((found - expected) ** 2).sum() / (expected**2).sum())


@pytest.mark.parametrize("changes", [
    {},
    {"rope_pairs": "adjacent", "tied_embedding": True},
    {"n_heads": 2, "n_kv_heads": 1, "hidden_dim": 23, "vocab_size": 41},
    {"n_heads": 4, "n_kv_heads": 4, "n_layers": 1},
], ids=str)
def test_integers_are_close_to_floats(changes, seed):
    model = small_llama(seed, **changes)
    tokens = sequences(seed)
    quantized = quantize(model, tokens[:20])
    assert noise(model, quantized, tokens[20:]) < 3e-3
    # What 8-bit weights and caches do not touch is nearly exact.
    errors = {e.name: e for e in tensor_errors(quantized, tokens[20:])}
    assert errors["embedding"].sqnr > 80
    assert errors["layers.0.attention.norm"].sqnr > 70
    assert errors["layers.0.attention.q"].sqnr > 40
    assert errors["layers.0.attention.k"].sqnr > 30
    assert all(error.sqnr > 20 for error in errors.values()), errors


def test_every_recipe_gives_a_sound_graph(seed):
    model = small_llama(seed)
    tokens = sequences(seed, 8)
    noises = {}
    for recipe in (
        Recipe(),
        Recipe(probability_bits=8),
        Recipe(cache_scales="tensor"),
        Recipe(cache_scales="head"),
        Recipe(range="minmax"),
        Recipe(range="percentile", percentile=99.0),
        Recipe(headroom=1.0),
        Recipe(bits=(("*", 8),), cache_scales="head"),
        Recipe(bits=(("*", 8), ("layers.0.*", 16), ("*.q", 8))),
    ):
        quantized = quantize(model, tokens, recipe)
        assert quantized.recipe == recipe
        noises[recipe] = noise(model, quantized, tokens)
        assert noises[recipe] < 0.05, recipe
        bounds.prove(quantized.graph)
    assert noises[Recipe()] < noises[Recipe(bits=(("*", 8),), cache_scales="head")]


def test_bits_follow_the_last_pattern(seed):
    recipe = Recipe(bits=(("*", 8), ("layers.1.*", 16), ("layers.?.ffn.product", 8)))
    tensors = quantize(small_llama(seed), sequences(seed), recipe).graph.tensors
    assert tensors["norm"].bits == tensors["layers.0.attention.q"].bits == 8
    assert tensors["layers.1.attention.q"].bits == tensors["layers.1.ffn.norm"].bits == 16
    assert tensors["layers.1.ffn.product"].bits == 8
    for name in ("attention.residual", "ffn.residual", "attention.o_proj", "ffn.gate", "ffn.up"):
        assert tensors[f"layers.0.{name}"].bits == 16, name


def test_keys_and_values_are_always_8_bit(seed):
    graph = quantize(small_llama(seed), sequences(seed)).graph
    for node in graph.of_kind(Attention):
        assert graph.tensors[node.k].bits == graph.tensors[node.v].bits == 8


@pytest.mark.parametrize("scales, kinds", [("tensor", 1), ("head", 2), ("channel", 8)])
def test_scales_of_the_caches(scales, kinds, seed):
    graph = quantize(small_llama(seed), sequences(seed), Recipe(cache_scales=scales)).graph
    k, v, q = (np.array(graph.tensors[f"layers.0.attention.{n}"].scale) for n in "kvq")
    assert len(set(v.tolist())) == kinds
    assert len(set(k.tolist())) == (kinds if scales != "channel" else 4)  # pairs are equal
    np.testing.assert_array_equal(k[0::2], k[1::2])
    # Whatever the scales are, a score has one.
    product = q.reshape(2, 2, 4) * k.reshape(2, 1, 4)
    np.testing.assert_allclose(product, product.flat[0])


def test_rotation_takes_fraction_bits_of_8_bit_tensors(seed):
    graph = quantize(small_llama(seed), sequences(seed)).graph
    for node in graph.of_kind(Rope):
        shift = node.shift - 15
        if graph.tensors[node.out].bits == 16:
            assert shift == 0
        else:
            assert 6 <= shift <= 8
        before, after = (np.array(graph.tensors[name].scale) for name in (node.x, node.out))
        np.testing.assert_allclose(before * 2**shift, after)


def test_a_shorter_context(seed):
    graph = quantize(small_llama(seed), sequences(seed), Recipe(context=9)).graph
    assert graph.context == 9
    assert graph.constants["rope.cos"].shape == (9, 4)
    assert IntegerModel(graph).step(range(9)).shape == (9, VOCABULARY)


def test_rope_tables_are_angles(seed):
    constants = quantize(small_llama(seed), sequences(seed)).graph.constants
    cos, sin = (constants[f"rope.{n}"].astype(float) / 32768 for n in ("cos", "sin"))
    for p in (0, 1, 5, CONTEXT - 1):
        for i, frequency in enumerate((1.0, 0.01)):
            angle = p * frequency
            np.testing.assert_allclose(cos[p, 2 * i:2 * i + 2], math.cos(angle), atol=4e-5)
            np.testing.assert_allclose(
                sin[p, 2 * i:2 * i + 2], [-math.sin(angle), math.sin(angle)], atol=4e-5)


def test_silent_parts_do_no_harm(seed):
    """Zero weights and channels that never speak have no range to divide by."""
    model = small_llama(seed)
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[1].mlp
    for weight in (attention.k_proj.weight, attention.v_proj.weight, mlp.up_proj.weight[3:5],
                   model.lm_head.weight[7], model.model.layers[1].input_layernorm.weight[2:3]):
        weight.zero_()
    tokens = sequences(seed)
    quantized = quantize(model, tokens)
    assert noise(model, quantized, tokens) < 2e-3
    assert (IntegerModel(quantized.graph).step(tokens[0])[:, 7] == 0).all()


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1e3])
def test_the_size_of_the_residual_stream_does_not_matter(size, seed):
    """Small streams are limited by the norm's epsilon, which the graph has to be able to hold."""
    model = small_llama(seed, norm_eps=1e-12 if size < 1 else 1e-5)
    for name, weight in model.named_parameters():
        if name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
            weight.mul_(size)
    tokens = sequences(seed)
    quantized = quantize(model, tokens)
    assert noise(model, quantized, tokens) < 5e-3
    for node in quantized.graph.of_kind(Norm):
        eps = node.eps << node.eps_shift
        (scale,) = quantized.graph.tensors[node.x].scale
        norm_eps = model.config.norm_eps
        exact = norm_eps * (16 / scale) ** 2
        assert abs(eps - exact) <= max(exact * 2**-15, 0.5)


def test_a_large_epsilon_coarsens_the_stream(seed):
    model = small_llama(seed, norm_eps=10.0)
    model.model.embed_tokens.weight.mul_(1e-9)
    for block in model.model.layers:
        block.self_attn.o_proj.weight.mul_(1e-9)
        block.mlp.down_proj.weight.mul_(1e-9)
    graph = quantize(model, sequences(seed)).graph
    for node in graph.of_kind(Norm):
        assert node.eps << node.eps_shift < 1 << 54


# Parts ------------------------------------------------------------------------------------------


def test_rows_are_symmetric_and_near(seed):
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, 1, (6, 50)) * np.array([1e-3, 1, 1e3, 1, 1, 0])[:, None]
    quantized, scale = quantize_rows(weight, 16)
    assert quantized.dtype == np.int8
    np.testing.assert_array_equal(np.abs(quantized).max(axis=1), [127] * 5 + [0])
    assert (np.abs(quantized * scale[:, None] - weight) <= scale[:, None] * 0.5000001).all()


def test_rows_that_could_overflow_get_a_smaller_range():
    weight = np.ones((3, 2000))
    weight[1, 1:] = 0
    weight[2] = np.linspace(-1, 1, 2000)
    quantized, scale = quantize_rows(weight, 16)
    no_bias = np.zeros(3, dtype=np.int32)
    bound = bounds.linear_bound(quantized, no_bias, 16)
    assert (bound <= bounds.LARGEST).all()
    assert quantized[0].tolist() == [32] * 2000          # 2000 * 32 * 2**15 is the last that fits
    assert quantized[1].max() == 127 and abs(scale[1] - 1 / 127) < 1e-12
    assert bound[2] > 0.9 * bounds.LARGEST
    np.testing.assert_allclose(quantized * scale[:, None], weight, atol=0.04)
    assert quantize_rows(weight, 8)[0].max() == 127


def test_multipliers_and_gains(seed):
    rng = np.random.default_rng(seed)
    ratios = np.r_[2.0 ** rng.uniform(-30, 14, 200), 0.0, 1.0, 32767.4, 2.0**-46]
    mult, shift = multipliers(ratios)
    assert mult.dtype == np.uint16 and shift.dtype == np.uint8
    np.testing.assert_allclose(mult / 2.0**shift, ratios, rtol=2.0**-16)
    signed = ratios * np.where(np.arange(len(ratios)) % 2, -1, 1)
    gain, shift = signed_gains(signed)
    assert gain.dtype == np.int16 and (shift <= 62).all()
    np.testing.assert_allclose(gain / 2.0**shift, signed, rtol=2.0**-15)
    # The mantissa of the largest ratio below a power of two rounds up to it.
    np.testing.assert_array_equal(signed_gains(np.array([1 - 2.0**-20]))[0], [1 << 14])
    with pytest.raises(ValueError, match="gain must be below 32768"):
        signed_gains(np.array([32768.0]))


def test_silu_is_torchs():
    x = np.linspace(-2000, 2000, 4001)
    expected = torch.nn.functional.silu(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(silu(x), expected, atol=1e-12)


# Mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields, message", [
    ({"bits": (("*", 4),)}, "bits must be pairs of a pattern and 8 or 16"),
    ({"bits": ((8, "*"),)}, "bits must be pairs of a pattern and 8 or 16"),
    ({"probability_bits": 12}, "probability_bits must be 8 or 16, not 12"),
    ({"cache_scales": "token"}, "cache_scales must be one of tensor, head, channel, not 'token'"),
    ({"range": "mse"}, "range must be one of minmax, percentile, not 'mse'"),
    ({"percentile": 101}, "percentile must be from 50 to 100, not 101"),
    ({"headroom": 0.5}, "headroom must be from 1 to 64, not 0.5"),
    ({"headroom": math.nan}, "headroom must be from 1 to 64, not nan"),
    ({"context": 0}, "context must be a positive integer, not 0"),
])
def test_wrong_recipes(fields, message):
    with pytest.raises(QuantizeError, match=message):
        Recipe(**fields)


def test_recipes_that_do_not_fit_the_model(seed):
    model, tokens = small_llama(seed), sequences(seed)
    with pytest.raises(QuantizeError, match=r"pattern 'layers\.2\.\*' matches no tensor"):
        quantize(model, tokens, Recipe(bits=(("layers.2.*", 8),)))
    with pytest.raises(QuantizeError, match=r"pattern '\*residual' matches no tensor whose bits"):
        quantize(model, tokens, Recipe(bits=(("*residual", 8),)))
    with pytest.raises(QuantizeError, match="context must be at most the model's 24, not 25"):
        quantize(model, tokens, Recipe(context=25))
    with pytest.raises(QuantizeError, match="at least one sequence"):
        quantize(model, [])


def test_models_out_of_reach(seed):
    model = small_llama(seed)
    model.model.layers[0].self_attn.q_proj.weight.mul_(1e12)
    with pytest.raises(QuantizeError, match="cannot be quantized: A rescale ratio must be below"):
        quantize(model, sequences(seed))


# Real models ------------------------------------------------------------------------------------


def test_stories260k_keeps_its_perplexity(capsys):
    model, _ = load_model(model_file("stories260K.bin"))
    graph = quantize(model, sampled_text(model)).graph
    evaluation = sampled_text(model, 10, seed=1)
    quality = compare(model, IntegerModel(graph), evaluation)
    with capsys.disabled():
        print(f"\nstories260K: {quality}")
    assert quality.tokens == 10 * 255
    assert quality.ratio <= 1.01
    # On the model's own text the divergence is the expected loss, with far less variance.
    assert math.exp(quality.divergence) <= 1.005
    assert quality.agreement >= 0.96


def test_bundled_model_keeps_its_perplexity(capsys):
    model, _ = load_model("bundled")
    graph = quantize(model, sampled_text(model)).graph
    quality = compare(model, IntegerModel(graph), held_out_tokens()[::7])
    with capsys.disabled():
        print(f"\nbundled, held out: {quality}")
    assert quality.ratio <= 1.005
    assert quality.agreement >= 0.97


def test_linear_nodes_have_only_the_tables_they_need(seed):
    graph = quantize(small_llama(seed), sequences(seed)).graph
    with_table = [node.name for node in graph.of_kind(Linear) if node.table is not None]
    assert with_table == ["layers.0.ffn.gate", "layers.1.ffn.gate"]
