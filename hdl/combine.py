"""How one lane of the vector unit joins source B: add, multiply, rotate."""

from amaranth import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolith import isa
from systolith.hdl.requant import split_product
from systolith.hdl.rounding import RoundShift


class CombineLane(wiring.Component):
    """``golden.add``, ``golden.multiply`` or ``golden.rope`` of one lane, saturated to 16 bits.

    ``result`` belongs to the inputs of ``LATENCY`` cycles ago (``LATENCY_MULTIPLY`` for a
    multiplication); one value enters every cycle, and nothing waits. Four multipliers.

    Members
    -------
    y : in, signed 16
    partner : in, signed 16
        y of the other lane of the pair, for the rotation.
    b : in, signed 16
        The other operand; the cosine of a rotation.
    b2 : in, signed 16
        The sine of a rotation.
    result : out, signed 16
    mode : in, 2
        ``isa.Combine``. This and what follows stays the same while values are under way.
    mult_a, mult_b : in, unsigned 16
    shift : in, unsigned 6
    """

    LATENCY = 3 + RoundShift.LATENCY
    LATENCY_MULTIPLY = LATENCY + 1

    y: In(signed(16))
    partner: In(signed(16))
    b: In(signed(16))
    b2: In(signed(16))
    result: Out(signed(16))
    mode: In(2)
    mult_a: In(16)
    mult_b: In(16)
    shift: In(6)

    def elaborate(self, platform) -> Module:
        m = Module()
        add, multiply, rope = (Signal(name=kind.name.lower()) for kind in list(isa.Combine)[1:])
        m.d.comb += [
            add.eq(self.mode == isa.Combine.ADD),
            multiply.eq(self.mode == isa.Combine.MULTIPLY),
            rope.eq(self.mode == isa.Combine.ROPE),
        ]

        # The multipliers take most of a cycle, so what they take comes from registers.
        y = Signal(signed(16), reset_less=True)
        other = Signal(signed(16), reset_less=True)
        factor_a = Signal(signed(17), reset_less=True)
        factor_b = Signal(signed(17), reset_less=True)
        m.d.sync += [
            y.eq(self.y),
            factor_a.eq(Mux(add, self.mult_a, self.b)),
            factor_b.eq(Mux(rope, self.b2, self.mult_b)),
            other.eq(Mux(rope, self.partner, self.b)),
        ]
        product_a = Signal(signed(33), reset_less=True)
        product_b = Signal(signed(33), reset_less=True)
        m.d.sync += [product_a.eq(y * factor_a), product_b.eq(other * factor_b)]

        # A product of two int16 fits 32 bits.
        low, high = split_product(m, product_a[:32].as_signed(), self.mult_a, "scaled")

        # One adder, fed from two different stages.
        first = Signal(signed(33), reset_less=True)
        second = Signal(signed(48), reset_less=True)
        total = Signal(signed(48), reset_less=True)
        m.d.comb += [
            first.eq(Mux(multiply, low, product_a)),
            second.eq(Mux(multiply, high << 16, product_b)),
        ]
        m.d.sync += total.eq(first + second)

        m.submodules.round = rounder = RoundShift(48, 6, 16)
        m.d.comb += [
            rounder.x.eq(total),
            rounder.shift.eq(self.shift),
            self.result.eq(rounder.result),
        ]
        return m
