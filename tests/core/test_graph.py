from dataclasses import replace

import numpy as np
import pytest

from systolith.graph import (
    KINDS,
    Attention,
    Given,
    Graph,
    GraphError,
    Linear,
    Output,
    int8_weight,
)
from tests.graphs import VOCABULARY, Maker, encoder, every_node, in_groups


def change(graph: Graph, name: str, /, **fields) -> Graph:
    """The graph with other fields of one node."""
    nodes = tuple(replace(n, **fields) if n.name == f"{name}.node" else n for n in graph.nodes)
    return replace(graph, nodes=nodes)


def retype(graph: Graph, name: str, /, **fields) -> Graph:
    """The graph with another description of one tensor."""
    return replace(graph, tensors=graph.tensors | {name: replace(graph.tensors[name], **fields)})


def constant(graph: Graph, name: str, value) -> Graph:
    return replace(graph, constants=graph.constants | {name: value})


def test_the_test_graph_has_every_kind(seed):
    nodes = (*every_node(seed).nodes, *encoder(seed).nodes)
    assert {type(node) for node in nodes} == set(KINDS.values())


def test_what_a_graph_is_for(seed):
    decoder, sentences = every_node(seed), encoder(seed)
    assert decoder.causal and decoder.generative and decoder.vocabulary == VOCABULARY
    assert decoder.indices == {"tokens": VOCABULARY}
    assert not sentences.causal and not sentences.generative
    assert sentences.indices == {"tokens": VOCABULARY, "types": 2}


def test_a_graph_can_be_walked(seed):
    graph = every_node(seed)
    assert [node.out for node in graph.of_kind(Attention)] == ["context"]
    assert graph.producer("gate").name == "gate.node"
    assert [node.out for node in graph.consumers("norm")] == ["q_proj", "k_proj", "v"]
    gate = graph.producer("gate")
    assert gate.inputs == ("second",)
    assert gate.constants == ("gate.weight", "gate.bias", "gate.mult", "gate.shift", "function")
    assert "function" not in graph.producer("up").constants
    assert all(None not in node.constants for node in graph.of_kind(Linear))
    assert next(graph.of_kind(Attention)).group == 2
    assert graph.bytes() == sum(v.size * v.itemsize for v in graph.constants.values())


