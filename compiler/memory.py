"""The memory of a program: code first, then constants, then buffers; aligned and named."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from systolith.isa import OPCODES, WORDS
from systolith.program import Symbol

ALIGNMENT = 64
"""Bytes: covers every bus width, and keeps bursts from straddling for no reason."""

_ADDRESSED = [item.code for item in OPCODES if any(f.name == "address" for f in item.fields)]
"""Codes of the instructions with an address in memory."""
_ADDRESS_WORD = 2


class Memory:
    """Collects constants and buffers in the order in which they are added.

    Their addresses count from the end of the code; `link` puts the code in front.
    """

    def __init__(self) -> None:
        self._end = 0
        self._constants: list[tuple[int, NDArray]] = []
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
        self._constants.append((address, np.ascontiguousarray(values)))
        return address

    def buffer(self, name: str, dtype: str, shape: tuple[int, ...]) -> int:
        """Reserves zeroed memory for the host or the program; returns its byte address.

        Asked for again with the same type and shape, it is the same region.
        """
        symbol = self.symbols.get(name)
        if symbol is not None and (symbol.dtype, symbol.shape) == (dtype, shape):
            return symbol.address
        return self._place(name, dtype, shape)

    def link(self, code: bytes) -> tuple[bytes, int, dict[str, Symbol]]:
        """Image (up to the last constant), bytes of the whole memory, and symbols, all final.

        ``code``: assembled instructions; the addresses in them are moved behind the code, too.
        """
        words = np.frombuffer(code, "<u4").reshape(-1, WORDS).copy()
        shift = -(-len(code) // ALIGNMENT) * ALIGNMENT
        words[np.isin(words[:, 0] & 0xFF, _ADDRESSED), _ADDRESS_WORD] += np.uint32(shift)
        end = max((address + raw.nbytes for address, raw in self._constants), default=0)
        image = bytearray(words.tobytes().ljust(shift, b"\0")) + bytearray(end)
        for address, raw in self._constants:
            image[shift + address : shift + address + raw.nbytes] = raw.tobytes()
        symbols = {
            name: replace(symbol, address=symbol.address + shift)
            for name, symbol in self.symbols.items()
        }
        return bytes(image), self._end + shift, symbols
