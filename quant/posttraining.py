"""Static quantization after training: a float network and calibration data to an integer graph."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from systolith.forward import IntegerModel
from systolith.graph import Graph
from systolith.quant import transform
from systolith.quant.build import Builder, cached, product_inputs
from systolith.quant.calibrate import Inputs, Range, batches_of, calibrate
from systolith.quant.network import TOKENS, Attention, Linear, Network
from systolith.quant.recipe import Recipe, RecipeError


@dataclass(frozen=True, kw_only=True)
class QuantizedNetwork:
    """``graph`` and what it was made from.

    ``network`` has the original's function and the graph's order of channels: `Network.run` of it
    and `IntegerModel.trace` of the graph can be compared name by name. ``ranges``: of its tensors.
    """

    graph: Graph
    network: Network
    recipe: Recipe
    ranges: dict[str, Range]

    def report(self, batches: Iterable[ArrayLike | Mapping[str, ArrayLike]]) -> str:
        """A table, one line a tensor: bits, range, the signal to quantization noise in dB over
        batches of tokens, the errors of all tensors before it included, and the format of the
        weights that it is made with."""
        power: dict[str, list[float]] = {}
        integers = IntegerModel(self.graph)
        for inputs, lengths in batches_of(self.network, batches, self.graph.context):
            floats = self.network.run(inputs, lengths)
            for i, row in enumerate(inputs[TOKENS]):
                count = len(row) if lengths is None else int(lengths[i])
                integers.reset()
                for name, x in integers.trace(row[:count].tolist()).items():
                    if name in floats:
                        real = floats[name][i, :count].double().numpy()
                        noise = x * np.array(self.graph.tensors[name].scale) - real
                        total = power.setdefault(name, [0.0, 0.0])
                        total[0] += float((real**2).sum())
                        total[1] += float((noise**2).sum())
        formats = self.graph.weight_formats()
        lines = [f"{'tensor':40} bits      range  SQNR dB  weights"]
        for name, (signal, noise_power) in power.items():
            tensor = self.graph.tensors[name]
            limit = max(tensor.scale) * (2 ** (tensor.bits - 1) - 1)
            ratio = 10 * np.log10(max(signal, 1e-300) / max(noise_power, 1e-300))
            lines.append(f"{name:40} {tensor.bits:4} {limit:10.4g} {ratio:8.1f}  "
                         f"{formats.get(name, '')}".rstrip())
        return "\n".join(lines)


def quantize_network(
    network: Network,
    batches: Iterable[ArrayLike | Mapping[str, ArrayLike]],
    recipe: Recipe | None = None,
    *,
    bos: int | None = None,
    eos: int | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> QuantizedNetwork:
    """The integer graph of a network.

    ``batches``: see `calibrate.batches_of`. ``progress`` is told what happens, one phrase at a
    time. Raises a `UserError` where recipe, calibration and network do not fit.
    """
    recipe = recipe or Recipe()
    context = recipe.context or network.context
    if context > network.context:
        raise RecipeError(f"context must be at most the network's {network.context}, "
                          f"not {context}")
    seen = list(batches_of(network, batches, context))
    progress("preparing")
    network = prepared(network, seen, recipe, context)
    choosable, keys = product_inputs(network), [a.k for a in network.of_kind(Attention)]
    linears = list(network.of_kind(Linear))
    for what, names, patterns in (
        ("tensor", choosable, recipe.bits), ("tensor", keys, recipe.keys),
        ("Linear", [op.name for op in linears], recipe.weights),
    ):
        for pattern, _ in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise RecipeError(f"The pattern {pattern!r} matches no {what} whose bits can be "
                                  f"chosen; these are {', '.join(names)}")
    progress("calibrating")
    histograms = set(cached(network)) | {n for n in choosable if recipe.activation_bits(n) == 8}
    if recipe.range == "minmax":
        histograms = set()
    hessians = {op.x for op in linears} if recipe.rounding == "gptq" else set()
    ranges = calibrate(network, seen, histograms, context, hessians=hessians)
    progress("building")
    try:
        made = Builder(network, ranges, recipe, context).build(bos, eos)
    except ValueError as error:
        raise RecipeError(f"The network cannot be quantized: {error}") from error
    return QuantizedNetwork(graph=made, network=network, recipe=recipe, ranges=ranges)


def prepared(
    network: Network, batches: list[tuple[Inputs, Tensor | None]], recipe: Recipe, context: int
) -> Network:
    """A network of the same function in the form that the builder reads, and easy to quantize."""
    network = transform.adjacent_pairs(transform.fold_scales(transform.split_slices(network)))
    network = transform.turn_pairs(network, batches, context)
    if recipe.smoothing:
        ranges = calibrate(network, batches, set(), context)
        network = transform.smooth(network, ranges, recipe.smoothing)
    return network
