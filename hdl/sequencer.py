"""The sequencer: adds registers to operands, executes control, hands the rest to the queues."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from operator import or_

from amaranth import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from systolith import isa
from systolith.hdl.instruction_fetch import FETCHED
from systolith.hdl.issue import QUEUED_INSTRUCTION
from systolith.hdl.layouts import PC_BITS, operand
from systolith.isa import AluOp, Condition, Unit
from systolith.registers import Error

_FIRST_OPERAND = 2
_LAST_WORD = isa.WORDS - 1
_ILLEGAL, _FOR_UNIT = range(2)
_CONTROL = dict(enumerate((entry.name for entry in isa.OPCODES if entry.unit == Unit.SEQUENCER), 2))
_KINDS = 2 + len(_CONTROL)
"""Kinds of instructions: one of these two, or the number of a control instruction."""


def _encode(choices: dict[int, Value], bits: int) -> Value:
    """The key whose value is 1; 0 if none is."""
    return reduce(
        or_, (Const(key, bits) & chosen.replicate(bits) for key, chosen in choices.items())
    )


class Registers(wiring.Component):
    """Sixteen 32-bit registers; r0 reads as 0, ``clear`` makes all 0.

    Reads in the same cycle; a write is seen in the next one. The values stand in a small memory,
    one flag a register says whether it was written since it was cleared.

    Members
    -------
    read : in, 4; write : in, 4; value : in, 32; write_enable : in, 1
    clear : in, 1
    data : out, 32
    """

    read: In(4)
    write: In(4)
    value: In(32)
    write_enable: In(1)
    clear: In(1)
    data: Out(32)

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.memory = memory = Memory(shape=32, depth=isa.REGISTERS, init=[])
        write, read = memory.write_port(), memory.read_port(domain="comb")
        written = Signal(isa.REGISTERS)
        m.d.comb += [
            read.addr.eq(self.read),
            self.data.eq(Mux(written.bit_select(self.read, 1), read.data, 0)),
            write.addr.eq(self.write),
            write.data.eq(self.value),
            write.en.eq(self.write_enable),
        ]
        with m.If(self.clear):
            m.d.sync += written.eq(0)
        with m.Elif(self.write_enable & (self.write != 0)):
            m.d.sync += written.bit_select(self.write, 1).eq(1)
        return m


class ScalarAlu(wiring.Component):
    """``alu`` but for shifts, and the conditions of ``branch``.

    Members
    -------
    x, y : in, 32
    operation : in, ``AluOp``; condition : in, ``Condition``
    result : out, 32; holds : out, 1
        Of the inputs of the cycle before.
    """

    x: In(32)
    y: In(32)
    operation: In(4)
    condition: In(4)
    result: Out(32)
    holds: Out(1)

    def elaborate(self, platform) -> Module:
        m = Module()
        x, y = self.x, self.y
        difference = Signal(33)
        less, equal = Signal(), Signal()
        m.d.comb += [
            difference.eq(x - y),
            less.eq(difference[32]),
            equal.eq(x == y),
        ]
        results = {
            AluOp.ADD: (x + y)[:32],
            AluOp.SUB: difference[:32],
            AluOp.AND: x & y,
            AluOp.MIN: Mux(less, x, y),
            AluOp.MAX: Mux(less, y, x),
        }
        conditions = {
            Condition.ALWAYS: Const(1),
            Condition.EQ: equal,
            Condition.NE: ~equal,
            Condition.LT: less,
            Condition.GE: ~less,
        }
        for selector, output, values in (
            (self.operation, self.result, results),
            (self.condition, self.holds, conditions),
        ):
            chosen = Signal.like(output, name="chosen")
            with m.Switch(selector):
                for code, value in values.items():
                    with m.Case(code):
                        m.d.comb += chosen.eq(value)
            m.d.sync += output.eq(chosen)
        return m


class Sequencer(wiring.Component):
    """Executes a program in order: control itself, everything else by handing it to the queues.

    A word of an instruction is taken every cycle, the register that it selects is added on the way;
    an instruction for a unit takes eight cycles if its queue has room. Control instructions take
    two more, shifts by n bits ``n // 4 + n % 4`` more. A taken branch takes a cycle more and
    restarts the fetch, which offers the first word in the third cycle after that at the earliest.

    A reserved operation of ``alu`` or condition of ``branch`` counts as an illegal opcode. Shifts
    use the five low bits of ``y``.

    Members
    -------
    start : in, 1
        Starts the program at instruction 0 with all registers 0; only while not running.
    stop : in, 1
        Goes to the state before ``start``, in the middle of whatever it does.
    misaligned : in, 1
        BASE is no multiple of an instruction's size.
    words, addresses, loaded : streams from and to ``InstructionFetch``
    restart, begins, pc : out
        To ``InstructionFetch``; ``begins``: the first restart of a program. Between restarts
        ``pc`` is the instruction being executed.
    queued : stream of ``QUEUED_INSTRUCTION``, out
    idle : in, 1
        All queues are empty and all units idle.
    vector_idle : in, 1; maximum : in, 32
        The same of the vector unit alone; the index of its running maximum.
    mark : out, 32; marked : out, 1
        Value of a ``mark`` instruction, and its strobe.
    halted : out, 1
        ``halt`` was executed; one cycle.
    retired : out, 1
        An instruction was executed or handed on; one cycle.
    moved : out, 1
        A word or an instruction went on; for the watchdog.
    starved : out, 1
        Waits for memory.
    error, error_code : out, 1 and 4
        One cycle; the instruction is ``pc``. Only ``start`` goes on after it.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "start": In(1),
                "misaligned": In(1),
                "words": In(stream.Signature(FETCHED)),
                "addresses": Out(stream.Signature(32)),
                "loaded": In(stream.Signature(FETCHED)),
                "restart": Out(1),
                "begins": Out(1),
                "pc": Out(PC_BITS),
                "queued": Out(stream.Signature(QUEUED_INSTRUCTION)),
                "idle": In(1),
                "vector_idle": In(1),
                "maximum": In(32),
                "stop": In(1),
                "mark": Out(32),
                "marked": Out(1),
                "halted": Out(1),
                "retired": Out(1),
                "moved": Out(1),
                "starved": Out(1),
                "error": Out(1),
                "error_code": Out(4),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.registers = registers = Registers()
        m.submodules.alu = alu = ScalarAlu()
        pc = Signal(PC_BITS)
        index = Signal(range(isa.WORDS))
        addend = Signal(32)
        """What is added to the next word."""
        opcode = Signal(8)
        selects = Signal(4 * (isa.WORDS - _FIRST_OPERAND))
        masks = Signal(2 * isa.SEMAPHORES)
        flags = Signal(8)
        operands = Signal(data.ArrayLayout(32, isa.WORDS - _FIRST_OPERAND))
        x, y = operands[0], operands[1]
        word, queued = self.words.payload, self.queued.payload
        command = queued.command
        operation = operand(command, "alu", "op")
        # While the last word is taken everything that the ALU needs lies one place higher.
        coming = Signal.like(command)
        m.d.comb += coming.words.as_value().eq(operands.as_value()[32:])
        # Of the opcode, which arrives long before the instruction is executed. No m.Switch: yosys
        # would make a memory of it.
        kind, unit = Signal(range(_KINDS)), Signal(queued.unit.shape())
        is_kind = {index: opcode == isa.BY_NAME[name].code for index, name in _CONTROL.items()}
        is_unit = {
            queue: Cat(opcode == e.code for e in isa.OPCODES if e.unit == queue).any()
            for queue in isa.QUEUED
        }
        is_kind[_FOR_UNIT] = Cat(is_unit.values()).any()
        m.d.sync += [kind.eq(_encode(is_kind, len(kind))), unit.eq(_encode(is_unit, len(unit)))]
        m.d.comb += [
            command.opcode.eq(opcode),
            command.flags.eq(flags),
            command.words.eq(operands),
            command.pc.eq(pc),
            Cat(queued.wait, queued.signal).eq(masks),
            registers.read.eq(selects[:4]),
            queued.unit.eq(unit),
            alu.x.eq(coming.words[0]),
            alu.y.eq(coming.words[1]),
            alu.operation.eq(operand(coming, "alu", "op")),
            alu.condition.eq(operand(coming, "branch", "condition")),
            self.pc.eq(pc),
            self.addresses.payload.eq(operand(command, "ldr", "address")),
            self.mark.eq(operand(command, "mark", "x")),
        ]

        # Of the operands, in time for the cycle in which the instruction is executed.
        shifts, unaligned, illegal = Signal(), Signal(), Signal()
        op = operand(coming, "alu", "op")
        m.d.sync += [
            shifts.eq((op == AluOp.SHL) | (op == AluOp.SHR)),
            unaligned.eq(operand(coming, "ldr", "address")[:2] != 0),
            illegal.eq(
                Mux(
                    opcode == isa.BY_NAME["alu"].code,
                    op > max(AluOp),
                    operand(coming, "branch", "condition") > max(Condition),
                )
            ),
        ]

        # Through registers: the first register of the next instruction is read two cycles later.
        m.d.sync += [
            registers.write_enable.eq(0),
            registers.write.eq(operand(command, "alu", "rd")),
        ]
        idle, vector_idle = Signal(), Signal()
        m.d.sync += [idle.eq(self.idle), vector_idle.eq(self.vector_idle)]

        @contextmanager
        def state(name: str) -> Iterator[None]:
            with m.State(name):
                yield
                with m.If(self.stop):
                    m.next = "idle"

        def fail(code: Error) -> None:
            m.d.comb += [self.error.eq(1), self.error_code.eq(code)]
            m.next = "idle"

        def retire() -> None:
            m.d.comb += [self.retired.eq(1), self.moved.eq(1)]
            m.d.sync += pc.eq(pc + 1)
            m.next = "words"

        def write(value: Value) -> None:
            m.d.sync += [registers.write_enable.eq(1), registers.value.eq(value)]
            retire()

        def take_first_word() -> None:
            m.d.comb += [self.words.ready.eq(1), self.starved.eq(~self.words.valid)]
            with m.If(self.words.valid):
                m.d.comb += self.moved.eq(1)
                m.d.sync += [index.eq(1), Cat(opcode, selects).eq(word.data)]
                with m.If(word.error):
                    fail(Error.BUS_READ)

        def take_word() -> None:
            m.d.comb += [self.words.ready.eq(1), self.starved.eq(~self.words.valid)]
            with m.If(self.words.valid):
                m.d.comb += self.moved.eq(1)
                # The register of an operand is read while the word before it is taken. Operands
                # move down: after six of them the first is in its place, whatever came before.
                added = (word.data + addend)[:32]
                m.d.sync += [
                    index.eq(index + 1),
                    addend.eq(registers.data),
                    selects.eq(selects >> 4),
                    operands.as_value().eq(Cat(operands.as_value()[32:], added)),
                ]
                with m.Switch(index):
                    with m.Case(0):
                        m.d.sync += Cat(opcode, selects).eq(word.data)
                    with m.Case(1):
                        m.d.sync += Cat(masks, flags).eq(word.data)
                with m.If(index == _LAST_WORD):
                    m.next = "execute"
                with m.If(word.error):
                    fail(Error.BUS_READ)

        control = {name: index for index, name in _CONTROL.items()}
        with m.FSM(init="idle"):
            with m.State("idle"), m.If(self.start & ~self.stop):
                m.d.comb += registers.clear.eq(1)
                m.d.sync += [pc.eq(0), self.begins.eq(1)]
                m.next = "restart"

            with state("restart"):
                m.d.comb += self.restart.eq(1)
                m.d.sync += [index.eq(0), self.begins.eq(0)]
                m.next = "words"
                with m.If(self.misaligned):
                    fail(Error.MISALIGNED)

            with state("words"):
                take_word()

            with state("execute"), m.Switch(kind):
                with m.Case(_FOR_UNIT):
                    m.d.comb += self.queued.valid.eq(1)
                    with m.If(self.queued.ready):
                        retire()
                        # What the next instruction's first word replaces has just left.
                        take_first_word()
                with m.Case(control["ldr"]):
                    with m.If(unaligned):
                        fail(Error.MISALIGNED)
                    with m.Else():
                        m.d.comb += self.addresses.valid.eq(1)
                        with m.If(self.addresses.ready):
                            m.next = "load"
                with m.Case(control["alu"]):
                    with m.If(illegal):
                        fail(Error.ILLEGAL_OPCODE)
                    with m.Elif(shifts):
                        m.next = "shift"
                    with m.Else():
                        write(alu.result)
                with m.Case(control["branch"]):
                    with m.If(illegal):
                        fail(Error.ILLEGAL_OPCODE)
                    with m.Else():
                        retire()
                        with m.If(alu.holds):
                            m.d.sync += pc.eq(operand(command, "branch", "target"))
                            m.next = "restart"
                with m.Case(control["argmax"]), m.If(vector_idle):
                    write(self.maximum)
                with m.Case(control["fence"]), m.If(idle):
                    retire()
                with m.Case(control["mark"]), m.If(idle):
                    m.d.comb += self.marked.eq(1)
                    retire()
                with m.Case(control["halt"]), m.If(idle):
                    m.d.comb += self.halted.eq(1)
                    retire()
                    m.next = "idle"
                with m.Default():
                    fail(Error.ILLEGAL_OPCODE)

            with state("shift"):
                m.d.comb += self.moved.eq(1)
                with m.If(y[:5] == 0):
                    write(x)
                with m.Elif(y[2:5] == 0):
                    m.d.sync += [
                        x.eq(Mux(operation == AluOp.SHL, x << 1, x >> 1)),
                        y[:2].eq(y[:2] - 1),
                    ]
                with m.Else():
                    m.d.sync += [
                        x.eq(Mux(operation == AluOp.SHL, x << 4, x >> 4)),
                        y[2:5].eq(y[2:5] - 1),
                    ]

            with state("load"):
                m.d.comb += [self.starved.eq(1), self.loaded.ready.eq(1)]
                with m.If(self.loaded.valid):
                    with m.If(self.loaded.payload.error):
                        fail(Error.BUS_READ)
                    with m.Else():
                        write(self.loaded.payload.data)
        return m
