"""Linear layers: weights in chunks of output tiles, each multiplied, then drained.

The drain is one vector instruction: requantize, table function, and the addition, product or
rotation of the node that reads the result, if nothing else does.
"""

from collections.abc import Sequence

import numpy as np

from systolith.compiler.layout import parameter_rows, weight_rows
from systolith.compiler.lower import Lowering, Place
from systolith.compiler.schedule import Region
from systolith.compiler.tensors import Placed, Span
from systolith.compiler.vector import Source, elementwise
from systolith.graph import Linear, int8_weight
from systolith.isa import Format, LoadSpace, TableMode

HALVES_FROM = 4
"""Tiles along the contraction from which one token's products come in two halves."""
MOST_ROWS = 2048
"""Weight rows of a chunk, if a tile of outputs does not need more: products begin soon."""


def linear(
    low: Lowering,
    node: Linear,
    span: Span,
    out: Place,
    fields: dict[str, int],
    b: Source | None = None,
    reads: Sequence[Region] = (),
) -> None:
    """Emits a linear layer whose results go to ``out`` by a vector instruction with ``fields``.

    ``b``: source B of that instruction; ``reads``: what else it reads.
    """
    x = low.at(node.x)
    k_tiles, blocks = x.layout.blocks, out.layout.blocks

    def parameters(first: int, count: int) -> tuple[int, Region]:
        return low.parameters(
            node.name,
            lambda: parameter_rows(
                out.layout,
                *(low.graph.constants[name] for name in (node.bias, node.mult, node.shift)),
            ),
            count,
            first,
        )

    regions = list(reads)
    if node.table is not None:
        slot, region = low.table(node.table)
        fields = fields | {"table": TableMode.INTERPOLATE, "slot": slot}
        regions.append(region)
    stays = node.name in low.resident
    period = b.period if b is not None else 0
    chunk = _chunk(low, k_tiles, blocks, span.count, period, stays=stays)
    # The parameters of a vocabulary may be more than their memory holds.
    whole = blocks <= low.config.parameter_rows // 4 or low.parameters_stay
    param = parameters(0, blocks) if whole else None
    for n in range(0, blocks, chunk):
        n_tiles = min(chunk, blocks - n)
        weights = _weights(low, node, x, out, n, n_tiles)
        accumulator = multiply(low, x, span, weights, n_tiles, stays=stays)
        arg_max = {}
        if "argmax" in fields:
            d = low.config.dim
            count = min(n_tiles * d, low.graph.tensors[node.out].channels - n * d)
            arg_max = {"count": count, "first": n * d, "restart": int(n == 0)}
        elementwise(
            low,
            fields | arg_max,
            Source(accumulator.start, n_tiles, 1, accumulator, Format.ACC32),
            out,
            span,
            b=b,
            param=parameters(n, n_tiles) if param is None else param,
            reads=regions,
            first=n,
            blocks=n_tiles,
        )


def multiply(
    low: Lowering, x: Placed, span: Span, weights: Region, n_tiles: int, *, stays: bool
) -> Region:
    """Emits the product of a span of x and ``n_tiles`` output tiles; its accumulator rows.

    ``stays``: the weights are there. Of one token, the first half of the contraction then need not
    wait for the second half of x.
    """
    d, k_tiles = low.config.dim, x.layout.blocks
    first = low.accumulator().take(span.count * n_tiles)
    accumulator = Region("accumulator", first, first + span.count * n_tiles)
    rows, registers = span.rows_16()
    half = k_tiles
    if stays and span.count == 1 and k_tiles >= HALVES_FROM:
        half = (k_tiles + 1) // 2
    for k in range(0, k_tiles, half):
        tiles = min(half, k_tiles - k)
        low.emit(
            "matmul",
            {
                "act": x.row(span) + k * x.planes,
                "act_stride": x.stride,
                "k_tiles": tiles,
                "weight": weights.start + k * d,
                "n_tiles": n_tiles,
                "acc": first,
                "acc_stride": n_tiles,
                "w_stride_n": k_tiles * d,
                "w_stride_k": d,
                "wide": int(x.bits == 16),
                "signed": 1,
                "accumulate": int(k > 0),
                **rows,
            },
            registers,
            reads=(x.region(span, k, tiles), weights),
            writes=(accumulator,),
        )
    return accumulator


def _chunk(
    low: Lowering, k_tiles: int, n_tiles: int, tokens: int, period: int, *, stays: bool
) -> int:
    """Output tiles that are worked on at once: weights and accumulators are double-buffered.

    ``stays``: the weights are in the weight memory. Whole periods of source B, if it has one.
    """
    weights = n_tiles
    if not stays:
        rows = min(MOST_ROWS, low.weights.free // 3)
        weights = max(1, rows // (k_tiles * low.config.dim))
    accumulators = max(1, low.config.accumulator_rows // 4 // tokens)
    chunk = min(weights, accumulators, n_tiles, 1023)
    if not low.parameters_stay:
        chunk = min(chunk, max(1, low.config.parameter_rows // 4))
    if stays and tokens == 1 and n_tiles >= 2 * HALVES_FROM:
        # The shorter the last part, the shorter the drain that nothing hides.
        parts = 2 if n_tiles < 4 * HALVES_FROM else 4
        chunk = min(chunk, -(-n_tiles // parts))
    if period and chunk < n_tiles:
        chunk = max(1, chunk // period) * period
    return chunk


def _weights(low: Lowering, node: Linear, x: Placed, out: Place, n: int, n_tiles: int) -> Region:
    """Brings the weights of some output tiles into the weight memory."""
    d = low.config.dim
    # Groups of four bits are expanded here: the machine has no load that does.
    address = low.constant(
        f"{node.name} weights",
        lambda: weight_rows(
            np.asarray(int8_weight(low.graph, node), dtype=np.int8), x.layout, out.layout
        ),
    )
    rows_n = x.layout.blocks * d
    rows = n_tiles * rows_n
    if node.name in low.resident:
        whole = out.layout.blocks * rows_n
        first, there = low.resident_weights.keep(node.name, whole)
        if not there:
            low.load(LoadSpace.WEIGHT, address, whole, first, into=low.preload)
        return Region("weight", first + n * rows_n, first + n * rows_n + rows)
    first, there = low.stream(f"{node.name} {n}", rows)
    if not there:
        low.load(LoadSpace.WEIGHT, address + n * rows_n * d, rows, first)
    return Region("weight", first, first + rows)
