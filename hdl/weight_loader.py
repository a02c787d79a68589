"""Weight loader: reads the stationary tile that comes next, while the present one streams."""

from amaranth import Cat, Const, Module, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from systolith.config import Config
from systolith.hdl.layouts import ReadPort, bits_for_rows, row
from systolith.hdl.pipeline import delay
from systolith.hdl.systolic import index_bits
from systolith.hdl.tile_walker import tile_layout


class WeightLoader(wiring.Component):
    """Reads the D weight rows of a tile, W a cycle, and then offers the tile for streaming.

    A tile taken in cycle t is read in cycles t + 1 .. t + D, row j in cycle t + 1 + j: bank p of
    the memory holds rows p D / W to (p + 1) D / W - 1 of every tile, and its reads follow those of
    bank 0 by p D / W cycles, the skew that the array wants. The tile is offered from t + 1
    on. The next one is taken when the offered one has gone and bank 0's last read is issued, so in
    the cycle after the swap at the earliest, and every D / W cycles if the swaps keep up.

    With more than one port a tile starts at a multiple of D rows; the low bits are ignored.

    Members
    -------
    tiles : stream of ``tile_layout``
    weight : array of W read ports, of the banks of the weight memory, which never wait
    loaded : stream of ``tile_layout``
        Tile whose weights are in, or on their way to, the shadow registers; to be swapped in.
    load, index, columns : out
        For the ports of the array, in the cycle of the memory's ``data``.
    busy : out, 1
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        ports = config.weight_ports
        bank_bits = bits_for_rows(config.weight_rows // ports)
        index = index_bits(config.dim, ports)
        super().__init__(
            {
                "tiles": In(stream.Signature(tile_layout(config))),
                "weight": Out(ReadPort(bank_bits, row(config))).array(ports),
                "loaded": Out(stream.Signature(tile_layout(config))),
                "load": Out(ports),
                "index": Out(data.ArrayLayout(index, ports)),
                "columns": Out(ports),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        port_rows = self.config.dim // self.config.weight_ports
        active, left = Signal(), Signal(range(port_rows))
        address = Signal.like(self.weight[0].addr)
        last = Signal()
        m.d.comb += [
            last.eq(left == 0),
            self.tiles.ready.eq(~self.loaded.valid & (~active | last)),
            self.busy.eq(active | self.loaded.valid),
        ]
        for port, memory in enumerate(self.weight):
            wait = port * port_rows
            reads = delay(m, active, wait, f"reads_{port}")
            m.d.comb += [
                memory.en.eq(reads),
                memory.addr.eq(delay(m, address, wait, f"address_{port}")),
            ]
            m.d.sync += [
                self.load[port].eq(reads),
                self.index[port].eq(delay(m, ~left, wait, f"index_{port}")),
                self.columns[port].eq(
                    delay(m, self.loaded.payload.columns, wait, f"columns_{port}")
                ),
            ]
        m.d.sync += [address.eq(address + 1), left.eq(left - 1)]
        with m.If(self.loaded.valid & self.loaded.ready):
            m.d.sync += self.loaded.valid.eq(0)
        with m.If(self.tiles.valid & self.tiles.ready):
            m.d.sync += [
                active.eq(1),
                left.eq(~0),
                address.eq(self._bank_row(self.tiles.payload.weight)),
                self.loaded.payload.eq(self.tiles.payload),
                self.loaded.valid.eq(1),
            ]
        with m.Elif(last):
            m.d.sync += active.eq(0)
        return m

    def _bank_row(self, weight: Value) -> Value:
        """The row of each bank where a tile begins."""
        dim, ports = self.config.dim, self.config.weight_ports
        if ports == 1:
            return weight
        return Cat(Const(0, bits_for_rows(dim // ports)), weight[bits_for_rows(dim) :])
