"""The memory of a program: code first, then constants, then buffers; aligned and named."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from systolith.isa import INSTRUCTION_BYTES, OPCODES, Instruction, assemble
from systolith.program import Symbol

ALIGNMENT = 64
"""Bytes: covers every bus width, and keeps bursts from straddling for no reason."""

_ADDRESSED = {code.name for code in OPCODES if any(f.name == "address" for f in code.fields)}


class Memory:
    """Collects constants and buffers; addresses are final once the code size is known.

    Regions are placed behind ``code_bytes`` of code in the order in which they are added.
    """

    def __init__(self, code_bytes: int = 0) -> None:
        self._end = -(-code_bytes // ALIGNMENT) * ALIGNMENT
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
        """Reserves zeroed memory for the host or the program; returns its byte address."""
        return self._place(name, dtype, shape)

    def link(self, code: Sequence[Instruction]) -> tuple[bytes, int, dict[str, Symbol]]:
        """Image, bytes of the whole memory, and symbols, with ``code`` in front of everything.

        For a memory of code_bytes 0: every address in an instruction counts from the end of the
        code, and is moved to its place here.
        """
        shift = -(-len(code) * INSTRUCTION_BYTES // ALIGNMENT) * ALIGNMENT
        moved = [
            replace(item, fields={**item.fields, "address": item.fields.get("address", 0) + shift})
            if item.op in _ADDRESSED
            else item
            for item in code
        ]
        image, size = self.image(b"")
        symbols = {
            name: replace(symbol, address=symbol.address + shift)
            for name, symbol in self.symbols.items()
        }
        return assemble(moved).ljust(shift, b"\0") + image, size + shift, symbols

    def image(self, code: bytes) -> tuple[bytes, int]:
        """The image (up to the last constant) and the bytes of the whole memory."""
        end = max([len(code), *(address + raw.nbytes for address, raw in self._constants)])
        image = bytearray(end)
        image[: len(code)] = code
        for address, raw in self._constants:
            image[address : address + raw.nbytes] = raw.tobytes()
        return bytes(image), self._end
