"""Instructions of the vector unit that go element by element, from and to wherever tensors are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from systolith.compiler.lower import Lowering, Place
from systolith.compiler.schedule import Region
from systolith.compiler.tensors import Registers, Span, Stationary
from systolith.isa import Format


@dataclass(frozen=True)
class Source:
    """What a vector instruction reads: block f of token m is row ``first + m * stride + f * step``.

    ``period``: blocks after which the first one comes again, 0: never. ``region``: all rows read.
    """

    first: int
    stride: int
    step: int
    region: Region
    format: Format
    period: int = 0

    def token(self, index: int) -> "Source":
        """From another token on."""
        return replace(self, first=self.first + index * self.stride)

    def block(self, index: int) -> int:
        return self.first + (index % self.period if self.period else index) * self.step


def source(low: Lowering, name: str, span: Span) -> Source:
    """A span of a tensor for the vector unit."""
    place = low.at(name)
    return Source(place.row(span), place.stride, place.planes, place.region(span), place.format)


# Vector instructions -------------------------------------------------------------------------


def elementwise(
    low: Lowering,
    fields: dict[str, int],
    a: Source,
    out: Place,
    span: Span,
    *,
    b: Source | None = None,
    param: tuple[int, Region] | None = None,
    reads: Sequence[Region] = (),
    first: int = 0,
    blocks: int | None = None,
) -> None:
    """A vector instruction for ``blocks`` blocks of ``out`` from block ``first`` on.

    ``a`` begins with block ``first``, ``b`` and the parameters with block 0. Into the weight
    memory it takes one instruction for each block, since a key block's tokens lie side by side;
    but the blocks of one token without b and parameters can pass for rows.
    """
    count = out.layout.blocks - first if blocks is None else blocks
    rows, registers = span.rows()
    if isinstance(out, Stationary) and low.sequences > 1 and span.count > 1:
        for index in range(low.sequences):
            elementwise(
                low,
                fields,
                a.token(index),
                out.of(index),
                Span(0, 1, dynamic=True),
                b=None if b is None else b.token(index),
                param=param,
                reads=reads,
                first=first,
                blocks=blocks,
            )
        return
    if isinstance(out, Stationary):
        plain = b is None and param is None and out.rows < 1 << 12
        if plain and span.count == 1 and not span.open:
            _key_rows_of_one(low, fields, a, out, span, reads)
            return
        if span.dynamic:
            registers = registers | {"d": Registers.POSITION}
    parts = [(first, count)]
    if isinstance(out, Stationary):
        parts = [(block, 1) for block in range(first, first + count)]
    for block, length in parts:
        values = {
            "a": a.block(block - first),
            "a_stride": a.stride,
            "a_format": a.format,
            "blocks": length,
            "d_wide": int(out.bits == 16),
            **fields,
            **rows,
        }
        touched = [a.region, *reads]
        if b is not None:
            values |= {
                "b": b.block(block),
                "b_stride": b.stride,
                "b_period": b.period if length > 1 else 0,
                "b_wide": int(b.format == Format.INT16),
            }
            touched.append(b.region)
        if param is not None:
            values |= {"scale": 1, "param": param[0] + block}
            touched.append(param[1])
        if isinstance(out, Stationary):
            values |= {"d": out.row(block, span), "d_stride": 1, "d_weight": 1}
            written = out.block(block)
            if not span.dynamic:
                written = Region("weight", values["d"], values["d"] + span.count)
        else:
            values |= {"d": out.row(span) + block * out.planes, "d_stride": out.stride}
            written = out.region(span, block, length)
        low.emit("vector", values, registers, reads=touched, writes=(written,))


def _key_rows_of_one(
    low: Lowering,
    fields: dict[str, int],
    a: Source,
    out: Stationary,
    span: Span,
    reads: Sequence[Region],
) -> None:
    """All blocks of one token of keys or values, a row of the instruction each."""
    low.emit(
        "vector",
        {
            "a": a.block(0),
            "a_stride": a.step,
            "a_format": a.format,
            "blocks": 1,
            "rows": out.layout.blocks,
            "d": out.row(0, span),
            "d_stride": out.rows,
            "d_weight": 1,
            **fields,
        },
        {"d": Registers.POSITION} if span.dynamic else {},
        reads=(a.region, *reads),
        writes=(out.block(0, out.layout.blocks),),
    )
