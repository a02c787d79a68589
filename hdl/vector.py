"""The vector unit: everything between accumulator and activations that is not a matmul.

commands ─▶ read A, B ─▶ beats ─┬─▶ alu ─────▶┬─▶ write
             parameters ─▶──────┼─▶ norm ────▶┤
                                └─▶ softmax ─▶┘

Reader, pipelines and writer each work on an instruction of their own: the reader goes on to the
next one when the beats of the one before have gone, if the next one is independent; destinations
wait in a queue for the writer, which takes results in the order of instructions.
"""

from amaranth import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from systolith import isa
from systolith.config import Config
from systolith.hdl.alu import OPERATION, Alu
from systolith.hdl.argmax import ArgMax
from systolith.hdl.fetch_parameters import FetchParameters
from systolith.hdl.layouts import COMMAND, UnitSignature, operand
from systolith.hdl.norm import ROW as NORM_ROW
from systolith.hdl.norm import Norm
from systolith.hdl.pipeline import Results
from systolith.hdl.queue import Queue
from systolith.hdl.row_walk import WALK
from systolith.hdl.softmax import ROW as SOFTMAX_ROW
from systolith.hdl.softmax import Softmax
from systolith.hdl.vector_read import SOURCES, VectorRead
from systolith.hdl.vector_rows import VectorRows
from systolith.hdl.vector_write import DESTINATION, VectorWrite

