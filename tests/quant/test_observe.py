import numpy as np
import pytest
import torch
from torch.nn import functional as F

from systolith.quant.llama import rotate
from systolith.quant.observe import BINS_PER_OCTAVE, Observer, Range, observe, trace
from systolith.quant.quantize import quantize
from tests.quant.small import CONTEXT, VOCABULARY, small_llama


def sequences(seed: int, count: int = 3) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, VOCABULARY, (count, CONTEXT)))


def test_the_trace_has_every_tensor_of_the_graph(seed):
    model = small_llama(seed)
    tokens = sequences(seed)
    graph = quantize(model, tokens).graph
    found = trace(model, tokens[0])
    assert set(found) - set(graph.tensors) == {f"layers.{i}.ffn.gate_proj" for i in range(2)}
    assert set(graph.tensors) - set(found) == {"token"}
    for name, x in found.items():
        if name in graph.tensors:
            assert x.shape == (CONTEXT, graph.tensors[name].channels), name


@pytest.mark.parametrize("pairs", ["adjacent", "halves"])
def test_the_traced_tensors_make_up_the_forward(pairs, seed):
    """Every tensor follows from those before it, and the last one is what the model returns."""
    model = small_llama(seed, rope_pairs=pairs)
    tokens = sequences(seed)[0]
    f = {name: x.double() for name, x in trace(model, tokens).items()}
    logits = model(torch.from_numpy(tokens)[None])[0]
    assert torch.equal(f["logits"], logits.double())

    def close(name: str, expected: torch.Tensor) -> None:
        torch.testing.assert_close(f[name], expected, rtol=1e-4, atol=1e-4, msg=name)

    close("embedding", model.model.embed_tokens.weight[tokens].double())
    x = f["embedding"]
    for i, block in enumerate(model.model.layers):
        a, n = f"layers.{i}.attention", f"layers.{i}.ffn"
        w = {name: p.double() for name, p in block.named_parameters()}
        close(f"{a}.norm", F.rms_norm(x, (16,), w["input_layernorm.weight"], 1e-5))
        for part in ("q_proj", "k_proj", "v"):
            weight = w[f"self_attn.{part[0]}_proj.weight"]
            close(f"{a}.{part}", F.linear(f[f"{a}.norm"], weight))
        heads = {}
        for part, count in (("q", 4), ("k", 2)):
            y = f[f"{a}.{part}_proj"].view(CONTEXT, count, 4).transpose(0, 1)
            y = rotate(y, model.model.cos.double(), model.model.sin.double(), pairs)
            close(f"{a}.{part}", y.transpose(0, 1).flatten(1))
            heads[part] = y
        v = f[f"{a}.v"].view(CONTEXT, 2, 4).transpose(0, 1)
        y = F.scaled_dot_product_attention(
            heads["q"], heads["k"], v, is_causal=True, enable_gqa=True)
        close(f"{a}.context", y.transpose(0, 1).flatten(1))
        close(f"{a}.o_proj", F.linear(f[f"{a}.context"], w["self_attn.o_proj.weight"]))
        close(f"{a}.residual", x + f[f"{a}.o_proj"])
        norm = F.rms_norm(
            f[f"{a}.residual"], (16,), w["post_attention_layernorm.weight"], 1e-5)
        close(f"{n}.norm", norm)
        close(f"{n}.gate", F.silu(F.linear(f[f"{n}.norm"], w["mlp.gate_proj.weight"])))
        close(f"{n}.up", F.linear(f[f"{n}.norm"], w["mlp.up_proj.weight"]))
        close(f"{n}.product", f[f"{n}.gate"] * f[f"{n}.up"])
        close(f"{n}.down", F.linear(f[f"{n}.product"], w["mlp.down_proj.weight"]))
        close(f"{n}.residual", f[f"{a}.residual"] + f[f"{n}.down"])
        x = f[f"{n}.residual"]
    close("norm", F.rms_norm(x, (16,), model.model.norm.weight.double(), 1e-5))


def test_tracing_leaves_no_hooks(seed):
    model = small_llama(seed)
    trace(model, sequences(seed)[0])
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="Sequence length must be at most"):
        trace(model, np.zeros(CONTEXT + 1, dtype=np.int64))
    assert not any(module._forward_hooks for module in model.modules())


def test_ranges_span_all_sequences(seed):
    model = small_llama(seed)
    tokens = sequences(seed)
    ranges = observe(model, tokens)
    for name in ("embedding", "layers.1.attention.v", "layers.0.ffn.product", "logits"):
        values = torch.cat([trace(model, t)[name] for t in tokens]).abs().amax(dim=0)
        np.testing.assert_array_equal(ranges[name].largest, values.double().numpy())
        assert ranges[name].counts is None


def test_keys_have_the_range_of_every_position(seed):
    """The first layer's key depends on the token and its position alone."""
    model = small_llama(seed, rope_base=30.0)
    every = np.arange(VOCABULARY)
    shown = [every[at:at + 4] for at in range(0, VOCABULARY, 4)]
    ranges = observe(model, shown)
    for part in ("q", "k"):
        name = f"layers.0.attention.{part}"
        seen = np.zeros(len(ranges[name].largest))
        for first in range(VOCABULARY):
            tokens = np.roll(every, -first)[:CONTEXT]
            seen = np.maximum(seen, trace(model, tokens)[name].abs().amax(dim=0).numpy())
        np.testing.assert_allclose(ranges[name].largest, seen, rtol=1e-4)


def test_percentiles_of_a_known_distribution(seed):
    rng = np.random.default_rng(seed)
    observer = Observer(lambda name: name == "x")
    parts = rng.normal(0, [1, 100, 1e-4], (10, 1000, 3))
    for part in parts:
        observer.add("x", part)
        observer.add("y", part)
    magnitude = np.abs(parts.reshape(-1, 3))
    for percent in (50, 90, 99, 99.9, 100):
        found = observer.ranges["x"].percentile(percent)
        exact = np.sort(magnitude, axis=0)[int(np.ceil(len(magnitude) * percent / 100)) - 1]
        assert (found >= exact * 0.999999).all(), percent
        assert (found <= exact * 2 ** (1 / BINS_PER_OCTAVE) * 1.000001).all(), percent
        assert (found <= magnitude.max(axis=0)).all()
    with pytest.raises(ValueError, match="Percentiles need a histogram"):
        observer.ranges["y"].percentile(99)


def test_a_channel_of_zeros_has_the_range_zero():
    observer = Observer(lambda name: True)
    observer.add("x", np.array([[0.0, 3.0], [0.0, -2.0]]))
    found = observer.ranges["x"]
    assert isinstance(found, Range)
    np.testing.assert_array_equal(found.largest, [0, 3])
    np.testing.assert_array_equal(found.percentile(100), [0, 3])
