"""Weight loader: reads the stationary tile that comes next, while the present one streams."""

from amaranth import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from systolith.config import Config
from systolith.hdl.layouts import ReadPort, bits_for_rows, row
from systolith.hdl.tile_walker import tile_layout


class WeightLoader(wiring.Component):
    """Reads the D weight rows of a tile, one a cycle, and then offers the tile for streaming.

    A tile taken in cycle t is read in cycles t + 1 .. t + D and offered from t + 1 on. The next one
    is taken when the offered one has gone and the last row's read is issued, so in the cycle after
    the swap at the earliest, and every D cycles if the swaps keep up.

    Members
    -------
    tiles : stream of ``tile_layout``
    weight : read port of the weight memory, which never waits
    loaded : stream of ``tile_layout``
        Tile whose weights are in, or on their way to, the shadow registers; to be swapped in.
    load, index, columns : out
        For the array, in the cycle of the memory's ``data``.
    busy : out, 1
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        dim_bits = (config.dim - 1).bit_length()
        super().__init__(
            {
                "tiles": In(stream.Signature(tile_layout(config))),
                "weight": Out(ReadPort(bits_for_rows(config.weight_rows), row(config))),
                "loaded": Out(stream.Signature(tile_layout(config))),
                "load": Out(1),
                "index": Out(dim_bits),
                "columns": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        active, left = Signal(), Signal(self.index.shape())
        address = Signal.like(self.weight.addr)
        last = Signal()
        m.d.comb += [
            last.eq(left == 0),
            self.tiles.ready.eq(~self.loaded.valid & (~active | last)),
            self.weight.en.eq(active),
            self.weight.addr.eq(address),
            self.busy.eq(active | self.loaded.valid),
        ]
        m.d.sync += [
            self.load.eq(active),
            self.index.eq(~left),
            self.columns.eq(self.loaded.payload.columns),
            address.eq(address + 1),
            left.eq(left - 1),
        ]
        with m.If(self.loaded.valid & self.loaded.ready):
            m.d.sync += self.loaded.valid.eq(0)
        with m.If(self.tiles.valid & self.tiles.ready):
            m.d.sync += [
                active.eq(1),
                left.eq(~0),
                address.eq(self.tiles.payload.weight),
                self.loaded.payload.eq(self.tiles.payload),
                self.loaded.valid.eq(1),
            ]
        with m.Elif(last):
            m.d.sync += active.eq(0)
        return m
