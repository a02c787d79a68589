"""The vector unit: everything between accumulator and activations that is not a matmul.

    commands ─▶ read A, B ─▶ beats ─┬─▶ alu ─────▶┬─▶ write
                 parameters ─▶──────┼─▶ norm ────▶┤
                                    └─▶ softmax ─▶┘
"""

from amaranth import Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from systolith import isa
from systolith.config import Config
from systolith.hdl.alu import OPERATION, Alu
from systolith.hdl.argmax import ArgMax
from systolith.hdl.fetch_parameters import FetchParameters
from systolith.hdl.layouts import UnitSignature, operand
from systolith.hdl.row_walk import WALK
from systolith.hdl.vector_read import SOURCES, VectorRead
from systolith.hdl.vector_write import DESTINATION, VectorWrite


def _walk(m: Module, command: data.View, name: str, step: Value, period: Value) -> data.View:
    """The ``WALK`` of operand a, b or d of a command."""
    walk = Signal(WALK, name=f"walk_{name}")
    m.d.comb += [
        walk.base.eq(operand(command, "vector", name)),
        walk.stride.eq(operand(command, "vector", f"{name}_stride")),
        walk.rows.eq(operand(command, "vector", "rows")),
        walk.blocks.eq(operand(command, "vector", "blocks")),
        walk.step.eq(step),
        walk.period.eq(period),
    ]
    return walk


