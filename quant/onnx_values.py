"""The values of an ONNX model under construction: the tensors of a graph, and what they share."""

import numpy as np
from numpy.typing import NDArray

from systolith.graph import Graph
from systolith.quant.onnx_library import OnnxError
from systolith.quant.onnx_writer import DTYPES, Writer

Float = NDArray[np.float64]

BATCH, LENGTH = "batch", "length"
"""Names of the two dynamic axes."""
CHANNELS = 2
"""Axis of the channels."""
EVEN = 1e-6
"""Scales that differ by less than this part are one."""


class Values:
    """Reads and defines the tensors of a graph in a model. The integers of x are ``x/int``."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.writer = graph, Writer()
        self.call, self.constant, self.ints = (
            self.writer.call, self.writer.constant, self.writer.ints)
        self.scales: dict[str, Float] = {name: float32_scale(name, t.scale)
                                         for name, t in graph.tensors.items()}
        """Of every tensor [1] or [channels], as float32 holds it."""
        self.read: dict[tuple[str, bool], str] = {}
        self.rows: dict[str, str] = {}
        self.shapes: dict[int, str] = {}
        self.tokens: dict[str, str] = {}
        """Results of the `ArgMax` nodes."""
        self.positions = self.first = self.mask = ""

    def note(self, name: str, tensor: str, dtype: np.dtype) -> None:
        """Puts down the type of a value of a tensor's shape."""
        self.writer.types.append(self.writer.describe(
            name, dtype, BATCH, LENGTH, self.graph.tensors[tensor].channels))

    def number_tokens(self, first: str) -> None:
        """The numbers of the tokens [length], from an input of the model."""
        self.writer.scope = "positions"
        length = self.call("Squeeze", self.call("Shape", first, start=1, end=2))
        zero, one = (self.constant(n, np.int64(v)) for n, v in (("zero", 0), ("one", 1)))
        self.positions = self.call("Range", zero, length, one)
        self.first = first

    def table_rows(self, name: str) -> str:
        """The rows of a table [context, C] for the tokens, [length, C]."""
        if (name, False) not in self.read:
            scope, self.writer.scope = self.writer.scope, name
            table = self.constant("table", self.graph.constants[name])
            rows = self.call("Gather", table, self.positions, axis=0)
            self.read[name, False] = self.writer.dequantize(rows, np.array(2.0**-15), "int16", 0)
            self.writer.scope = scope
        return self.read[name, False]

    def shape_of(self, tensor: str) -> str:
        """The shape [batch, length, channels] of a tensor."""
        channels = self.graph.tensors[tensor].channels
        if channels not in self.shapes:
            scope, self.writer.scope = self.writer.scope, "shape"
            tokens = self.call("Shape", self.first, start=0, end=2)
            self.shapes[channels] = self.call("Concat", tokens, self.ints(channels), axis=0)
            self.writer.scope = scope
        return self.shapes[channels]

    def visible(self) -> str:
        """Which keys a query sees in a causal attention, bool [length, length]."""
        if not self.mask:
            scope, self.writer.scope = self.writer.scope, "causal"
            query = self.call("Unsqueeze", self.positions, self.ints(1))
            self.mask = self.call("LessOrEqual", self.positions, query)
            self.writer.scope = scope
        return self.mask

    def real(self, tensor: str) -> str:
        """The real values of a tensor."""
        return self.dequantized(tensor, self.scales[tensor], False)

    def dequantized(self, tensor: str, scale: Float, units: bool) -> str:
        """A tensor with some scale; ``units``: the scale is 1, and these are numbers of LSBs."""
        if (tensor, units) not in self.read:
            scope, self.writer.scope = self.writer.scope, tensor
            self.read[tensor, units] = self.writer.dequantize(
                f"{tensor}/int", scale, DTYPES[self.graph.tensors[tensor].bits], CHANNELS,
                out=f"{tensor}/{'units' if units else 'real'}")
            self.writer.scope = scope
        return self.read[tensor, units]

    def even(self, tensor: str) -> tuple[str, float]:
        """A tensor in a unit that is the same for all of its channels, and that unit.

        Its real values; where the channels have different scales (which a quantizer makes for
        attention alone) the numbers of its LSBs.
        """
        scale = self.scales[tensor]
        if uniform(scale):
            return self.real(tensor), float(scale[0])
        return self.dequantized(tensor, np.ones(1), True), 1.0

    def token_rows(self, tensor: str) -> tuple[str, float]:
        """A tensor as `even` gives it, of the shape [batch * length, channels].

        It is reshaped before it is dequantized: runtimes push a DequantizeLinear through what only
        moves elements, and some onnxruntimes (1.32) lose its type where that has 8 bits.
        """
        scale = self.scales[tensor][:1] if uniform(self.scales[tensor]) else np.ones(1)
        if tensor not in self.rows:
            of = self.graph.tensors[tensor]
            scope, self.writer.scope = self.writer.scope, tensor
            rows = self.call("Reshape", f"{tensor}/int", self.ints(-1, of.channels))
            self.rows[tensor] = self.writer.dequantize(rows, scale, DTYPES[of.bits], 1)
            self.writer.scope = scope
        return self.rows[tensor], float(scale[0])

    def define(self, tensor: str, value: str) -> None:
        """Quantizes the real values of a tensor."""
        self.writer.quantize(value, self.scales[tensor],
                             DTYPES[self.graph.tensors[tensor].bits], CHANNELS,
                             out=f"{tensor}/int")

    def times(self, x: str, factor: Float | float) -> str:
        """x times one number or one for each channel; x itself if they are all 1 in float32."""
        factors = np.unique(np.float32(factor))
        if len(factors) > 1:
            return self.call("Mul", x, self.constant("factor", factor, "float32"))
        if factors[0] == 1:
            return x
        return self.call("Mul", x, self.constant("factor", factors[0]))


def float32_scale(name: str, scale: tuple[float, ...]) -> Float:
    """A tensor's scale as float32 has it; raises `OnnxError` where it has no such number."""
    exact = np.array(scale)
    with np.errstate(over="ignore", under="ignore"):
        rounded = exact.astype(np.float32)
    if not np.isfinite(rounded).all() or (rounded < np.finfo(np.float32).tiny).any():
        raise OnnxError(f"The scale of the tensor {name!r} is out of the range of float32, in "
                        "which ONNX models have their scales")
    return rounded.astype(np.float64)


def uniform(scale: Float) -> bool:
    """Whether all numbers of each row are one number, up to rounding."""
    rows = scale if scale.ndim == 2 else scale.reshape(1, -1)
    return bool((rows.max(axis=1) <= rows.min(axis=1) * (1 + EVEN)).all())
