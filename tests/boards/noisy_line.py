"""Noise between the host and a line, both ways."""

import random

from systolith.boards.serial_line import Line


class NoisyLine:
    """``flips``, ``drops``, ``doubles``: chances for each octet of a changed bit, of none, and of
    two. ``cut``: octets after which nothing goes through. ``damages`` counts."""

    def __init__(
        self,
        line: Line,
        *,
        flips: float = 0,
        drops: float = 0,
        doubles: float = 0,
        cut: int = 1 << 60,
        seed: int = 0,
    ) -> None:
        self.line, self.left = line, cut
        self.chances = flips, drops, doubles
        self.random = random.Random(seed)
        self.damages = 0

    def damaged(self, octets: bytes) -> bytes:
        flips, drops, doubles = self.chances
        found = bytearray()
        for octet in octets[: max(self.left, 0)]:
            dice = self.random.random()
            self.damages += dice < drops + flips + doubles
            if dice < drops:
                continue
            if dice < drops + flips:
                octet ^= 1 << self.random.randrange(8)
            found.append(octet)
            if drops + flips <= dice < drops + flips + doubles:
                found.append(octet)
        self.left -= len(octets)
        return bytes(found)

    def write(self, octets: bytes) -> None:
        self.line.write(self.damaged(octets))

    def read(self, timeout: float) -> bytes:
        return self.damaged(self.line.read(timeout))

    def close(self) -> None:
        self.line.close()
