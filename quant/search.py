"""Mixed precision: which operands of matrix products do with 8 bits, within a budget of error.

Every choice is tried alone in a float execution that rounds where the product reads; those that
save the most array cycles for the least error go first. How many of them the budget allows is found
by bisection with the integer model, which has the last word; what bisection left is then tried one
by one. The budget is judged on data that the ranges were not calibrated on.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from systolith import cost
from systolith.graph import Graph
from systolith.quant.budget import Budget, BudgetError, Error
from systolith.quant.calibrate import Float, Range
from systolith.quant.network import Attention, Linear, Network, Op, Reader, probabilities
from systolith.quant.posttraining import (
    Batches,
    Calibrated,
    Progress,
    QuantizedModel,
    calibrated,
    silent,
)
from systolith.quant.recipe import Recipe
from systolith.quant.torch_model import IntegerModule

HELD_OUT = 4
"""Every fourth sequence judges, where there are as many."""
LEFT_OVER = 12
"""Choices beyond those of the bisection that are tried one by one."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One operand that may have 8 bits: the error that it causes alone, and the cycles it saves.

    ``error``: in the metric of the budget. ``kind``: the field of `Recipe` that says its
    bits, "bits", "keys" or "values".
    """

    name: str
    error: Error
    cycles: int
    kind: str = "bits"


def split(seen: Batches) -> tuple[Batches, Batches]:
    """Batches to calibrate on and to judge on; the same, where there are too few.

    Sequences are taken from all batches, which may be sorted by length.
    """
    parts: tuple[Batches, Batches] = [], []
    first = 0
    for inputs, lengths in seen:
        rows = first + torch.arange(len(next(iter(inputs.values()))))
        first += len(rows)
        judge = rows % HELD_OUT == HELD_OUT - 1
        for part, chosen in zip(parts, (~judge, judge), strict=True):
            if chosen.any():
                part.append(({name: x[chosen] for name, x in inputs.items()},
                             None if lengths is None else lengths[chosen]))
    return parts if parts[1] else (seen, seen)


def choices(ready: Calibrated, judged: Batches, recipe: Recipe, budget: Budget,
            progress: Progress = silent) -> list[Choice]:
    """Every operand whose bits nobody has pinned, the most worthwhile first."""
    network, ranges = ready.network, ready.ranges
    tokens = max(next(iter(inputs.values())).shape[1] for inputs, _ in judged)
    exact = [network.results(network.run(*batch), batch[1]) for batch in judged]

    def error(read: Reader) -> Error:
        found = [network.results(network.run(*batch, read), batch[1]) for batch in judged]
        return budget.error(exact, found, [lengths for _, lengths in judged])

    found: list[Choice] = []
    products = [*network.of_kind(Linear), *network.of_kind(Attention)]

    def consider(name: str, cycles: int, scale: Float, kind: str = "bits") -> None:
        if cycles > 0 and not recipe.pinned(kind, name):
            # An attention has four operands, Linears often share theirs.
            part = len(found) / (2 * len(products))
            progress(f"sensitivity of {name}", 0.3 + 0.4 * min(part, 1.0))
            read = rounding(name, torch.from_numpy(scale).float(), unsigned=".prob" in name)
            found.append(Choice(name=name, error=error(read), cycles=cycles, kind=kind))

    for name in dict.fromkeys(op.x for op in network.of_kind(Linear)):
        consider(name, saved_by_input(network, name, tokens), _scale(ranges[name], recipe))
    for a in network.of_kind(Attention):
        def saved(a: Attention = a, **fewer: int) -> int:
            of = (a.heads, a.kv_heads, a.head_dim, tokens, tokens)
            most = {"key_parts": 2, "value_parts": 2}
            return (cost.attention_cycles(*of, **most)
                    - cost.attention_cycles(*of, **(most | fewer)))

        cache = {name: ranges[name].largest * recipe.margin / 127 + 1e-30
                 for name in (a.k, a.v)}
        consider(a.q, saved(q_planes=1), _scale(ranges[a.q], recipe))
        consider(probabilities(a), saved(p_planes=1, value_parts=1), np.array([1 / 255]))
        consider(a.k, saved(key_parts=1), cache[a.k], "keys")
        consider(a.v, saved(value_parts=1), cache[a.v], "values")
    return sorted(found, key=lambda c: c.error.mean / c.cycles)


def saved_by_input(network: Network, name: str, tokens: int) -> int:
    """Cycles that 8 instead of 16 bits of a tensor save over all Linears that read it."""
    shapes = [op.weight.shape for op in network.of_kind(Linear) if op.x == name]
    return sum(cost.product_cycles(tokens, k, n, 2) - cost.product_cycles(tokens, k, n, 1)
               for n, k in shapes)


def _scale(seen: Range, recipe: Recipe) -> Float:
    return recipe.margin * seen.clip(recipe.range, recipe.percentile).clip(min=1e-30) / 127


def rounding(name: str, scale: Tensor, unsigned: bool = False) -> Reader:
    """Rounds a tensor to 8 bits where a matrix product reads it."""
    low, high = (0, 255) if unsigned else (-128, 127)

    def read(op: Op, x_name: str, x: Tensor) -> Tensor:
        if x_name != name or not isinstance(op, Linear | Attention):
            return x
        return (x / scale).round().clamp(low, high) * scale
    return read


def integer_error(graph: Graph, network: Network, judged: Batches, budget: Budget) -> Error:
    """How far a graph's outputs are from its network's."""
    integers = IntegerModule(graph)
    exact = [network.results(network.run(*batch), batch[1]) for batch in judged]
    found = [integers.results(integers.trace(*batch), batch[1]) for batch in judged]
    return budget.error(exact, found, [lengths for _, lengths in judged])


def search(
    network: Network,
    seen: Batches,
    recipe: Recipe,
    *,
    bos: int | None = None,
    eos: int | None = None,
    progress: Progress = silent,
) -> QuantizedModel:
    """The quantized model with the fewest predicted array cycles within the recipe's budget.

    Raises `BudgetError` if not even the most bits everywhere keep it.
    """
    budget = Budget.parse(recipe.budget)
    if budget.metric == "ppl" and not network.generative:
        raise BudgetError("A perplexity budget needs a language model (causal, a score for each "
                          "token); use cosine=NUMBER")
    calibration, judged = split(seen)
    ready = calibrated(network, calibration, recipe, progress)
    order = choices(ready, judged, recipe, budget, progress)
    exact = [ready.network.results(ready.network.run(*batch), batch[1]) for batch in judged]

    attempts: list[int] = []

    def attempt(chosen: list[Choice]) -> tuple[Graph, Error]:
        graph = ready.build(_with(recipe, chosen), bos, eos)
        integers = IntegerModule(graph)
        found = [integers.results(integers.trace(*batch), batch[1]) for batch in judged]
        error = budget.error(exact, found, [lengths for _, lengths in judged])
        attempts.append(len(chosen))
        part = len(attempts) / (len(order).bit_length() + LEFT_OVER)
        progress(f"{len(chosen)} of {len(order)} operands at 8 bits: {budget.shown(error)}",
                 0.7 + 0.25 * min(part, 1.0))
        return graph, error

    graph, error = attempt([])
    if not budget.kept(error):
        raise BudgetError(f"The budget {recipe.budget} is out of reach: with the most bits for "
                          f"every operand that is not pinned, the result is "
                          f"{budget.shown(error)}; allow that, or try other ranges, smoothing or "
                          f"more calibration data")
    low, high = 0, len(order) + 1
    while high - low > 1:
        middle = (low + high) // 2
        made, reached = attempt(order[:middle])
        if budget.kept(reached):
            low, graph, error = middle, made, reached
        else:
            high = middle
    chosen = order[:low]
    # order[low] itself has been tried.
    for candidate in order[low + 1:low + 1 + LEFT_OVER]:
        made, reached = attempt([*chosen, candidate])
        if budget.kept(reached):
            chosen, graph, error = [*chosen, candidate], made, reached
    progress(f"{len(chosen)} of {len(order)} operands at 8 bits keep {recipe.budget}: "
             f"{budget.shown(error)}", 0.95)
    return QuantizedModel(
        graph=graph, network=ready.network, recipe=_with(recipe, chosen), ranges=ready.ranges,
        judged=judged, reasons=_reasons(order, chosen, budget),
        metadata={"budget": recipe.budget, "reached": budget.shown(error)})


def _with(recipe: Recipe, chosen: list[Choice]) -> Recipe:
    """The recipe with 8 bits for the chosen operands, before what the user has pinned."""
    def patterns(kind: str) -> tuple[tuple[str, int], ...]:
        return (*((c.name, 8) for c in chosen if c.kind == kind), *getattr(recipe, kind))

    return replace(recipe, **{kind: patterns(kind) for kind in ("bits", "keys", "values")})


def _reasons(order: list[Choice], chosen: list[Choice], budget: Budget) -> dict[str, str]:
    def reason(c: Choice) -> str:
        alone = budget.shown(c.error)
        verdict = "8 bits" if c in chosen else "not 8 bits, the budget was used up"
        return f"{verdict}: {alone} alone, {c.cycles:,} cycles saved"
    return {c.name: reason(c) for c in order}
