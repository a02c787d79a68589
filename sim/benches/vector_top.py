"""Test top of the vector unit: the unit, its memories, and ports that wait at random."""

from amaranth import Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out, connect, flipped

from systolith.config import Config
from systolith.hdl.layouts import COMMAND, ReadPort, WritePort, acc_row, bits_for_rows, row
from systolith.hdl.scratchpad import Scratchpad
from systolith.hdl.vector import VectorUnit

QUEUE = 16
"""Commands that can be queued before they are let go."""


class VectorTop(wiring.Component):
    """``VectorUnit`` with a ``Scratchpad`` and an accumulator of its own.

    A port of the unit lets nothing pass in a cycle with probability ``waits / 256``, and what it
    answers is right in the cycle after an accepted read only.

    Members
    -------
    commands : in, stream of ``COMMAND``
        Held in a queue of ``QUEUE`` while ``go`` is low.
    writes : in, stream of words for the local memories, as the load unit gives them
    acc_write : write port of accumulator rows
    activation, weight : read ports of rows (the configuration has one weight port)
    go : in, 1
    waits : in, array of 4 unsigned 8
        Accumulator reads, activation reads, activation writes, weight writes.
    finished : out, unsigned 32
        Instructions done since the reset.
    cycles : out, unsigned 32
        From the cycle in which the last command was accepted to the cycle of its ``done``.
    gap : out, unsigned 32
        From the last ``done`` but one to the last.
    busy : out, 1
    result : out, unsigned 32
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.scratchpad = Scratchpad(config)
        acc_bits = bits_for_rows(config.accumulator_rows)
        activation_bits = bits_for_rows(config.activation_rows)
        super().__init__(
            {
                "commands": In(stream.Signature(COMMAND)),
                "writes": In(self.scratchpad.writes.signature.flip()),
                "acc_write": In(WritePort(acc_bits, acc_row(config), 1)),
                "activation": In(ReadPort(activation_bits, row(config))),
                "weight": In(ReadPort(bits_for_rows(config.weight_rows), row(config))),
                "go": In(1),
                "waits": In(8).array(4),
                "finished": Out(32),
                "cycles": Out(32),
                "gap": Out(32),
                "busy": Out(1),
                "result": Out(32),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.unit = unit = VectorUnit(self.config)
        m.submodules.scratchpad = pad = self.scratchpad
        connect(m, flipped(self.writes), pad.writes)
        connect(m, flipped(self.activation), pad.store_activation)
        connect(m, flipped(self.weight), pad.matmul_weight[0])
        connect(m, unit.table_write, pad.table_write)

        noise = Signal(32, init=0x1234_5678)
        step_1, step_2 = Signal(32), Signal(32)  # xorshift32
        m.d.comb += [step_1.eq(noise ^ (noise << 13)), step_2.eq(step_1 ^ (step_1 >> 17))]
        m.d.sync += noise.eq(step_2 ^ (step_2 << 5))
        passes = [noise.word_select(i, 8) >= self.waits[i] for i in range(4)]
        acc = self._accumulator(m)
        self._read(m, unit.acc, acc, passes[0])
        self._read(m, unit.activation, pad.vector_activation, passes[1])
        self._read(m, unit.parameter, pad.vector_parameter, Const(1, 1))
        self._write(m, unit.activation_write, pad.activation_write, passes[2])
        self._write(m, unit.weight_write, pad.weight_write, passes[3])

        m.submodules.queue = queue = SyncFIFOBuffered(width=COMMAND.size, depth=QUEUE)
        m.d.comb += [
            queue.w_data.eq(Value.cast(self.commands.payload)),
            queue.w_en.eq(self.commands.valid),
            self.commands.ready.eq(queue.w_rdy),
            Value.cast(unit.commands.payload).eq(queue.r_data),
            unit.commands.valid.eq(queue.r_rdy & self.go),
            queue.r_en.eq(unit.commands.ready & self.go),
            self.busy.eq(unit.busy),
            self.result.eq(unit.result),
        ]
        since = Signal(32)
        m.d.sync += since.eq(Mux(unit.commands.valid & unit.commands.ready, 1, since + 1))
        after = Signal(32)
        m.d.sync += after.eq(Mux(unit.done, 1, after + 1))
        with m.If(unit.done):
            m.d.sync += [
                self.finished.eq(self.finished + 1),
                self.cycles.eq(since),
                self.gap.eq(after),
            ]
        return m

    def _accumulator(self, m: Module) -> ReadPort:
        shape = acc_row(self.config)
        m.submodules.acc = memory = Memory(
            shape=shape, depth=self.config.accumulator_rows, init=[]
        )
        write, read = memory.write_port(), memory.read_port()
        port = ReadPort(self.acc_write.signature.address_bits, shape).create()
        m.d.comb += [
            write.addr.eq(self.acc_write.addr),
            Value.cast(write.data).eq(Value.cast(self.acc_write.data)),
            write.en.eq(self.acc_write.en & self.acc_write.mask),
            self.acc_write.ready.eq(1),
            read.addr.eq(port.addr),
            read.en.eq(port.en),
            Value.cast(port.data).eq(Value.cast(read.data)),
            port.ready.eq(1),
        ]
        return port

    @staticmethod
    def _read(m: Module, reader, memory, passes: Value) -> None:
        accepted = Signal()
        data = Value.cast(memory.data)
        m.d.sync += accepted.eq(reader.en & reader.ready)
        m.d.comb += [
            memory.addr.eq(reader.addr),
            memory.en.eq(reader.en & passes),
            reader.ready.eq(memory.ready & passes),
            Value.cast(reader.data).eq(Mux(accepted, data, ~data)),
        ]

    @staticmethod
    def _write(m: Module, writer, memory, passes: Value) -> None:
        m.d.comb += [
            memory.addr.eq(writer.addr),
            Value.cast(memory.data).eq(Value.cast(writer.data)),
            memory.mask.eq(writer.mask),
            memory.en.eq(writer.en & passes),
            writer.ready.eq(memory.ready & passes),
        ]
