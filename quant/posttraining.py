"""Static quantization after training: a float network and calibration data to an integer graph."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from numpy.typing import ArrayLike
from torch import Tensor

from systolith.graph import Graph
from systolith.quant import transform
from systolith.quant.build import Builder, cached, product_inputs
from systolith.quant.calibrate import Inputs, Range, batches_of, calibrate
from systolith.quant.network import Network
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


def quantize_network(
    network: Network,
    batches: Iterable[ArrayLike | Mapping[str, ArrayLike]],
    recipe: Recipe | None = None,
    *,
    bos: int = 0,
    eos: int = 0,
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
    choosable = product_inputs(network)
    for pattern, _ in recipe.bits:
        if not any(fnmatchcase(name, pattern) for name in choosable):
            raise RecipeError(f"The pattern {pattern!r} matches no tensor whose bits can be "
                              f"chosen; these are {', '.join(choosable)}")
    progress("calibrating")
    histograms = set(cached(network)) | {n for n in choosable if recipe.activation_bits(n) == 8}
    if recipe.range == "minmax":
        histograms = set()
    ranges = calibrate(network, seen, histograms, context)
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
