"""Matmul unit: walks tiles, loads their weights, streams activations, accumulates the sums.

    commands -> TileWalker -> WeightLoader -> RowStreamer -> SystolicArray -> Accumulator
                                   |               |
                              weight memory   activation memory

The loader holds one tile ahead of the streamer: the tile whose weights are, or come, in the shadow
registers. The streamer takes it over with the swap, in the last cycle of the tile before, and the
loader may start on the next one, which the walker has ready by then, be it of the same instruction
or of the next. So a tile takes ``max(passes * max(rows, S), D / W)`` cycles and nothing in between,
where the shortest pass S is 4 with W = 1 weight port and 2 with more: with D = 16 and W = 4 a tile
that meets one row of either 8 or 16 bits takes four.
"""

from amaranth import Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out, connect, flipped

from systolith.config import Config
from systolith.hdl.accumulator import Accumulator
from systolith.hdl.layouts import ReadPort, UnitSignature, acc_row, bits_for_rows, row
from systolith.hdl.pipeline import delay
from systolith.hdl.row_streamer import RowStreamer
from systolith.hdl.systolic import SystolicArray
from systolith.hdl.tile_walker import TileWalker
from systolith.hdl.weight_loader import WeightLoader


class MatmulUnit(wiring.Component):
    """Executes ``matmul`` instructions; ``golden.matmul`` of what the memories hold, bit for bit.

    A tile takes exactly ``max(P, D / W)`` cycles, where P = passes * max(rows, S), a pass is one
    plane of the activations, W = ``weight_ports`` and S = ``minimum_pass`` (4 if W is 1, else 2);
    no cycle is lost between tiles, nor between instructions: a command is accepted when the last
    tile of the one before begins to load. From the transfer of its command
    to its ``done`` a single instruction of T tiles takes ``(T - 1) * max(P, D / W) + P + 2 D + 3``
    cycles.

    Both memories must answer every read. Addresses wrap at the size of their memory. No instruction
    fails: ``error`` stays 0. Rows of the accumulator that a pass adds to must not have been written
    by the three cycles before; passes over the same rows in the same order never do that.

    Members
    -------
    commands, done, busy, error, error_code, error_pc
        ``UnitSignature``. ``done`` comes ``EARLY`` (3) cycles before the last accumulator write:
        no unit that is told reads the accumulator sooner than four cycles after it.
    activation : read port of D bytes
    weight : array of W read ports of D bytes, of the banks of the weight memory
    read : read port of the accumulator for another unit, D x signed(32)
    streaming : out, 1
        An activation row is being read.
    waiting : out, 1
        The array has work but waits for its weights.
    wrote : out, 1
        A row of the accumulator is being written.
    """

    EARLY = 3

    def __init__(self, config: Config) -> None:
        self.config = config
        activation_bits, weight_bits, accumulator_bits = (
            bits_for_rows(rows)
            for rows in (
                config.activation_rows,
                config.weight_rows // config.weight_ports,
                config.accumulator_rows,
            )
        )
        super().__init__(
            {
                **UnitSignature().members,
                "activation": Out(ReadPort(activation_bits, row(config))),
                "weight": Out(ReadPort(weight_bits, row(config))).array(config.weight_ports),
                "read": In(ReadPort(accumulator_bits, acc_row(config))),
                "streaming": Out(1),
                "waiting": Out(1),
                "wrote": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.walker = walker = TileWalker(self.config)
        m.submodules.loader = loader = WeightLoader(self.config)
        m.submodules.streamer = streamer = RowStreamer(self.config)
        m.submodules.array = array = SystolicArray(
            self.config.dim, self.config.weight_ports
        )
        m.submodules.accumulator = accumulator = Accumulator(self.config, array.sum_shape)

        connect(m, flipped(self.commands), walker.commands)
        connect(m, walker.tiles, loader.tiles)
        connect(m, loader.loaded, streamer.loaded)
        for port, memory in enumerate(self.weight):
            connect(m, loader.weight[port], flipped(memory))
            for i in range(self.config.dim):
                m.d.comb += array.weights[port][i].eq(memory.data[i].as_signed())
        connect(m, streamer.activation, flipped(self.activation))
        connect(m, flipped(self.read), accumulator.read)
        m.d.comb += [
            array.load.eq(loader.load),
            array.index.eq(loader.index),
            array.columns.eq(loader.columns),
            array.activations.eq(streamer.activations),
            array.swap.eq(streamer.swap),
            accumulator.sums.eq(array.sums),
        ]

        # The update waits until its sums are LEAD cycles away: memory and mask take two cycles.
        cycles = 2 + array.latency - Accumulator.LEAD
        m.submodules.updates = updates = _Ring(streamer.update_layout, cycles)
        m.d.comb += updates.i.eq(streamer.update)
        valid = delay(m, streamer.valid, cycles, "valid")
        last = delay(m, streamer.last, cycles + Accumulator.WRITE - self.EARLY, "last")
        m.d.comb += [
            accumulator.valid.eq(valid),
            accumulator.address.eq(updates.o.address),
            accumulator.overwrite.eq(updates.o.overwrite),
            accumulator.shift.eq(updates.o.shift),
            accumulator.lanes.eq(updates.o.lanes),
        ]

        # One each in walker, loader and streamer, and behind them at most (2 D + 3) / (D / W).
        under_way = Signal(4)
        m.d.sync += under_way.eq(
            under_way + (self.commands.valid & self.commands.ready) - self.done
        )
        m.d.comb += [
            self.done.eq(last),
            self.busy.eq(under_way.any()),
            self.error.eq(0),
            self.error_code.eq(0),
            self.error_pc.eq(0),
            self.streaming.eq(streamer.valid),
            self.waiting.eq(~streamer.active & (walker.tiles.valid | loader.busy)),
            self.wrote.eq(accumulator.wrote),
        ]
        return m


class _Ring(wiring.Component):
    """``o`` is ``i`` of ``cycles`` cycles ago: a delay line in memory instead of registers."""

    def __init__(self, shape, cycles: int) -> None:
        self.shape = shape
        self.cycles = cycles
        super().__init__({"i": In(shape), "o": Out(shape)})

    def elaborate(self, platform) -> Module:
        m = Module()
        depth = self.cycles - 1
        m.submodules.memory = memory = Memory(shape=self.shape, depth=depth, init=[])
        write, read = memory.write_port(), memory.read_port(domain="comb")
        place = Signal(range(depth))
        m.d.sync += place.eq(Mux(place == depth - 1, 0, place + 1))
        m.d.comb += [
            write.en.eq(1),
            write.addr.eq(place),
            read.addr.eq(place),
            Value.cast(write.data).eq(Value.cast(self.i)),
        ]
        m.d.sync += Value.cast(self.o).eq(Value.cast(read.data))
        return m
