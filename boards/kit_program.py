"""A compiled program for C: its image as an array and as a file, its regions as macros and symbols,
what its results must be, and an example that runs it with the driver."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systolith.errors import UserError
from systolith.program import Program

_PER_LINE = 20


@dataclass(frozen=True)
class PackedProgram:
    """A program as it goes into a kit.

    ``name``: of the program; C sees it with ``program_`` in front. ``memory``: what its memory
    holds at the start, (memory_bytes,) uint8, with inputs for instance; None: its own image.
    ``expected``: the bytes that regions hold after the run, by symbol; the example compares them.
    """

    name: str
    program: Program
    memory: NDArray[np.uint8] | None = None
    expected: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z_]\w*", self.name, re.ASCII):
            raise UserError(
                f"The program's name must be letters, digits and underscores for C, not "
                f"{self.name!r}: rename the file"
            )
        for name, data in self.expected.items():
            symbol = self.program.symbols.get(name)
            if symbol is None or symbol.size != len(data):
                raise ValueError(f"expected[{name!r}] must be the bytes of a region, not {data!r}")

    @property
    def image(self) -> bytes:
        """The start of the memory, without the zeros at its end; never empty."""
        if self.memory is None:
            return self.program.image
        used = np.flatnonzero(self.memory)
        count = int(used[-1]) + 1 if len(used) else 1
        return self.memory[: max(count, len(self.program.image))].tobytes()


def macro_names(names: list[str]) -> list[str]:
    """Names of regions as parts of C macros, in the same order, none twice.

    >>> macro_names(["output 12", "index tokens", "index-tokens"])
    ['OUTPUT_12', 'INDEX_TOKENS', 'INDEX_TOKENS_2']
    """
    found: list[str] = []
    for name in names:
        plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").upper() or "REGION"
        candidate, count = plain, 1
        while candidate in found:
            count += 1
            candidate = f"{plain}_{count}"
        found.append(candidate)
    return found


def c_bytes(data: bytes) -> str:
    """Bytes as the contents of a C array, without the braces."""
    lines = (data[at : at + _PER_LINE] for at in range(0, len(data), _PER_LINE))
    return ",\n".join("  " + ", ".join(map(str, line)) for line in lines)


def c_text(text: str) -> str:
    """The inside of a C string literal, in ASCII."""
    return "".join(
        c if " " <= c <= "~" and c not in '"\\?' else f"\\{byte:03o}"
        for c, byte in ((chr(b), b) for b in text.encode())
    )


def program_files(
    packed: PackedProgram, render: Callable[..., str], registers: str, memory: str
) -> dict[str, str | bytes]:
    """``program_NAME.h``, ``.c``, ``.bin`` and ``example.c``.

    ``registers``, ``memory``: addresses that the example's commentary proposes.
    """
    program, image = packed.program, packed.image
    name = f"program_{packed.name}"
    order = sorted(program.symbols, key=lambda key: program.symbols[key].address)
    symbols = [
        {
            "name": c_text(key),
            "macro": macro,
            "offset": program.symbols[key].address,
            "bytes": program.symbols[key].size,
            "element_bytes": np.dtype(program.symbols[key].dtype).itemsize,
            "dtype": np.dtype(program.symbols[key].dtype).name,
            "shape": "x".join(map(str, program.symbols[key].shape)) or "scalar",
        }
        for key, macro in zip(order, macro_names(order), strict=True)
    ]
    values: dict[str, Any] = {
        "title": packed.name,
        "name": name,
        "guard": name.upper(),
        "configuration": f"{program.config.hash:#010x}u",
        "instructions": program.instructions,
        "image_bytes": len(image),
        "memory_bytes": program.memory_bytes,
        "symbols": symbols,
        "image": c_bytes(image),
        "expected": [
            {"index": order.index(key), "count": len(data), "bytes": c_bytes(data)}
            for key, data in packed.expected.items()
        ],
        "registers": registers,
        "memory": memory,
    }
    return {
        f"{name}.h": render("program.h.j2", **values),
        f"{name}.c": render("program.c.j2", **values),
        f"{name}.bin": image,
        "example.c": render("example.c.j2", **values),
    }
