"""A calibrated float network to an integer graph.

Weights are symmetric int8 with one scale for each output channel, or 4-bit values that become such
weights by a scale for each group (see `systolith.weights`). Activations are symmetric with static
ranges: int16 between operations, int16 or int8 where a matrix product reads them, and int8 for keys
and values with a scale for each channel: a channel's scale of V is undone by the parameters that
follow the product with V, that of K by the scale of the same channel of Q.

Keys of 12 and values of 16 bits are an 8-bit tensor ".high" and another one ".low" for the bits
that it lacks, made by two tables of the 16-bit tensor.

A tensor has the name of the operation that defines it. A `Function` that alone reads a `Linear` is
its table. Where a matrix product wants 8 bits of a tensor that others read too, a rescale of its
own (an `Add` of nothing) makes them, under the tensor's name with ".8".
"""

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor as TorchTensor

from systolith import bounds, fixed, graph, tables
from systolith.quant import network as net
from systolith.quant.calibrate import Float, Range
from systolith.quant.recipe import Recipe, RecipeError
from systolith.quant.weights import Weights, quantize_rows
from systolith.weights import pack

KEY_BITS = 8 + graph.LOW_BITS
"""Bits of a key in two parts."""
FAINTEST = 1 / 64
"""No channel of a cache gets a finer scale than this part of the coarsest one's: a channel that
calibration has hardly seen must not saturate at once."""
MEAN_REMOVED = 0.9
"""Part of an input's mean whose errors weights are free to make, because bias correction takes them
away. Not all of it: an input that calibration has seen constant may not always be."""


def product_inputs(network: net.Network) -> tuple[str, ...]:
    """What matrix products stream and a recipe chooses the bits of: all but K and V."""
    names = []
    for op in network.ops:
        match op:
            case net.Linear():
                names.append(op.x)
            case net.Attention():
                names += [op.q, net.probabilities(op)]
    return tuple(dict.fromkeys(names))


def cached(network: net.Network) -> tuple[str, ...]:
    """Keys and values."""
    return tuple(dict.fromkeys(n for a in network.of_kind(net.Attention) for n in (a.k, a.v)))


def fused(network: net.Network) -> dict[str, net.Function]:
    """Functions that are the table of a Linear, by the Linear's name."""
    outputs = {output.x for output in network.outputs}
    found = {}
    for linear in network.of_kind(net.Linear):
        readers = network.consumers(linear.name)
        if len(readers) == 1 and linear.name not in outputs:
            (reader,) = readers
            if isinstance(reader, net.Function):
                found[linear.name] = reader
    return found


def _float64(x: TorchTensor) -> Float:
    return x.detach().double().numpy()


def _multipliers(ratios: Float) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """`fixed.multiplier` for each channel."""
    pairs = [fixed.multiplier(float(ratio)) for ratio in ratios]
    mult, shift = zip(*pairs, strict=True)
    return np.array(mult, dtype=np.uint16), np.array(shift, dtype=np.uint8)


