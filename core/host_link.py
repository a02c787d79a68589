"""The language of host and board over a serial line: frames, requests, answers.

Frames are those of RFC 1662 (PPP in HDLC-like framing): a frame lies between flags 0x7E; inside,
0x7E and 0x7D are sent as 0x7D and the octet with bit 5 inverted; its last four octets are the
CRC-32 of the others (that of zlib), least significant first. Frames without contents mean nothing.

A request, little endian: operation u8, sequence number u8, length u16 in bytes, address u32, and
for writes the bytes. Lengths and addresses are multiples of 4. The answer: operation | 0x80,
sequence number, the bytes that were read,
status u8.

``HELLO`` sets the sequence number that the board expects next to its own plus one, and is answered
by the board's ``Identity``. Requests follow with consecutive numbers, several of them before the
first answer if the host likes. The board executes the expected one. One of the 128 before it was
executed already: reads are done again, writes are only answered (with their failure, if any write
since HELLO failed). Any other number, and any damaged frame, is answered by ``REFUSED``, whose
sequence number is the expected one: the host goes on from there. So every write happens once, in
order, and wholly, whatever the line does; what a line can still do is to be cut.
"""

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

FLAG, ESCAPE, INVERTED = 0x7E, 0x7D, 0x20
CRC_BYTES = 4
MAX_PAYLOAD = 512
"""Bytes of a read or a write."""
ANSWER = 0x80
"""Set in the operation of an answer."""
PROTOCOL = 1
MAGIC = b"SLNK"
BAUD = 1_000_000
"""Of the serial line, unless a board was built for another."""


class Operation(IntEnum):
    HELLO = 0
    READ_MEMORY = 1
    WRITE_MEMORY = 2
    READ_REGISTERS = 3
    WRITE_REGISTERS = 4
    REFUSED = 0x7F
    """Of answers only."""


class Status(IntEnum):
    """The last octet of an answer."""

    OK = 0
    BUS_ERROR = 1
    """Some address of the request has no memory, or some register does not exist."""
    DAMAGED = 2
    """REFUSED: the CRC or the length of a frame is wrong."""
    OUT_OF_ORDER = 3
    """REFUSED: a request before this one is missing."""
    UNKNOWN = 4
    """REFUSED: no such operation, or one whose length or address is none."""


REQUEST = struct.Struct("<BBHI")
"""Operation, sequence number, length, address."""
_IDENTITY = struct.Struct("<4sHHIIQIIBx30s")
IDENTITY_BYTES = _IDENTITY.size
BUILD_OFFSET = 16
"""Of ``build`` in an identity."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a board says of itself.

    ``build``: fingerprint of the bitstream's sources; ``block_bytes``: bytes from address 0 on that
    are block RAM; ``memory_bytes``: bytes of memory in all, SDRAM behind the block RAM.
    """

    board: str
    clock_hz: int
    config_hash: int
    build: int
    block_bytes: int
    memory_bytes: int
    bus_bytes: int
    protocol: int = PROTOCOL
    max_payload: int = MAX_PAYLOAD

    def to_bytes(self) -> bytes:
        """(IDENTITY_BYTES,)"""
        return _IDENTITY.pack(
            MAGIC, self.protocol, self.max_payload, self.clock_hz, self.config_hash, self.build,
            self.block_bytes, self.memory_bytes, self.bus_bytes, self.board.encode(),
        )  # fmt: skip

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises ``ValueError`` for what is no identity."""
        if len(data) != IDENTITY_BYTES or data[:4] != MAGIC:
            raise ValueError("no identity of a board")
        _, protocol, most, clock, config, build, block, memory, bus, name = _IDENTITY.unpack(data)
        return cls(
            board=name.rstrip(b"\0").decode(errors="replace"), clock_hz=clock, config_hash=config,
            build=build, block_bytes=block, memory_bytes=memory, bus_bytes=bus, protocol=protocol,
            max_payload=most,
        )  # fmt: skip


def frame(content: bytes) -> bytes:
    """What goes over the line, flags included."""
    octets = bytearray([FLAG])
    for octet in content + zlib.crc32(content).to_bytes(CRC_BYTES, "little"):
        if octet in (FLAG, ESCAPE):
            octets += bytes([ESCAPE, octet ^ INVERTED])
        else:
            octets.append(octet)
    octets.append(FLAG)
    return bytes(octets)


class Deframer:
    """Finds the frames in what comes over the line, piece by piece.

    ``push`` gives the content of each frame whose CRC is right; ``damaged`` counts the others.
    """

    def __init__(self) -> None:
        self.damaged = 0
        self._content = bytearray()
        self._escaped = False

    def push(self, octets: bytes) -> list[bytes]:
        found = []
        for octet in octets:
            if octet == FLAG:
                if self._content or self._escaped:
                    content = bytes(self._content)
                    body, crc = content[:-CRC_BYTES], content[-CRC_BYTES:]
                    good = zlib.crc32(body).to_bytes(CRC_BYTES, "little") == crc
                    if good and body and not self._escaped:
                        found.append(body)
                    else:
                        self.damaged += 1
                self._content.clear()
                self._escaped = False
            elif octet == ESCAPE:
                self._escaped = True
            else:
                self._content.append(octet ^ (INVERTED if self._escaped else 0))
                self._escaped = False
        return found
