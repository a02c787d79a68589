"""The parameters that accompany the beats of the vector unit."""

from amaranth import Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from systolith.config import Config
from systolith.hdl.layouts import PARAMETER, ReadPort, bits_for_rows
from systolith.hdl.pipeline import Buffer


class FetchParameters(wiring.Component):
    """Streams the parameters of the channels of a row, V a beat, once for each row.

    The first beat is offered three cycles after ``start``, then one every cycle: the memory is
    asked anew in each cycle for what will enter the buffer in the next one.

    Members
    -------
    o : out, stream of V ``PARAMETER``
        D / V beats for each block.
    memory : read port of lines of V channels, never waits
    start : in, 1
        Takes the inputs below; only when the beats of the previous start have been taken.
    base : in, unsigned 16
        First parameter row, of D channels.
    rows : in, unsigned 12
    blocks : in, unsigned 12
        Blocks in a row.
    uniform : in, 1
        Every block uses the first parameter row.
    busy : out, 1
        Beats of the last start have not been taken; from the cycle after it.
    """

    def __init__(self, config: Config) -> None:
        self.beats = config.dim // config.lanes
        lines = config.parameter_rows * self.beats
        shape = data.ArrayLayout(PARAMETER, config.lanes)
        super().__init__(
            {
                "o": Out(stream.Signature(shape)),
                "memory": Out(ReadPort(bits_for_rows(lines), shape)),
                "start": In(1),
                "base": In(16),
                "rows": In(12),
                "blocks": In(12),
                "uniform": In(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        bits = len(self.memory.addr)
        beat_bits = 12 + bits_for_rows(self.beats)
        first, address, ahead = Signal(bits), Signal(bits), Signal(bits)
        row_beats, beats_left, period, period_left = (Signal(beat_bits) for _ in range(4))
        rows_left = Signal(12)
        active, row_ends, wraps, goes = Signal(), Signal(), Signal(), Signal()
        # A block RAM answers late in the cycle: its word is registered.
        m.submodules.words = words = Buffer(self.o.payload.shape())
        wiring.connect(m, wiring.flipped(self.o), words.o)
        offered = words.i.valid
        m.d.comb += [
            goes.eq(offered & words.i.ready),
            row_ends.eq(beats_left == 1),
            wraps.eq(period_left == 1),
            ahead.eq(Mux(wraps, first, address + 1)),
            self.memory.addr.eq(Mux(goes, ahead, address)),
            self.memory.en.eq(active),
            self.busy.eq(active | words.o.valid),
            Value.cast(words.i.payload).eq(Value.cast(self.memory.data)),
        ]
        new_first, new_beats, new_period = Signal(bits), Signal(beat_bits), Signal(beat_bits)
        m.d.comb += [
            new_first.eq(self.base * self.beats),
            new_beats.eq(self.blocks * self.beats),
            new_period.eq(Mux(self.uniform, self.beats, new_beats)),
        ]
        with m.If(self.start):
            m.d.sync += [
                first.eq(new_first),
                address.eq(new_first),
                row_beats.eq(new_beats),
                beats_left.eq(new_beats),
                period.eq(new_period),
                period_left.eq(new_period),
                rows_left.eq(self.rows),
                active.eq(1),
            ]
        with m.Else():
            m.d.sync += offered.eq(active)
            with m.If(goes):
                m.d.sync += [
                    address.eq(ahead),
                    period_left.eq(Mux(wraps, period, period_left - 1)),
                    beats_left.eq(Mux(row_ends, row_beats, beats_left - 1)),
                    rows_left.eq(rows_left - row_ends),
                ]
                with m.If(row_ends & (rows_left == 1)):
                    m.d.sync += [active.eq(0), offered.eq(0)]
        return m
