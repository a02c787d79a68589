"""The float network: what each operation computes, padding, pooling, and what is refused."""

import pytest
import torch
import torch.nn.functional as F

from systolith.quant.llama import Llama, LlamaConfig
from systolith.quant.llama_network import llama_network
from systolith.quant.network import (
    POSITIONS,
    Add,
    Attention,
    Concat,
    Embed,
    Given,
    Network,
    NetworkError,
    Norm,
    Output,
    Scale,
    Slice,
)


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
    assert network.channels()["layers.1.ffn.product"] == 24
    readers = [op.name for op in network.consumers("layers.0.attention.norm")]
    assert len(readers) == 3 and readers[2] == "layers.0.attention.v"


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
