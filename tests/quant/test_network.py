"""The float network: what each operation computes, padding, pooling, and what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F

from systolith.quant.llama import Llama, LlamaConfig
from systolith.quant.network import (
    POSITIONS,
    Add,
    Attention,
    Concat,
    Embed,
    Function,
    Given,
    Linear,
    Multiply,
    Network,
    NetworkError,
    Norm,
    Op,
    Output,
    Rope,
    Scale,
    Slice,
)


def llama_network(model: Llama) -> Network:
    """A Llama, written down by hand."""
    c = model.config
    cos, sin = model.model.cos, model.model.sin
    ops: list[Op] = [Embed(name="x0", table=model.model.embed_tokens.weight)]
    for i, block in enumerate(model.model.layers):
        a, f, x, s = block.self_attn, block.mlp, f"x{2 * i}", f"x{2 * i + 1}"

        def norm(name, x, module):
            return Norm(name=name, x=x, gain=module.weight, eps=c.norm_eps, center=False)

        def rope(name, x):
            return Rope(name=name, x=x, cos=cos, sin=sin, head_dim=c.head_dim, pairs=c.rope_pairs)

        ops += [
            norm(f"n{i}", x, block.input_layernorm),
            Linear(name=f"q{i}", x=f"n{i}", weight=a.q_proj.weight),
            Linear(name=f"k{i}", x=f"n{i}", weight=a.k_proj.weight),
            Linear(name=f"v{i}", x=f"n{i}", weight=a.v_proj.weight),
            rope(f"rq{i}", f"q{i}"),
            rope(f"rk{i}", f"k{i}"),
            Attention(name=f"c{i}", q=f"rq{i}", k=f"rk{i}", v=f"v{i}", heads=c.n_heads,
                      kv_heads=c.n_kv_heads, head_dim=c.head_dim,
                      scale=1 / math.sqrt(c.head_dim), causal=True),
            Linear(name=f"o{i}", x=f"c{i}", weight=a.o_proj.weight),
            Add(name=s, a=x, b=f"o{i}"),
            norm(f"m{i}", s, block.post_attention_layernorm),
            Linear(name=f"g{i}", x=f"m{i}", weight=f.gate_proj.weight),
            Function(name=f"a{i}", x=f"g{i}", function="silu"),
            Linear(name=f"u{i}", x=f"m{i}", weight=f.up_proj.weight),
            Multiply(name=f"p{i}", a=f"a{i}", b=f"u{i}"),
            Linear(name=f"d{i}", x=f"p{i}", weight=f.down_proj.weight),
            Add(name=f"x{2 * i + 2}", a=s, b=f"d{i}"),
        ]
    ops += [
        Norm(name="norm", x=f"x{2 * c.n_layers}", gain=model.model.norm.weight, eps=c.norm_eps,
             center=False),
        Linear(name="logits", x="norm", weight=model.classifier()),
    ]
    return Network(ops=tuple(ops), outputs=(Output(x="logits"),), context=c.max_seq_len)


@pytest.mark.parametrize("pairs", ["adjacent", "halves"])
def test_a_llama_written_down_gives_its_logits(pairs):
    torch.manual_seed(5)
    config = LlamaConfig(dim=16, hidden_dim=24, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=32,
                         max_seq_len=12, rope_pairs=pairs)
    model = Llama(config).eval()
    network = llama_network(model)
    tokens = torch.randint(32, (3, 9))
    (logits,) = network.results(network.run({"tokens": tokens}))
    with torch.no_grad():
        torch.testing.assert_close(logits, model(tokens))
    assert network.generative and network.vocabulary == 32 and network.indices == ("tokens",)
    assert network.channels()["p1"] == 24
    assert [op.name for op in network.consumers("n0")] == ["q0", "k0", "v0"]


def encoder() -> Network:
    """One bidirectional attention over given features and positions, pooled."""
    torch.manual_seed(6)
    return Network(
        ops=(
            Given(name="features", channels=8),
            Embed(name="place", table=torch.randn(10, 8), index=POSITIONS),
            Add(name="x", a="features", b="place"),
            Attention(name="attention", q="x", k="x", v="x", heads=2, kv_heads=2, head_dim=4,
                      scale=0.5, causal=False),
            Norm(name="norm", x="attention", gain=torch.randn(8), bias=torch.randn(8), eps=1e-5,
                 center=True),
        ),
        outputs=(
            *(Output(x="norm", pool=pool) for pool in ("none", "first", "last")),
            Output(x="norm", pool="mean", normalize=True),
        ),
        context=10,
    )


def test_padding_changes_nothing():
    network = encoder()
    x = torch.randn(2, 10, 8)
    lengths = torch.tensor([10, 6])
    everything, first, last, mean = network.results(
        network.run({"features": x}, lengths), lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = network.results(network.run({"features": x[row:row + 1, :length]}))
        torch.testing.assert_close(everything[row, :length], alone[0][0])
        for padded, single in zip((first, last, mean), alone[1:], strict=True):
            torch.testing.assert_close(padded[row], single[0])
    norm = everything[1, :6]
    torch.testing.assert_close(first[1], norm[0])
    torch.testing.assert_close(last[1], norm[5])
    torch.testing.assert_close(mean[1], F.normalize(norm.mean(dim=0), dim=0))
    assert not network.generative and network.given == ("features",)


def test_channels_are_cut_joined_and_scaled():
    network = Network(
        ops=(
            Given(name="x", channels=6),
            Slice(name="left", x="x", first=0, count=2),
            Slice(name="right", x="x", first=2, count=4),
            Concat(name="turned", xs=("right", "left")),
            Scale(name="half", x="turned", factor=0.5),
        ),
        outputs=(Output(x="half"),),
        context=4,
    )
    x = torch.randn(2, 4, 6)
    (half,) = network.results(network.run({"x": x}))
    torch.testing.assert_close(half, x.roll(-2, dims=-1) / 2)
    assert network.channels() == {"x": 6, "left": 2, "right": 4, "turned": 6, "half": 6}
    doubled = network.with_ops({"half": Scale(name="half", x="turned", factor=1.0)})
    torch.testing.assert_close(doubled.results(doubled.run({"x": x}))[0], 2 * half)


def test_what_is_not_well_formed_is_refused():
    x = Given(name="x", channels=4)
    with pytest.raises(NetworkError, match="y: its input 'z' is not defined before it"):
        Network(ops=(x, Scale(name="y", x="z", factor=1.0)), outputs=(Output(x="y"),), context=4)
    with pytest.raises(NetworkError, match="'x' is defined twice"):
        Network(ops=(x, x), outputs=(Output(x="x"),), context=4)
    with pytest.raises(NetworkError, match="no operation defines the output 'y'"):
        Network(ops=(x,), outputs=(Output(x="y"),), context=4)
    with pytest.raises(NetworkError, match="needs at least one output"):
        Network(ops=(x,), outputs=(), context=4)
    network = Network(ops=(x,), outputs=(Output(x="x", pool="sum"),), context=4)
    with pytest.raises(NetworkError, match="pool must be none, first, last or mean, not 'sum'"):
        network.results(network.run({"x": torch.ones(1, 4, 4)}))
