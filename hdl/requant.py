"""Requantization of one lane: bias, multiplication by a mantissa, rounding shift."""

from amaranth import Module, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolith.hdl.pipeline import delay
from systolith.hdl.rounding import RoundShift


def split_product(m: Module, x: Value, mult: Value, name: str) -> tuple[Signal, Signal]:
    """Registers ``(low, high)`` with ``x * mult == low + (high << 16)`` one cycle later.

    ``x``: signed 32, ``mult``: unsigned 16; ``low`` is unsigned 32, ``high`` signed 32. Each takes
    one 18 × 18 multiplier.
    """
    low = Signal(32, name=f"{name}_low", reset_less=True)
    high = Signal(signed(32), name=f"{name}_high", reset_less=True)
    m.d.sync += [low.eq(x[:16] * mult), high.eq(x[16:].as_signed() * mult)]
    return low, high


class Requantize(wiring.Component):
    """``golden.scale`` of one lane, bit-exact.

    ``result`` belongs to the inputs of ``LATENCY`` cycles ago; one value enters every cycle, and
    nothing waits. Two multipliers.

    Members
    -------
    x : in, signed 32
    bias : in, signed 32
    mult : in, unsigned 16
    shift : in, unsigned 6
    result : out, signed 16
    """

    LATENCY = 3 + RoundShift.LATENCY

    x: In(signed(32))
    bias: In(signed(32))
    mult: In(16)
    shift: In(6)
    result: Out(signed(16))

    def elaborate(self, platform) -> Module:
        m = Module()
        biased = Signal(signed(32), reset_less=True)
        mult = Signal(16, reset_less=True)
        m.d.sync += [biased.eq(self.x + self.bias), mult.eq(self.mult)]

        low, high = split_product(m, biased, mult, "product")

        total = Signal(signed(48), reset_less=True)
        m.d.sync += total.eq(low + (high << 16))

        m.submodules.round = rounder = RoundShift(48, 6, 16)
        m.d.comb += [
            rounder.x.eq(total),
            rounder.shift.eq(delay(m, self.shift, 3, "shift")),
            self.result.eq(rounder.result),
        ]
        return m