class VectorUnit(wiring.Component):
    """Executes ``vector``, ``softmax`` and ``norm``, one after another, bit-exact to the golden.

    An instruction is accepted when all writes of the one before it have happened, so that it may
    read what that one wrote. Throughput of ``vector``: one beat of V lanes a cycle, but a block
    takes as many cycles at least as it needs reads from the activation memory. Cycles from the
    acceptance of a command to its ``done``, if no port waits: the beats of the instruction, plus 4,
    plus ``Requantize.LATENCY`` (scaled or from the accumulator), ``FunctionTable.LATENCY`` (with a
    table), ``CombineLane.LATENCY`` (with B; one more to multiply), plus one for each read
    of the activation memory beyond the first that a block needs. No errors.

    Members
    -------
    commands, done, busy, error, error_code, error_pc : see ``UnitSignature``
    acc : read port of accumulator rows, may wait
    activation : read port of activation lines, may wait
    parameter : read port of parameters, V channels a line, never waits
    activation_write : write port of activation lines, may wait
    weight_write : write port of weight rows, may wait
    table_write : write port of the function tables, words of D bytes, never waits
    result : out, unsigned 32
        Index of the running maximum; final when the unit is not busy.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.read = VectorRead(config)
        self.alu = Alu(config)
        self.parameters = FetchParameters(config)
        self.write = VectorWrite(config)
        super().__init__(
            {
                **UnitSignature().members,
                "acc": Out(self.read.acc.signature),
                "activation": Out(self.read.activation.signature),
                "parameter": Out(self.parameters.memory.signature),
                "activation_write": Out(self.write.activation.signature),
                "weight_write": Out(self.write.weight.signature),
                "table_write": In(self.alu.table_write.signature.flip()),
                "result": Out(32),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.read = read = self.read
        m.submodules.alu = alu = self.alu
        m.submodules.parameters = parameters = self.parameters
        m.submodules.write = write = self.write
        connect(m, read.acc, flipped(self.acc))
        connect(m, read.activation, flipped(self.activation))
        connect(m, parameters.memory, flipped(self.parameter))
        connect(m, write.activation, flipped(self.activation_write))
        connect(m, write.weight, flipped(self.weight_write))
        connect(m, flipped(self.table_write), alu.table_write)

        start, running = Signal(), Signal()
        command = self.commands.payload
        kinds = {name: Signal(name=f"is_{name}") for name in ("vector",)}
        for name, kind in kinds.items():
            m.d.comb += kind.eq(command.opcode == isa.BY_NAME[name].code)
        self._start_read(m, start, kinds["vector"])
        self._start_write(m, start)
        operation = self._operation(m, start, kinds["vector"])
        m.d.comb += alu.operation.eq(operation)

        m.d.comb += [
            read.o.ready.eq(alu.i.ready & parameters.o.valid),
            parameters.o.ready.eq(alu.i.ready & read.o.valid),
            alu.i.valid.eq(read.o.valid & parameters.o.valid),
            Value.cast(alu.i.payload.parameters).eq(Value.cast(parameters.o.payload)),
        ]
        for name in ("a", "b", "b2"):
            m.d.comb += Value.cast(alu.i.payload[name]).eq(Value.cast(read.o.payload[name]))
        connect(m, alu.o, write.i)

        comparing = self._compare(m, start, kinds["vector"], operation)
        m.d.comb += [
            self.done.eq(running & write.finished & ~comparing),
            self.busy.eq(running),
            self.commands.ready.eq(~running | self.done),
            start.eq(self.commands.valid & self.commands.ready),
        ]
        with m.If(start):
            m.d.sync += running.eq(1)
        with m.Elif(self.done):
            m.d.sync += running.eq(0)
        return m

    def _start_read(self, m: Module, start: Signal, is_vector: Signal) -> None:
        command = self.commands.payload

        def field(name: str) -> Value:
            return operand(command, "vector", name)

        sources = Signal(SOURCES)
        rope, a_wide = Signal(), Signal()
        b_step = Signal(3)
        m.d.comb += [
            rope.eq(field("combine") == isa.Combine.ROPE),
            sources.format.eq(field("a_format")),
            a_wide.eq(sources.format == isa.Format.INT16),
            b_step.eq(Mux(rope, 4, Mux(field("b_wide"), 2, 1))),
            sources.a.eq(_walk(m, command, "a", Mux(a_wide, 2, 1), 0)),
            sources.b.eq(_walk(m, command, "b", b_step, field("b_period"))),
            sources.b_used.eq(is_vector & (field("combine") != isa.Combine.NONE)),
            sources.b_wide.eq(field("b_wide")),
            sources.b_pair.eq(is_vector & rope),
            self.read.sources.eq(sources),
            self.read.start.eq(start),
            self.parameters.start.eq(start),
            self.parameters.base.eq(field("param")),
            self.parameters.blocks.eq(field("blocks")),
            self.parameters.uniform.eq(is_vector & field("uniform")),
        ]

    def _start_write(self, m: Module, start: Signal) -> None:
        command = self.commands.payload
        destination = Signal(DESTINATION)
        wide = operand(command, "vector", "d_wide")
        m.d.comb += [
            destination.wide.eq(wide),
            destination.weight.eq(operand(command, "vector", "d_weight")),
            destination.d.eq(_walk(m, command, "d", Mux(wide, 2, 1), 0)),
            self.write.destination.eq(destination),
            self.write.start.eq(start),
        ]

    def _operation(self, m: Module, start: Signal, is_vector: Signal) -> data.View:
        """What the ALU does, for as long as the instruction runs."""
        command = self.commands.payload
        operation = Signal(OPERATION)
        with m.If(start):
            for name in ("scale", "table", "slot", "combine", "mult_a", "mult_b", "shift"):
                m.d.sync += operation[name].eq(operand(command, "vector", name))
            m.d.sync += [
                operation.wide_a.eq(operand(command, "vector", "a_format") == isa.Format.ACC32),
                operation.wide.eq(operand(command, "vector", "d_wide")),
            ]
        return operation

    def _compare(
        self, m: Module, start: Signal, is_vector: Signal, operation: data.View
    ) -> Signal:
        """The running maximum of what the ALU hands to the writer; returns when it is not done."""
        command, out = self.commands.payload, self.alu.o
        beats = self.config.dim // self.config.lanes
        beat_bits = 12 + (beats - 1).bit_length()
        m.submodules.argmax = argmax = ArgMax(self.config.lanes, beat_bits)
        wanted = Signal()
        row_beats = Signal(beat_bits)
        with m.If(start):
            m.d.sync += [
                wanted.eq(is_vector & operand(command, "vector", "argmax")),
                row_beats.eq(operand(command, "vector", "blocks") * beats),
            ]
        forget = operand(command, "vector", "argmax") & operand(command, "vector", "restart")
        m.d.comb += [
            Value.cast(argmax.values).eq(Value.cast(out.payload)),
            argmax.valid.eq(out.valid & out.ready & wanted),
            argmax.start.eq(start),
            argmax.forget.eq(start & is_vector & forget),
            argmax.beats.eq(row_beats),
            argmax.count.eq(operation.mult_a),  # the same bits of the instruction
            argmax.first.eq(operation.mult_b),
            self.result.eq(argmax.index),
        ]
        return argmax.busy
