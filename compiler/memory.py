"""The memory of a program: code, constants, rarely used constants, buffers; aligned and named.

What every token needs lies in front: a board has it in its block RAM, and the rest in SDRAM.
"""

from dataclasses import replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from systolith.isa import OPCODES, WORDS
from systolith.program import Symbol

ALIGNMENT = 64
"""Bytes: covers every bus width, and keeps bursts from straddling for no reason."""

_ADDRESSED = [item.code for item in OPCODES if any(f.name == "address" for f in item.fields)]
"""Codes of the instructions with an address in memory."""
_ADDRESS_WORD = 2


class _Part(IntEnum):
    """In the order in which they lie behind the code."""

    CONSTANT = 0
    RARE = 1
    BUFFER = 2


_PART_BITS = 30
_MIDDLE = 1 << _PART_BITS - 1
"""Until the sizes are known, a part begins in the middle of a range of its own: what is relative to
a region may point in front of it."""


def offset_in_part(address: int) -> tuple[str, int]:
    """Which part an address is in that is not final yet, and its distance from the start there."""
    part = address >> _PART_BITS
    return _Part(part).name.lower(), address - (part << _PART_BITS) - _MIDDLE


class Memory:
    """Collects constants and buffers; `link` puts everything in its place.

    Until then the addresses it gives are good for instructions only.
    """

    def __init__(self) -> None:
        self._ends = dict.fromkeys(_Part, 0)
        self._constants: list[tuple[int, NDArray]] = []
        self.symbols: dict[str, Symbol] = {}

    def _place(self, part: _Part, name: str, dtype: str, shape: tuple[int, ...]) -> int:
        if name in self.symbols:
            raise ValueError(f"Memory region {name!r} is placed twice")
        address = (part << _PART_BITS) + _MIDDLE + self._ends[part]
        symbol = Symbol(address, dtype, shape)
        self.symbols[name] = symbol
        self._ends[part] += -(-symbol.size // ALIGNMENT) * ALIGNMENT
        return address

    def constant(self, name: str, values: NDArray, *, rare: bool = False) -> int:
        """Places an array; returns its address. ``rare``: little of it is read for a token."""
        part = _Part.RARE if rare else _Part.CONSTANT
        address = self._place(part, name, values.dtype.str, values.shape)
        self._constants.append((address, np.ascontiguousarray(values)))
        return address

    def buffer(self, name: str, dtype: str, shape: tuple[int, ...]) -> int:
        """Reserves memory for the host or the program; returns its address.

        Asked for again with the same type and shape, it is the same region.
        """
        symbol = self.symbols.get(name)
        if symbol is not None and (symbol.dtype, symbol.shape) == (dtype, shape):
            return symbol.address
        return self._place(_Part.BUFFER, name, dtype, shape)

    def link(self, code: bytes) -> tuple[bytes, int, dict[str, Symbol]]:
        """Image (up to the last constant), bytes of the whole memory, and symbols, all final.

        ``code``: assembled instructions; the addresses in them become final, too.
        """
        starts = {_Part.CONSTANT: -(-len(code) // ALIGNMENT) * ALIGNMENT}
        starts[_Part.RARE] = starts[_Part.CONSTANT] + self._ends[_Part.CONSTANT]
        starts[_Part.BUFFER] = starts[_Part.RARE] + self._ends[_Part.RARE]
        moves = np.array(
            [starts[part] - (part << _PART_BITS) - _MIDDLE for part in _Part], dtype=np.int64
        )

        def final(addresses: NDArray) -> NDArray:
            addresses = addresses.astype(np.int64)
            return addresses + moves[addresses >> _PART_BITS]

        words = np.frombuffer(code, "<u4").reshape(-1, WORDS).copy()
        moved = np.isin(words[:, 0] & 0xFF, _ADDRESSED)
        words[moved, _ADDRESS_WORD] = final(words[moved, _ADDRESS_WORD]).astype(np.uint32)
        symbols = {
            name: replace(symbol, address=int(final(np.array(symbol.address))))
            for name, symbol in self.symbols.items()
        }
        image = bytearray(words.tobytes()).ljust(starts[_Part.BUFFER], b"\0")
        end = len(code)
        for address, raw in self._constants:
            at = int(final(np.array(address)))
            image[at : at + raw.nbytes] = raw.tobytes()
            end = max(end, at + raw.nbytes)
        size = starts[_Part.BUFFER] + self._ends[_Part.BUFFER]
        return bytes(image[:end]), size, symbols