class Builder:
    """Builds the graph of one network, operation after operation.

    ``network`` is in the form that `transform` leaves; ``ranges``: of all of its tensors.
    ``rounded``: weights that other builders of the same network and ranges have rounded; it is
    added to.
    """

    def __init__(self, network: net.Network, ranges: Mapping[str, Range], recipe: Recipe,
                 context: int, rounded: dict[Hashable, Weights]):
        self.network, self.ranges, self.recipe, self.context = network, ranges, recipe, context
        self.rounded = rounded
        self.nodes: list[graph.Node] = []
        self.tensors: dict[str, graph.Tensor] = {}
        self.constants: dict[str, NDArray] = {}
        self.channels = network.channels()
        self.factors: dict[str, tuple[str, float]] = {}
        """Tensors that are another one times a factor."""
        self.score_scales: dict[str, Float] = {}
        """Scales of queries and keys, whose products are all equal within an attention."""
        self.fused = fused(network)
        self.tables = {function.name for function in self.fused.values()}
        self.choosable, self.cached = set(product_inputs(network)), set(cached(network))
        self.split = {a.k for a in network.of_kind(net.Attention)
                      if recipe.key_bits(a.k) == KEY_BITS}
        """Keys of `KEY_BITS` bits."""
        self.split_values = {a.v for a in network.of_kind(net.Attention)
                             if recipe.value_bits(a.v) == 16
                             and recipe.activation_bits(net.probabilities(a)) == 16}
        """Values of 16 bits."""
        self.bits: dict[str, int] = {}
        """Bits that matrix products want of a tensor, 16 where nothing else is said."""
        for name in self.choosable:
            self.bits[name] = recipe.activation_bits(name)

    def build(self, bos: int | None = None, eos: int | None = None) -> graph.Graph:
        """The graph, its accumulators proven to stay within 32 bits."""
        network = self.network
        for a in network.of_kind(net.Attention):
            self._score_scales(a)
        for op in network.ops:
            getattr(self, "_" + type(op).__name__.lower())(op)
        outputs = tuple(self._output(output) for output in network.outputs)
        if network.generative:
            self._node(graph.ArgMax(name="token", out="token", x=outputs[0].tensor), 1, 32, 1.0)
        made = graph.Graph(nodes=tuple(self.nodes), tensors=self.tensors, constants=self.constants,
                           outputs=outputs, context=self.context, bos=bos, eos=eos)
        bounds.prove(made)
        return made

    # Scales ------------------------------------------------------------------------------------

    def _largest(self, name: str, bits: int, *, per_channel: bool = False) -> Float:
        """Magnitudes that the full range has to hold: [1], or of each channel."""
        seen = self.ranges[name]
        if name in self.cached:
            largest = seen.largest * self.recipe.margin
            return largest if per_channel else largest.max(keepdims=True)
        if bits == 8:
            method, percent = self.recipe.range, self.recipe.percentile
            return self.recipe.margin * seen.clip(method, percent, per_channel=per_channel)
        largest = seen.largest * self.recipe.headroom
        return largest if per_channel else largest.max(keepdims=True)

    def _uniform_scale(self, name: str, bits: int) -> float:
        largest = float(self._largest(name, bits)[0])
        scale = largest / (2 ** (bits - 1) - 1) if largest > 0 else 1.0
        return max(scale, self._norm_floor(name))

    def _norm_floor(self, name: str) -> float:
        """A scale coarse enough for the epsilon of the norms that read a tensor, in squared LSB,
        to be encoded."""
        floor = 0.0
        for op in self.network.consumers(name):
            if isinstance(op, net.Norm):
                floor = max(floor, self.channels[name] * math.sqrt(op.eps * 2.0**-53))
        return floor

    def _cache_scale(self, name: str, together: int) -> Float:
        """8-bit scales of K or V, one for each channel; ``together`` neighbours are equal.

        All are equal where no weights or gains before the tensor can take a scale up.
        """
        largest = self._largest(name, 8, per_channel=True)
        if not isinstance(self.network.op(name), net.Linear | net.Rope | net.Norm):
            together = len(largest)
        largest = np.repeat(largest.reshape(-1, together).max(axis=1), together)
        largest = np.maximum(largest, largest.max() * FAINTEST)
        return largest / 127 if largest.max() > 0 else np.ones(len(largest))

    def _score_scales(self, a: net.Attention) -> None:
        q, k = self.network.op(a.q), self.network.op(a.k)
        rotated = isinstance(q, net.Rope) or isinstance(k, net.Rope)
        k_scale = self._cache_scale(a.k, 2 if rotated else 1)
        opposite = _per_query(a, k_scale)
        bits = self.bits[a.q]
        needed = self._largest(a.q, bits, per_channel=True) / (2 ** (bits - 1) - 1)
        if bits == 16 and isinstance(q, net.Rope):  # before the rotation, q is as wide as after
            needed = np.maximum(needed, self.ranges[q.x].largest / 32767)
        product = float((needed * opposite).max())
        self.score_scales[a.q] = (product if product > 0 else 1.0) / opposite
        self.score_scales[a.k] = k_scale

    def _own(self, name: str) -> tuple[int, float | Float]:
        """Bits and scale of the tensor that an operation defines.

        8 bits where only matrix products read it and want no more.
        """
        readers = self.network.consumers(name)
        outputs = {output.x for output in self.network.outputs}
        products = all(isinstance(r, net.Linear | net.Attention) for r in readers)
        if name in self.cached:
            if not products or name in outputs:
                raise RecipeError(f"The key or value {name!r} must be read by attention alone")
            scale = self.score_scales.get(name)
            scale = self._cache_scale(name, 1) if scale is None else scale
            if name in self.split or name in self.split_values:
                return 16, scale / 256
            return 8, scale
        bits = self.bits.get(name, 16)
        bits = bits if products and name not in outputs else 16
        if name in self.score_scales:
            return self.bits[name], self.score_scales[name]
        return bits, self._uniform_scale(name, bits)

    # Nodes -------------------------------------------------------------------------------------

    def _node(self, node: graph.Node, channels: int, bits: int, scale: float | Float) -> None:
        scales = tuple(float(s) for s in np.atleast_1d(scale))
        self.nodes.append(node)
        self.tensors[node.out] = graph.Tensor(name=node.out, channels=channels, bits=bits,
                                              scale=scales)

    def _constant(self, name: str, value: NDArray, dtype: str) -> str:
        self.constants[name] = np.ascontiguousarray(value.astype(dtype))
        return name

    def _real(self, name: str) -> tuple[str, float]:
        """The graph's tensor behind a name, and the factor that it lacks."""
        return self.factors.get(name, (name, 1.0))

    def _read(self, name: str) -> tuple[str, float]:
        """The graph's tensor behind a name and its only scale."""
        tensor, factor = self._real(name)
        scales = self.tensors[tensor].scale
        if len(set(scales)) != 1:
            raise RecipeError(f"{name!r} has a scale for each channel, which none but matrix "
                              f"products can read")
        return tensor, scales[0] * factor

    def _product_input(self, name: str) -> tuple[str, float]:
        """Like `_read`, in the bits that a matrix product wants."""
        tensor, scale = self._read(name)
        if self.bits[name] == 16 or self.tensors[tensor].bits == 8:
            return tensor, scale
        narrow = f"{name}.8"
        if narrow not in self.tensors:
            self._rescaled(tensor, scale, narrow, self._uniform_scale(name, 8), 8)
        return narrow, self.tensors[narrow].scale[0]

    def _rescaled(self, tensor: str, scale: float, name: str, wanted: float, bits: int) -> str:
        """The name of a tensor with another scale and other bits; itself, if it has them."""
        if scale == wanted and self.tensors[tensor].bits == bits:
            return tensor
        mult, shift = fixed.multiplier(scale / wanted)
        self._node(graph.Add(name=name, out=name, a=tensor, b=tensor, mult_a=mult, mult_b=0,
                             shift=shift), self.tensors[tensor].channels, bits, wanted)
        return name

    def _weights(self, name: str, made: Weights) -> dict[str, Any]:
        if made.fours is None or made.group_scale is None:
            return {"weight": self._constant(f"{name}.weight", made.values, "int8")}
        return {"weight": self._constant(f"{name}.weight", pack(made.fours), "uint8"),
                "group": self.recipe.group,
                "group_scale": self._constant(f"{name}.group_scale", made.group_scale, "uint8")}

    def _parameters(self, name: str, bias: NDArray, ratios: Float) -> dict[str, str]:
        mult, shift = _multipliers(ratios)
        return {"bias": self._constant(f"{name}.bias", bias, "int32"),
                "mult": self._constant(f"{name}.mult", mult, "uint16"),
                "shift": self._constant(f"{name}.shift", shift, "uint8")}

    # Operations --------------------------------------------------------------------------------

    def _embed(self, op: net.Embed) -> None:
        table = _float64(op.table)
        if op.index == net.POSITIONS:
            table = table[:self.context]
        # The whole table is known, and its range needs no headroom.
        scale = max(np.abs(table).max() / 32767, 1e-30, self._norm_floor(op.name))
        name = self._constant(f"{op.name}.table", np.rint(table / scale), "int16")
        index = {} if op.index == net.TOKENS else {"index": op.index}
        self._node(graph.Embedding(name=op.name, out=op.name, table=name, **index),
                   table.shape[1], 16, scale)

    def _rows(self, op: net.Linear, x_scale: float, x_bits: int) -> Weights:
        """The integers of a Linear, their bias corrected; rounded once for all graphs of a search.
        """
        key = op.name, x_bits, x_scale, self.recipe.weight_bits(op.name)
        if key in self.rounded:
            return self.rounded[key]
        weight = _float64(op.weight)
        bias = np.zeros(len(weight)) if op.bias is None else _float64(op.bias)
        seen = self.ranges[op.x]
        removed = MEAN_REMOVED if self.recipe.bias_correction else 0.0
        energy = seen.energy(removed) if self.recipe.clip_weights else None
        group = self.recipe.group if self.recipe.weight_bits(op.name) == 4 else None
        made = quantize_rows(weight, bias, x_scale, x_bits, energy,
                             hessian=seen.hessian(removed), group=group)
        if self.recipe.bias_correction:
            # The mean error of the output (Nagel et al. 2019, section 4.2), from the mean input.
            lost = (weight - made.values * made.scale[:, None]) @ seen.mean
            corrected = np.rint((bias + lost) / (made.scale * x_scale))
            fits = bounds.linear_bound(made.values, corrected.astype(np.int64), x_bits)
            offset = np.where(fits <= bounds.LARGEST, corrected, made.bias)
            made = replace(made, bias=offset.astype(np.int32))
        self.rounded[key] = made
        return made

    def _linear(self, op: net.Linear) -> None:
        x, x_scale = self._product_input(op.x)
        x_bits = self.tensors[x].bits
        rows = self._rows(op, x_scale, x_bits)
        function = self.fused.get(op.name)
        name = op.name if function is None else function.name
        bits, scale = self._own(name)
        between, table = scale, None
        if function is not None:
            between = self._uniform_scale(op.name, 16)
            scale = float(np.max(scale))
            table = self._constant(f"{name}.table", tables.function_table(
                self._scalar(function), between, scale), "int16")
        else:
            readers = self.network.consumers(op.name)
            for rope in readers:
                if isinstance(rope, net.Rope):
                    _, rotated = self._own(rope.name)
                    between = scale = rotated / 2 ** self._spare(rope)
                    bits = 16
        self._node(graph.Linear(name=name, out=name, x=x, table=table,
                                **self._weights(name, rows),
                                **self._parameters(name, rows.bias, x_scale * rows.scale / between)
                                ), len(rows.bias), bits, scale)

    def _scalar(self, op: net.Function) -> Callable[[Float], Float]:
        function, offset = net.FUNCTIONS[op.function].numpy, op.offset
        return lambda x: function(x) - offset

    def _function(self, op: net.Function) -> None:
        if op.name in self.tables:
            return
        x, x_scale = self._read(op.x)
        bits, scale = self._own(op.name)
        scale = float(np.max(scale))
        exact = self.tensors[x].bits == 8
        function = self._scalar(op)
        table = (tables.exact_table(function, x_scale, scale, bits) if exact
                 else tables.function_table(function, x_scale, scale))
        self._node(graph.Lookup(name=op.name, out=op.name, x=x, exact=exact, table=self._constant(
            f"{op.name}.table", table, "int16")), self.channels[op.name], bits, scale)

    def _norm(self, op: net.Norm) -> None:
        x, x_scale = self._read(op.x)
        bits, scale = self._own(op.name)
        gain = _float64(op.gain)
        bias = np.zeros(len(gain)) if op.bias is None else _float64(op.bias)
        # Finer than the normalised value's own LSB makes no sense, and needs gains out of reach.
        scale = np.maximum(scale, np.abs(gain).max() / 2**29)
        ratios, offsets = gain / scale / 2**15, bias / scale
        # The gain has 16 bits and the bias 32: whichever is fuller sets the shift.
        shifts = np.minimum(15 - np.frexp(ratios)[1], 31 - np.frexp(offsets)[1])
        shifts = np.where(np.rint(np.abs(ratios) * 2.0**shifts) >= 1 << 15, shifts - 1, shifts)
        shifts = np.minimum(shifts, graph.MAX_SHIFT)
        if (shifts < 0).any():
            raise RecipeError(f"{op.name} ({op.source}): its gain or bias is out of reach")
        c = len(gain)
        eps = round(op.eps * (c / x_scale) ** 2)
        eps_shift = max(eps.bit_length() - 16, 0)
        mantissa = (eps + (1 << eps_shift >> 1)) >> eps_shift
        if mantissa == 1 << 16:
            mantissa, eps_shift = mantissa >> 1, eps_shift + 1
        name = op.name
        self._node(graph.Norm(
            name=name, out=name, x=x, eps=mantissa, eps_shift=eps_shift, center=op.center,
            gain=self._constant(f"{name}.gain", np.rint(ratios * 2.0**shifts), "int16"),
            bias=self._constant(f"{name}.bias", np.clip(
                np.rint(offsets * 2.0**shifts), -bounds.LARGEST, bounds.LARGEST), "int32"),
            shift=self._constant(f"{name}.shift", shifts, "uint8")), c, bits, scale)

    def _spare(self, op: net.Rope) -> int:
        """Fraction bits that a rotation's rounding takes away: as many as the range before it
        leaves room for. A rotated value can need more range than before, or less."""
        bits, scale = self._own(op.name)
        before = self.ranges[op.x].largest / 32767
        spare = math.log2(max(float((scale / np.maximum(before, 1e-30)).min()), 1))
        return min(math.floor(spare), 16 - bits)

    def _rope(self, op: net.Rope) -> None:
        bits, scale = self._own(op.name)
        if not isinstance(self.network.op(op.x), net.Linear):
            raise RecipeError(f"{op.name} ({op.source}): rotary positions must follow a Linear")
        cos, sin = (np.repeat(_float64(t[:self.context]), 2, axis=1) for t in (op.cos, op.sin))
        sin[:, 0::2] *= -1
        names = [self._shared(part, np.rint(t * 2**15).clip(-32768, 32767).astype("int16"))
                 for part, t in (("rope.cos", cos), ("rope.sin", sin))]
        self._node(graph.Rope(name=op.name, out=op.name, x=op.x, cos=names[0], sin=names[1],
                              head_dim=op.head_dim, shift=15 + self._spare(op)),
                   self.channels[op.name], bits, scale)

    def _shared(self, name: str, value: NDArray) -> str:
        """The name of a constant that several nodes may have in common."""
        while name in self.constants and not np.array_equal(self.constants[name], value):
            name += "'"
        return self._constant(name, value, value.dtype.name)

    def _attention(self, op: net.Attention) -> None:
        name = op.name
        per_score = self.score_scales[op.q] * _per_query(op, self.score_scales[op.k])
        parts = self._split_key(op) if op.k in self.split else {"k": op.k}
        score_mult, score_shift = fixed.multiplier(
            float(per_score.max()) * op.scale * math.log2(math.e) * 65536)
        bits, scale = self._own(name)
        v_scale = _per_query(op, np.array(self.tensors[op.v].scale))
        p_bits = self.bits[net.probabilities(op)]
        p_scale = 1 / (2**p_bits - 1)
        offset = np.zeros(self.channels[name])
        if op.v in self.split_values:
            parts |= self._split_value(op.v)
            v_scale = v_scale * 256
            # The lower part is told less 128, half an LSB of the upper one.
            offset += round(0.5 / p_scale)
        else:
            parts["v"] = op.v
        self._node(graph.Attention(
            name=name, out=name, q=op.q, heads=op.heads, kv_heads=op.kv_heads,
            head_dim=op.head_dim, score_mult=score_mult, score_shift=score_shift,
            probability_bits=p_bits, causal=op.causal, **parts,
            **self._parameters(name, offset, p_scale * v_scale / scale)),
            self.channels[name], bits, scale)

    def _split_key(self, op: net.Attention) -> dict[str, str]:
        """The parts of a 12-bit key, and the query for the lower one.

        With f the low byte of x and h the high one, x = 256 h + f, and f is 16 l + 128 to within 8:
        the tables make h and l. What 128 adds is the same for all keys of a row of scores, and
        softmax does not see it.
        """
        scale = self.score_scales[op.k]
        halves = {part: self._part(op.k, part, "key", base, slope, scale / finer)
                  for part, base, slope, finer in (
                      ("high", np.arange(-128, 128), 0, 1), ("low", np.full(256, -8), 16, 16))}
        coarse = f"{op.q}.low"
        if coarse not in self.tensors:
            q = self.tensors[op.q]
            self._node(graph.Add(name=coarse, out=coarse, a=op.q, b=op.q, mult_a=1, mult_b=0,
                                 shift=graph.LOW_BITS), q.channels, q.bits,
                       np.array(q.scale) * 2**graph.LOW_BITS)
        return {"k": halves["high"], "k_low": halves["low"], "q_low": coarse}

    def _split_value(self, name: str) -> dict[str, str]:
        """The parts of a 16-bit value x: x >> 8, and x & 255 less 128."""
        scale = np.array(self.tensors[name].scale)
        return {"v": self._part(name, "high", "value", np.arange(-128, 128), 0, scale * 256),
                "v_low": self._part(name, "low", "value", np.full(256, -128), 256, scale)}

    def _part(self, name: str, part: str, kind: str, base: NDArray, slope: int,
              scale: Float) -> str:
        """A part of a 16-bit tensor, by a table of 256 segments."""
        out = f"{name}.{part}"
        if out not in self.tensors:
            table = np.stack([base, np.full(256, slope)], axis=1).astype("int16")
            table_name = self._shared(f"{kind}.{part}.table", table)
            self._node(graph.Lookup(name=out, out=out, x=name, exact=False, table=table_name),
                       self.channels[name], 8, scale)
        return out

    def _add(self, op: net.Add) -> None:
        (a, a_scale), (b, b_scale) = self._read(op.a), self._read(op.b)
        bits, scale = self._own(op.name)
        scale = float(np.max(scale))
        ratios = a_scale / scale, b_scale / scale
        _, shift = fixed.multiplier(max(ratios))
        mult_a, mult_b = (round(ratio * 2**shift) for ratio in ratios)
        self._node(graph.Add(name=op.name, out=op.name, a=a, b=b, mult_a=mult_a, mult_b=mult_b,
                             shift=shift), self.channels[op.name], bits, scale)

    def _multiply(self, op: net.Multiply) -> None:
        (a, a_scale), (b, b_scale) = self._read(op.a), self._read(op.b)
        bits, scale = self._own(op.name)
        scale = float(np.max(scale))
        mult, shift = fixed.multiplier(a_scale * b_scale / scale)
        self._node(graph.Multiply(name=op.name, out=op.name, a=a, b=b, mult=mult, shift=shift),
                   self.channels[op.name], bits, scale)

    def _scale(self, op: net.Scale) -> None:
        tensor, factor = self._real(op.x)
        self.factors[op.name] = tensor, factor * op.factor

    def _given(self, op: net.Given) -> None:
        self._refuse_cached(op)
        self._node(graph.Given(name=op.name, out=op.name), op.channels, 16,
                   self._uniform_scale(op.name, 16))

    def _slice(self, op: net.Slice) -> None:
        self._refuse_cached(op)
        x, _ = self._read(op.x)
        tensor = self.tensors[x]
        self._node(graph.Slice(name=op.name, out=op.name, x=x, first=op.first, count=op.count),
                   op.count, tensor.bits, self._read(op.x)[1])

    def _concat(self, op: net.Concat) -> None:
        """The parts of a wider range than the others set the scale; the others are rescaled."""
        self._refuse_cached(op)
        parts = [self._read(x) for x in op.xs]
        scale = max(part_scale for _, part_scale in parts)
        names = [self._rescaled(tensor, part_scale, f"{op.name}.{i}", scale, 16)
                 for i, (tensor, part_scale) in enumerate(parts)]
        self._node(graph.Concat(name=op.name, out=op.name, xs=tuple(names)),
                   self.channels[op.name], 16, scale)

    def _output(self, output: net.Output) -> graph.Output:
        tensor, factor = self._real(output.x)
        if factor != 1.0:
            scaled = f"{output.x}.output"
            if scaled not in self.tensors:
                of = self.tensors[tensor]
                self._node(graph.Add(name=scaled, out=scaled, a=tensor, b=tensor, mult_a=1,
                                     mult_b=0, shift=0), of.channels, of.bits,
                           np.array(of.scale) * factor)
            tensor = scaled
        return graph.Output(tensor=tensor, pool=output.pool, normalize=output.normalize)

    def _refuse_cached(self, op: net.Op) -> None:
        if op.name in self.cached:
            raise RecipeError(f"{op.name} ({op.source}): a key or value must be computed, by a "
                              f"Linear for example, and not be only moved")


def _per_query(a: net.Attention, x: Float) -> Float:
    """Values of the key channels, for the channels of the query heads that they serve."""
    return np.repeat(x.reshape(a.kv_heads, -1), a.heads // a.kv_heads, axis=0).reshape(-1)
