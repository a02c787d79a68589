"""A board of a few lines of Python, and a line to it.

The board is written from the text of ``core/host_link.py``, apart from RTL and host; the frames it
makes and reads are those of the octets below, not of the module.
"""

import zlib
from dataclasses import dataclass, field

import numpy as np

from systolith.config import Config
from systolith.host_link import Identity
from systolith.isa import ProgramError
from systolith.sim.machine import GoldenMachine
from tests.boards.noisy_line import NoisyLine


def identity(**changes: int | str) -> Identity:
    values = {
        "board": "model", "clock_hz": 60_000_000, "config_hash": 0x1234_5678, "build": 0xABCD,
        "block_bytes": 4096, "memory_bytes": 4096, "bus_bytes": 8, **changes,
    }  # fmt: skip
    return Identity(**values)


def framed(content: bytes) -> bytes:
    content += zlib.crc32(content).to_bytes(4, "little")
    content = content.replace(b"\x7d", b"\x7d\x5d").replace(b"\x7e", b"\x7d\x5e")
    return b"\x7e" + content + b"\x7e"


def unframed(octets: bytes) -> list[bytes | None]:
    """The contents of all frames; None for a damaged one."""
    contents: list[bytes | None] = []
    for piece in filter(None, octets.split(b"\x7e")):
        body = bytearray()
        octet = iter(piece)
        good = True
        for value in octet:
            if value == 0x7D:
                value = next(octet, -1)
                good &= value >= 0
                value = value & 0xFF ^ 0x20
            body.append(value)
        good &= len(body) > 4 and zlib.crc32(body[:-4]) == int.from_bytes(body[-4:], "little")
        contents.append(bytes(body[:-4]) if good else None)
    return contents


@dataclass
class ModelBoard:
    """``memory`` and ``registers`` (words by offset); ``writes`` counts each write executed."""

    identity: Identity = field(default_factory=identity)
    registers: dict[int, int] = field(default_factory=dict)
    writes: list[tuple[int, int, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.memory = bytearray(self.identity.memory_bytes)
        self.expected = 0
        self.failed = False
        self._rest = b""

    def octets(self, octets: bytes) -> bytes:
        """What the board answers to them."""
        self._rest += octets
        whole, flag, self._rest = self._rest.rpartition(b"\x7e")
        if not flag:
            return b""
        return b"".join(framed(self._answer(content)) for content in unframed(whole))

    def _answer(self, content: bytes | None) -> bytes:
        def refused(status: int) -> bytes:
            return bytes([0xFF, self.expected, status])

        if content is None or len(content) < 8:
            return refused(2)
        operation, number = content[0], content[1]
        length = int.from_bytes(content[2:4], "little")
        address = int.from_bytes(content[4:8], "little")
        payload = content[8:]
        head = bytes([operation | 0x80, number])
        if operation == 0:
            self.expected, self.failed = (number + 1) % 256, False
            return head + self.identity.to_bytes() + b"\0"
        age = (self.expected - number) % 256
        if age > 128:
            return refused(3)
        if operation not in (1, 2, 3, 4) or not 0 < length <= 512 or (length | address) % 4:
            return refused(4)
        if len(payload) != (length if operation in (2, 4) else 0):
            return refused(4)
        if age == 0:
            self.expected = (self.expected + 1) % 256
        if operation in (1, 3):
            data, good = self._read(operation, address, length)
            return head + data + bytes([not good])
        if age == 0:
            self.writes.append((operation, address, payload))
            good = self._write(operation, address, payload)
            self.failed |= not good
        else:
            good = not self.failed
        return head + bytes([not good])

    def _read(self, operation: int, address: int, length: int) -> tuple[bytes, bool]:
        if operation == 1:
            data = bytes(self.memory[address : address + length])
            return data.ljust(length, b"\0"), len(data) == length
        words = [self.registers.get(address + i, 0) for i in range(0, length, 4)]
        return b"".join(word.to_bytes(4, "little") for word in words), True

    def _write(self, operation: int, address: int, data: bytes) -> bool:
        if operation == 2:
            if address + len(data) > len(self.memory):
                return False
            self.memory[address : address + len(data)] = data
        else:
            for i in range(0, len(data), 4):
                self.registers[address + i] = int.from_bytes(data[i : i + 4], "little")
        return True


class PlainLine:
    """A line to a ``ModelBoard``; nothing waiting is a time-out."""

    def __init__(self, board: ModelBoard) -> None:
        self.board = board
        self.waiting = b""
        self.sent = 0

    def write(self, octets: bytes) -> None:
        self.sent += len(octets)
        self.waiting += self.board.octets(octets)

    def read(self, timeout: float) -> bytes:
        octets, self.waiting = self.waiting, b""
        return octets

    def close(self) -> None:
        self.waiting = b""


def model_line(board: ModelBoard, **faults: float) -> NoisyLine:
    """A line to a ``ModelBoard`` with the faults of a ``NoisyLine``."""
    return NoisyLine(PlainLine(board), **faults)


class MachineBoard(ModelBoard):
    """A ``ModelBoard`` with a machine behind the registers: the golden one, or a broken one.

    ``machine``: what executes programs, made from configuration and memory.
    """

    def __init__(
        self,
        config: Config,
        memory_bytes: int = 1 << 20,
        machine: type[GoldenMachine] = GoldenMachine,
        **changes: int | str,
    ) -> None:
        self.config, self.machine = config, machine
        told = identity(
            config_hash=config.hash, memory_bytes=memory_bytes, bus_bytes=config.bus_bytes,
            block_bytes=memory_bytes, **changes,
        )  # fmt: skip
        super().__init__(told)
        self.registers = {0: 0x5359_5354, 4: 0x0001_0000, 0xC: config.hash}

    def _write(self, operation: int, address: int, data: bytes) -> bool:
        good = super()._write(operation, address, data)
        if operation == 4 and address == 0x10 and data[0] & 1:
            self._run()
        return good

    def _run(self) -> None:
        base = self.registers[0x20]
        memory = np.frombuffer(self.memory, np.uint8).copy()[base:]
        machine = self.machine(self.config, memory, self._mark)
        self.registers |= {0x14: 0, 0x18: 0, 0x1C: 0, 0x2C: 0}
        try:
            machine.run()
            self.registers[0x14] = 2
        except ProgramError:
            self.registers |= {0x14: 4, 0x18: 1, 0x1C: max(0, machine.executed - 1)}
        self.memory[base:] = memory.tobytes()
        self.registers[0x80] = machine.executed

    def _mark(self, value: int) -> None:
        self.registers[0x2C] = value
