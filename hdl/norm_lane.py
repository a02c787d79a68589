"""One lane of the norms: from a feature to its normalised, scaled and shifted value."""

from amaranth import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolith import tables
from systolith.hdl.pipeline import delay
from systolith.hdl.rounding import RoundShift

INVERSE_BITS = tables.rsqrt().bits
SHIFT_BITS = 5
Z_BITS = 24
LOW_BITS = 17
"""Unsigned part of an operand that is cut in two for 18 × 18 signed multipliers."""


class Normalise(wiring.Component):
    """``z``: ``(count * x - total) * inverse``, rounded to 15 fraction bits.

    ``z`` belongs to the inputs of ``LATENCY`` cycles ago. Three multipliers.

    Parameters
    ----------
    count_bits, total_bits : int
        Widths of the number of features and of their sum.

    Members
    -------
    x : in, signed 16
    count : in, unsigned ``count_bits``; total : in, signed ``total_bits``
        Features of the row; their sum, or 0 for RMSNorm.
    inverse : in, unsigned 17; shift : in, unsigned 5
        Mantissa of the reciprocal root, and the right shift of the product less 2 (0 to 27).
    z : out, signed 24
    """

    LATENCY = 7

    def __init__(self, count_bits: int, total_bits: int) -> None:
        self.count_bits = count_bits
        self.total_bits = total_bits
        super().__init__(
            {
                "x": In(signed(16)),
                "count": In(count_bits),
                "total": In(signed(total_bits)),
                "inverse": In(INVERSE_BITS),
                "shift": In(SHIFT_BITS),
                "z": Out(signed(Z_BITS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        x = Signal(signed(16), reset_less=True)
        count = Signal(self.count_bits, reset_less=True)
        total = delay(m, self.total, 2, "total")
        inverse = delay(m, self.inverse, 3, "inverse")
        shift = delay(m, self.shift, 5, "shift")
        m.d.sync += [x.eq(self.x), count.eq(self.count)]

        scaled = Signal(signed(self.count_bits + 16), reset_less=True)
        m.d.sync += scaled.eq(x * count)

        d = Signal(signed(max(self.count_bits + 16, self.total_bits) + 1), reset_less=True)
        m.d.sync += d.eq(scaled - total)

        low = Signal(LOW_BITS + INVERSE_BITS, reset_less=True)
        high = Signal(signed(len(d) - LOW_BITS + INVERSE_BITS), reset_less=True)
        m.d.sync += [
            low.eq(d[:LOW_BITS] * inverse),
            high.eq(d[LOW_BITS:].as_signed() * inverse),
        ]

        product = Signal(signed(len(high) + LOW_BITS), reset_less=True)
        m.d.sync += product.eq((high << LOW_BITS) + low)

        # |d| <= sqrt(N * q), so |z| stays below 2**22: the golden's saturation cannot happen for
        # a feature of the row, and lanes beyond the row may hold anything.
        t = Signal(signed(Z_BITS + 1), reset_less=True)
        m.d.sync += t.eq((product >> 1) >> shift)

        m.d.sync += self.z.eq((t + 1) >> 1)
        return m


class Affine(wiring.Component):
    """``saturate((z * gain + bias + 2**(shift - 1)) >> shift)``, to 8 or 16 signed bits.

    ``result`` belongs to the inputs of ``LATENCY`` cycles ago. Two multipliers.

    Members
    -------
    z : in, signed 24
    gain : in, signed 16; bias : in, signed 32; shift : in, unsigned 6
    wide : in, 1
        Saturate to 16 bits, otherwise to 8.
    valid : in, 1
        The lane is part of the row; otherwise its result is 0.
    result : out, signed 16
    """

    LATENCY = 4 + RoundShift.LATENCY

    z: In(signed(Z_BITS))
    gain: In(signed(16))
    bias: In(signed(32))
    shift: In(6)
    wide: In(1)
    valid: In(1)
    result: Out(signed(16))

    def elaborate(self, platform):
        m = Module()
        low = Signal(signed(LOW_BITS + 1 + 16), reset_less=True)
        high = Signal(signed(Z_BITS - LOW_BITS + 16), reset_less=True)
        bias = delay(m, self.bias, 2, "bias")
        m.d.sync += [
            low.eq(self.z[:LOW_BITS] * self.gain),
            high.eq(self.z[LOW_BITS:].as_signed() * self.gain),
        ]

        product = Signal(signed(Z_BITS + 16), reset_less=True)
        m.d.sync += product.eq((high << LOW_BITS) + low)

        total = Signal(signed(Z_BITS + 17), reset_less=True)
        m.d.sync += total.eq(product + bias)

        m.submodules.round = rounder = RoundShift(len(total), 6, 16)
        y = rounder.result
        m.d.comb += [rounder.x.eq(total), rounder.shift.eq(delay(m, self.shift, 3, "shift"))]

        wide = delay(m, self.wide, self.LATENCY - 1, "wide")
        valid = delay(m, self.valid, self.LATENCY - 1, "valid")
        narrow = Signal(signed(8), reset_less=True)
        fits = (y[7:] == 0) | y[7:].all()
        m.d.comb += narrow.eq(Mux(fits, y[:8].as_signed(), Mux(y[-1], -128, 127)))
        m.d.sync += self.result.eq(Mux(valid, Mux(wide, y, narrow), 0))
        return m
