"""Mixed precision keeps its budget, prefers the cheap, and says when the budget is out of reach."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from systolith.quant import network as net
from systolith.quant.budget import Budget, BudgetError, Error
from systolith.quant.calibrate import batches_of
from systolith.quant.llama_network import llama_network
from systolith.quant.posttraining import quantize_network
from systolith.quant.recipe import Recipe
from systolith.quant.search import integer_error, rounding, split
from tests.quant.small import VOCABULARY, small_llama


def tokens(seed: int, count: int = 8) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, VOCABULARY, (count, 20)))


def test_budgets_are_read():
    assert Budget.parse("cosine=0.999") == Budget("cosine", 0.999)
    assert Budget.parse(" ppl = 1.005 ") == Budget("ppl", 1.005)


@pytest.mark.parametrize("text, message", [
    ("0.999", "A budget is cosine=NUMBER or ppl=NUMBER, not '0.999'"),
    ("ppl=", "A budget is cosine=NUMBER or ppl=NUMBER, not 'ppl='"),
    ("mse=1", "A budget is one of cosine, ppl, not 'mse'"),
    ("cosine=1.5", "A cosine budget must be between 0 and 1, not 1.5"),
    ("ppl=0.99", "A perplexity budget is a ratio above 1, not 0.99"),
    ("ppl=nan", "A perplexity budget is a ratio above 1, not nan"),
])
def test_wrong_budgets_are_refused(text, message):
    with pytest.raises(BudgetError, match=message):
        Recipe(budget=text)


def test_divergence_is_that_of_torch_and_leaves_padding_out():
    p, q = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(1)).double()
    lengths = torch.tensor([7, 2, 4])
    expected = [torch.nn.functional.kl_div(
        b[:n].log_softmax(-1), a[:n].log_softmax(-1), log_target=True, reduction="sum")
        for a, b, n in zip(p, q, lengths, strict=True)]
    error = Budget("ppl", 1.1).error([(p,)], [(q,)], [lengths])
    assert error.mean == pytest.approx(float(sum(expected)) / 13)
    assert error.worst == pytest.approx(max(float(e) / int(n) for e, n in zip(
        expected, lengths, strict=True)))


def test_cosines_of_vectors_and_of_tokens():
    a = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    b = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    error = Budget("cosine", 0.9).error([(a,)], [(b,)], [None])
    assert error.worst == pytest.approx(1 - math.sqrt(0.5))
    assert error.mean == pytest.approx(error.worst / 2)
    error = Budget("cosine", 0.9).error([(a[None],)], [(b[None],)], [torch.tensor([1])])
    assert error.worst == pytest.approx(0)


def test_the_worst_sequence_counts():
    assert Budget("cosine", 0.999).kept(Error(0.001, 0.0029))
    assert not Budget("cosine", 0.999).kept(Error(0.0005, 0.0031))
    assert Budget("ppl", 1.01).kept(Error(math.log(1.0099), 5.0))


def test_rounding_is_seen_by_products_alone():
    network = llama_network(small_llama(2))
    inputs = {"tokens": torch.from_numpy(tokens(3)[0])[None]}
    scale = torch.tensor([0.1])
    plain = network.run(inputs)
    rounded = network.run(inputs, None, rounding("layers.0.ffn.norm", scale))
    torch.testing.assert_close(plain["layers.0.ffn.norm"], rounded["layers.0.ffn.norm"])
    assert not torch.allclose(plain["layers.0.ffn.up"], rounded["layers.0.ffn.up"], atol=1e-3)
    ignored = network.run(inputs, None, rounding("embedding", scale))
    torch.testing.assert_close(plain["logits"], ignored["logits"])
    attention = next(network.of_kind(net.Attention))
    coarse = network.run(inputs, None, rounding(net.probabilities(attention), scale))
    assert not torch.allclose(plain[attention.name], coarse[attention.name], atol=1e-3)


def test_the_budget_is_judged_on_other_data():
    network = llama_network(small_llama(4))
    seen = list(batches_of(network, tokens(5)))
    calibration, judged = split(seen)
    assert (len(calibration), len(judged)) == (6, 2)
    assert torch.equal(judged[1][0]["tokens"], seen[7][0]["tokens"])
    (one,) = batches_of(network, [np.stack(tokens(5))])
    (calibration,), (judged,) = split([one])
    assert len(calibration[0]["tokens"]) == 6
    assert torch.equal(judged[0]["tokens"], one[0]["tokens"][[3, 7]])
    few = list(batches_of(network, tokens(5, count=3)))
    assert split(few) == (few, few)


def test_a_looser_budget_has_more_at_eight_bits():
    network, seen = llama_network(small_llama(4)), tokens(5)
    chosen = []
    for ratio in (1.001, 1.01, 1e9):
        made = quantize_network(network, seen, Recipe(budget=f"ppl={ratio}"))
        budget = Budget("ppl", ratio)
        assert budget.kept(integer_error(made.graph, made.network, made.judged, budget))
        eight = [name for name, bits in made.recipe.bits if bits == 8]
        assert all(made.graph.tensors[n].bits == 8 for n in eight if "probabilities" not in n)
        chosen.append(len(eight) + len(made.recipe.keys) + len(made.recipe.values))
    assert chosen[0] < chosen[1] <= chosen[2] == len(made.reasons)


def test_what_is_pinned_stays():
    network = llama_network(small_llama(4))
    recipe = Recipe(budget="ppl=1e9", bits=(("*.product", 16),), keys=(("layers.1.*", 12),))
    made = quantize_network(network, tokens(5), recipe)
    assert made.graph.tensors["layers.0.ffn.product"].bits == 16
    assert made.graph.tensors["layers.1.attention.norm"].bits == 8
    low = [node.k_low for node in made.graph.nodes if hasattr(node, "k_low")]
    assert low == [None, "layers.1.attention.k.low"]
    assert "layers.0.ffn.product" not in made.reasons


def test_a_cosine_serves_other_networks():
    network = llama_network(small_llama(4))
    outputs = (net.Output(x="norm", pool="mean", normalize=True),)
    ops = tuple(op for op in network.ops if op.name != "logits")
    encoder = replace(network, ops=ops, outputs=outputs)
    made = quantize_network(encoder, tokens(5), Recipe(budget="cosine=0.99"))
    assert any(bits == 8 for _, bits in made.recipe.bits)
    with pytest.raises(BudgetError, match="needs a language model"):
        quantize_network(encoder, tokens(5), Recipe(budget="ppl=1.1"))


def test_a_budget_out_of_reach_is_said_to_be():
    with pytest.raises(BudgetError, match=r"ppl=1\.0000001 is out of reach: .* ratio 1\.0"):
        quantize_network(llama_network(small_llama(6)), tokens(7), Recipe(budget="ppl=1.0000001"))
