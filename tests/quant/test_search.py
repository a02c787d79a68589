"""Mixed precision keeps its budget, prefers the cheap, and says when the budget is out of reach."""

import numpy as np
import pytest
import torch

from systolith.quant.calibrate import batches_of
from systolith.quant.llama_network import llama_network
from systolith.quant.recipe import Recipe
from systolith.quant.search import (
    BudgetError,
    divergence,
    integer_divergence,
    linear_cycles,
    rounding,
    search,
)
from tests.quant.small import VOCABULARY, small_llama


def tokens(seed: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, VOCABULARY, (6, 20)))


def test_cycles_of_a_linear():
    assert linear_cycles(64, 32, 100, 16) == 4 * 2 * 200
    assert linear_cycles(65, 33, 100, 8) == 5 * 3 * 100
    assert linear_cycles(16, 16, 1, 16) == linear_cycles(16, 16, 1, 8) == 16


def test_divergence_is_that_of_torch():
    p, q = torch.randn(2, 7, 9, generator=torch.Generator().manual_seed(1)).double()
    expected = torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True,
                                          reduction="sum") / 7
    assert divergence(p, q) == pytest.approx(float(expected))


def test_rounding_is_seen_by_products_alone():
    network = llama_network(small_llama(2))
    inputs = {"tokens": torch.from_numpy(tokens(3)[0])[None]}
    plain = network.run(inputs)
    rounded = network.run(inputs, None, rounding("layers.0.ffn.norm", 0.1))
    assert torch.equal(plain["layers.0.ffn.norm"], rounded["layers.0.ffn.norm"])
    assert not torch.equal(plain["layers.0.ffn.up"], rounded["layers.0.ffn.up"])
    ignored = network.run(inputs, None, rounding("embedding", 0.1))
    assert torch.equal(plain["logits"], ignored["logits"])


def test_a_looser_budget_has_more_at_eight_bits():
    network, seen = llama_network(small_llama(4)), tokens(5)
    chosen = []
    _, exact = search(network, seen, Recipe(), 1e9)
    assert len(exact) == len({op.x for op in network.ops if hasattr(op, "weight")})
    for ratio in (1.002, 1.01):
        made, eight = search(network, seen, Recipe(), ratio)
        reached = np.exp(integer_divergence(made, network, list(batches_of(network, seen))))
        assert reached <= ratio
        assert all(made.graph.tensors[c.name].bits == 8 for c in eight)
        chosen.append(len(eight))
    assert 0 <= chosen[0] <= chosen[1] and chosen[1] > 0


def test_a_budget_out_of_reach_is_said_to_be():
    with pytest.raises(BudgetError, match="out of reach: with 16 bits"):
        search(llama_network(small_llama(6)), tokens(7), Recipe(), 1.0)
