"""Shapes and interfaces shared by the blocks: commands, memory ports, vector beats."""

from amaranth import Cat, signed, unsigned
from amaranth.hdl import Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from systolith import isa
from systolith.config import Config

PC_BITS = 24

COMMAND = data.StructLayout(
    {
        "opcode": 8,
        "flags": 8,
        "words": data.ArrayLayout(unsigned(32), isa.WORDS - 2),
        "pc": PC_BITS,
    }
)
"""An instruction as a unit receives it: registers added, semaphores passed."""


def operand(command: data.View, opcode: str, name: str) -> Value:
    """Field ``name`` of instruction ``opcode`` in a ``COMMAND`` view."""
    spec = isa.BY_NAME[opcode].field(name)
    if spec.word == 1:
        word, low = Value.cast(command.flags), spec.low - 24
    else:
        word, low = Value.cast(command.words[spec.word - 2]), spec.low
    return word[low : low + spec.width]


class UnitSignature(wiring.Signature):
    """What the sequencer sees of a unit.

    Members
    -------
    commands : stream of ``COMMAND``
        Instructions in order. A unit may accept the next one before it has finished the last.
    done : out, 1
        One cycle for each finished instruction, in order; its results are visible to every read
        from the fourth cycle after it on, which is when a unit that was told can read at first: it
        is offered its instruction in the second one.
    busy : out, 1
        High from the cycle after a command is accepted until its ``done``.
    error : out, 1; error_code : out, 4; error_pc : out, 24
        One cycle when an instruction fails; code as in ``systolith.registers.Error``.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "commands": In(stream.Signature(COMMAND)),
                "done": Out(1),
                "busy": Out(1),
                "error": Out(1),
                "error_code": Out(4),
                "error_pc": Out(PC_BITS),
            }
        )


class ReadPort(wiring.Signature):
    """Read port of a local memory, seen from the reader.

    A read is accepted in a cycle where ``en`` and ``ready`` are high; ``data`` is valid in the next
    cycle only. ``en`` may be withdrawn. Ports that never wait have ``ready`` tied to 1.
    """

    def __init__(self, address_bits: int, shape) -> None:
        self.address_bits = address_bits
        self.shape = shape
        super().__init__(
            {"addr": Out(address_bits), "en": Out(1), "ready": In(1), "data": In(shape)}
        )


class WritePort(wiring.Signature):
    """Write port of a local memory, seen from the writer.

    A write happens in a cycle where ``en`` and ``ready`` are high; ``mask`` has one bit a lane.
    """

    def __init__(self, address_bits: int, shape, lanes: int) -> None:
        self.address_bits = address_bits
        self.shape = shape
        self.lanes = lanes
        super().__init__(
            {
                "addr": Out(address_bits),
                "data": Out(shape),
                "mask": Out(lanes),
                "en": Out(1),
                "ready": In(1),
            }
        )


def bits_for_rows(rows: int) -> int:
    """Address bits of a memory with ``rows`` rows, a power of two."""
    return (rows - 1).bit_length()


def row(config: Config) -> data.ArrayLayout:
    """A row of the activation or weight memory: D bytes."""
    return data.ArrayLayout(unsigned(8), config.dim)


def line(config: Config) -> data.ArrayLayout:
    """Two activation rows, 2n and 2n + 1: the low and the high plane of a 16-bit block."""
    return data.ArrayLayout(row(config), 2)


def acc_row(config: Config) -> data.ArrayLayout:
    """A row of the accumulator: D int32."""
    return data.ArrayLayout(signed(32), config.dim)


PARAMETER = data.StructLayout({"bias": 32, "mult": 16, "shift": 8, "reserved": 8})
"""Parameters of one channel, as they lie in memory (little-endian)."""


def flat(view: data.View) -> Value:
    """The bits of a view as one unsigned value."""
    return Cat(Value.cast(view))
