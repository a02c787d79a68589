"""Programs for plain matrix products, to measure the machine with.

``C = A @ W.T``: A (M, K) int8, W (N, K) int8. From the scratchpad, the operands are loaded first,
and the matmul instructions follow each other without anything between them; C stays int32. From
memory, tiles are loaded, multiplied, requantized to int8 and stored while the next ones come in:
``gemm_plan`` says how that may be cut, ``choose`` takes the plan that is estimated to be fastest.
"""

import numpy as np
from numpy.typing import NDArray

from systolith.compiler.allocate import DoesNotFit, Pool
from systolith.compiler.estimate import cycles
from systolith.compiler.gemm_emit import MAX_WORDS, Emitter, Streamed
from systolith.compiler.gemm_plan import LATENCY, Plan, Shape, candidates
from systolith.compiler.layout import parameter_rows, plain, weight_rows
from systolith.compiler.memory import Memory
from systolith.compiler.schedule import overlap, prefetch, synchronize
from systolith.compiler.timing import Memory as Bus
from systolith.compiler.timing import simulate
from systolith.config import Config
from systolith.fixed import Int
from systolith.isa import LoadSpace, StoreSpace, assemble
from systolith.program import Program

__all__ = ["MULT", "SHIFT", "Shape", "choose", "compile_gemm", "read_result", "write_operands"]

MULT, SHIFT = 1 << 15, 24
"""Rescale of the products from memory to int8."""
_TASKS = 4000
"""Matmul instructions of all plans together that are tried for one product."""


class _Builder(Emitter):
    """Steps and memory of one program."""

    def __init__(self, config: Config, shapes: list[Shape]) -> None:
        super().__init__(config, Memory())
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


def choose(config: Config, shape: Shape, latency: int = LATENCY) -> tuple[Plan, int]:
    """The plan that is predicted to be fastest with this latency of the memory, and its cycles.

    All candidates are tried where that is a matter of seconds, else those of the fewest tasks: for
    large products the start and the end, in which plans differ, count little. Raises
    ``DoesNotFit`` if no plan fits into the memories.
    """
    best: tuple[int, Plan] | None = None
    failure: DoesNotFit | None = None
    spent = 0
    sized = [(sum(1 for _ in plan.tasks()), plan) for plan in candidates(config, shape)]
    for tasks, plan in sorted(sized, key=lambda item: item[0]):
        spent += tasks
        if best is not None and spent > _TASKS:
            break
        try:
            steps = _steps(config, [plan]).steps
        except DoesNotFit as error:
            failure = error
            continue
        code = [step.instruction for step in steps]
        time = simulate(config, code, memory=Bus(latency=latency)).cycles
        if best is None or time < best[0]:
            best = time, plan
    if best is None:
        raise failure or DoesNotFit(f"A block of {shape} does not fit into the accumulator")
    return best[1], best[0]


def compile_gemm(
    config: Config, shapes: list[Shape], source: str, latency: int = LATENCY
) -> Program:
    """A program that computes all ``shapes``; operands in regions a0, w0, …, results in c0, ….

    ``source``: "scratchpad" (results int32, [m][n_tiles * D]) or "dram" (results int8, the same).
    ``latency``: of the memory that a program from there is made for; it is correct for any.
    Raises ``DoesNotFit`` where the memories of the configuration are too small.
    """
    if source == "dram":
        plans = [choose(config, shape, latency)[0] for shape in shapes]
        builder = _steps(config, plans)
        builder.emit("halt")
    else:
        builder = _scratchpad(config, shapes)
    code = [step.instruction for step in builder.steps]
    image, memory_bytes, symbols = builder.memory.link(assemble(code))
    metadata = {"kind": "gemm", "source": source, "shapes": [str(shape) for shape in shapes]}
    return Program(config, image, len(code), memory_bytes, symbols, metadata)


def _scratchpad(config: Config, shapes: list[Shape]) -> _Builder:
    builder, d = _Builder(config, shapes), config.dim
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
        builder.load(LoadSpace.ACTIVATION, a, rows[0], sizes[0])
        builder.load(LoadSpace.WEIGHT, w, rows[1], sizes[1])
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
        for start in range(0, words, MAX_WORDS):
            builder.emit(
                "store",
                space=StoreSpace.ACCUMULATOR,
                address=result + start * 4 * d,
                words=min(words - start, MAX_WORDS),
                rows=1,
                local=acc + start,
            )
    builder.emit("halt")
    return builder


def _steps(config: Config, plans: list[Plan]) -> _Builder:
    """Everything but ``halt`` of a program from memory to memory."""
    builder, d = _Builder(config, [plan.shape for plan in plans]), config.dim
    row = parameter_rows(plain(d, d), np.zeros(d, np.int32), np.full(d, MULT, np.uint16),
                         np.full(d, SHIFT))  # fmt: skip
    parameters = builder.memory.constant("parameters", row)
    for i, (plan, (a, w)) in enumerate(zip(plans, builder.operands, strict=True)):
        n_tiles, _ = plan.shape.tiles(d)
        result = builder.memory.buffer(f"c{i}", "int8", (plan.shape.m, n_tiles * d))
        Streamed(builder, plan, a, w, result).emit(parameters)
    for step in builder.steps:
        step.cycles = cycles(step.instruction, config, 1)
    builder.steps = overlap(synchronize(prefetch(builder.steps, config.queue_depth)))
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
