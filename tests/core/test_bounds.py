from dataclasses import replace

import numpy as np
import pytest

from systolith import bounds, golden
from systolith.graph import GraphError
from tests.graphs import CONTEXT, HEAD_DIM, encoder, every_node


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("length", [1, 2, 3, 100, 171, 512, 4096])
def test_no_softmax_row_sums_to_more(bits, length, seed):
    rng = np.random.default_rng((seed, bits, length))
    one = 1 << bits
    rows = [np.zeros(length)]
    # Equal probabilities just above a half LSB all round up: the worst case of the roundings.
    for count in (2 * one - 2, 2 * one // 3 + 1):
        if length > 1:
            rest = np.log2(max(count - length + 1, 1))  # a first term that outweighs the others
            rows.append(np.r_[rest, np.zeros(length - 1)])
    rows += [rng.normal(0, s, length) for s in (1e-3, 0.1, 1, 4)]
    scores = np.rint(np.array(rows) * 65536).astype(np.int64)
    sums = golden.softmax(scores, 1 << 15, 15, length, bits).sum(axis=1)
    assert (sums <= bounds.softmax_sum(length, bits)).all(), sums
    assert bounds.softmax_sum(length, bits) <= one * 1.001 + length / 2 + 2


def test_the_roundings_can_add_up():
    """Without the part for the roundings the bound would be wrong."""
    scores = np.zeros((1, 500), dtype=np.int64)
    assert golden.softmax(scores, 1, 0, 500, 8).sum() == 500  # 255 / 500 rounds up


def test_a_linear_bound_is_reached(seed):
    rng = np.random.default_rng(seed)
    weight = rng.integers(-127, 128, (5, 30), dtype=np.int8)
    bias = rng.integers(-(1 << 20), 1 << 20, 5, dtype=np.int32)
    for bits in (8, 16):
        x = -(1 << (bits - 1)) * np.sign(weight).astype(np.int64)
        acc = (x * weight).sum(axis=1)
        expected = np.abs(acc) + np.abs(bias.astype(np.int64))
        np.testing.assert_array_equal(bounds.linear_bound(weight, bias, bits), expected)


def test_the_extreme_weights_do_not_wrap():
    weight, bias = np.full((1, 4), -127, np.int8), np.array([-(1 << 31)], np.int32)
    assert bounds.linear_bound(weight, bias, 16) == 4 * 127 * 32768 + (1 << 31)


def test_every_accumulator_of_a_graph_has_a_bound(seed):
    graph = every_node(seed)
    found = bounds.prove(graph)
    linear = {f"{name}.node" for name in
              ("q_proj", "k_proj", "v", "o_proj", "gate", "up", "down", "logits")}
    assert set(found) == linear | {"context.node.scores", "context.node.context"}
    assert found["context.node.scores"].tolist() == [32768 * 128 * HEAD_DIM]
    bias = np.abs(graph.constants["context.bias"].astype(int))
    expected = bounds.softmax_sum(CONTEXT, 16) * 128 + bias
    np.testing.assert_array_equal(found["context.node.context"], expected)
    weight = np.abs(graph.constants["o_proj.weight"].astype(int)).sum(axis=1)
    bias = np.abs(graph.constants["o_proj.bias"].astype(int))
    np.testing.assert_array_equal(found["o_proj.node"], weight * 128 + bias)


def test_both_products_of_split_keys_count(seed):
    graph = encoder(seed)
    found, bias = bounds.prove(graph), graph.constants["context.bias"].astype(int)
    assert found["context.node.scores"].tolist() == [2 * 32768 * 128 * HEAD_DIM]
    row = bounds.softmax_sum(CONTEXT, 16)
    np.testing.assert_array_equal(found["context.node.context"],
                                  (row + row // 256) * 128 + np.abs(bias))


def test_an_accumulator_that_could_overflow_is_refused(seed):
    graph = every_node(seed)
    bias = np.full_like(graph.constants["up.bias"], (1 << 31) - 1)
    spoilt = replace(graph, constants=graph.constants | {"up.bias": bias})
    with pytest.raises(GraphError, match=r"up\.node: its accumulator can reach \d+ in channel "
                       r"\d, beyond 2147"):
        bounds.prove(spoilt)
