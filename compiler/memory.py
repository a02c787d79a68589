"""The memory of a program: code first, then constants, then buffers; aligned and named."""

import numpy as np
from numpy.typing import NDArray

from systolith.program import Symbol

ALIGNMENT = 64
"""Bytes: covers every bus width, and keeps bursts from straddling for no reason."""


class Memory:
    """Collects constants and buffers; addresses are final once the code size is known.

    Regions are placed behind ``code_bytes`` of code in the order in which they are added.
    """

    def __init__(self, code_bytes: int) -> None:
        self._end = -(-code_bytes // ALIGNMENT) * ALIGNMENT
        self._constants: list[tuple[int, bytes]] = []
        self.symbols: dict[str, Symbol] = {}

    def _place(self, name: str, dtype: str, shape: tuple[int, ...]) -> int:
        if name in self.symbols:
            raise ValueError(f"Memory region {name!r} is placed twice")
        symbol = Symbol(self._end, dtype, shape)
        self.symbols[name] = symbol
        self._end += -(-symbol.size // ALIGNMENT) * ALIGNMENT
        return symbol.address

    def constant(self, name: str, values: NDArray) -> int:
        """Places an array; returns its byte address."""
        address = self._place(name, values.dtype.str, values.shape)
        self._constants.append((address, np.ascontiguousarray(values).tobytes()))
        return address

    def buffer(self, name: str, dtype: str, shape: tuple[int, ...]) -> int:
        """Reserves zeroed memory for the host or the program; returns its byte address."""
        return self._place(name, dtype, shape)

    def image(self, code: bytes) -> tuple[bytes, int]:
        """The image (up to the last constant) and the bytes of the whole memory."""
        end = max([len(code), *(address + len(raw) for address, raw in self._constants)])
        image = bytearray(end)
        image[: len(code)] = code
        for address, raw in self._constants:
            image[address : address + len(raw)] = raw
        return bytes(image), self._end