WRONG = [
    (lambda g: replace(g, context=0), "context must be an integer from 1 to 1048576, not 0"),
    (lambda g: replace(g, context=13), r"Rope 'q.node': constant 'cos' must have the shape "
                                       r"\[13, 2\], not \[12, 2\]"),
    (lambda g: replace(g, eos=11), "eos must be an integer from 0 to 10, not 11"),
    (lambda g: replace(g, outputs=(Output(tensor="nothing"),)),
     "no node defines the output 'nothing'"),
    (lambda g: replace(g, outputs=(Output(tensor="token"),)), "'token' must have 8 or 16 bits"),
    (lambda g: replace(g, outputs=(Output(tensor="up", pool="sum"),)),
     "pool must be none, first, last, mean, not 'sum'"),
    (lambda g: replace(g, outputs=()), "it has no output"),
    (lambda g: change(g, "context", causal=1), "causal must be true or false, not 1"),
    (lambda g: change(g, "context", k_low="k"), "q_low and k_low must be given together"),
    (lambda g: replace(g, nodes=g.nodes[:1] + g.nodes[2:]),
     "Linear 'q_proj.node': input 'norm' is not defined by an earlier node"),
    (lambda g: replace(g, nodes=g.nodes[:2] + g.nodes[1:]), "another node has the same name"),
    (lambda g: replace(g, nodes=(*g.nodes, replace(g.nodes[-1], name="again"))),
     "tensor 'token' is defined twice"),
    (lambda g: replace(g, tensors=g.tensors | {"x": replace(g.tensors["q"], name="x")}),
     "a tensor is described but never defined"),
    (lambda g: replace(g, tensors={n: t for n, t in g.tensors.items() if n != "q"}),
     "tensor 'q' is not described"),
    (lambda g: constant(g, "spare", np.zeros(1)), "constant 'spare' is never read"),
    (lambda g: constant(g, "up.mult", g.constants["up.mult"].astype("int32")),
     "Linear 'up.node': constant 'up.mult' must be uint16, not int32"),
    (lambda g: constant(g, "up.weight", g.constants["up.weight"][:, :5]),
     r"constant 'up.weight' must have the shape \[10, 8\], not \[10, 5\]"),
    (lambda g: constant(g, "up.weight", np.full((10, 8), -128, np.int8)),
     "constant 'up.weight' must not hold -128"),
    (lambda g: constant(g, "up.shift", g.constants["up.shift"] * 0 + 63),
     "constant 'up.shift' must be at most 62, not 63"),
    (lambda g: change(g, "up", mult="nothing"), "constant 'nothing' is missing"),
    (lambda g: retype(g, "embedding", bits=8), "'embedding' must have 16 bits, not 8"),
    (lambda g: retype(g, "k", bits=16), "Attention 'context.node': tensor 'k' must have 8 bits"),
    (lambda g: retype(g, "up", channels=9), r"shape \[9, 8\], not \[10, 8\]"),
    (lambda g: retype(g, "up", scale=(float("nan"),)), "scale must be a finite positive number"),
    (lambda g: retype(g, "up", scale=(0.0,)), "every scale must be a finite positive number"),
    (lambda g: retype(g, "up", scale=(1.0, 1.0)), "one scale, or one per channel"),
    (lambda g: retype(g, "up", name="x"), "Tensor 'up': its own name is 'x'"),
    (lambda g: change(g, "norm", eps=65536), "eps must be an integer from 0 to 65535, not 65536"),
    (lambda g: change(g, "norm", eps_shift=39), "eps_shift must be an integer from 0 to 38"),
    (lambda g: change(g, "norm", center=0), "center must be true or false, not 0"),
    (lambda g: change(g, "q", shift=14), "shift must be an integer from 15 to 62, not 14"),
    (lambda g: change(g, "q", head_dim=3), "head_dim must be even and divide 8, not 3"),
    (lambda g: change(g, "context", kv_heads=3), "kv_heads must divide 4 heads, not 3"),
    (lambda g: change(g, "context", score_mult=1 << 16), "score_mult must be an integer from 0"),
    (lambda g: change(g, "context", score_shift=63), "score_shift must be an integer from 0"),
    (lambda g: change(g, "context", probability_bits=12), "probability_bits must be 8 or 16"),
    (lambda g: change(g, "residual", mult_b=-1), "mult_b must be an integer from 0 to 65535"),
    (lambda g: change(g, "residual", shift=1.0), "shift must be an integer from 0 to 62, not 1.0"),
    (lambda g: change(g, "product", mult=True), "mult must be an integer from 0 to 65535, not Tru"),
    (lambda g: change(g, "product", b="norm"), "tensor 'norm' must have 10 channels, not 8"),
    (lambda g: change(g, "exact", exact=None), "exact must be true or false, not None"),
]


WRONG_GROUPS = [
    (lambda g: change(g, "up", group=16), "group must be one of 32, 64, 128, not 16"),
    (lambda g: change(g, "up", group=True), "group must be one of 32, 64, 128, not True"),
    (lambda g: change(g, "up", group=None), "group and group_scale must be given together"),
    (lambda g: change(g, "up", group_scale=None), "group and group_scale must be given together"),
    (lambda g: change(g, "up", group_scale="nothing"), "constant 'nothing' is missing"),
    (lambda g: constant(g, "up.weight", g.constants["up.weight"].view(np.int8)),
     "constant 'up.weight' must be uint8, not int8"),
    (lambda g: constant(g, "up.weight", g.constants["up.weight"][:, :3]),
     r"constant 'up.weight' must have the shape \[10, 4\], not \[10, 3\]"),
    (lambda g: constant(g, "up.weight", np.full((10, 4), 0x80, np.uint8)),
     "constant 'up.weight' must not hold a value of -8"),
    (lambda g: constant(g, "up.group_scale", np.full((10, 2), 1, np.uint8)),
     r"constant 'up.group_scale' must have the shape \[10, 1\], not \[10, 2\]"),
    (lambda g: constant(g, "up.group_scale", np.full((10, 1), 0, np.uint8)),
     "constant 'up.group_scale' must be 1 to 18, not 0"),
    (lambda g: constant(g, "up.group_scale", np.full((10, 1), 19, np.uint8)),
     "constant 'up.group_scale' must be 1 to 18, not 19"),
]


