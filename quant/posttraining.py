"""Static quantization after training: a float network and calibration data to an integer graph."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from systolith.artifact import Artifact
from systolith.graph import Graph
from systolith.quant import report, transform
from systolith.quant.build import Builder, product_inputs
from systolith.quant.calibrate import (
    MASK,
    CalibrationError,
    Inputs,
    Range,
    batches_of,
    calibrate,
)
from systolith.quant.calling import Call, Signature, called, parameters_of, resized
from systolith.quant.capture import capture
from systolith.quant.network import Attention, Linear, Network
from systolith.quant.recipe import Recipe, RecipeError
from systolith.quant.torch_model import IntegerModule
from systolith.quant.weights import Weights

Batches = list[tuple[Inputs, Tensor | None]]
"""Inputs and lengths, as `Network.run` takes them."""
Progress = Callable[[str, float], None]
"""Told what happens, in a phrase, and which part of the work (0 to 1) is behind it."""


def silent(step: str, part: float) -> None:
    """No progress is shown."""


@dataclass(frozen=True, kw_only=True)
class QuantizedModel:
    """``graph`` and what it was made from.

    ``network`` has the original's function and the graph's order of channels: `Network.run` of it
    and `IntegerModule.trace` of the graph can be compared name by name. ``ranges``: of its tensors.
    ``judged``: batches that the ranges do not come from, if there were enough. ``reasons``: why a
    tensor that a product reads has its bits. ``tokenizer``: the bytes of its file, or none.
    ``metadata``: JSON data about the source. ``signature``: how `as_torch` is called.
    """

    graph: Graph
    network: Network
    recipe: Recipe
    ranges: dict[str, Range]
    judged: Batches
    reasons: dict[str, str] = field(default_factory=dict)
    tokenizer: bytes = b""
    metadata: dict[str, Any] = field(default_factory=dict)
    signature: Signature = field(default_factory=Signature)

    def as_torch(self) -> IntegerModule:
        """A torch module that computes the bits of the golden machine, and is called like the
        module that was quantized; its results are a tensor or a tuple of tensors, float64."""
        return IntegerModule(self.graph, self.signature)

    def artifact(self) -> Artifact:
        """What `save` writes; its metadata names the recipe."""
        facts = {"recipe": asdict(self.recipe), "reasons": self.reasons}
        return Artifact(self.graph, self.tokenizer, facts | self.metadata)

    def save(self, path: str | Path) -> None:
        """Writes a quantized-model file (.slq)."""
        self.artifact().save(Path(path))

    def report(self) -> report.Report:
        """Range, precision, noise and cycles of every tensor; printed, it is a table."""
        return report.measure(self.graph, self.network, self.judged, self.ranges, self.reasons)


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A network in the form that the builder reads, the ranges of its tensors, and the weights that
    were rounded for it so far."""

    network: Network
    ranges: dict[str, Range]
    context: int
    rounded: dict[Hashable, Weights] = field(default_factory=dict)

    def build(self, recipe: Recipe, bos: int | None = None, eos: int | None = None) -> Graph:
        """The graph of a recipe, which may differ in bits from that of the calibration."""
        try:
            builder = Builder(self.network, self.ranges, recipe, self.context, self.rounded)
            return builder.build(bos, eos)
        except ValueError as error:
            raise RecipeError(f"The network cannot be quantized: {error}") from error


def calibrated(
    network: Network, seen: Batches, recipe: Recipe, progress: Progress = silent
) -> Calibrated:
    """Transforms and calibrates a network; raises a `UserError` where recipe, data and network do
    not fit."""
    context = context_of(network, recipe)
    progress("preparing", 0.05)
    network = prepared(network, seen, recipe, context)
    _check_patterns(network, recipe)
    progress("calibrating", 0.15)
    eight = {n for n in product_inputs(network)
             if recipe.budget or recipe.activation_bits(n) == 8}
    histograms = set() if recipe.range == "minmax" else eight
    hessians = {op.x for op in network.of_kind(Linear)} if recipe.rounding == "gptq" else set()
    ranges = calibrate(network, seen, histograms, context, hessians=hessians)
    return Calibrated(network=network, ranges=ranges, context=context)


def _check_patterns(network: Network, recipe: Recipe) -> None:
    """Every pattern must match something whose bits can be chosen."""
    attentions = list(network.of_kind(Attention))
    for what, names, patterns in (
        ("tensor", product_inputs(network), recipe.bits),
        ("tensor", [a.k for a in attentions], recipe.keys),
        ("tensor", [a.v for a in attentions], recipe.values),
        ("Linear", [op.name for op in network.of_kind(Linear)], recipe.weights),
    ):
        for pattern, _ in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise RecipeError(f"The pattern {pattern!r} matches no {what} whose bits can be "
                                  f"chosen; these are {', '.join(names)}")


