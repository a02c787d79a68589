"""The parameters that accompany the beats of the vector unit."""

from amaranth import Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from systolith.config import Config
from systolith.hdl.layouts import PARAMETER, ReadPort, bits_for_rows


class FetchParameters(wiring.Component):
    """Streams the parameters of the channels of a row, V a beat, again and again.

    The first beat is offered two cycles after ``start``, then one every cycle: the memory is asked
    anew in each cycle for what will be offered in the next one, so nothing is buffered.

    Members
    -------
    o : out, stream of V ``PARAMETER``
        Never ends; a ``start`` withdraws what is offered.
    memory : read port of lines of V channels, never waits
    start : in, 1
        Takes the inputs below; the next beat is the first one of a row.
    base : in, unsigned 16
        First parameter row, of D channels.
    blocks : in, unsigned 12
        Blocks in a row.
    uniform : in, 1
        Every block uses the first parameter row.
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
                "blocks": In(12),
                "uniform": In(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        bits = len(self.memory.addr)
        first = Signal(bits)
        row_beats = Signal(12 + bits_for_rows(self.beats))
        address, ahead = Signal(bits), Signal(bits)
        left = Signal.like(row_beats)
        loaded = Signal()
        m.d.comb += [
            ahead.eq(Mux(left == 1, first, address + 1)),
            self.memory.addr.eq(Mux(self.o.valid & self.o.ready, ahead, address)),
            self.memory.en.eq(loaded),
            Value.cast(self.o.payload).eq(Value.cast(self.memory.data)),
        ]
        new_base, new_beats = Signal(bits), Signal.like(row_beats)
        m.d.comb += [
            new_base.eq(self.base * self.beats),
            new_beats.eq(Mux(self.uniform, self.beats, self.blocks * self.beats)),
        ]
        with m.If(self.start):
            m.d.sync += [
                first.eq(new_base),
                row_beats.eq(new_beats),
                address.eq(new_base),
                left.eq(new_beats),
                loaded.eq(1),
                self.o.valid.eq(0),
            ]
        with m.Else():
            m.d.sync += self.o.valid.eq(loaded)
            with m.If(self.o.valid & self.o.ready):
                m.d.sync += [
                    address.eq(ahead),
                    left.eq(Mux(left == 1, row_beats, left - 1)),
                ]
        return m