UNDER_WAY = 4
"""Destinations that wait for the writer, at most."""
KINDS = data.StructLayout({"vector": 1, "softmax": 1, "norm": 1})
"""Which instruction it is."""
_RESULTS = 32
"""Places for results of the ALU: its longest way takes 17 cycles."""


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
    """Executes ``vector``, ``softmax`` and ``norm``, in order, bit-exact to the golden.

    An instruction starts in the cycle after its acceptance, or when what comes before allows: in
    the cycle after the ``done`` of the one before it, so that it may read what that one wrote; if
    it is ``independent``, in the cycle after the last beat of the one before it has left the reader
    (and its last parameters, which a norm of many features takes late). Beats of ``vector`` with
    another operation than the one before enter the ALU in the second cycle after the last result of
    that one; with the same operation at once. Results wait, in places for 32 beats of the ALU,
    until all results before them are written; the writer takes the first beat of an instruction in
    the second cycle after the last write of the one before.

    Throughput of ``vector``: one beat of V lanes a cycle, but a block takes as many cycles at least
    as it needs reads from the activation memory. Cycles from the acceptance of a command to its
    ``done``, if nothing is under way and no port waits: the beats of the instruction, plus 7, plus
    the latency of ``Alu`` (1 to 17, what an instruction does not need is passed by), plus one for
    each read of the activation memory beyond the first that a block needs. With an arg-max, up to
    log2(V) + 2 more. One row of n beats takes ``3 n + 35 + log2(V)`` cycles as a softmax and at
    most ``2 n + 40 + log2(V)`` as a norm. No errors.

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

        m.submodules.softmax = softmax = Softmax(self.config.lanes, self.config.max_length)
        m.submodules.norm = norm = Norm(self.config.lanes, self.config.max_features)

        # The command lies in registers when it starts, and until the ALU does what it says.
        loaded, start, switching, switch = Signal(), Signal(), Signal(), Signal()
        command = Signal(COMMAND, reset_less=True)
        kinds = Signal(KINDS)
        joins = Signal()
        """Source B is used."""
        self._start_read(m, command, start, kinds, joins)
        operation, wanted = self._operation(m, command, switch)
        self._start_rows(m, command, start, kinds, softmax, norm)
        m.d.comb += alu.operation.eq(operation)

        # A beat enters the ALU when there is a place for its result.
        m.submodules.results = results = Results(
            data.ArrayLayout(signed(16), self.config.lanes), _RESULTS
        )

        # Beats go where the instruction says whose beats are read.
        kind = Signal(KINDS)
        with m.If(start):
            m.d.sync += kind.eq(kinds)
        for name in ("a", "b", "b2"):
            m.d.comb += Value.cast(alu.i.payload[name]).eq(Value.cast(read.o.payload[name]))
        for lane, value in enumerate(read.o.payload.a):
            m.d.comb += [
                softmax.i.payload[lane].eq(value),
                norm.i.payload[lane].eq(value[:16].as_signed()),
            ]
        for sink in (alu.i.payload.parameters, norm.params.payload):
            m.d.comb += Value.cast(sink).eq(Value.cast(parameters.o.payload))
        with m.If(kind.softmax):
            m.d.comb += [softmax.i.valid.eq(read.o.valid), read.o.ready.eq(softmax.i.ready)]
        with m.Elif(kind.norm):
            m.d.comb += [
                norm.i.valid.eq(read.o.valid),
                read.o.ready.eq(norm.i.ready),
                norm.params.valid.eq(parameters.o.valid),
                parameters.o.ready.eq(norm.params.ready),
            ]
        with m.Else():
            free = Signal()
            m.d.comb += [
                free.eq(results.available & ~switching),
                alu.i.valid.eq(read.o.valid & parameters.o.valid & free),
                read.o.ready.eq(free & parameters.o.valid),
                parameters.o.ready.eq(free & read.o.valid),
            ]
        m.d.comb += [
            results.claim.eq(alu.i.valid),
            results.write.eq(alu.o.valid),
            Value.cast(results.w_data).eq(Value.cast(alu.o.payload)),
        ]

        # The operation changes between the last result of one and the first beat of the next.
        comparing = self._compare(m, command, switch, operation, wanted)
        beats = Signal(range(_RESULTS + 1))
        empty, same = Signal(init=1), Signal()
        # ``same`` is a register: command and operation stand still before the switch they wait for.
        m.d.sync += [
            beats.eq(beats + alu.i.valid - alu.o.valid),
            empty.eq(~alu.i.valid & ((beats == 0) | ((beats == 1) & alu.o.valid))),
            same.eq(
                (Value.cast(operation) == Value.cast(self._operation_of(command)))
                & ~(wanted | operand(command, "vector", "argmax"))
            ),
        ]
        m.d.comb += [
            switch.eq(switching & ((empty & ~comparing) | same)),
        ]
        with m.If(start):
            m.d.sync += switching.eq(kinds.vector)
        with m.Elif(switch):
            m.d.sync += switching.eq(0)

        waits = self._write_in_order(m, command, start, kinds, comparing, results, softmax, norm)
        unfinished = Signal(range(UNDER_WAY + 2))
        m.d.sync += unfinished.eq(unfinished + start - self.done)
        m.d.comb += [
            start.eq(
                loaded
                & ~(switching | read.busy | parameters.busy | m.submodules.rows.o.valid | waits)
                & (operand(command, "vector", "independent") | (unfinished == 0))
            ),
            self.busy.eq(loaded | unfinished.any()),
            self.commands.ready.eq(~loaded & ~switching),
        ]
        with m.If(self.commands.valid & self.commands.ready):
            new = self.commands.payload
            m.d.sync += [loaded.eq(1), command.eq(new)]
            for name in KINDS.members:
                m.d.sync += kinds[name].eq(new.opcode == isa.BY_NAME[name].code)
            m.d.sync += joins.eq(
                (new.opcode == isa.BY_NAME["vector"].code)
                & (operand(new, "vector", "combine") != isa.Combine.NONE)
            )
        with m.Elif(start):
            m.d.sync += loaded.eq(0)
        return m

    def _write_in_order(
        self,
        m: Module,
        command: data.View,
        start: Signal,
        kinds: data.View,
        comparing: Value,
        results: Results,
        softmax: Softmax,
        norm: Norm,
    ) -> Value:
        """Writer and ``done``, an instruction at a time; high while no more can begin."""
        write = self.write
        item = data.StructLayout({"destination": DESTINATION, "kinds": KINDS, "argmax": 1})
        new = Signal(item)
        wide = operand(command, "vector", "d_wide")
        m.submodules.destinations = queue = Queue(item.size, UNDER_WAY)
        head = data.View(item, queue.r_data)
        writing, source, compares = Signal(), Signal(KINDS), Signal()
        m.d.comb += [
            new.destination.wide.eq(wide),
            new.destination.weight.eq(operand(command, "vector", "d_weight")),
            new.destination.d.eq(_walk(m, command, "d", Mux(wide, 2, 1), 0)),
            new.kinds.eq(kinds),
            new.argmax.eq(kinds.vector & operand(command, "vector", "argmax")),
            queue.w_data.eq(Value.cast(new)),
            queue.w_en.eq(start),
            write.start.eq(queue.r_rdy & ~writing),
            write.destination.eq(head.destination),
            queue.r_en.eq(write.start),
            self.done.eq(writing & write.finished & ~(compares & comparing)),
        ]
        with m.If(write.start):
            m.d.sync += [writing.eq(1), source.eq(head.kinds), compares.eq(head.argmax)]
        with m.Elif(self.done):
            m.d.sync += writing.eq(0)
        for name, o in (("vector", results.o), ("softmax", softmax.o), ("norm", norm.o)):
            with m.If(source[name]):
                m.d.comb += [
                    write.i.valid.eq(o.valid),
                    Value.cast(write.i.payload).eq(Value.cast(o.payload)),
                    o.ready.eq(write.i.ready),
                ]
        return ~queue.w_rdy

    def _start_read(
        self, m: Module, command: data.View, start: Signal, kinds: data.View, joins: Signal
    ) -> None:
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
            sources.b_used.eq(joins),
            sources.b_wide.eq(field("b_wide")),
            sources.b_pair.eq(kinds.vector & rope),
            self.read.sources.eq(sources),
            self.read.start.eq(start),
            self.parameters.start.eq(start & ~kinds.softmax),
            self.parameters.base.eq(field("param")),
            self.parameters.rows.eq(field("rows")),
            self.parameters.blocks.eq(field("blocks")),
            self.parameters.uniform.eq(kinds.vector & field("uniform")),
        ]
        with m.If(kinds.softmax):
            m.d.comb += sources.format.eq(isa.Format.ACC32)
        with m.Elif(kinds.norm):
            m.d.comb += sources.format.eq(isa.Format.INT16)

    @staticmethod
    def _operation_of(command: data.View) -> Value:
        """What a command says that the ALU does, as ``OPERATION``."""
        scale = operand(command, "vector", "scale")
        given = {
            "requantize": scale | (operand(command, "vector", "a_format") == isa.Format.ACC32),
            "wide": operand(command, "vector", "d_wide"),
        }
        return Cat(
            given[name] if name in given else operand(command, "vector", name)
            for name in OPERATION.members
        )

    def _operation(
        self, m: Module, command: data.View, switch: Signal
    ) -> tuple[data.View, Signal]:
        """What the ALU does, and whether its results are compared, from ``switch`` on."""
        operation = Signal(OPERATION, reset_less=True)
        wanted = Signal()
        with m.If(switch):
            m.d.sync += [
                Value.cast(operation).eq(self._operation_of(command)),
                wanted.eq(operand(command, "vector", "argmax")),
            ]
        return operation, wanted

    def _start_rows(
        self,
        m: Module,
        command: data.View,
        start: Signal,
        kinds: data.View,
        softmax: Softmax,
        norm: Norm,
    ) -> None:
        """The row descriptors of softmax and norm."""
        m.submodules.rows = rows = VectorRows()
        m.d.comb += [
            rows.start.eq(start & (kinds.softmax | kinds.norm)),
            rows.rows.rows.eq(operand(command, "vector", "rows")),
            rows.rows.value.eq(operand(command, "softmax", "limit")),  # or the length of a norm
            rows.rows.step.eq(Mux(kinds.norm, 0, operand(command, "softmax", "limit_step"))),
            rows.rows.group.eq(operand(command, "softmax", "limit_rows")),
        ]
        beats = self.config.dim // self.config.lanes
        is_norm = Signal()
        with m.If(start):
            m.d.sync += is_norm.eq(kinds.norm)
        m.d.comb += rows.o.ready.eq(Mux(is_norm, norm.rows.ready, softmax.rows.ready))
        for unit, layout, opcode, value in (
            (softmax, SOFTMAX_ROW, "softmax", "limit"),
            (norm, NORM_ROW, "norm", "length"),
        ):
            row = Signal(layout, name=f"{opcode}_row", reset_less=True)
            with m.If(start):
                m.d.sync += [
                    row.beats.eq(operand(command, opcode, "blocks") * beats),
                    row.wide.eq(operand(command, opcode, "d_wide")),
                ]
                for name in layout.members:
                    if name not in ("beats", "wide", value):
                        m.d.sync += row[name].eq(operand(command, opcode, name))
            m.d.comb += [
                unit.rows.valid.eq(rows.o.valid & (is_norm == (unit is norm))),
                unit.rows.payload.eq(row),
                unit.rows.payload[value].eq(rows.o.payload),
            ]

    def _compare(
        self,
        m: Module,
        command: data.View,
        switch: Signal,
        operation: data.View,
        wanted: Signal,
    ) -> Signal:
        """The running maximum of the results of the ALU; high while it is not final."""
        out = self.alu.o
        beats = self.config.dim // self.config.lanes
        beat_bits = 12 + (beats - 1).bit_length()
        m.submodules.argmax = argmax = ArgMax(self.config.lanes, beat_bits)
        row_beats = Signal(beat_bits, reset_less=True)
        with m.If(switch):
            m.d.sync += row_beats.eq(operand(command, "vector", "blocks") * beats)
        forget = operand(command, "vector", "argmax") & operand(command, "vector", "restart")
        m.d.comb += [
            Value.cast(argmax.values).eq(Value.cast(out.payload)),
            argmax.valid.eq(out.valid & wanted),
            argmax.start.eq(switch),
            argmax.forget.eq(switch & forget),
            argmax.beats.eq(row_beats),
            argmax.count.eq(operation.mult_a),  # the same bits of the instruction
            argmax.first.eq(operation.mult_b),
            self.result.eq(argmax.index),
        ]
        return argmax.busy
