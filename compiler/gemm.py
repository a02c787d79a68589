"""Programs for plain matrix products, to measure the machine with.

``C = A @ W.T``: A (M, K) int8, W (N, K) int8. From the scratchpad, the operands are loaded first,
and the matmul instructions follow each other without anything between them; C stays int32. From
memory, tiles are loaded, multiplied, requantized to int8 and stored while the next ones come in.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from systolith.compiler.allocate import Pool, Ring
from systolith.compiler.layout import parameter_rows, plain, weight_rows
from systolith.compiler.memory import Memory
from systolith.compiler.schedule import Region, Step, overlap, prefetch, synchronize
from systolith.config import Config
from systolith.cost import product_cycles
from systolith.errors import UserError
from systolith.fixed import Int
from systolith.isa import (
    BY_NAME,
    INSTRUCTION_BYTES,
    Format,
    Instruction,
    LoadSpace,
    StoreSpace,
    assemble,
)
from systolith.program import Program

MULT, SHIFT = 1 << 15, 24
"""Rescale of the products from memory to int8."""
_MAX_WORDS = (1 << 16) - 1


@dataclass(frozen=True)
class Shape:
    """A matrix product of (m, k) by (k, n)."""

    m: int
    n: int
    k: int

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """From "MxNxK"."""
        parts = text.lower().split("x")
        if len(parts) != 3 or not all(p.isdecimal() and 0 < int(p) < 1 << 16 for p in parts):
            raise UserError(f"A shape is MxNxK with numbers from 1 to 65535, not {text!r}")
        return cls(*map(int, parts))

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}"

    def tiles(self, dim: int) -> tuple[int, int]:
        """Tiles along n and k."""
        return -(-self.n // dim), -(-self.k // dim)

    def bound(self, dim: int, weight_ports: int = 1) -> int:
        """Cycles that a D × D array needs: see ``product_cycles``."""
        return product_cycles(self.m, self.k, self.n, dim=dim, weight_ports=weight_ports)


class _Builder:
    """Steps and memory of one program."""

    def __init__(self, config: Config, shapes: list[Shape], code_bytes: int) -> None:
        self.config = config
        self.memory = Memory(code_bytes)
        self.steps: list[Step] = []
        d = config.dim
        self.operands = []
        for i, shape in enumerate(shapes):
            n_tiles, k_tiles = shape.tiles(d)
            self.operands.append(
                (
                    self.memory.buffer(f"a{i}", "int8", (shape.m, k_tiles * d)),
                    self.memory.buffer(f"w{i}", "int8", (n_tiles, k_tiles, d, d)),
                )
            )

    def emit(
        self,
        op: str,
        reads: tuple[Region, ...] = (),
        writes: tuple[Region, ...] = (),
        constant: bool = False,
        **fields: int,
    ) -> None:
        for name in fields:
            BY_NAME[op].field(name)
        self.steps.append(Step(Instruction(op, fields), reads, writes, constant))

    def load(self, space: LoadSpace, address: int, words: int, local: int, region: Region) -> None:
        """Consecutive words, in as many instructions as it takes."""
        d = self.config.dim
        for start in range(0, words, _MAX_WORDS):
            self.emit(
                "load",
                writes=(region,),
                constant=True,
                space=space,
                address=address + start * d,
                words=min(words - start, _MAX_WORDS),
                rows=1,
                local=local + start,
            )


def compile_gemm(config: Config, shapes: list[Shape], source: str) -> Program:
    """A program that computes all ``shapes``; operands in regions a0, w0, …, results in c0, ….

    ``source``: "scratchpad" (results int32, [m][n_tiles * D]) or "dram" (results int8, the same).
    Raises ``DoesNotFit`` where the memories of the configuration are too small.
    """
    build = {"scratchpad": _scratchpad, "dram": _dram}[source]
    size = len(build(config, shapes, 0).steps)
    builder = build(config, shapes, size * INSTRUCTION_BYTES)
    code = [step.instruction for step in builder.steps]
    image, memory_bytes = builder.memory.image(assemble(code))
    metadata = {"kind": "gemm", "source": source, "shapes": [str(shape) for shape in shapes]}
    return Program(config, image, len(code), memory_bytes, builder.memory.symbols, metadata)


def _scratchpad(config: Config, shapes: list[Shape], code_bytes: int) -> _Builder:
    builder, d = _Builder(config, shapes, code_bytes), config.dim
    pools = (
        Pool("activation", config.activation_rows),
        Pool("weight", config.weight_rows),
        Pool("accumulator", config.accumulator_rows),
    )
    places = []
    for shape, (a, w) in zip(shapes, builder.operands, strict=True):
        n_tiles, k_tiles = shape.tiles(d)
        sizes = shape.m * k_tiles, n_tiles * k_tiles * d, shape.m * n_tiles
        rows = [pool.take(size) for pool, size in zip(pools, sizes, strict=True)]
        places.append(rows)
        nowhere = Region("operands", 0, 0)
        builder.load(LoadSpace.ACTIVATION, a, sizes[0], rows[0], nowhere)
        builder.load(LoadSpace.WEIGHT, w, sizes[1], rows[1], nowhere)
    builder.emit("fence")
    for shape, (act, weight, acc) in zip(shapes, places, strict=True):
        n_tiles, k_tiles = shape.tiles(d)
        builder.emit(
            "matmul",
            act=act,
            act_stride=k_tiles,
            k_tiles=k_tiles,
            weight=weight,
            n_tiles=n_tiles,
            acc=acc,
            acc_stride=n_tiles,
            rows=shape.m,
            w_stride_n=k_tiles * d,
            w_stride_k=d,
            signed=1,
        )
    builder.emit("fence")
    for i, (shape, (_, _, acc)) in enumerate(zip(shapes, places, strict=True)):
        n_tiles, _ = shape.tiles(d)
        result = builder.memory.buffer(f"c{i}", "<i4", (shape.m, n_tiles * d))
        words = shape.m * n_tiles
        for start in range(0, words, _MAX_WORDS):
            builder.emit(
                "store",
                space=StoreSpace.ACCUMULATOR,
                address=result + start * 4 * d,
                words=min(words - start, _MAX_WORDS),
                rows=1,
                local=acc + start,
            )
    builder.emit("halt")
    return builder


def _dram(config: Config, shapes: list[Shape], code_bytes: int) -> _Builder:
    builder, d = _Builder(config, shapes, code_bytes), config.dim
    widest = max(shape.tiles(d)[0] for shape in shapes)
    layout = plain(d, d)
    row = parameter_rows(layout, np.zeros(d, np.int32), np.full(d, MULT, np.uint16),
                         np.full(d, SHIFT))  # fmt: skip
    params = builder.memory.constant("parameters", row)
    param = Region("parameter", 0, 1)
    builder.load(LoadSpace.PARAMETER, params, 8, 0, param)
    weights = Ring("weight", 0, config.weight_rows)
    acts = Ring("activation", 0, config.activation_rows * 3 // 4)
    outs = Ring("activation", acts.stop, config.activation_rows)
    half = config.accumulator_rows // 2
    accumulators = (Ring("accumulator", 0, half), Ring("accumulator", half, 2 * half))
    turn = 0
    for i, (shape, (a, w)) in enumerate(zip(shapes, builder.operands, strict=True)):
        n_tiles, k_tiles = shape.tiles(d)
        result = builder.memory.buffer(f"c{i}", "int8", (shape.m, n_tiles * d))
        # Tile sizes: operands are double-buffered, products fill a quarter of the accumulator.
        k_chunk = min(k_tiles, config.weight_rows // 4 // d, 4095)
        m_chunk = min(shape.m, acts.stop // 2 // k_chunk, half // 2)
        n_chunk = max(
            1, min(n_tiles, config.weight_rows // 4 // (k_chunk * d), half // 2 // m_chunk)
        )
        n_chunk = min(n_chunk, max(1, (outs.stop - outs.start) // 2 // m_chunk), widest)
        for m in range(0, shape.m, m_chunk):
            rows = min(m_chunk, shape.m - m)
            held: dict[int, tuple[int, Region]] = {}
            for n in range(0, n_tiles, n_chunk):
                tiles = min(n_chunk, n_tiles - n)
                turn ^= 1
                acc = accumulators[turn].take(rows * tiles)
                products = Region("accumulator", acc, acc + rows * tiles)
                for k in range(0, k_tiles, k_chunk):
                    depth = min(k_chunk, k_tiles - k)
                    if k not in held or k_chunk < k_tiles:
                        first = acts.take(rows * depth)
                        region = Region("activation", first, first + rows * depth)
                        builder.emit(
                            "load", writes=(region,), constant=True, space=LoadSpace.ACTIVATION,
                            address=a + (m * k_tiles + k) * d, stride=k_tiles * d, words=depth,
                            rows=rows, local=first, local_stride=depth,
                        )  # fmt: skip
                        held[k] = first, region
                    act, act_region = held[k]
                    weight = weights.take(tiles * depth * d)
                    w_region = Region("weight", weight, weight + tiles * depth * d)
                    builder.emit(
                        "load", writes=(w_region,), constant=True, space=LoadSpace.WEIGHT,
                        address=w + (n * k_tiles + k) * d * d, stride=k_tiles * d * d,
                        words=depth * d, rows=tiles, local=weight, local_stride=depth * d,
                    )  # fmt: skip
                    builder.emit(
                        "matmul", reads=(act_region, w_region), writes=(products,),
                        act=act, act_stride=depth, k_tiles=depth, weight=weight, n_tiles=tiles,
                        acc=acc, acc_stride=tiles, rows=rows, w_stride_n=depth * d, w_stride_k=d,
                        signed=1, accumulate=int(k > 0),
                    )  # fmt: skip
                out = outs.take(rows * tiles)
                out_region = Region("activation", out, out + rows * tiles)
                for start in range(0, rows, 4095):
                    builder.emit(
                        "vector", reads=(products, param), writes=(out_region,),
                        a=acc + start * tiles, a_stride=tiles, a_format=Format.ACC32,
                        d=out + start * tiles, d_stride=tiles, rows=min(rows - start, 4095),
                        blocks=tiles, scale=1, uniform=1,
                    )  # fmt: skip
                builder.emit(
                    "store", reads=(out_region,), space=StoreSpace.ACTIVATION,
                    address=result + (m * n_tiles + n) * d, stride=n_tiles * d, words=tiles,
                    rows=rows, local=out, local_stride=tiles,
                )  # fmt: skip
    builder.steps = overlap(synchronize(prefetch(builder.steps, 12)))
    builder.emit("halt")
    return builder


def write_operands(
    program: Program, memory: NDArray[np.uint8], index: int, a: NDArray, w: NDArray
) -> None:
    """Places A (M, K) and W (N, K), both int8, as operands of product ``index``."""
    d = program.config.dim
    inside, outside = plain(a.shape[1], d), plain(len(w), d)
    program.write(memory, f"a{index}", inside.spread(a.astype(np.int8)))
    program.write(memory, f"w{index}", weight_rows(w.astype(np.int8), inside, outside))


def read_result(program: Program, memory: NDArray[np.uint8], index: int, n: int) -> Int:
    """C (M, N) of product ``index``."""
    return program.read(memory, f"c{index}")[:, :n].astype(np.int64)
