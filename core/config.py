"""The one configuration of a machine: hardware, compiler and golden all read the same object."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Self

from systolith.errors import UserError


class ConfigError(UserError):
    """A configuration that no machine can be built from."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Parameters of one machine; validated on construction, immutable, serialisable.

    Every memory is addressed in rows. A row of the activation and weight memories is ``dim`` bytes,
    a row of the accumulator is ``dim`` int32, a row of the parameter memory holds the parameters
    of ``dim`` channels (8 bytes each).
    """

    dim: int = 8
    """D: the array is D × D, memories are D lanes wide. One of 4, 8, 16, 32."""
    lanes: int = 4
    """V: lanes of the vector unit, softmax and norm. Divides ``dim``; at least 2 and dim / 8."""
    bus_bytes: int = 8
    """Width of the AXI4 data bus in bytes: 4, 8, 16 or 32, at most ``dim``."""
    activation_rows: int = 4096
    """Rows of the activation memory. A power of two."""
    weight_rows: int = 8192
    """Rows of the weight memory. A power of two."""
    weight_ports: int = 1
    """W: weight rows that enter the array in a cycle, 1, 2 or 4: a tile takes D / W cycles to
    enter. With more than one port the shortest pass of activations through a tile takes two cycles
    instead of four, and the tiles of a program must start at multiples of ``dim`` rows."""
    accumulator_rows: int = 1024
    """Rows of the accumulator, in two banks of half the size. A power of two."""
    parameter_rows: int = 256
    """Rows of the parameter memory. A power of two."""
    table_slots: int = 4
    """Run-time function tables of 256 entries that fit at once. A power of two, at most 8."""
    max_length: int = 512
    """Longest softmax row. A power of two, at most 4096."""
    max_features: int = 512
    """Longest norm row. A power of two, at most 4096 (4095 features)."""
    queue_depth: int = 8
    """Instructions that wait in front of each unit."""
    instruction_rows: int = 0
    """Instructions that stay on chip after they were fetched: a loop of so many, less 16, is read
    from memory once. 0, or a power of two from 32 to 4096."""
    max_burst: int = 64
    """Longest AXI burst in beats, at most 256."""
    outstanding: int = 4
    """AXI bursts in flight in each direction."""

    def __post_init__(self) -> None:
        def check(name: str, good: bool, rule: str) -> None:
            if not good:
                raise ConfigError(f"{name} must be {rule}, not {getattr(self, name)!r}")

        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "instruction_rows":
                check(field.name, type(value) is int and value > 0, "a positive integer")
        check("dim", self.dim in (4, 8, 16, 32), "one of 4, 8, 16, 32")
        lanes = [v for v in (2, 4, 8, 16, 32) if self.dim // 8 <= v <= self.dim]
        check("lanes", self.lanes in lanes, f"one of {lanes} at dim {self.dim}")
        widths = [b for b in (4, 8, 16, 32) if b <= self.dim]
        check("bus_bytes", self.bus_bytes in widths, f"one of {widths} at dim {self.dim}")
        limits = {
            "activation_rows": (64, 1 << 20),
            "weight_rows": (4 * self.dim, 1 << 20),
            "accumulator_rows": (16, 1 << 16),
            "parameter_rows": (4, 1 << 16),
            "table_slots": (1, 8),
            "max_length": (2 * self.dim, 4096),
            "max_features": (2 * self.dim, 4096),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            good = low <= value <= high and value & (value - 1) == 0
            check(name, good, f"a power of two from {low} to {high}")
        check("weight_ports", self.weight_ports in (1, 2, 4), "one of 1, 2, 4")
        check("queue_depth", 2 <= self.queue_depth <= 64, "from 2 to 64")
        rows = self.instruction_rows
        check(
            "instruction_rows",
            type(rows) is int and (rows == 0 or (32 <= rows <= 4096 and rows & (rows - 1) == 0)),
            "0 or a power of two from 32 to 4096",
        )
        check("max_burst", 1 <= self.max_burst <= 256, "from 1 to 256")
        check("outstanding", 1 <= self.outstanding <= 16, "from 1 to 16")

    def to_json(self) -> str:
        """Canonical JSON text: keys sorted, one line."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of ``to_json``; raises ``ConfigError`` for unknown or missing parameters."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"The configuration is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise ConfigError("The configuration must be a JSON object of parameters")
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ConfigError(f"Unknown configuration parameter {unknown[0]!r}")
        return cls(**values)

    @property
    def hash(self) -> int:
        """32-bit fingerprint: part of every program and a register of every machine."""
        return int.from_bytes(hashlib.sha256(self.to_json().encode()).digest()[:4], "little")


_LEAN = Config(
    dim=8,
    lanes=2,
    bus_bytes=8,
    activation_rows=1024,
    weight_rows=2048,
    accumulator_rows=1024,
    parameter_rows=256,
    max_length=256,
)

PRESETS: dict[str, Config] = {
    "tiny": Config(
        dim=4,
        lanes=2,
        bus_bytes=4,
        activation_rows=4096,
        weight_rows=4096,
        accumulator_rows=1024,
        parameter_rows=256,
    ),
    "small": Config(dim=8, lanes=4, bus_bytes=8),
    "lean": _LEAN,
    "resident": replace(_LEAN, weight_rows=32768, weight_ports=2),
    "bench": Config(
        dim=16,
        lanes=8,
        bus_bytes=16,
        activation_rows=16384,
        weight_rows=65536,
        accumulator_rows=8192,
        parameter_rows=512,
        table_slots=8,
        instruction_rows=512,
        max_features=2048,
        outstanding=8,
    ),
}
"""Named configurations: ``tiny`` (D = 4); for an ECP5-85F ``small``, ``lean``, which leaves most of
the block RAM to the model, and ``resident``, which keeps 256 KiB of weights; ``bench`` for
measurements."""


def load_config(name_or_path: str) -> Config:
    """A preset by name, or a configuration from a JSON file."""
    if name_or_path in PRESETS:
        return PRESETS[name_or_path]
    path = Path(name_or_path)
    if not path.is_file():
        known = ", ".join(PRESETS)
        raise ConfigError(
            f"No configuration {name_or_path!r}: name one of {known}, or a JSON file that exists"
        )
    return Config.from_json(path.read_text())
