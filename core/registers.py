"""The register map: one table drives hardware, C header, documentation and host software."""

from dataclasses import dataclass
from enum import IntEnum

IDENTIFICATION = 0x5359_5354
"""ASCII "SYST", most significant byte first."""
VERSION = 0x0001_0000
"""Interface version, major << 16 | minor."""


class Error(IntEnum):
    """Contents of register ERROR."""

    NONE = 0
    ILLEGAL_OPCODE = 1
    MISALIGNED = 2
    """A memory address is no multiple of the bus width (load, store) or of 4 (ldr, storew)."""
    BUS_READ = 3
    """SLVERR or DECERR on a load, a register load or an instruction fetch."""
    BUS_WRITE = 4
    WATCHDOG = 5
    """Nothing moved for WATCHDOG cycles: a semaphore that never comes, a bus that never answers."""
    SEMAPHORE = 6
    """A semaphore counter passed 255."""


class Access(IntEnum):
    READ = 0
    READ_WRITE = 1
    COMMAND = 2
    """Writing 1 to a bit acts; reads as 0."""


@dataclass(frozen=True)
class Register:
    """A 32-bit register at byte ``offset``; a ``wide`` one has its upper half at offset + 4."""

    name: str
    offset: int
    access: Access
    doc: str
    wide: bool = False
    reset: int = 0


def _counter(name: str, index: int, doc: str) -> Register:
    return Register(name, 0x80 + 8 * index, Access.READ, doc, wide=True)


CONTROL_START = 1 << 0
CONTROL_RESET = 1 << 1
CONTROL_IRQ_CLEAR = 1 << 2
STATUS_BUSY = 1 << 0
STATUS_DONE = 1 << 1
STATUS_ERROR = 1 << 2

COUNTERS: tuple[Register, ...] = (
    _counter("CYCLES", 0, "cycles from start to halt or error"),
    _counter("ARRAY_ROWS", 1, "activation rows that entered the array"),
    _counter(
        "MATMUL_SPAN", 2, "cycles from the first matmul's start to the last accumulator write"
    ),
    _counter("WAIT_WEIGHTS", 3, "cycles in which the array waited for stationary weights"),
    _counter("WAIT_MEMORY", 4, "cycles in which a load waited for read data"),
    _counter("VECTOR_BUSY", 5, "cycles in which the vector unit worked"),
    _counter("READ_BYTES", 6, "bytes read from memory, instructions included"),
    _counter("WRITE_BYTES", 7, "bytes written to memory"),
    _counter("FETCH_BYTES", 8, "bytes of instructions read from memory"),
    _counter("INSTRUCTIONS", 9, "instructions executed"),
    _counter("MATMUL_BUSY", 10, "cycles in which a matmul instruction was under way"),
)

REGISTERS: tuple[Register, ...] = (
    Register("ID", 0x00, Access.READ, "identification, reads 0x53595354", reset=IDENTIFICATION),
    Register("VERSION", 0x04, Access.READ, "interface version", reset=VERSION),
    Register("CONFIG", 0x08, Access.READ, "dim [0:8], lanes [8:16], bus bytes [16:24]"),
    Register("CONFIG_HASH", 0x0C, Access.READ, "fingerprint of the configuration"),
    Register("CONTROL", 0x10, Access.COMMAND, "bit 0 start, bit 1 reset, bit 2 clear irq"),
    Register("STATUS", 0x14, Access.READ, "bit 0 busy, bit 1 done, bit 2 error"),
    Register("ERROR", 0x18, Access.READ, "error code"),
    Register("ERROR_PC", 0x1C, Access.READ, "index of the instruction that failed"),
    Register("BASE", 0x20, Access.READ_WRITE, "byte address of the program image"),
    Register("IRQ_ENABLE", 0x24, Access.READ_WRITE, "bit 0 done, bit 1 error, bit 2 mark"),
    Register(
        "WATCHDOG",
        0x28,
        Access.READ_WRITE,
        "cycles without movement before an error; 0: off",
        reset=1 << 20,
    ),
    Register("MARK", 0x2C, Access.READ, "value of the last mark instruction"),
    *COUNTERS,
)

BY_NAME = {register.name: register for register in REGISTERS}
