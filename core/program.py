"""Program images: what the compiler writes and machine, simulator and board load."""

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from systolith.config import Config
from systolith.isa import INSTRUCTION_BYTES, Instruction, ProgramError, disassemble

FORMAT = "systolith-program"
VERSION = 1


@dataclass(frozen=True)
class Symbol:
    """A named region of the memory image: byte address, numpy dtype and shape."""

    address: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Program:
    """A memory image that starts with instructions.

    ``image`` is placed at the address in register BASE; ``memory_bytes`` from there on belong to
    the program (buffers behind the image start as zeros). ``symbols`` name the regions that the
    host reads and writes; ``metadata`` is free for the producer.
    """

    config: Config
    image: bytes
    instructions: int
    memory_bytes: int
    symbols: dict[str, Symbol] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def check_config(self, config: Config) -> None:
        """Raises ``ProgramError`` if this program was compiled for another configuration."""
        if config.hash != self.config.hash:
            raise ProgramError(
                f"The program was compiled for another configuration (dim {self.config.dim}, "
                f"hash {self.config.hash:#010x}, not {config.hash:#010x}): compile it again"
            )

    def code(self) -> list[Instruction]:
        """The instructions of the image."""
        return disassemble(self.image[: self.instructions * INSTRUCTION_BYTES])

    def memory(self) -> NDArray[np.uint8]:
        """Initial contents of the program's memory, (memory_bytes,) uint8."""
        memory = np.zeros(self.memory_bytes, dtype=np.uint8)
        memory[: len(self.image)] = np.frombuffer(self.image, dtype=np.uint8)
        return memory

    def read(self, memory: NDArray[np.uint8], name: str) -> NDArray[Any]:
        """Copy of the region ``name`` out of ``memory``, with its dtype and shape."""
        symbol = self.symbols[name]
        raw = memory[symbol.address : symbol.address + symbol.size]
        return np.frombuffer(raw.tobytes(), symbol.dtype).reshape(symbol.shape)

    def region(self, memory: NDArray[np.uint8], name: str) -> tuple[int, bytes]:
        """Address of the region ``name`` and its bytes in ``memory``."""
        symbol = self.symbols[name]
        return symbol.address, memory[symbol.address : symbol.address + symbol.size].tobytes()

    def write(self, memory: NDArray[np.uint8], name: str, values: NDArray[Any]) -> None:
        """Writes ``values`` to the start of the region ``name`` of ``memory``."""
        symbol = self.symbols[name]
        raw = np.ascontiguousarray(values, dtype=symbol.dtype).tobytes()
        if len(raw) > symbol.size:
            raise ProgramError(f"{len(raw)} bytes do not fit into {name} ({symbol.size} bytes)")
        memory[symbol.address : symbol.address + len(raw)] = np.frombuffer(raw, np.uint8)

    def save(self, path: Path) -> None:
        """Writes the program atomically."""
        header = {
            "format": FORMAT,
            "version": str(VERSION),
            "config": self.config.to_json(),
            "program": json.dumps(
                {
                    "instructions": self.instructions,
                    "memory_bytes": self.memory_bytes,
                    "symbols": {name: asdict(symbol) for name, symbol in self.symbols.items()},
                    "metadata": self.metadata,
                },
                sort_keys=True,
            ),
        }
        data = save({"image": np.frombuffer(self.image, dtype=np.uint8)}, metadata=header)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
        os.replace(file.name, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a program; raises ``ProgramError`` with one sentence if it is none."""
        if not path.is_file():
            raise ProgramError(f"There is no program {path}: compile one first")
        try:
            with safe_open(str(path), framework="numpy") as file:
                header = file.metadata() or {}
                if header.get("format") != FORMAT:
                    raise ProgramError(f"{path} is not a systolith program")
                version = int(header["version"])
                if version > VERSION:
                    raise ProgramError(
                        f"{path} has program version {version}, this release reads up to {VERSION}:"
                        " install a newer systolith"
                    )
                image = file.get_tensor("image").tobytes()
                values = json.loads(header["program"])
                config = Config.from_json(header["config"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise ProgramError(f"{path} is damaged or not a systolith program ({error})") from None
        symbols = {
            name: Symbol(value["address"], value["dtype"], tuple(value["shape"]))
            for name, value in values["symbols"].items()
        }
        return cls(
            config,
            image,
            values["instructions"],
            values["memory_bytes"],
            symbols,
            values["metadata"],
        )
