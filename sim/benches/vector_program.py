"""Random instructions and memory contents for the vector unit, every field to its corners."""

import numpy as np
from numpy.random import Generator

from systolith.config import Config
from systolith.fixed import Int
from systolith.isa import Combine, Format, Instruction, TableMode


def wide_integers(rng: Generator, shape: tuple[int, ...], bits: int) -> Int:
    """Signed integers of ``bits`` bits: of every magnitude, with extremes and repetitions."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    x = rng.integers(low, high, shape, endpoint=True) >> rng.integers(0, bits, shape)
    special = rng.choice([low, low + 1, -1, 0, 1, high - 1, high], shape)
    return np.where(rng.random(shape) < 0.1, special, x)


def activations(rng: Generator, config: Config) -> Int:
    """Rows of bytes: half of the memory is random bytes, half int16 of every magnitude."""
    half = config.activation_rows // 2
    loose = rng.integers(0, 256, (half, config.dim))
    words = wide_integers(rng, (half // 2, config.dim), 16) & 0xFFFF
    pairs = np.stack([words & 0xFF, words >> 8], axis=1).reshape(half, config.dim)
    return np.concatenate([loose, pairs])


def parameters(rng: Generator, config: Config) -> Int:
    """Words of the parameter memory: channels of 8 bytes, dim channels a row."""
    count = config.parameter_rows * config.dim
    raw = np.zeros((count, 8), dtype=np.uint8)
    bias = wide_integers(rng, (count,), 32)
    mult = np.where(rng.random(count) < 0.1, rng.choice([0, 1, 0xFFFF], count),
                    rng.integers(0, 1 << 16, count))  # fmt: skip
    # Usually a result of interest, sometimes any shift.
    shift = np.where(rng.random(count) < 0.2, rng.integers(0, 63, count, endpoint=True),
                     rng.integers(10, 36, count))  # fmt: skip
    raw[:, 0:4] = bias.astype("<i4").view(np.uint8).reshape(-1, 4)
    raw[:, 4:6] = mult.astype("<u2").view(np.uint8).reshape(-1, 2)
    raw[:, 6] = shift | rng.choice([0, 0xC0], count)  # the upper two bits do not count
    raw[:, 7] = rng.integers(0, 256, count)
    return raw.reshape(-1, config.dim).astype(np.int64)


def tables(rng: Generator, config: Config) -> Int:
    """Words of the function tables, with bases and slopes that saturate now and then."""
    count = config.table_slots * 256
    entries = wide_integers(rng, (count, 2), 16)
    raw = entries.astype("<i2").view(np.uint8)
    return raw.reshape(-1, config.dim).astype(np.int64)


class ProgramDice:
    """Draws instructions that do not read what they write, except in place.

    They are ``independent`` of the ones drawn before them where that is true, most of the time.
    """

    def __init__(self, rng: Generator, config: Config) -> None:
        self.rng = rng
        self.config = config
        self._unfinished: set[int] = set()

    def draw(self, op: str) -> Instruction:
        while True:
            fields = getattr(self, f"_{op}")()
            if self._safe(op, fields):
                break
        reads = {row for rows in self._reads(op, fields) for row in rows}
        independent = not reads & self._unfinished and self._flag(0.8)
        if not independent:
            self._unfinished = set()
        if not fields["d_weight"]:
            self._unfinished |= set(self._writes(fields))
        fields["independent"] = int(independent)
        return Instruction(op, {name: int(value) for name, value in fields.items()})

    def _flag(self, probability: float = 0.5) -> int:
        return int(self.rng.random() < probability)

    def _stride(self, least: int, planes: int) -> int:
        """Rows lie apart, on top of each other, or overlap."""
        stride = self.rng.choice([0, least, least, int(self.rng.integers(0, 2 * least + 3))])
        return int(stride) // planes * planes

    def _shape(self, wide_a: int) -> dict[str, int]:
        rng, config = self.rng, self.config
        rows, blocks = rng.integers(1, 6), rng.integers(1, 6)
        d_weight = self._flag(0.2)
        d_wide = 0 if d_weight else self._flag()
        depth = config.weight_rows if d_weight else config.activation_rows
        d_planes, a_planes = 1 + d_wide, 1 + wide_a
        return {
            "a": rng.integers(0, config.activation_rows) // a_planes * a_planes,
            "a_stride": self._stride(blocks * a_planes, a_planes),
            "d": rng.integers(0, depth) // d_planes * d_planes,
            "d_stride": self._stride(blocks * d_planes, d_planes),
            "rows": rows,
            "blocks": blocks,
            "d_wide": d_wide,
            "d_weight": d_weight,
        }

    def _vector(self) -> dict[str, int]:
        rng = self.rng
        a_format = int(rng.choice(list(Format)))
        combine = int(rng.choice([Combine.NONE, *Combine]))
        fields = self._shape(a_format == Format.INT16)
        b_wide = self._flag()
        b_planes = 4 if combine == Combine.ROPE else 1 + b_wide
        even = 2 if b_planes > 1 else 1
        fields |= {
            "a_format": a_format,
            "combine": combine,
            "b": rng.integers(0, self.config.activation_rows) // even * even,
            "b_stride": self._stride(int(fields["blocks"]) * b_planes, even),
            "b_period": rng.choice([0, 0, 1, 2, 3, 5, 255]),
            "b_wide": b_wide,
            "param": rng.integers(0, self.config.parameter_rows),
            "scale": self._flag(0.7),
            "uniform": self._flag(0.3),
            "table": rng.choice([TableMode.NONE, *TableMode]),
            "slot": rng.integers(0, 8),
            "shift": rng.integers(0, 63) if self._flag(0.2) else rng.integers(8, 34),
            "mult_a": rng.choice([0, 1, 0xFFFF, *rng.integers(0, 1 << 16, 8)]),
            "mult_b": rng.choice([0, 1, 0xFFFF, *rng.integers(0, 1 << 16, 8)]),
            "argmax": self._flag(0.4),
            "restart": self._flag(),
        }
        channels = int(fields["blocks"]) * self.config.dim
        if fields["argmax"]:
            # The same bits of the instruction as mult_a and mult_b.
            del fields["mult_a"], fields["mult_b"]
            fields["count"] = rng.choice([1, channels, 0xFFFF, *rng.integers(1, channels + 1, 5)])
            fields["first"] = rng.choice([0, 0xFFFF, rng.integers(0, 1 << 16)])
            if self._flag():  # ties
                fields["a_format"] = Format.INT8
        if self._flag(0.15):  # in place
            fields["d_weight"] = 0
            fields["d_wide"] = int(fields["a_format"] == Format.INT16)
            fields["d"] = fields["a"] = int(fields["a"]) & ~1
            stride = int(fields["blocks"]) * (1 + fields["d_wide"])
            fields["d_stride"] = fields["a_stride"] = stride
        return fields

    def _softmax(self) -> dict[str, int]:
        rng, dim = self.rng, self.config.dim
        fields = self._shape(0)
        length = int(fields["blocks"]) * dim
        rows, group = int(fields["rows"]), int(rng.integers(0, 4))
        limit = int(rng.integers(1, length + 1))
        steps = (rows - 1) // max(group, 1)
        most = (length - limit) // steps if steps else 0xFFFF
        return fields | {
            "limit": limit,
            "limit_step": int(rng.integers(0, most + 1)),
            "limit_rows": group,
            "mult": int(rng.integers(0, 1 << 16)),
            "shift": int(rng.integers(*((0, 63) if self._flag(0.2) else (10, 30)))),
        }

    def _norm(self) -> dict[str, int]:
        rng, dim = self.rng, self.config.dim
        fields = self._shape(1)
        length = int(fields["blocks"]) * dim
        return fields | {
            "length": rng.choice([length, rng.integers(length - dim + 1, length + 1),
                                  rng.integers(1, length + 1)]),
            "param": rng.integers(0, self.config.parameter_rows),
            "center": self._flag(),
            "eps": rng.choice([0, 1, 0xFFFF, rng.integers(0, 1 << 16)]),
            "eps_shift": rng.integers(0, 39),
        }  # fmt: skip

    def _safe(self, op: str, fields: dict[str, int]) -> bool:
        """Nothing that is written is read, or A is overwritten block by block."""
        if fields["d_weight"]:
            return True
        a, b = self._reads(op, fields)
        if a and op == "vector" and len({*a}) == len(a):
            planes = 2 if fields["a_format"] == Format.INT16 else 1
            same = fields["d_wide"] == planes - 1 and fields["a"] == fields["d"]
            if same and fields["a_stride"] == fields["d_stride"] >= fields["blocks"] * planes:
                a = []
        return not {*a, *b} & set(self._writes(fields))

    def _writes(self, fields: dict[str, int]) -> list[int]:
        """Rows of the activation memory that are written, if it is not the weight memory."""
        return self._lines(fields, "d", 1 + fields["d_wide"], 1 + fields["d_wide"])

    def _reads(self, op: str, fields: dict[str, int]) -> tuple[list[int], list[int]]:
        """Rows of the activation memory that A and B are read from."""
        a_format = {"vector": fields.get("a_format"), "softmax": Format.ACC32}.get(
            op, Format.INT16
        )
        a: list[int] = []
        b: list[int] = []
        if op == "vector" and fields["combine"] != Combine.NONE:
            step = 4 if fields["combine"] == Combine.ROPE else 1 + fields["b_wide"]
            b = self._lines(fields, "b", step, step)
        if a_format != Format.ACC32:
            planes = 2 if a_format == Format.INT16 else 1
            a = self._lines(fields, "a", planes, planes)
        return a, b

    def _lines(self, fields: dict[str, int], name: str, step: int, count: int) -> list[int]:
        """Rows of the activation memory that an operand touches."""
        rows = []
        for m in range(int(fields["rows"])):
            for f in range(int(fields["blocks"])):
                if name == "b" and fields["b_period"]:
                    f %= int(fields["b_period"])
                first = int(fields[name]) + m * int(fields[f"{name}_stride"]) + f * step
                rows += range(first, first + count)
        return [row % self.config.activation_rows for row in rows]
