"""The scalar part of a norm: from a row's sums to the reciprocal of its deviation."""

from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolith import tables
from systolith.hdl.norm_lane import INVERSE_BITS, SHIFT_BITS
from systolith.hdl.pipeline import delay
from systolith.hdl.rom import PiecewiseLinear

STEPS = 4
"""Multiplications, one a cycle, that each of the two multipliers does for a row."""
DIGIT = 16
"""Operands are cut into digits of 16 bits; products are added at multiples of it."""
RADICAND_BITS = 56


class InverseDeviation(wiring.Component):
    """``1 / sqrt(q)`` of ``q = max(count * squares - total**2 + eps, 1)``, as ``golden.norm``.

    ``done``, with ``inverse`` and ``shift``, follows ``start`` after ``LATENCY`` cycles. A start
    may follow another one after ``STEPS`` cycles. Three multipliers.

    Parameters
    ----------
    count_bits, total_bits, squares_bits : int
        Widths of the number of features, their sum, the sum of their squares; at most 16, 29, 48.

    Members
    -------
    start : in, 1
        The inputs below are those of a row.
    count : in, unsigned; total : in, signed; squares : in, unsigned
    eps : in, unsigned 16; eps_shift : in, unsigned 6
        Mantissa and left shift of epsilon; the shift is at most 38.
    done : out, 1
    inverse : out, unsigned 17
        Mantissa of the reciprocal root.
    shift : out, unsigned 5
        Right shift, less 2, of a product with the mantissa that leaves 15 fraction bits (0 to 27).
    """

    LATENCY = 11 + PiecewiseLinear.LATENCY

    def __init__(self, count_bits: int, total_bits: int, squares_bits: int) -> None:
        for name, bits, most in (
            ("Count", count_bits, DIGIT),
            ("Total", total_bits, 29),
            ("Squares", squares_bits, 3 * DIGIT),
        ):
            if not 1 <= bits <= most:
                raise ValueError(f"{name} width must be from 1 to {most}, not {bits!r}")
        super().__init__(
            {
                "start": In(1),
                "count": In(count_bits),
                "total": In(signed(total_bits)),
                "squares": In(squares_bits),
                "eps": In(16),
                "eps_shift": In(6),
                "done": Out(1),
                "inverse": Out(INVERSE_BITS),
                "shift": Out(SHIFT_BITS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        radicand = self._radicand(m)
        mantissa, shift = self._normalise(m, radicand)
        m.submodules.rsqrt = rsqrt = PiecewiseLinear(tables.rsqrt())
        m.d.comb += [
            rsqrt.segment.eq(mantissa[9:]),
            rsqrt.fraction.eq(mantissa[:9]),
            self.inverse.eq(rsqrt.value),
            self.shift.eq(delay(m, shift, rsqrt.LATENCY, "shift")),
            self.done.eq(delay(m, self.start, self.LATENCY, "start")),
        ]
        return m

    def _radicand(self, m: Module) -> Signal:
        """``q`` before the maximum with 1, valid 8 cycles after the start."""
        count = Signal.like(self.count, reset_less=True)
        squares = Signal(3 * DIGIT, reset_less=True)
        magnitude = Signal(2 * DIGIT - 1, reset_less=True)
        eps = Signal(16, reset_less=True)
        eps_shift = Signal(6, reset_less=True)
        step = Signal(range(STEPS))
        m.d.sync += step.eq(step + 1)
        with m.If(self.start):
            m.d.sync += [
                step.eq(0),
                count.eq(self.count),
                squares.eq(self.squares),
                magnitude.eq(Mux(self.total < 0, -self.total, self.total)),
                eps.eq(self.eps),
                eps_shift.eq(self.eps_shift),
            ]

        # Added: the three digits of the squares times the count, and eps as a digit times a power
        # of two. Subtracted: the three products of the two digits of the total.
        add_a, add_b, sub_a, sub_b = (
            Signal(DIGIT, name=name, reset_less=True)
            for name in ("add_a", "add_b", "sub_a", "sub_b")
        )
        place = Signal(2, reset_less=True)
        low, high = magnitude[:DIGIT], magnitude[DIGIT:]
        with m.Switch(step):
            for digit in range(3):
                with m.Case(digit):
                    m.d.sync += [
                        add_a.eq(count),
                        add_b.eq(squares.word_select(digit, DIGIT)),
                        sub_a.eq(high if digit == 2 else low),
                        sub_b.eq((low, high << 1, high)[digit]),
                        place.eq(digit),
                    ]
            with m.Case(3):
                m.d.sync += [
                    add_a.eq(eps),
                    add_b.eq(Const(1, 1) << eps_shift[:4]),
                    sub_a.eq(0),
                    sub_b.eq(0),
                    place.eq(eps_shift[4:]),
                ]
        added = Signal(2 * DIGIT, reset_less=True)
        subtracted = Signal(2 * DIGIT, reset_less=True)
        m.d.sync += [added.eq(add_a * add_b), subtracted.eq(sub_a * sub_b)]

        first = delay(m, step == 0, 2, "first")
        place_2 = delay(m, place, 1, "place")
        plus = Signal(RADICAND_BITS, reset_less=True)
        minus = Signal(RADICAND_BITS, reset_less=True)
        for total, product in ((plus, added), (minus, subtracted)):
            placed = Signal(RADICAND_BITS, name="placed")
            with m.Switch(place_2):
                for digit in range(3):
                    with m.Case(digit):
                        m.d.comb += placed.eq(product << (DIGIT * digit))
            m.d.sync += total.eq(Mux(first, 0, total) + placed)
        radicand = Signal(RADICAND_BITS, reset_less=True)
        m.d.sync += radicand.eq(plus - minus)
        return radicand

    def _normalise(self, m: Module, q: Signal) -> tuple[Signal, Signal]:
        """Three cycles: the 18 bits of max(q, 1) from its leading pair of bits on, and 27 less the
        number of pairs skipped."""
        upper_zero, lower_zero = ~q[24:].any(), ~q[:24].any()
        low = Cat(q[0] | (upper_zero & lower_zero), q[1:24])
        skip_1 = Signal()
        q_1 = Signal(48, reset_less=True)
        m.d.sync += [
            q_1.eq(Mux(upper_zero, Cat(Const(0, 24), low), q[8:])),
            skip_1.eq(upper_zero),
        ]

        # Each level looks at its upper bits and keeps what the remaining levels can need.
        def level(value: Signal, bits: int) -> tuple[Signal, Signal]:
            kept = Signal(len(value) - bits, name=f"level_{bits}")
            zero = Signal(name=f"zero_{bits}")
            m.d.comb += [
                zero.eq(~value[-bits:].any()),
                kept.eq(Mux(zero, value[: len(kept)], value[bits:])),
            ]
            return kept, zero

        level_16, zero_16 = level(q_1, 16)
        level_8, zero_8 = level(level_16, 8)
        q_2 = Signal(24, reset_less=True)
        skip_2 = Signal(3, reset_less=True)
        m.d.sync += [q_2.eq(level_8), skip_2.eq(Cat(zero_8, zero_16, skip_1))]

        level_4, zero_4 = level(q_2, 4)
        level_2, zero_2 = level(level_4, 2)
        mantissa = Signal(18, reset_less=True)
        shift = Signal(SHIFT_BITS, reset_less=True)
        skipped = Cat(zero_2, zero_4, skip_2)
        m.d.sync += [mantissa.eq(level_2), shift.eq(27 - skipped)]
        return mantissa, shift
