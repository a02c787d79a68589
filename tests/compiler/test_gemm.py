import numpy as np
import pytest

from systolith import golden
from systolith.compiler.allocate import DoesNotFit
from systolith.compiler.gemm import (
    MULT,
    SHIFT,
    Shape,
    compile_gemm,
    read_result,
    write_operands,
)
from systolith.config import PRESETS, Config
from systolith.errors import UserError
from systolith.fixed import saturate
from systolith.sim.machine import GoldenMachine
from tests.interleaved import InterleavedMachine

SHAPES = [Shape(16, 16, 16), Shape(1, 40, 24), Shape(31, 66, 30), Shape(5, 3, 129)]


def operands(shapes, seed):
    rng = np.random.default_rng(seed)
    return [
        (rng.integers(-128, 128, (s.m, s.k)), rng.integers(-127, 128, (s.n, s.k))) for s in shapes
    ]


def expected(a, w, source):
    product = a @ w.T
    if source == "scratchpad":
        return product
    return saturate(golden.scale(product, 0, MULT, SHIFT), 8)


@pytest.mark.parametrize("source", ["scratchpad", "dram"])
@pytest.mark.parametrize("preset", ["tiny", "small", "bench"])
def test_products_are_exact(preset, source, seed):
    config = PRESETS[preset]
    program = compile_gemm(config, SHAPES, source)
    memory = program.memory()
    pairs = operands(SHAPES, seed)
    for i, (a, w) in enumerate(pairs):
        write_operands(program, memory, i, a, w)
    GoldenMachine(config, memory).run()
    for i, (a, w) in enumerate(pairs):
        result = read_result(program, memory, i, len(w))
        assert np.array_equal(result, expected(a, w, source)), SHAPES[i]


def test_tiling_from_memory_keeps_order_in_small_memories(seed):
    config = Config(
        dim=4, lanes=2, bus_bytes=4, weight_rows=64, activation_rows=64, accumulator_rows=32
    )
    shapes = [Shape(20, 30, 50)]
    program = compile_gemm(config, shapes, "dram")
    ((a, w),) = operands(shapes, seed)
    for trial in range(5):
        memory = program.memory()
        write_operands(program, memory, 0, a, w)
        InterleavedMachine(config, memory, np.random.default_rng((seed, trial))).run()
        assert np.array_equal(read_result(program, memory, 0, 30), expected(a, w, "dram"))


def test_bounds_and_errors():
    assert Shape.parse("128x256x64").bound(16) == 8192
    assert Shape.parse("1x384x384").bound(16) == 9216
    for text in ("12x3", "0x1x1", "axbxc", "1x1x70000", "-1x2x3"):
        with pytest.raises(UserError, match="A shape is MxNxK"):
            Shape.parse(text)
    with pytest.raises(DoesNotFit, match="weight memory has 8192 rows"):
        compile_gemm(PRESETS["small"], [Shape(16, 1024, 1024)], "scratchpad")
