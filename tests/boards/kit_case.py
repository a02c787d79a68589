"""A small program with inputs and known results, for the kit's tests: an int8 product."""

import numpy as np
from numpy.typing import NDArray

from systolith.boards.kit import PackedProgram
from systolith.compiler.gemm import Shape, compile_gemm, read_result, write_operands
from systolith.config import PRESETS, Config
from systolith.program import Program
from systolith.sim.machine import GoldenMachine

CONFIG = PRESETS["tiny"]
WIDE = Config(
    dim=8, lanes=4, bus_bytes=8, activation_rows=256, weight_rows=128, accumulator_rows=64,
    parameter_rows=8, max_length=64, max_features=64,
)  # fmt: skip
"""A small machine with a bus of 64 bits."""
SHAPE = Shape(5, 11, 9)


def product_case(seed: int, config: Config = CONFIG) -> tuple[PackedProgram, NDArray[np.int64]]:
    """The program with random operands, and C (M, N) by numpy: the product, rescaled to int8."""
    rng = np.random.default_rng(seed)
    program: Program = compile_gemm(config, [SHAPE], "dram")
    a = rng.integers(-128, 128, (SHAPE.m, SHAPE.k))
    w = rng.integers(-128, 128, (SHAPE.n, SHAPE.k))
    memory = program.memory()
    write_operands(program, memory, 0, a, w)
    after = memory.copy()
    GoldenMachine(config, after).run()
    # MULT / 2**SHIFT of the compiler's plain product is 2**-9; ties go up.
    wanted = np.clip((a @ w.T + 256) >> 9, -128, 127)
    assert (read_result(program, after, 0, SHAPE.n) == wanted).all()
    expected = {"c0": program.read(after, "c0").tobytes()}
    return PackedProgram("product", program, memory, expected), wanted
