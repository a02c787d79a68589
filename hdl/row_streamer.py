"""Row streamer: swaps a tile in and sends the activation rows through it, plane by plane."""

from amaranth import Cat, Module, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from systolith.config import Config
from systolith.hdl.accumulator import minimum_pass
from systolith.hdl.layouts import ReadPort, bits_for_rows, row
from systolith.hdl.pe import ACTIVATION
from systolith.hdl.pipeline import delay
from systolith.hdl.tile_walker import tile_layout


class RowStreamer(wiring.Component):
    """Swaps a tile in and reads its activation rows, plane by plane, one row a cycle.

    A tile is taken in the last cycle of the one before, or when there is none; that cycle is the
    swap's. Each pass (one plane) then takes ``max(rows, minimum_pass(config))`` cycles, of which
    the first ``rows`` read a row: the accumulator's update of a row must not meet the next.
    ``activations`` and ``swap`` are two cycles behind, ready for the array.

    Members
    -------
    loaded : stream of ``tile_layout``
    activation : read port of the activation memory, which never waits
    activations : out, D x signed(9)
        The row read two cycles ago; lanes outside ``lanes_in`` are 0.
    swap : out, 1
    update : out
        What to do with the sums of the row that is being read: address, overwrite, shift, lanes.
    valid : out, 1
        A row is being read.
    last : out, 1
        Last cycle of the last pass of an instruction.
    active : out, 1
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        tile = tile_layout(config)
        self.update_layout = data.StructLayout(
            {"address": tile["acc"].shape, "overwrite": 1, "shift": 1, "lanes": config.dim}
        )
        super().__init__(
            {
                "loaded": In(stream.Signature(tile)),
                "activation": Out(ReadPort(bits_for_rows(config.activation_rows), row(config))),
                "activations": Out(data.ArrayLayout(ACTIVATION, config.dim)),
                "swap": Out(1),
                "update": Out(self.update_layout),
                "valid": Out(1),
                "last": Out(1),
                "active": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        tile = Signal(tile_layout(self.config), reset_less=True)
        coming = self.loaded.payload
        address, second = Signal.like(tile.act), Signal.like(tile.act)
        acc = Signal.like(tile.acc)
        plane, left, pass_last = Signal(), Signal(16), Signal()
        # A pass of fewer rows than the minimum, a power of two, whose cycles bring the step to 0.
        minimum = minimum_pass(self.config)
        bits = minimum.bit_length() - 1
        short, step = Signal(), Signal(bits)

        def cycles(rows: Value) -> Value:
            """The larger of the rows and the minimum."""
            few = ~rows[bits:].any()
            return Cat(rows[:bits] & ~few.replicate(bits), rows[bits] | few, rows[bits + 1 :])

        pass_end, tile_end, take = Signal(), Signal(), Signal()
        m.d.comb += [
            pass_end.eq(self.active & pass_last),
            tile_end.eq(pass_end & (plane == tile.wide)),
            self.loaded.ready.eq(~self.active | tile_end),
            take.eq(self.loaded.valid & self.loaded.ready),
        ]
        with m.If(self.active):
            m.d.sync += [
                left.eq(left - 1),
                pass_last.eq(left == 2),
                step.eq(step + 1),
                address.eq(address + tile.act_stride),
                acc.eq(acc + tile.acc_stride),
            ]
        with m.If(pass_end):
            m.d.sync += [
                self.active.eq(~tile_end),
                left.eq(cycles(tile.rows)),
                pass_last.eq(0),
                plane.eq(1),
                address.eq(second),
                acc.eq(tile.acc),
            ]
        with m.If(take):
            m.d.sync += [
                tile.eq(coming),
                self.active.eq(1),
                left.eq(cycles(coming.rows)),
                pass_last.eq(0),
                step.eq(0),
                plane.eq(0),
                short.eq(coming.rows < minimum),
                address.eq(coming.act),
                second.eq(coming.act + 1),
                acc.eq(coming.acc),
            ]
        m.d.comb += [
            self.valid.eq(self.active & (~short | (step < tile.rows[:bits]))),
            self.last.eq(tile_end & tile.last),
            self.activation.en.eq(self.valid),
            self.activation.addr.eq(address),
            self.update.address.eq(acc),
            self.update.overwrite.eq(tile.overwrite & ~plane),
            self.update.shift.eq(plane),
            self.update.lanes.eq(tile.lanes_out),
        ]

        is_signed = tile.signed & (plane == tile.wide)
        raw = Signal(row(self.config), reset_less=True)
        m.d.sync += Value.cast(raw).eq(Value.cast(self.activation.data))
        lanes = delay(m, tile.lanes_in, 2, "lanes_in")
        sign = delay(m, is_signed, 2, "sign")
        m.d.comb += self.swap.eq(delay(m, take, 2, "swap"))
        for i in range(self.config.dim):
            byte = raw[i]
            m.d.comb += self.activations[i].eq(
                (Cat(byte, sign & byte[7]) & lanes[i].replicate(9)).as_signed()
            )
        return m