@pytest.mark.parametrize(
    "spoil, message", WRONG_GROUPS, ids=[message[:40] for _, message in WRONG_GROUPS])
def test_wrong_groups_are_refused(spoil, message, seed):
    with pytest.raises(GraphError, match=message):
        spoil(in_groups(every_node(seed), 64, seed))


def test_nothing_may_hide_beyond_an_odd_number_of_channels(seed):
    graph = odd_channels(seed)
    packed = graph.constants["y.weight"].copy()
    packed[2, -1] |= 0x30
    with pytest.raises(GraphError, match=r"constant 'y\.weight' must be 0 beyond the last channel"):
        constant(graph, "y.weight", packed)


def odd_channels(seed: int) -> Graph:
    """One linear node with 67 input channels: three groups of 32, the last one of 3."""
    made = Maker(seed)
    nodes = (Given(**made.tensor("x", 16, 67)), made.linear("y", "x", 5, 16, 22))
    graph = Graph(nodes=nodes, tensors=made.tensors, constants=made.constants,
                  outputs=(Output(tensor="y"),), context=12)
    return in_groups(graph, 32, seed)


def test_four_bits_are_expanded(seed):
    graph = odd_channels(seed)
    (node,) = graph.of_kind(Linear)
    assert (node.weight_bits, node.weight_format) == (4, "int4/32")
    assert graph.weight_formats() == {"y": "int4/32"}
    packed, scale = (graph.constants[f"y.{part}"].tolist() for part in ("weight", "group_scale"))
    found = int8_weight(graph, node)
    assert found.dtype == np.int8 and found.shape == (5, 67)
    for n in range(5):
        for k in range(67):
            half = packed[n][k // 2] >> 4 * (k % 2) & 15
            assert found[n, k] == (half - 16 * (half > 7)) * scale[n][k // 32], (n, k)
    assert graph.weight_bytes() == 5 * 34 + 5 * 3
    assert every_node(seed).weight_formats()["up"] == "int8"


WRONG_ENCODERS = [
    (lambda g: change(g, "positions", table="types.table"),
     r"'types.table' must have the shape \[12, 8\], not \[2, 8\]"),
    (lambda g: change(g, "part", count=9), "count must be an integer from 1 to 5, not 9"),
    (lambda g: change(g, "part", first=8), "first must be an integer from 0 to 7, not 8"),
    (lambda g: change(g, "both", xs=()), "it needs at least one input"),
    (lambda g: change(g, "both", xs=("part", "k")), "tensor 'k' must have 16 bits, not 8"),
    (lambda g: change(g, "context", k_low="q"), "tensor 'q' must have 8 bits"),
    (lambda g: change(g, "context", probability_bits=8), "v_low need probabilities of 16 bits"),
    (lambda g: retype(g, "given", bits=32), "tensor 'given' must have 8 or 16 bits, not 32"),
]


@pytest.mark.parametrize(
    "spoil, message", WRONG_ENCODERS, ids=[message[:40] for _, message in WRONG_ENCODERS])
def test_a_wrong_encoder_is_refused(spoil, message, seed):
    with pytest.raises(GraphError, match=message):
        spoil(encoder(seed))


@pytest.mark.parametrize("spoil, message", WRONG, ids=[message[:40] for _, message in WRONG])
def test_a_wrong_graph_is_refused(spoil, message, seed):
    with pytest.raises(GraphError, match=message):
        spoil(every_node(seed))
