"""The integer forward against plain Python integers, and against itself cut into blocks."""

from dataclasses import replace

import numpy as np
import pytest

from systolith import bounds, golden
from systolith.fixed import saturate
from systolith.forward import ForwardError, IntegerModel
from systolith.graph import Attention, Linear, Output, Rope, int8_weight
from tests.graphs import (
    CHANNELS,
    CONTEXT,
    HEAD_DIM,
    HEADS,
    VOCABULARY,
    encoder,
    every_node,
    in_groups,
)


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


@pytest.mark.parametrize("group", [32, 64, 128])
def test_weights_of_four_bits_are_those_that_they_stand_for(group, seed):
    graph = in_groups(every_node(seed), group, seed)
    plain, nodes = dict(graph.constants), list(graph.nodes)
    for i, node in enumerate(nodes):
        if isinstance(node, Linear):
            plain[node.weight] = int8_weight(graph, node)
            del plain[node.group_scale]
            nodes[i] = replace(node, group=None, group_scale=None)
    same = replace(graph, nodes=tuple(nodes), constants=plain)
    found, expected = (IntegerModel(g).trace(tokens_of(seed)) for g in (graph, same))
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert bounds.prove(graph).keys() == bounds.prove(same).keys()
    for name, bound in bounds.prove(same).items():
        np.testing.assert_array_equal(bounds.prove(graph)[name], bound, err_msg=name)


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


def inputs_of(seed: int, length: int = 7) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"tokens": rng.integers(0, VOCABULARY, length), "types": rng.integers(0, 2, length),
            "given": rng.integers(-32768, 32768, (length, CHANNELS))}


def test_every_token_of_an_encoder_sees_all_the_others(seed):
    graph, inputs = encoder(seed), inputs_of(seed)
    c, model = graph.constants, IntegerModel(graph)
    values = model.trace(inputs)
    t = np.arange(7)
    x = (c["words.table"][inputs["tokens"]].astype(int) + c["positions.table"][t])
    x = golden.add(x, c["types.table"][inputs["types"]], 1, 1, 0, 16)
    np.testing.assert_array_equal(values["x"], golden.add(x, inputs["given"], 1, 1, 0, 16))
    out = []
    for head in range(HEADS):
        mine, shared = slice(2 * head, 2 * head + 2), slice(head // 2 * 2, head // 2 * 2 + 2)
        scores = (values["q"][:, mine] @ values["k"][:, shared].T
                  + values["q_low"][:, mine] @ values["k_low"][:, shared].T)
        p = golden.softmax(scores, 40000, 18, 7, 16)
        acc = p @ values["v"][:, shared] + (p >> 8) @ values["v_low"][:, shared]
        out.append(golden.scale(acc, c["context.bias"][mine],
                                c["context.mult"][mine], c["context.shift"][mine]))
    np.testing.assert_array_equal(values["context"], np.concatenate(out, axis=1))
    np.testing.assert_array_equal(values["part"], values["context"][:, 3:6])
    np.testing.assert_array_equal(
        values["both"], np.concatenate([values["part"], values["x"]], axis=1))
    # A second sequence owes nothing to the first.
    again = {name: np.asarray(v)[:4] for name, v in inputs.items()}
    np.testing.assert_array_equal(model.trace(again)["x"], values["x"][:4])
    assert not np.array_equal(model.trace(again)["context"], values["context"][:4])


def test_outputs_are_real_and_pooled(seed):
    graph, inputs = encoder(seed), inputs_of(seed)
    model = IntegerModel(graph)
    pooled, context = model.run(inputs)
    values = model.trace(inputs)
    mean = (values["both"] * 0.5).mean(axis=0)
    np.testing.assert_allclose(pooled, mean / np.sqrt((mean**2).sum()), rtol=1e-12)
    np.testing.assert_array_equal(context, values["context"] * 0.5)
    both = graph.outputs[0].tensor
    for pool, row in (("first", 0), ("last", -1)):
        found = model.real(values[both], Output(tensor=both, pool=pool))
        np.testing.assert_array_equal(found, values[both][row] * 0.5)


@pytest.mark.parametrize("change, message", [
    ({"types": None}, "The input 'types' is missing"),
    ({"types": [2] * 7}, "Values of 'types' must be 0 to 1, not 2"),
    ({"types": [1] * 6}, "The inputs must have the same number of tokens"),
    ({"given": np.zeros((7, 3))}, r"'given' must have the shape \[7, 8\], not \[7, 3\]"),
    ({"given": np.full((7, CHANNELS), 1 << 15)}, "'given' must be -32768 to 32767, not 32768"),
    ({"tokens": []}, "A block must have at least one token"),
])
def test_wrong_inputs_are_refused(change, message, seed):
    inputs = {n: v for n, v in (inputs_of(seed) | change).items() if v is not None}
    with pytest.raises(ForwardError, match=message):
        IntegerModel(encoder(seed)).trace(inputs)
