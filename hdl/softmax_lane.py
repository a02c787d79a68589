"""One lane of softmax: from a score to an exponential, and from there to a probability."""

from amaranth import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolith import tables
from systolith.hdl.pipeline import delay
from systolith.hdl.rom import PiecewiseLinear
from systolith.hdl.rounding import RoundShift

MANTISSA_BITS = tables.exp2().bits
INVERSE_BITS = tables.reciprocal().bits
EXPONENT_BITS = 16
DISTANCE_BITS = 5


class Exponential(wiring.Component):
    """One lane of phase A: a score becomes ``mantissa * 2**(exponent - 17)``.

    ``exponent`` and ``mantissa`` belong to the inputs of ``LATENCY`` cycles ago, ``early_exponent``
    to those of ``EARLY`` cycles ago. Two multipliers scale, one interpolates.

    Members
    -------
    score : in, signed 32; mult : in, unsigned 16; shift : in, unsigned 6
    early_exponent, exponent : out, signed 16
    mantissa : out, unsigned 18
    """

    EARLY = 3 + RoundShift.LATENCY
    LATENCY = EARLY + PiecewiseLinear.LATENCY

    score: In(signed(32))
    mult: In(16)
    shift: In(6)
    early_exponent: Out(signed(EXPONENT_BITS))
    exponent: Out(signed(EXPONENT_BITS))
    mantissa: Out(MANTISSA_BITS)

    def elaborate(self, platform):
        m = Module()
        score = Signal(signed(32), reset_less=True)
        mult = Signal(16, reset_less=True)
        m.d.sync += [score.eq(self.score), mult.eq(self.mult)]

        # Two products that fit 18 × 18 multipliers.
        low = Signal(32, reset_less=True)
        high = Signal(signed(32), reset_less=True)
        m.d.sync += [low.eq(score[:16] * mult), high.eq(score[16:].as_signed() * mult)]

        m.submodules.round = rounder = RoundShift(48, 6, 32)
        product = Signal(signed(48), reset_less=True)
        m.d.sync += product.eq(Cat(low[:16], (high + low[16:])[:32]).as_signed())
        m.d.comb += [
            rounder.x.eq(product),
            rounder.shift.eq(delay(m, self.shift, 3, "shift")),
        ]

        m.submodules.exp2 = exp2 = PiecewiseLinear(tables.exp2())
        x = rounder.result
        m.d.comb += [
            self.early_exponent.eq(x[16:].as_signed()),
            self.exponent.eq(delay(m, self.early_exponent, exp2.LATENCY, "exponent")),
            exp2.segment.eq(x[9:16]),
            exp2.fraction.eq(x[:9]),
            self.mantissa.eq(exp2.value),
        ]
        return m


class Probability(wiring.Component):
    """One lane of phase C: ``mantissa * inverse``, scaled to 8 or 16 bits and rounded.

    ``result`` belongs to the inputs of ``LATENCY`` cycles ago.

    Members
    -------
    mantissa : in, unsigned 18; distance : in, unsigned 5
        Of the element.
    inverse : in, unsigned 18; offset : in, unsigned
        Of the row: the reciprocal of the sum's mantissa; the sum's bit length minus 26, and 8 more
        for 8-bit results.
    wide : in, 1
        16-bit result, otherwise 8-bit.
    valid : in, 1
        The lane takes part; otherwise its result is 0.
    result : out, unsigned 16
    """

    LATENCY = 5

    def __init__(self, offset_bits: int) -> None:
        super().__init__(
            {
                "mantissa": In(MANTISSA_BITS),
                "distance": In(DISTANCE_BITS),
                "inverse": In(INVERSE_BITS),
                "offset": In(offset_bits),
                "wide": In(1),
                "valid": In(1),
                "result": Out(16),
            }
        )

    def elaborate(self, platform):
        m = Module()
        mantissa = Signal(MANTISSA_BITS, reset_less=True)
        inverse = Signal(INVERSE_BITS, reset_less=True)
        distance = Signal(DISTANCE_BITS, reset_less=True)
        offset = Signal(len(self.offset), reset_less=True)
        m.d.sync += [
            mantissa.eq(self.mantissa),
            inverse.eq(self.inverse),
            distance.eq(self.distance),
            offset.eq(self.offset),
        ]

        # The golden's shift is length + distance + 9 - bits: 18 + offset + distance before the
        # rounding bit. Beyond 36 nothing is left of the product.
        amount = Signal(6, reset_less=True)
        shift = Signal(5, reset_less=True)
        m.d.comb += amount.eq(offset + distance)
        m.d.sync += shift.eq(Mux(amount[5], 31, amount[:5]))
        wide_2 = delay(m, self.wide, 2, "wide_a")
        wide_4 = delay(m, wide_2, 2, "wide_b")
        valid_4 = delay(m, self.valid, 4, "valid")

        product_bits = MANTISSA_BITS + INVERSE_BITS
        product = Signal(product_bits, reset_less=True)
        m.d.sync += product.eq(mantissa * inverse)

        # Times (2**bits - 1) / 2**bits. Only the bits above the constant shift are looked at.
        scaled = Signal(product_bits, reset_less=True)
        m.d.sync += scaled.eq(product - Mux(wide_2, product >> 16, product >> 8))

        shifted = Signal(product_bits - 18, reset_less=True)
        m.d.sync += shifted.eq(scaled[18:] >> delay(m, shift, 1, "amount"))

        rounded = Signal(product_bits - 18, reset_less=True)
        over = Signal(reset_less=True)
        m.d.comb += [
            rounded.eq((shifted + 1) >> 1),
            over.eq(Mux(wide_4, rounded[16:].any(), rounded[8:].any())),
        ]
        p = Signal(16, reset_less=True)
        m.d.comb += p.eq(Mux(over, Mux(wide_4, 0xFFFF, 0xFF), rounded))
        m.d.sync += self.result.eq(Mux(valid_4, p, 0))
        return m
