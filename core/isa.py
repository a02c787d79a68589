"""The instruction set: one table drives encoder, decoder, hardware layout, listing and docs.

An instruction is eight little-endian 32-bit words::

    word 0   opcode [0:8], register selects of words 2..7 [8:32], four bits each
    word 1   wait mask [0:12], signal mask [12:24], flags [24:32]
    word 2.. operands; before execution the selected register is added to the whole word (r0 is 0)

Because a register is added to a whole word, several fields of one word can be stepped at once: the
register holds the increments at the fields' positions.

The four units (load, store, matmul, vector) execute their own instructions in order and run
concurrently. Semaphores order them: there is one counter for each ordered pair of units,
``semaphore(producer, consumer)``. An instruction starts when every counter in its wait mask is
above zero (each is decremented), and increments those in its signal mask when it has finished, with
all its results visible.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from systolith.errors import UserError

WORDS = 8
INSTRUCTION_BYTES = 4 * WORDS
REGISTERS = 16


class ProgramError(UserError):
    """An instruction or program image that is not well formed."""


class Unit(IntEnum):
    """Who executes an instruction."""

    LOAD = 0
    STORE = 1
    MATMUL = 2
    VECTOR = 3
    SEQUENCER = 4


QUEUED = (Unit.LOAD, Unit.STORE, Unit.MATMUL, Unit.VECTOR)
SEMAPHORES = 12


def semaphore(producer: Unit, consumer: Unit) -> int:
    """Index (0..11) of the counter that ``producer`` increments and ``consumer`` decrements."""
    if producer == consumer or Unit.SEQUENCER in (producer, consumer):
        raise ValueError(f"There is no semaphore from {producer.name} to {consumer.name}")
    return 3 * producer + (consumer - 1 if consumer > producer else consumer)


class LoadSpace(IntEnum):
    """Destination of a load; addresses count words of ``dim`` bytes."""

    ACTIVATION = 0
    WEIGHT = 1
    PARAMETER = 2
    """Eight words hold the parameters of ``dim`` channels."""
    TABLE = 3
    """``1024 / dim`` words hold one table."""


class StoreSpace(IntEnum):
    """Source of a store. Activation words have ``dim`` bytes, accumulator words ``4 * dim``."""

    ACTIVATION = 0
    ACCUMULATOR = 1


class Format(IntEnum):
    """Source A of the vector unit."""

    ACC32 = 0
    INT8 = 1
    INT16 = 2


class TableMode(IntEnum):
    NONE = 0
    INTERPOLATE = 1
    """int16 → int16, ``golden.lookup``"""
    EXACT = 2
    """int8 → int16, ``golden.lookup8``"""


class Combine(IntEnum):
    """How the vector unit joins source B."""

    NONE = 0
    ADD = 1
    MULTIPLY = 2
    ROPE = 3


class AluOp(IntEnum):
    """Sequencer arithmetic on 32-bit registers."""

    ADD = 0
    SUB = 1
    SHL = 2
    SHR = 3
    """Logical."""
    AND = 4
    MIN = 5
    """Unsigned."""
    MAX = 6
    """Unsigned."""


class Condition(IntEnum):
    """Branch conditions on the operands x and y; comparisons are unsigned."""

    ALWAYS = 0
    EQ = 1
    NE = 2
    LT = 3
    GE = 4


@dataclass(frozen=True)
class Field:
    """``width`` bits at bit ``low`` of word ``word``."""

    name: str
    word: int
    low: int
    width: int
    doc: str
    kind: type[IntEnum] | None = None


@dataclass(frozen=True)
class Opcode:
    """One instruction of the set; ``golden`` names the function that specifies it, if one does.

    ``reserved``: bits that must be 0, with what a later machine may mean by them. The encoder knows
    no way to set them, and today's machine does not look at them.
    """

    name: str
    code: int
    unit: Unit
    doc: str
    fields: tuple[Field, ...] = ()
    reserved: tuple[Field, ...] = ()

    def field(self, name: str) -> Field:
        for candidate in self.fields:
            if candidate.name == name:
                return candidate
        raise ProgramError(f"{self.name} has no field {name!r}")


def _flag(
    name: str, bit: int, doc: str, width: int = 1, kind: type[IntEnum] | None = None
) -> Field:
    return Field(name, 1, 24 + bit, width, doc, kind)


_DMA = (
    Field("address", 2, 0, 32, "byte address in memory, a multiple of the bus width"),
    Field("stride", 3, 0, 32, "bytes from one row to the next in memory"),
    Field("words", 4, 0, 16, "words in a row, at least 1"),
    Field("rows", 4, 16, 16, "rows, at least 1"),
    Field("local", 5, 0, 20, "first word in the local memory"),
    Field("local_stride", 6, 0, 16, "words from one row to the next in the local memory"),
)

_VECTOR = (
    _flag(
        "independent", 7,
        "reads nothing that the vector instructions before it write, back to and including the "
        "last one without this flag: it may start before they have finished",
    ),
    Field("a", 2, 0, 20, "first row of source A"),
    Field("a_stride", 2, 20, 12, "memory rows from one row of A to the next"),
    Field("d", 4, 0, 20, "first row of the destination"),
    Field("d_stride", 4, 20, 12, "memory rows from one row of the destination to the next"),
    Field("rows", 5, 0, 12, "rows, at least 1"),
    Field("blocks", 5, 12, 12, "blocks of `dim` channels in a row, at least 1"),
    Field("d_wide", 6, 27, 1, "destination is 16-bit (two memory rows a block), else 8-bit"),
    Field("d_weight", 6, 28, 1, "destination is the weight memory (8-bit), else activations"),
)

OPCODES: tuple[Opcode, ...] = (
    Opcode(
        "load",
        0x01,
        Unit.LOAD,
        "Copies rows from memory to a local memory.",
        (*_DMA, _flag("space", 0, "destination memory", 2, LoadSpace)),
        reserved=(
            _flag(
                "expand", 2,
                "0 copies bytes; 1, 2, 3: memory holds 4-bit weights in groups of 32, 64, 128 "
                "input channels, which become int8 on their way", 2,
            ),
        ),
    ),
    Opcode(
        "store",
        0x02,
        Unit.STORE,
        "Copies rows from a local memory to memory.",
        (*_DMA, _flag("space", 0, "source memory", 2, StoreSpace)),
    ),
    Opcode(
        "storew",
        0x03,
        Unit.STORE,
        "Writes one 32-bit word to memory.",
        (
            Field("address", 2, 0, 32, "byte address, a multiple of 4"),
            Field("value", 3, 0, 32, "the word"),
        ),
    ),
    Opcode(
        "matmul",
        0x10,
        Unit.MATMUL,
        "acc[m, n] = (accumulate ? acc[m, n] : 0) + sum over k of act[m, k] · W[n, k], in tiles.",
        (
            Field("act", 2, 0, 20, "first activation row"),
            Field("k_tiles", 2, 20, 12, "tiles along the contraction, at least 1"),
            Field("weight", 3, 0, 20, "first weight row"),
            Field("n_tiles", 3, 20, 12, "tiles along the output channels, at least 1"),
            Field("acc", 4, 0, 16, "first accumulator row"),
            Field("acc_stride", 4, 16, 16, "accumulator rows from one m to the next"),
            Field("act_stride", 5, 0, 16, "activation rows from one m to the next"),
            Field("rows", 5, 16, 16, "M, at least 1"),
            Field("w_stride_n", 6, 0, 16, "weight rows from one n tile to the next"),
            Field("w_stride_k", 6, 16, 16, "weight rows from one k tile to the next"),
            Field("group_log2", 7, 0, 4, "log2 of the lanes in the lane group"),
            Field("group", 7, 4, 8, "index of the lane group"),
            _flag("columns", 0, "weight rows enter as columns of the tile (a transpose)"),
            _flag("wide", 1, "activations are 16-bit: two memory rows a block, low byte first"),
            _flag("signed", 2, "the (high) activation byte is signed"),
            _flag("accumulate", 3, "add to what the accumulator holds"),
            _flag("mask_in", 4, "activation lanes outside the lane group count as 0"),
            _flag("mask_out", 5, "only the lane group of the accumulator is written"),
            _flag("apart", 6, "blocks lie two rows apart also where one plane of them is streamed"),
        ),
    ),
    Opcode(
        "vector",
        0x20,
        Unit.VECTOR,
        "d = saturate(combine(table(scale(a)), b)), block by block.",
        (
            *_VECTOR,
            Field("b", 3, 0, 20, "first activation row of source B"),
            Field("b_stride", 3, 20, 12, "memory rows from one row of B to the next"),
            Field("b_period", 5, 24, 8, "blocks after which B starts again; 0: never"),
            Field("param", 6, 0, 16, "first parameter row"),
            Field("shift", 6, 16, 6, "right shift of the combination"),
            Field("combine", 6, 22, 2, "how B joins", Combine),
            Field("a_format", 6, 24, 2, "format of A; ACC32 reads the accumulator", Format),
            Field("b_wide", 6, 26, 1, "B is 16-bit, else 8-bit signed"),
            Field("scale", 6, 29, 1, "add the bias and requantize A by its channel's parameters"),
            Field("uniform", 6, 30, 1, "every block uses the first parameter row"),
            Field("mult_a", 7, 0, 16, "unsigned mantissa of A (add) or of the product (multiply)"),
            Field("mult_b", 7, 16, 16, "unsigned mantissa of B (add)"),
            Field("count", 7, 0, 16, "arg-max: channels of the row that take part (combine none)"),
            Field("first", 7, 16, 16, "arg-max: index of the first channel (combine none)"),
            _flag("table", 0, "table function", 2, TableMode),
            _flag("slot", 2, "table slot", 3),
            _flag("argmax", 5, "compare the results of every row with the running maximum"),
            _flag("restart", 6, "forget the running maximum first"),
        ),
    ),
    Opcode(
        "softmax",
        0x21,
        Unit.VECTOR,
        "golden.softmax of accumulator rows; unsigned results.",
        (
            *_VECTOR,
            Field("limit", 3, 0, 16, "scores of the first row that take part, at least 1"),
            Field("limit_step", 3, 16, 16, "added to the limit after every `limit_rows` rows"),
            Field("limit_rows", 5, 24, 8, "rows that share a limit; 0 counts as 1"),
            Field("shift", 6, 16, 6, "right shift of the exponent scale"),
            Field("mult", 7, 0, 16, "mantissa of the exponent scale"),
        ),
    ),
    Opcode(
        "norm",
        0x22,
        Unit.VECTOR,
        "golden.norm of int16 activation rows; parameters: bias, gain (int16, in the place of the "
        "mantissa), shift.",
        (
            *_VECTOR,
            Field("length", 3, 0, 16, "features of a row; lanes beyond are ignored"),
            Field("param", 6, 0, 16, "first parameter row"),
            Field("center", 6, 29, 1, "LayerNorm, else RMSNorm"),
            Field("eps", 7, 0, 16, "mantissa of epsilon"),
            Field("eps_shift", 7, 16, 6, "left shift of epsilon, at most 38"),
        ),
    ),
    Opcode("halt", 0x30, Unit.SEQUENCER, "Waits for every unit, then stops with status done."),
    Opcode("fence", 0x31, Unit.SEQUENCER, "Waits until every unit is idle."),
    Opcode(
        "alu",
        0x32,
        Unit.SEQUENCER,
        "rd = x op y.",
        (
            Field("x", 2, 0, 32, "first operand"),
            Field("y", 3, 0, 32, "second operand"),
            Field("rd", 4, 0, 4, "destination register; r0 stays 0"),
            Field("op", 4, 4, 4, "operation", AluOp),
        ),
    ),
    Opcode(
        "branch",
        0x33,
        Unit.SEQUENCER,
        "Continues at `target` if the condition holds.",
        (
            Field("x", 2, 0, 32, "first operand"),
            Field("y", 3, 0, 32, "second operand"),
            Field("target", 4, 0, 24, "index of an instruction of the program"),
            Field("condition", 4, 24, 4, "comparison", Condition),
        ),
    ),
    Opcode(
        "ldr",
        0x34,
        Unit.SEQUENCER,
        "rd = the 32-bit word at `address`.",
        (
            Field("address", 2, 0, 32, "byte address, a multiple of 4"),
            Field("rd", 4, 0, 4, "destination register"),
        ),
    ),
    Opcode(
        "argmax",
        0x35,
        Unit.SEQUENCER,
        "Waits for the vector unit, then rd = index of the running maximum.",
        (Field("rd", 4, 0, 4, "destination register"),),
    ),
    Opcode(
        "mark",
        0x36,
        Unit.SEQUENCER,
        "Waits until every unit is idle, then MARK register = x.",
        (Field("x", 2, 0, 32, "value that the host reads"),),
    ),
)

BY_NAME = {opcode.name: opcode for opcode in OPCODES}
BY_CODE = {opcode.code: opcode for opcode in OPCODES}


@dataclass(frozen=True)
class Instruction:
    """A decoded instruction.

    ``fields`` holds the values of the opcode's fields (absent ones are 0), ``registers`` maps an
    operand word (2..7) to the register that is added to it.
    """

    op: str
    fields: dict[str, int] = field(default_factory=dict)
    registers: dict[int, int] = field(default_factory=dict)
    wait: int = 0
    signal: int = 0

    @property
    def opcode(self) -> Opcode:
        if self.op not in BY_NAME:
            raise ProgramError(f"Unknown instruction {self.op!r}")
        return BY_NAME[self.op]

    @property
    def unit(self) -> Unit:
        return self.opcode.unit

    def get(self, name: str) -> int:
        return self.fields.get(self.opcode.field(name).name, 0)


def encode(instruction: Instruction) -> list[int]:
    """The eight words of an instruction; raises ``ProgramError`` where a value does not fit."""
    opcode = instruction.opcode
    words = [0] * WORDS
    words[0] = opcode.code
    for word, register in instruction.registers.items():
        if not (2 <= word < WORDS and 0 <= register < REGISTERS):
            raise ProgramError(f"{opcode.name}: no register r{register} on word {word}")
        words[0] |= register << (8 + 4 * (word - 2))
    for name, mask in (("wait", instruction.wait), ("signal", instruction.signal)):
        if not 0 <= mask < 1 << SEMAPHORES:
            raise ProgramError(f"{opcode.name}: {name} mask {mask:#x} has no 12 bits")
    words[1] = instruction.wait | instruction.signal << SEMAPHORES
    for name, value in instruction.fields.items():
        spec = opcode.field(name)
        value = int(value)
        if not 0 <= value < 1 << spec.width:
            raise ProgramError(
                f"{opcode.name}: {name} must fit in {spec.width} unsigned bits, not {value}"
            )
        words[spec.word] |= value << spec.low
    return words


def decode(words: Sequence[int]) -> Instruction:
    """Inverse of ``encode``; raises ``ProgramError`` for an unknown opcode."""
    opcode = BY_CODE.get(words[0] & 0xFF)
    if opcode is None:
        raise ProgramError(f"Illegal opcode {words[0] & 0xFF:#04x}")
    values = {
        spec.name: (words[spec.word] >> spec.low) & ((1 << spec.width) - 1)
        for spec in opcode.fields
    }
    registers = {
        word: (words[0] >> (8 + 4 * (word - 2))) & 15
        for word in range(2, WORDS)
        if (words[0] >> (8 + 4 * (word - 2))) & 15
    }
    mask = (1 << SEMAPHORES) - 1
    return Instruction(
        opcode.name, values, registers, words[1] & mask, (words[1] >> SEMAPHORES) & mask
    )


def assemble(instructions: Iterable[Instruction]) -> bytes:
    """The program as the machine fetches it, 32 bytes an instruction, little-endian."""
    return b"".join(word.to_bytes(4, "little") for item in instructions for word in encode(item))


def disassemble(image: bytes) -> list[Instruction]:
    """Inverse of ``assemble``."""
    words = [int.from_bytes(image[i : i + 4], "little") for i in range(0, len(image), 4)]
    return [decode(words[i : i + WORDS]) for i in range(0, len(words), WORDS)]


def listing(instructions: Iterable[Instruction]) -> str:
    """Human-readable program, one instruction a line, fields that are 0 left out."""
    lines = []
    for index, item in enumerate(instructions):
        parts = []
        for spec in item.opcode.fields:
            value = item.fields.get(spec.name, 0)
            if value:
                text = spec.kind(value).name.lower() if spec.kind else str(value)
                register = item.registers.get(spec.word)
                parts.append(f"{spec.name}={text}" + (f"+r{register}" if register else ""))
            elif spec.word in item.registers and spec.low == 0:
                parts.append(f"{spec.name}=r{item.registers[spec.word]}")
        for name, mask in (("wait", item.wait), ("signal", item.signal)):
            if mask:
                parts.append(f"{name}={_pairs(mask)}")
        lines.append(f"{index:5d}  {item.op:<8s} " + " ".join(parts))
    return "\n".join(line.rstrip() for line in lines)


def _pairs(mask: int) -> str:
    names = []
    for producer in QUEUED:
        for consumer in QUEUED:
            if producer != consumer and mask >> semaphore(producer, consumer) & 1:
                names.append(f"{producer.name.lower()}>{consumer.name.lower()}")
    return ",".join(names)


def document() -> str:
    """The text of ``docs/isa.md``."""
    parts = ["# Instruction set", "", (__doc__ or "").strip(), ""]
    parts += ["Generated from `core/isa.py`; a test holds it up to date.", ""]
    for opcode in OPCODES:
        parts += [f"## `{opcode.name}` ({opcode.code:#04x}, {opcode.unit.name.lower()})", ""]
        parts += [opcode.doc, ""]
        if opcode.fields:
            parts += ["| field | word | bits | meaning |", "|---|---|---|---|"]
            for spec in (*opcode.fields, *opcode.reserved):
                bits = (
                    f"{spec.low}" if spec.width == 1 else f"{spec.low}–{spec.low + spec.width - 1}"
                )
                values = ""
                if spec.kind:
                    values = ": " + ", ".join(f"{m.value} {m.name}" for m in spec.kind)
                if spec in opcode.reserved:
                    values = " (reserved: must be 0)"
                parts.append(f"| `{spec.name}` | {spec.word} | {bits} | {spec.doc}{values} |")
            parts.append("")
    return "\n".join(parts).rstrip() + "\n"
