"""Pipelined evaluator of the fixed piecewise-linear tables (``systolith.tables.Rom``)."""

from amaranth import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from systolith import tables

SLOPE_BITS = 15


class PiecewiseLinear(wiring.Component):
    """Evaluates a ``tables.Rom`` bit-exactly: one multiplier and one block RAM.

    ``value`` belongs to the ``segment`` and ``fraction`` of ``LATENCY`` cycles ago. One evaluation
    starts every cycle; nothing waits and nothing is reset, the surroundings keep track of what is
    valid.

    Parameters
    ----------
    rom : tables.Rom
        The function. The number of its segments is a power of two.

    Members
    -------
    segment : in, unsigned, log2 of the segments
    fraction : in, unsigned, ``rom.fraction_bits``
        Position inside the segment.
    value : out, unsigned, ``rom.bits``
        ``rom(segment, fraction)``.
    """

    LATENCY = 4

    def __init__(self, rom: tables.Rom) -> None:
        if not isinstance(rom, tables.Rom):
            raise TypeError(f"Rom must be a tables.Rom, not {rom!r}")
        segments = len(rom.base)
        if segments < 2 or segments & (segments - 1):
            raise ValueError(f"Segments must be a power of two of at least 2, not {segments}")
        self.rom = rom
        super().__init__(
            {
                "segment": In(ceil_log2(segments)),
                "fraction": In(rom.fraction_bits),
                "value": Out(rom.bits),
            }
        )

    def elaborate(self, platform):
        m = Module()
        rom = self.rom
        base_bits = rom.bits + tables.GUARD_BITS
        rows = [
            int(base) | (int(slope) & ((1 << SLOPE_BITS) - 1)) << base_bits
            for base, slope in zip(rom.base, rom.slope, strict=True)
        ]
        m.submodules.table = table = memory.Memory(
            shape=unsigned(base_bits + SLOPE_BITS),
            depth=len(rows),
            init=rows,
            attrs={"rom_style": "block", "ram_style": "block"},
        )
        read = table.read_port()
        fraction_1 = Signal(rom.fraction_bits, reset_less=True)
        m.d.comb += read.addr.eq(self.segment)
        m.d.sync += fraction_1.eq(self.fraction)

        # A block RAM answers late in the cycle: its word is registered before the multiplier.
        base_2 = Signal(base_bits, reset_less=True)
        slope_2 = Signal(signed(SLOPE_BITS), reset_less=True)
        fraction_2 = Signal(rom.fraction_bits, reset_less=True)
        m.d.sync += [
            Cat(base_2, slope_2).eq(read.data),
            fraction_2.eq(fraction_1),
        ]

        base_3 = Signal(base_bits, reset_less=True)
        product_3 = Signal(signed(SLOPE_BITS + rom.fraction_bits), reset_less=True)
        m.d.sync += [base_3.eq(base_2), product_3.eq(slope_2 * fraction_2)]

        # The line never leaves 0 .. 2**base_bits; only the upper end can round out of the range.
        line = Signal(base_bits + 1, reset_less=True)
        rounded = Signal(rom.bits + 1, reset_less=True)
        half = Const(1 << (tables.GUARD_BITS - 1), base_bits)
        m.d.comb += [
            line.eq(base_3 + half + (product_3 >> rom.fraction_bits)),
            rounded.eq(line >> tables.GUARD_BITS),
        ]
        top = Const((1 << rom.bits) - 1, rom.bits)
        m.d.sync += self.value.eq(Mux(rounded[-1], top, rounded[:-1]))
        return m