def quantize_network(
    network: Network,
    batches: Iterable[ArrayLike | Mapping[str, ArrayLike]],
    recipe: Recipe | None = None,
    *,
    bos: int | None = None,
    eos: int | None = None,
    progress: Progress = silent,
) -> QuantizedModel:
    """The integer graph of a network.

    ``batches``: see `calibrate.batches_of`. Where the recipe has a budget, `search.search` finds
    the bits. Raises a `UserError` where recipe, calibration and network do not fit.
    """
    recipe = recipe or Recipe()
    seen = list(batches_of(network, batches, context_of(network, recipe)))
    if recipe.budget:
        from systolith.quant.search import search

        return search(network, seen, recipe, bos=bos, eos=eos, progress=progress)
    ready = calibrated(network, seen, recipe, progress)
    progress("building", 0.8)
    return QuantizedModel(graph=ready.build(recipe, bos, eos), network=ready.network,
                          recipe=recipe, ranges=ready.ranges, judged=seen)


def quantize(
    model: nn.Module,
    calibration_batches: Iterable[Any],
    recipe: Recipe | None = None,
    *,
    tokenizer: bytes = b"",
    progress: Progress = silent,
) -> QuantizedModel:
    """Captures a torch module (see `capture.capture`) and quantizes it.

    ``calibration_batches``: what the module is called with, each a tensor, a tuple of positional
    arguments or a dictionary of keyword arguments. Padding stands on the right and is told by an
    argument with "mask" in its name: 1 for tokens, or True for padding where the name says
    "padding_mask" (see `calling`). ``tokenizer``: the bytes of its file, to be kept with the model.
    Raises a `UserError` before any work is done where the module or the form of the data cannot
    be processed.
    """
    recipe = recipe or Recipe()
    calls = [called(model, batch) for batch in calibration_batches]
    if not calls:
        raise CalibrationError("Calibration needs at least one batch")
    longest = max(calls, key=lambda call: call.length)
    _check_alike(calls, longest)
    seen = []
    progress("capturing", 0.0)
    network = capture(model, longest, context=recipe.context)
    read = {network.arguments.get(name, name) for name in (*network.indices, *network.given)}
    signature = Signature(
        parameters=parameters_of(model), attention=longest.attention, options=longest.options,
        names={argument: name for name, argument in network.arguments.items()},
        ignored=frozenset(longest.inputs.keys() - read))
    for call in calls:
        batch: dict[str, ArrayLike] = dict(signature.renamed(call))
        lengths = call.lengths()
        if lengths is not None:
            batch[MASK] = torch.arange(call.length) < lengths[:, None]
        seen.append(batch)
    made = quantize_network(network, seen, recipe, progress=progress)
    return replace(made, tokenizer=tokenizer, signature=signature)


def _check_alike(calls: list[Call], first: Call) -> None:
    """All batches must be calls of the same kind, with padding on the right."""
    for number, call in enumerate(calls, start=1):
        for name in first.inputs.keys() ^ call.inputs.keys():
            raise CalibrationError(f"Calibration batch {number} "
                                   f"{'lacks' if name in first.inputs else 'alone has'} the input "
                                   f"{name!r}")
        for name, value in call.inputs.items():
            wanted = first.inputs[name].shape[2:]
            if value.shape[2:] != wanted:
                raise CalibrationError(f"Calibration batch {number}: {name!r} must have "
                                       f"{wanted[0]} channels, not {value.shape[2]}")
        if call.options != first.options or call.attention.keys() != first.attention.keys():
            raise CalibrationError(f"Calibration batch {number} has other options or masks of "
                                   "attention than another batch; one model has one of each")
        for name, mask in call.attention.items():
            if not torch.equal(mask, resized(name, first.attention[name], call.length)):
                raise CalibrationError(f"Calibration batch {number}: {name!r} is another mask "
                                       "than that of another batch; one model has one")
        call.lengths()


def context_of(network: Network, recipe: Recipe) -> int:
    """The longest sequence of the integer model."""
    if recipe.context and recipe.context > network.context:
        raise RecipeError(f"context must be at most the network's {network.context}, "
                          f"not {recipe.context}")
    return recipe.context or network.context


@torch.no_grad()
def prepared(network: Network, batches: Batches, recipe: Recipe, context: int) -> Network:
    """A network of the same function in the form that the builder reads, and easy to quantize."""
    network = transform.adjacent_pairs(transform.fold_scales(transform.split_slices(network)))
    network = transform.turn_pairs(network, batches, context)
    if recipe.centering:
        network = transform.center(network, calibrate(network, batches, set(), context))
    if recipe.smoothing:
        ranges = calibrate(network, batches, set(), context)
        network = transform.smooth(network, ranges, recipe.smoothing)
    return network
