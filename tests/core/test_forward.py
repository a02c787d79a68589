"""The integer forward against plain Python integers, and against itself cut into blocks."""

import numpy as np
import pytest

from systolith import golden
from systolith.fixed import saturate
from systolith.forward import ForwardError, IntegerModel
from systolith.graph import Attention, Linear, Rope
from tests.graphs import CONTEXT, HEAD_DIM, VOCABULARY, every_node


def tokens_of(seed: int, count: int = CONTEXT) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()


def rescale(acc: int, c: dict, node, n: int, bits: int = 16) -> int:
    """The accumulator of channel n, rescaled, in Python integers."""
    mult, shift = int(c[node.mult][n]), int(c[node.shift][n])
    y = ((acc + int(c[node.bias][n])) * mult + (1 << shift >> 1)) >> shift
    return max(-(1 << (bits - 1)), min((1 << (bits - 1)) - 1, y))


def test_linear_in_python_integers(seed):
    graph = every_node(seed)
    values, c = IntegerModel(graph).trace(tokens_of(seed)), graph.constants
    for node in graph.of_kind(Linear):
        if node.table is not None:
            continue
        x, out = values[node.x].tolist(), values[node.out]
        assert len(np.unique(out)) > 10, f"{node.name} says too little"
        for t, row in enumerate(x):
            for n, weights in enumerate(c[node.weight].tolist()):
                acc = sum(a * w for a, w in zip(row, weights, strict=True))
                expected = rescale(acc, c, node, n, graph.tensors[node.out].bits)
                assert out[t, n] == expected, (node.name, t, n)


def test_rope_positions_and_heads(seed):
    graph = every_node(seed)
    values, c = IntegerModel(graph).trace(tokens_of(seed)), graph.constants
    for node in graph.of_kind(Rope):
        bits = graph.tensors[node.out].bits
        for t, row in enumerate(values[node.x].tolist()):
            for i, x in enumerate(row):
                column = i % HEAD_DIM
                y = x * int(c["cos"][t, column]) + row[i ^ 1] * int(c["sin"][t, column])
                y = (y + (1 << node.shift >> 1)) >> node.shift
                assert values[node.out][t, i] == saturate(y, bits), (node.name, t, i)


def test_attention_head_by_head(seed):
    graph = every_node(seed)
    values = IntegerModel(graph).trace(tokens_of(seed))
    (node,) = graph.of_kind(Attention)
    q, k, v = (values[name].tolist() for name in (node.q, node.k, node.v))
    assert len(np.unique(values["context"])) > 10
    for t in range(CONTEXT):
        for head in range(node.heads):
            first, shared = head * HEAD_DIM, head // 2 * HEAD_DIM
            scores = [sum(q[t][first + i] * k[s][shared + i] for i in range(HEAD_DIM))
                      for s in range(t + 1)]
            p = golden.softmax([scores], node.score_mult, node.score_shift, t + 1, 16)[0].tolist()
            for i in range(HEAD_DIM):
                acc = sum(p[s] * v[s][shared + i] for s in range(t + 1))
                y = saturate(rescale(acc, graph.constants, node, first + i), 8)
                assert values["context"][t, first + i] == y, (t, head, i)


def test_blocks_do_not_matter(seed):
    graph = every_node(seed)
    tokens = tokens_of(seed)
    model = IntegerModel(graph)
    whole = model.trace(tokens)
    for cuts in ([*range(CONTEXT)], [0, 5], [0, 1, 4, 11]):
        model.reset()
        parts = [model.trace(tokens[a:b])
                 for a, b in zip(cuts, [*cuts[1:], CONTEXT], strict=True)]
        assert model.start == CONTEXT
        for name, expected in whole.items():
            found = np.concatenate([part[name] for part in parts])
            wrong = np.argwhere(found != expected)
            assert not len(wrong), f"{name} differs at (token, channel) {wrong[0]}, cuts {cuts}"


def test_what_comes_later_does_not_matter(seed):
    model = IntegerModel(every_node(seed))
    tokens = tokens_of(seed)
    whole = model.step(tokens)
    model.reset()
    np.testing.assert_array_equal(model.step(tokens[:7]), whole[:7])
    model.reset()
    other = model.step([*tokens[:7], *((np.array(tokens[7:]) + 1) % VOCABULARY)])
    np.testing.assert_array_equal(other[:7], whole[:7])
    assert (other[7:] != whole[7:]).any()


def test_every_tensor_fits_its_type(seed):
    graph = every_node(seed)
    for name, value in IntegerModel(graph).trace(tokens_of(seed)).items():
        tensor = graph.tensors[name]
        assert value.shape == (CONTEXT, tensor.channels) and value.dtype == np.int64
        np.testing.assert_array_equal(value, saturate(value, tensor.bits), err_msg=name)


def test_generation_is_greedy_and_ends(seed):
    graph = every_node(seed)
    model = IntegerModel(graph)
    new = model.generate([3, 4], 100)
    tokens = [3, 4]
    for token in new:
        assert token == model_token(graph, tokens)
        tokens.append(token)
    # The last token has no room in the caches, but it is known.
    assert len(tokens) == CONTEXT + 1 or new[-1] in (graph.bos, graph.eos)
    assert not {graph.bos, graph.eos} & set(new[:-1])
    model.reset()
    assert model.generate([3, 4], 3) == new[:3]
    model.reset()
    assert model.generate([3, 4], 0) == []


def model_token(graph, tokens: list[int]) -> int:
    return int(IntegerModel(graph).trace(tokens)["token"][-1, 0])


def test_real_logits_have_the_scale_of_the_tensor(seed):
    graph = every_node(seed)
    model = IntegerModel(graph)
    integers = model.step([1, 2, 3])
    np.testing.assert_array_equal(model.logits([1, 2, 3]), integers * 0.5)


def test_wrong_tokens_are_refused(seed):
    model = IntegerModel(every_node(seed))
    with pytest.raises(ForwardError, match="A block must have at least one token"):
        model.step([])
    for wrong in (VOCABULARY, -1):
        with pytest.raises(ForwardError, match=f"Tokens must be 0 to 10, not {wrong}"):
            model.step([0, wrong])
    model.step([0] * 7)
    with pytest.raises(ForwardError, match="context is 12 tokens, and 13 do not fit"):
        model.step([0] * 6)
    assert model.start == 7
