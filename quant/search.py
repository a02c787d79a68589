"""Mixed precision: which inputs of matrix products do with 8 bits, within a budget of error.

Every input is tried alone at 8 bits in a float execution that rounds where the product reads; those
that save the most array cycles for the least error go first. How many of them the budget allows is
found by bisection with the integer forward, which has the last word.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from systolith.errors import UserError
from systolith.forward import IntegerModel
from systolith.quant.calibrate import Inputs, Range, batches_of, calibrate
from systolith.quant.network import TOKENS, Attention, Linear, Network, Op
from systolith.quant.posttraining import QuantizedNetwork, prepared, quantize_network
from systolith.quant.recipe import Recipe

ARRAY = 16
"""Rows and columns of the array whose cycles are predicted."""

Batches = list[tuple[Inputs, Tensor | None]]


class BudgetError(UserError):
    """A budget that no choice of bits keeps."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One tensor at 8 bits alone: mean divergence in nats that it causes, and cycles it saves."""

    name: str
    divergence: float
    cycles: int


def linear_cycles(inputs: int, outputs: int, tokens: int, bits: int) -> int:
    """Predicted array cycles of a Linear: each tile of weights waits for its loading at least."""
    tiles = -(-inputs // ARRAY) * -(-outputs // ARRAY)
    return tiles * max(bits // 8 * tokens, ARRAY)


def saved_cycles(network: Network, name: str, tokens: int) -> int:
    """Cycles that 8 instead of 16 bits of a tensor save over all Linears that read it."""
    shapes = [op.weight.shape for op in network.of_kind(Linear) if op.x == name]
    return sum(linear_cycles(k, n, tokens, 16) - linear_cycles(k, n, tokens, 8) for n, k in shapes)


def candidates(
    network: Network, batches: Batches, ranges: Mapping[str, Range], recipe: Recipe
) -> list[Candidate]:
    """Every input of a Linear that is not at 8 bits yet, the most worthwhile first."""
    names = dict.fromkeys(op.x for op in network.of_kind(Linear))
    tokens = max(next(iter(inputs.values())).shape[1] for inputs, _ in batches)
    floats = [network.results(network.run(*batch), batch[1])[0] for batch in batches]
    found = []
    for name in names:
        if recipe.activation_bits(name) == 8:
            continue
        limit = float(ranges[name].clip(recipe.range, recipe.percentile)[0])
        read = rounding(name, max(limit, 1e-30) / 127)
        errors = [divergence(exact, network.results(network.run(*batch, read), batch[1])[0])
                  for exact, batch in zip(floats, batches, strict=True)]
        found.append(Candidate(name=name, divergence=float(np.mean(errors)),
                               cycles=saved_cycles(network, name, tokens)))
    return sorted((c for c in found if c.cycles), key=lambda c: c.divergence / c.cycles)


def rounding(name: str, scale: float) -> Callable[[Op, str, Tensor], Tensor]:
    """Rounds a tensor to 8 bits where a matrix product reads it."""
    def read(op: Op, x_name: str, x: Tensor) -> Tensor:
        product = isinstance(op, Linear) or (isinstance(op, Attention) and x_name == op.q)
        if x_name != name or not product:
            return x
        return (x / scale).round().clamp(-128, 127) * scale
    return read


def divergence(exact: Tensor, other: Tensor) -> float:
    """Mean Kullback-Leibler divergence in nats of the predictions of logits [..., vocabulary]."""
    p, q = exact.double().log_softmax(-1), other.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def integer_divergence(made: QuantizedNetwork, network: Network, batches: Batches) -> float:
    """The same of the integer graph, over all tokens of unpadded sequences."""
    integers, errors, weights = IntegerModel(made.graph), [], []
    for inputs, lengths in batches:
        exact = network.results(network.run(inputs, lengths), lengths)[0]
        rows = inputs[TOKENS]
        for i, row in enumerate(rows):
            count = len(row) if lengths is None else int(lengths[i])
            found = torch.from_numpy(integers.logits(row[:count].tolist()))
            errors.append(divergence(exact[i, :count], found))
            weights.append(count)
    return float(np.average(errors, weights=weights))


def search(
    network: Network,
    batches: Iterable[ArrayLike | Mapping[str, ArrayLike]],
    recipe: Recipe,
    ratio: float,
    *,
    bos: int | None = None,
    eos: int | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> tuple[QuantizedNetwork, list[Candidate]]:
    """The quantized network with the fewest predicted cycles, and what it has at 8 bits.

    ``ratio``: most that the perplexity on the network's own text may grow by, as exp of the
    divergence. Raises `BudgetError` if not even 16 bits everywhere keep it.
    """
    data = list(batches)
    context = recipe.context or network.context
    seen = list(batches_of(network, data, context))
    progress("measuring sensitivities")
    ready = prepared(network, seen, recipe, context)
    names = {op.x for op in ready.of_kind(Linear)}
    order = candidates(ready, seen, calibrate(ready, seen, names, context), recipe)

    def attempt(count: int) -> tuple[QuantizedNetwork, float]:
        bits = (*recipe.bits, *((c.name, 8) for c in order[:count]))
        made = quantize_network(network, data, replace(recipe, bits=bits), bos=bos, eos=eos)
        found = float(np.exp(integer_divergence(made, network, seen)))
        progress(f"{count} of {len(order)} tensors at 8 bits: ratio {found:.5f}")
        return made, found

    best, reached = attempt(0)
    if reached > ratio:
        raise BudgetError(f"The budget of {ratio} is out of reach: with 16 bits for every input of "
                          f"a matrix product the ratio is {reached:.5f}; allow at least that")
    low, high = 0, len(order) + 1
    while high - low > 1:
        middle = (low + high) // 2
        made, reached = attempt(middle)
        if reached <= ratio:
            low, best = middle, made
        else:
            high = middle
    return best, order[:low]
