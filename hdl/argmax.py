"""The running maximum over the results of vector instructions."""

from amaranth import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from systolith.hdl.pipeline import delay, tree

_NOTHING = -(1 << 16)
"""Less than any int16: what a lane that takes no part is worth, and the maximum of nothing."""


class ArgMax(wiring.Component):
    """Index of the largest of all values seen, the first one of equals.

    Takes a beat a cycle, never waits. ``index`` is final when ``busy`` is low.

    Members
    -------
    values : in, V signed 16
    valid : in, 1
    index : out, unsigned 32
        0 if nothing has taken part.
    start : in, 1
        The next beat is the first one of a row.
    forget : in, 1
        The running maximum becomes that of nothing; not while ``busy``.
    beats : in, unsigned ``beat_bits``
        Beats of a row, at least 1. This and what follows stays the same from ``start`` on.
    count : in, unsigned 16
        Only the first ``count`` values of a row take part.
    first : in, unsigned 16
        Index of the first value of every row.
    busy : out, 1
    """

    def __init__(self, lanes: int, beat_bits: int) -> None:
        if lanes < 2 or lanes & (lanes - 1):
            raise ValueError(f"Lanes must be a power of two of at least 2, not {lanes!r}")
        self.lanes = lanes
        self.beat_bits = beat_bits
        super().__init__(
            {
                "values": In(data.ArrayLayout(signed(16), lanes)),
                "valid": In(1),
                "index": Out(32),
                "start": In(1),
                "forget": In(1),
                "beats": In(beat_bits),
                "count": In(16),
                "first": In(16),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        lane_bits = ceil_log2(self.lanes)
        beat = Signal(self.beat_bits)
        with m.If(self.start):
            m.d.sync += beat.eq(0)
        with m.Elif(self.valid):
            m.d.sync += beat.eq(Mux(beat + 1 == self.beats, 0, beat + 1))

        inside = Signal()  # all lanes take part
        edge = Signal()  # the first count mod V lanes do
        m.d.sync += [
            inside.eq(beat < self.count[lane_bits:]),
            edge.eq(beat == self.count[lane_bits:]),
        ]
        values = delay(m, Value.cast(self.values), 1, "values")
        candidates = []
        for lane in range(self.lanes):
            value = Signal(signed(17), name=f"value_{lane}", reset_less=True)
            given = values.word_select(lane, 16).as_signed()
            takes_part = inside | (edge & (lane < self.count[:lane_bits]))
            m.d.sync += value.eq(Mux(takes_part, given, Const(_NOTHING, signed(17))))
            candidates.append(Cat(value, Const(lane, lane_bits)))
        largest = tree(m, candidates, _larger, "largest")
        value, lane = largest[:17].as_signed(), largest[17:]

        at = Signal(32)
        m.d.comb += at.eq(self.first + (beat << lane_bits))
        at = delay(m, at, 2 + lane_bits, "at")
        valids = Signal(2 + lane_bits)
        m.d.sync += valids.eq(Cat(self.valid, valids))
        m.d.comb += self.busy.eq(valids.any())

        best = Signal(signed(17), init=_NOTHING)
        with m.If(self.forget):
            m.d.sync += [best.eq(_NOTHING), self.index.eq(0)]
        with m.Elif(valids[-1] & (value > best)):
            m.d.sync += [best.eq(value), self.index.eq(at + lane)]
        return m


def _larger(left: Value, right: Value) -> Value:
    """Value and lane of the larger one; the left one of equals."""
    return Mux(right[:17].as_signed() > left[:17].as_signed(), right, left)
