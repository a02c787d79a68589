"""A quantized graph as a torch module: every bit is that of the golden machine, batches at a time.

Written a second time, in torch and from the formulas of `core/golden.py`, so that tests can hold
the two against each other. All integers are int64; sums of products are exact in float64, where a
matrix product is fast.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from systolith import bounds, golden, graph, tables
from systolith.forward import ForwardError
from systolith.quant.calling import Signature
from systolith.quant.network import Output, pooled


class IntegerModule(nn.Module):
    """A graph as a module, called with whole sequences; its graph's overflow proof is made again.

    ``forward`` takes what ``signature`` says: the arguments of the module that the graph was made
    from, by position or name, otherwise ``forward(tokens, attention_mask)``; inputs also by their
    names in the graph. An index input is int64 [B, T], a given tensor float [B, T, channels], which
    is rounded to its scale. A mask of padding (on the right) is [B, T], 1 for tokens, or True for
    padding where its name has "padding_mask". Returns the outputs as real numbers, float64
    [B, T, channels] or, where pooled, [B, channels]; the tensor alone, if there is one output. What
    stands at the padding means nothing.
    """

    def __init__(self, of: graph.Graph, signature: Signature | None = None) -> None:
        super().__init__()
        bounds.prove(of)
        self.graph = of
        self.signature = signature or Signature()
        self._names: dict[str, str] = {}
        constants = dict(of.constants)
        for node in of.of_kind(graph.Linear):
            constants[node.weight] = graph.int8_weight(of, node)
        for i, (name, value) in enumerate(constants.items()):
            # Buffers, so that the module moves between devices; torch allows no dot in a name.
            self._names[name] = f"constant_{i}"
            self.register_buffer(self._names[name], torch.from_numpy(value.astype("int64")))
        self._roms: dict[str, tuple[tables.Rom, str]] = {}
        for name, rom in (("exp2", tables.exp2()), ("reciprocal", tables.reciprocal()),
                          ("rsqrt", tables.rsqrt())):
            self._roms[name] = rom, f"rom_{name}"
            both = torch.stack([torch.from_numpy(rom.base), torch.from_numpy(rom.slope)])
            self.register_buffer(f"rom_{name}", both)
        self._scales = {name: torch.tensor(t.scale, dtype=torch.float64)
                        for name, t in of.tensors.items()}

    def forward(self, *values: Any, **named: Any) -> Tensor | tuple[Tensor, ...]:
        inputs, lengths = self.signature.read(values, named)
        for name in self.inputs:
            if name not in inputs:
                raise ForwardError(f"The input {self.signature.argument(name)!r} is missing")
        traced = self.trace(inputs, lengths)
        results = self.results(traced, lengths)
        return results[0] if len(results) == 1 else results

    @property
    def inputs(self) -> list[str]:
        """Names of the graph's inputs."""
        return [*self.graph.indices, *(node.out for node in self.graph.of_kind(graph.Given))]

    @torch.no_grad()
    def trace(self, inputs: Mapping[str, Tensor], lengths: Tensor | None = None
              ) -> dict[str, Tensor]:
        """Every tensor of the graph by name, int64 [B, T, channels]; ``lengths``: int64 [B].

        Raises ``ForwardError`` for inputs that the graph cannot process.
        """
        batch, length = self.check(inputs)
        values: dict[str, Tensor] = {}
        for node in self.graph.nodes:
            values[node.out] = self._execute(node, values, inputs, lengths, (batch, length))
        return values

    def check(self, inputs: Mapping[str, Tensor]) -> tuple[int, int]:
        """B and T of inputs; raises ``ForwardError`` where the graph cannot process them."""
        for name, rows in self.graph.indices.items():
            if name not in inputs:
                raise ForwardError(f"The input {name!r} is missing")
            low, high = int(inputs[name].min()), int(inputs[name].max())
            if low < 0 or high >= rows:
                raise ForwardError(f"Values of {name!r} must be 0 to {rows - 1}, "
                                   f"not {low} to {high}")
        for node in self.graph.of_kind(graph.Given):
            channels = self.graph.tensors[node.out].channels
            if node.out not in inputs:
                raise ForwardError(f"The input {node.out!r} is missing")
            if inputs[node.out].dim() != 3 or inputs[node.out].shape[2] != channels:
                raise ForwardError(f"The input {node.out!r} must have the shape [B, T, {channels}],"
                                   f" not {list(inputs[node.out].shape)}")
        unknown = inputs.keys() - self.inputs
        if unknown:
            raise ForwardError(f"The model has no input {min(unknown)!r}; it has "
                               f"{', '.join(self.inputs)}")
        batch, length = next(iter(inputs.values())).shape[:2]
        if length > self.graph.context:
            raise ForwardError(f"The model's context is {self.graph.context} tokens, and {length} "
                               f"do not fit")
        return batch, length

    def given(self, name: str, value: Tensor) -> Tensor:
        """The integers of a given tensor: its real values, rounded to its scale and saturated."""
        return saturate((value.double() / self._scales[name]).round().long(),
                        self.graph.tensors[name].bits)

    def results(self, values: Mapping[str, Tensor], lengths: Tensor | None = None
                ) -> tuple[Tensor, ...]:
        """The outputs of what `trace` returned, as `forward` returns them."""
        return tuple(
            pooled(values[o.tensor] * self._scales[o.tensor].to(values[o.tensor].device),
                   Output(x=o.tensor, pool=o.pool, normalize=o.normalize), lengths)
            for o in self.graph.outputs)

    def _constant(self, name: str) -> Tensor:
        return self.get_buffer(self._names[name])

    def _execute(self, node: graph.Node, values: dict[str, Tensor], inputs: Mapping[str, Tensor],
                 lengths: Tensor | None, shape: tuple[int, int]) -> Tensor:
        const = self._constant
        x = [values[name] for name in node.inputs]
        bits = self.graph.tensors[node.out].bits
        match node:
            case graph.Given():
                return self.given(node.out, inputs[node.out])
            case graph.Embedding(index=graph.POSITIONS):
                return const(node.table)[:shape[1]].expand(shape[0], -1, -1)
            case graph.Embedding():
                return const(node.table)[inputs[node.index]]
            case graph.Linear():
                y = matmul(x[0], const(node.weight).T)
                y = scale(y, const(node.bias), const(node.mult), const(node.shift))
                if node.table is not None:
                    y = lookup(y, const(node.table))
                return saturate(y, bits)
            case graph.Norm():
                return self._norm(node, x[0], bits)
            case graph.Rope():
                heads = x[0].unflatten(-1, (-1, node.head_dim))
                cos, sin = (const(c)[:shape[1], None] for c in (node.cos, node.sin))
                partner = heads.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
                y = round_shift(heads * cos + partner * sin, node.shift)
                return saturate(y, bits).flatten(-2)
            case graph.Attention():
                return saturate(self._attention(node, values, lengths), bits)
            case graph.Add():
                return saturate(round_shift(x[0] * node.mult_a + x[1] * node.mult_b, node.shift),
                                bits)
            case graph.Multiply():
                return saturate(round_shift(x[0] * x[1] * node.mult, node.shift), bits)
            case graph.Lookup(exact=True):
                return saturate(const(node.table)[saturate(x[0], 8) + 128, 0], bits)
            case graph.Lookup():
                return saturate(lookup(x[0], const(node.table)), bits)
            case graph.Slice():
                return x[0][..., node.first:node.first + node.count]
            case graph.Concat():
                return torch.cat(x, dim=-1)
            case graph.ArgMax():
                # torch does not promise the first of several; the machine does.
                top = x[0] == x[0].amax(dim=-1, keepdim=True)
                return top.int().argmax(dim=-1, keepdim=True)
        raise TypeError(f"No execution of {type(node).__name__}")

    def _rom(self, name: str, segment: Tensor, fraction: Tensor) -> Tensor:
        rom, buffer = self._roms[name]
        base, slope = self.get_buffer(buffer)
        line = base[segment] + ((slope[segment] * fraction) >> rom.fraction_bits)
        guard = tables.GUARD_BITS
        return ((line + (1 << (guard - 1))) >> guard).clamp(0, (1 << rom.bits) - 1)

    def _norm(self, node: graph.Norm, x: Tensor, bits: int) -> Tensor:
        n = x.shape[-1]
        total = x.sum(dim=-1, keepdim=True) if node.center else x.new_zeros(*x.shape[:-1], 1)
        squares = (x * x).sum(dim=-1, keepdim=True)
        q = (n * squares - total * total + (node.eps << node.eps_shift)).clamp(min=1)
        even = (bit_length(q) - 17) & ~1
        mantissa = torch.where(even >= 0, q >> even.clamp(min=0), q << (-even).clamp(min=0))
        inverse = self._rom("rsqrt", mantissa >> 9, mantissa & 511)
        z = round_shift((n * x - total) * inverse, 25 - golden.NORM_FRACTION_BITS + even // 2)
        gain, bias, shift = (self._constant(c) for c in (node.gain, node.bias, node.shift))
        return saturate(round_shift(saturate(z, 24) * gain + bias, shift), bits)

    def _attention(self, node: graph.Attention, values: Mapping[str, Tensor],
                   lengths: Tensor | None) -> Tensor:
        def heads(name: str) -> Tensor:
            t = values[name].unflatten(-1, (-1, node.head_dim)).transpose(1, 2)  # [B, H, T, P]
            return t.repeat_interleave(node.heads // t.shape[1], dim=1)

        scores = matmul(heads(node.q), heads(node.k).transpose(2, 3))            # [B, H, T, S]
        if node.q_low is not None and node.k_low is not None:
            scores += matmul(heads(node.q_low), heads(node.k_low).transpose(2, 3))
        count = scores.shape[-1]
        at = torch.arange(count, device=scores.device)
        valid = at <= at[:, None] if node.causal else at[None] < count           # [T or 1, S]
        if lengths is not None and not node.causal:
            valid = valid & (at < lengths[:, None, None, None])                  # [B, 1, 1, S]
        p = self._softmax(node, scores, valid)
        acc = matmul(p, heads(node.v))
        if node.v_low is not None:
            acc += matmul(p >> 8, heads(node.v_low))
        acc = acc.transpose(1, 2).flatten(-2)
        return scale(acc, *(self._constant(c) for c in (node.bias, node.mult, node.shift)))

    def _softmax(self, node: graph.Attention, scores: Tensor, valid: Tensor) -> Tensor:
        bits = node.probability_bits
        x = saturate(round_shift(scores * node.score_mult, node.score_shift), 32)
        exponent, fraction = x >> 16, x & 0xFFFF
        mantissa = self._rom("exp2", fraction >> 9, fraction & 511)
        lowest = torch.tensor(-(1 << 15), device=x.device)
        top = torch.where(valid, exponent, lowest).amax(dim=-1, keepdim=True)
        distance = (top - exponent).clamp(0, golden.MAX_EXPONENT)
        terms = (mantissa << golden.SUM_GUARD_BITS) >> distance
        total = torch.where(valid, terms, 0).sum(dim=-1, keepdim=True)
        length = bit_length(total)
        rounded = round_shift(total, (length - 20).clamp(min=0))
        carry = rounded >> 20
        rounded, length = rounded >> carry, length + carry
        inverse = self._rom("reciprocal", (rounded >> 10) & 511, rounded & 1023)
        product = mantissa * inverse
        product = product - (product >> bits)
        p = round_shift(product, (length + distance + 9 - bits).clamp(max=40))
        return torch.where(valid, p.clamp(0, (1 << bits) - 1), 0)


def saturate(x: Tensor, bits: int) -> Tensor:
    """`fixed.saturate`, signed."""
    return x.clamp(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def round_shift(x: Tensor, shift: int | Tensor) -> Tensor:
    """`fixed.round_shift`."""
    if isinstance(shift, int):
        return (x + (1 << shift >> 1)) >> shift
    return (x + (torch.ones_like(shift) << shift >> 1)) >> shift


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """`golden.matmul` of operands whose sums are proven to stay within 32 bits."""
    return torch.matmul(a.double(), b.double()).long()


def scale(x: Tensor, bias: Tensor, mult: Tensor, shift: Tensor) -> Tensor:
    """`golden.scale`; the sum with the bias is proven to stay within 32 bits."""
    return saturate(round_shift((x + bias) * mult, shift), 16)


def lookup(x: Tensor, table: Tensor) -> Tensor:
    """`golden.lookup`."""
    segment = (x >> 8) + 128
    return saturate(table[segment, 0] + ((table[segment, 1] * (x & 255) + 128) >> 8), 16)


def bit_length(x: Tensor) -> Tensor:
    """How many bits a positive integer has."""
    high = x >> 32
    # frexp is exact below 2**53.
    low = torch.frexp((x & 0xFFFFFFFF).double())[1].long()
    return torch.where(high > 0, torch.frexp(high.double())[1].long() + 32, low)
