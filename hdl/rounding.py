"""Pipelined rounding shift with saturation: the end of every fixed-point rescale."""

from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

FINE_BITS = 3
"""Low bits of the shift amount that the first barrel stage takes."""


class RoundShift(wiring.Component):
    """``saturate(round_shift(x, shift))`` of ``systolith.fixed``, bit-exact, in three stages.

    ``result`` belongs to the inputs of ``LATENCY`` cycles ago; one value enters every cycle, and
    nothing waits. Cycle 1 shifts by the low bits of ``shift``, cycle 2 by the rest and looks for
    overflow, cycle 3 rounds and clamps.

    Parameters
    ----------
    in_bits, shift_bits, out_bits : int
        Widths; ``out_bits`` is at most ``in_bits``, ``shift_bits`` at least 4.

    Members
    -------
    x : in, signed ``in_bits``
    shift : in, unsigned ``shift_bits``
        Any value; beyond ``in_bits`` the result is 0.
    result : out, signed ``out_bits``
    """

    LATENCY = 3

    def __init__(self, in_bits: int, shift_bits: int, out_bits: int) -> None:
        if not 1 <= out_bits <= in_bits:
            raise ValueError(f"Output width must be from 1 to {in_bits}, not {out_bits!r}")
        if not FINE_BITS < shift_bits <= 6:
            raise ValueError(f"Shift width must be from 4 to 6, not {shift_bits!r}")
        self.in_bits = in_bits
        self.shift_bits = shift_bits
        self.out_bits = out_bits
        super().__init__(
            {
                "x": In(signed(in_bits)),
                "shift": In(shift_bits),
                "result": Out(signed(out_bits)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        # (x + half) >> shift equals (t + 1) >> 1 with t = (2 * x) >> shift: no variable half.
        wide = self.in_bits + 1
        fine = Signal(signed(wide), reset_less=True)
        coarse_shift = Signal(self.shift_bits - FINE_BITS, reset_less=True)
        m.d.sync += [
            fine.eq(Cat(Const(0, 1), self.x).as_signed() >> self.shift[:FINE_BITS]),
            coarse_shift.eq(self.shift[FINE_BITS:]),
        ]

        t = Signal(signed(wide), reset_less=True)
        kept = Signal(signed(self.out_bits + 1), reset_less=True)
        above = Signal(reset_less=True)
        below = Signal(reset_less=True)
        m.d.comb += t.eq(fine >> (coarse_shift << FINE_BITS))
        upper = t[self.out_bits :]  # all equal to the sign, if t fits into out_bits + 1
        m.d.sync += [
            kept.eq(t),
            above.eq(~t[-1] & upper.any()),
            below.eq(t[-1] & ~upper.all()),
        ]

        # kept = 0111..1 would round up to 2**(out_bits - 1).
        largest = Signal(reset_less=True)
        rounded = Signal(signed(self.out_bits + 2), reset_less=True)
        low = Const(-(1 << (self.out_bits - 1)), signed(self.out_bits))
        high = Const((1 << (self.out_bits - 1)) - 1, signed(self.out_bits))
        m.d.comb += [
            largest.eq(~kept[-1] & kept[:-1].all()),
            rounded.eq(kept + Const(1, 2)),
        ]
        m.d.sync += self.result.eq(
            Mux(below, low, Mux(above | largest, high, rounded[1:].as_signed()))
        )
        return m
