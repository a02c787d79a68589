"""The host's end of the line: memory and registers of a board, whatever the line does.

    link = Link(SerialLine("/dev/ttyUSB0"))
    link.identity.board
    link.write_memory(0, image)
    link.read_registers(0x14, 3)
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from systolith.boards.serial_line import Line, LinkError
from systolith.host_link import (
    ANSWER,
    MAX_PAYLOAD,
    PROTOCOL,
    REQUEST,
    Deframer,
    Identity,
    Operation,
    Status,
    frame,
)

WINDOW = 6
"""Requests under way; the board executes one while the line carries the next ones."""
READ_WINDOW = 4
"""Less of those whose answers are long: the board keeps waiting requests in 256 octets."""
_HELLO_S = 1.0
_FIRST_OCTET_S = 1e-4
"""Of an octet, to begin with: slower than any baud rate in use."""


@dataclass(frozen=True)
class _Request:
    operation: Operation
    address: int
    length: int
    payload: bytes = b""

    def content(self, sequence: int) -> bytes:
        head = REQUEST.pack(self.operation, sequence, self.length, self.address)
        return head + self.payload

    @property
    def answer_bytes(self) -> int:
        return self.length if self.operation in _READS else 0


_READS = (Operation.READ_MEMORY, Operation.READ_REGISTERS)
Progress = Callable[[int], None]
"""Told how many bytes of a transfer are done."""


class Link:
    """A board on a line.

    ``patience``: seconds without any answer after which the board is given up. Everything raises
    ``LinkError``: no board, another protocol, an address without memory, a line that broke.
    ``resent`` counts the requests that were sent more than once.
    """

    def __init__(self, line: Line, *, patience: float = 10.0) -> None:
        self.line, self.patience = line, patience
        self.resent = 0
        self._deframer = Deframer()
        self._frames: list[bytes] = []
        """Good ones that nobody has looked at yet."""
        self._octet_s = _FIRST_OCTET_S
        self._sequence = random.SystemRandom().randrange(256)
        self._in_step = True
        """Whether both ends count alike; not after a request that failed."""
        self.identity = self._hello()

    def close(self) -> None:
        self.line.close()

    # Bytes and registers -------------------------------------------------------------------------

    def read_memory(self, address: int, size: int, progress: Progress | None = None) -> bytes:
        """Bytes of the memory; any address and size."""
        first, end = address & ~3, (address + size + 3) & ~3
        requests = [
            _Request(Operation.READ_MEMORY, at, length) for at, length in _pieces(first, end)
        ]
        data = b"".join(self._transact(requests, progress))
        return data[address - first : address - first + size]

    def write_memory(self, address: int, data: bytes, progress: Progress | None = None) -> None:
        """Writes whole words: address and length are multiples of 4."""
        if address % 4 or len(data) % 4:
            raise ValueError("Memory is written in words of 4 bytes")
        requests = [
            _Request(Operation.WRITE_MEMORY, at, length, data[at - address :][:length])
            for at, length in _pieces(address, address + len(data))
        ]
        self._transact(requests, progress)

    def read_registers(self, offset: int, count: int = 1) -> list[int]:
        """Registers one after another, 32 bits each."""
        request = _Request(Operation.READ_REGISTERS, offset, 4 * count)
        (data,) = self._transact([request])
        return [int.from_bytes(data[i : i + 4], "little") for i in range(0, 4 * count, 4)]

    def write_register(self, offset: int, value: int) -> None:
        payload = value.to_bytes(4, "little")
        self._transact([_Request(Operation.WRITE_REGISTERS, offset, 4, payload)])

    # The protocol --------------------------------------------------------------------------------

    def _hello(self) -> Identity:
        started = time.monotonic()
        while time.monotonic() - started < self.patience:
            sequence = self._next()
            asked = time.monotonic()
            request = _Request(Operation.HELLO, 0, 0)
            self._send([request], [sequence])
            while (content := self._content(_HELLO_S)) is not None:
                if content[:2] != bytes([Operation.HELLO | ANSWER, sequence]):
                    continue
                try:
                    identity = Identity.from_bytes(content[2:-1])
                except ValueError:
                    raise LinkError(
                        "What answers there is no systolith board: load a bitstream first"
                    ) from None
                if identity.protocol != PROTOCOL:
                    raise LinkError(
                        f"The bitstream speaks protocol {identity.protocol} and this release "
                        f"{PROTOCOL}: build the bitstream again"
                    )
                spent = time.monotonic() - asked
                self._octet_s = max(self._octet_s, spent / (len(content) + REQUEST.size))
                return identity
        raise LinkError(
            "No board answers there: check the port, its baud rate, and that a bitstream is loaded"
        )

    def _next(self) -> int:
        sequence = self._sequence
        self._sequence = (sequence + 1) % 256
        return sequence

    def _send(self, requests: Sequence[_Request], numbers: Sequence[int]) -> None:
        self.line.write(
            b"".join(
                frame(item.content(number)) for item, number in zip(requests, numbers, strict=True)
            )
        )

    def _content(self, timeout: float) -> bytes | None:
        """The next good frame; None if none comes in time."""
        until = time.monotonic() + self.patience
        while not self._frames:
            octets = self.line.read(timeout)
            if not octets or time.monotonic() > until:  # nothing, or nothing but noise
                return None
            self._frames.extend(self._deframer.push(octets))
        return self._frames.pop(0)

    def _transact(
        self, requests: Sequence[_Request], progress: Progress | None = None
    ) -> list[bytes]:
        """Sends requests until each is answered; the bytes that were read, in order."""
        if not self._in_step:
            self._hello()
        self._in_step = False
        answers: dict[int, bytes] = {}
        numbers = [self._next() for _ in requests]
        first = sent = done = 0
        again = False
        """Whether what is under way was sent again since the last answer."""
        heard = time.monotonic()
        wait = 0.0
        while first < len(requests):
            reading = requests[first].operation in _READS
            until = min(len(requests), first + (READ_WINDOW if reading else WINDOW))
            if sent < until:
                self._send(requests[sent:until], numbers[sent:until])
                sent = until
            under_way = sum(
                len(item.payload) + item.answer_bytes + 24 for item in requests[first:sent]
            )
            # At least a few attempts, however slow the line seems to be.
            usual = min(0.3 + 3 * under_way * self._octet_s, self.patience / 5)
            asked = time.monotonic()
            content = self._content(max(wait, usual))
            if content is None:
                if time.monotonic() - heard > self.patience:
                    raise LinkError(
                        f"The board stopped answering ({first} of {len(requests)} requests done): "
                        "check cable and power, and start again"
                    )
                self.resent += sent - first
                sent, again, wait = first, True, min(2 * max(wait, usual), self.patience / 3)
                continue
            operation, number = content[0], content[1]
            if operation == Operation.REFUSED | ANSWER:
                if content[-1] == Status.UNKNOWN:
                    raise LinkError(
                        "The board does not know this request: build the bitstream again"
                    )
                if not again:
                    self.resent += sent - first
                    sent, again = first, True
                continue
            index = first + (number - numbers[first]) % 256
            if index >= sent or len(content) != 3 + requests[index].answer_bytes:
                continue  # an answer to what was asked before
            if operation != requests[index].operation | ANSWER:
                continue
            if content[-1] != Status.OK:
                item = requests[index]
                raise LinkError(
                    f"The board has nothing at {item.address:#x} "
                    f"({item.operation.name.lower().replace('_', ' ')} of {item.length} bytes)"
                )
            heard, wait = time.monotonic(), 0.0
            # How slow the line is: the slowest answers count, and are forgotten slowly.
            self._octet_s = max(0.98 * self._octet_s, (heard - asked) / under_way)
            answers[index] = content[2:-1]
            while first in answers:
                done += requests[first].length
                first += 1
                again = False
            if progress is not None:
                progress(done)
        self._in_step = True
        return [answers[index] for index in range(len(requests))]


def _pieces(first: int, end: int) -> list[tuple[int, int]]:
    """Addresses and lengths that cross no multiple of what one request may carry."""
    pieces = []
    while first < end:
        length = min(MAX_PAYLOAD - first % MAX_PAYLOAD, end - first)
        pieces.append((first, length))
        first += length
    return pieces
