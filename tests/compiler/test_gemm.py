from dataclasses import replace

import numpy as np
import pytest

from systolith import golden
from systolith.compiler import gemm
from systolith.compiler.allocate import DoesNotFit
from systolith.compiler.gemm import (
    MULT,
    SHIFT,
    Shape,
    compile_gemm,
    read_result,
    write_operands,
)
from systolith.compiler.gemm_plan import candidates
from systolith.config import PRESETS, Config
from systolith.errors import UserError
from systolith.fixed import saturate
from systolith.isa import SEMAPHORES
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


CONFIGS = {
    **PRESETS,
    "bench, narrow bus": replace(PRESETS["bench"], bus_bytes=8),
    "bench, four weight ports": replace(PRESETS["bench"], weight_ports=4),
    "small memories": Config(
        dim=4, lanes=2, bus_bytes=4, weight_rows=64, activation_rows=64, accumulator_rows=32
    ),
}


def random_shapes(rng, dim, count):
    """Of every kind: around a tile, many rows, long contractions, many outputs."""
    for limits in [(2, 2, 2), (5, 5, 5), (12, 3, 2), (1, 20, 4), (1, 2, 40)] * count:
        yield Shape(*(int(rng.integers(1, dim * limit + 1)) for limit in limits))


@pytest.mark.parametrize("name", CONFIGS)
def test_random_products_from_memory_are_exact(name, seed):
    config = CONFIGS[name]
    rng = np.random.default_rng(seed)
    for shape in random_shapes(rng, config.dim, 2):
        program = compile_gemm(config, [shape], "dram")
        memory = program.memory()
        ((a, w),) = operands([shape], seed)
        write_operands(program, memory, 0, a, w)
        GoldenMachine(config, memory).run()
        result = read_result(program, memory, 0, shape.n)
        assert np.array_equal(result, expected(a, w, "dram")), shape


@pytest.mark.parametrize("name", ["small memories", "small"])
def test_semaphores_keep_the_order_of_every_plan(name, seed, monkeypatch):
    config = CONFIGS[name]
    shapes = [Shape(20, 30, 50), Shape(33, 9, 70), Shape(3, 70, 100)]
    pairs = operands(shapes, seed)
    for trial, (shape, (a, w)) in enumerate(zip(shapes, pairs, strict=True)):
        for plan in fitting_plans(config, shape):
            monkeypatch.setattr(gemm, "choose", lambda *_, plan=plan: (plan, 0))
            program = compile_gemm(config, [shape], "dram")
            memory = program.memory()
            write_operands(program, memory, 0, a, w)
            InterleavedMachine(config, memory, np.random.default_rng((seed, trial))).run()
            result = read_result(program, memory, 0, shape.n)
            assert np.array_equal(result, expected(a, w, "dram")), plan


def fitting_plans(config, shape):
    """Candidates that find room in the memories."""
    plans = []
    for plan in candidates(config, shape):
        try:
            gemm._steps(config, [plan])
        except DoesNotFit:
            continue
        plans.append(plan)
    assert plans
    return plans


@pytest.mark.parametrize("name", CONFIGS)
def test_every_plan_computes_every_product_once(name, seed):
    config = CONFIGS[name]
    rng = np.random.default_rng(seed)
    for shape in random_shapes(rng, config.dim, 2):
        n_tiles, k_tiles = shape.tiles(config.dim)
        for plan in candidates(config, shape):
            times = np.zeros((shape.m, n_tiles, k_tiles), dtype=int)
            complete = np.zeros((shape.m, n_tiles), dtype=int)
            for task in plan.tasks():
                place = (
                    slice(task.m.start, task.m.stop),
                    slice(task.piece.n.start, task.piece.n.stop),
                )
                assert (complete[place] == 0).all(), "more is added to what has been drained"
                times[(*place, slice(task.w.k.start, task.w.k.stop))] += 1
                if task.last:
                    rows = slice(task.piece.m.start, task.piece.m.stop)
                    assert (times[rows, place[1]] == 1).all(), "drained too early"
                    complete[rows, place[1]] += 1
            assert (times == 1).all() and (complete == 1).all(), plan


def test_signals_that_wait_fit_into_a_semaphore():
    """Otherwise the machine stops with an error: many small regions that are used again."""
    config = PRESETS["bench"]
    for shape in (Shape(64, 832, 640), Shape(1, 3000, 300), Shape(700, 16, 64), Shape(4, 90, 900)):
        for plan in fitting_plans(config, shape)[::5]:
            waiting = np.zeros(SEMAPHORES, dtype=int)
            for step in gemm._steps(config, [plan]).steps:
                for bit in range(SEMAPHORES):
                    waiting[bit] += (step.instruction.signal >> bit & 1) - (
                        step.instruction.wait >> bit & 1
                    )
                # The consumer may be as far behind as its queue is long.
                assert waiting.max() < 255 - 2 * config.queue_depth, (shape, plan)
            assert not waiting.any()


def target(config, shape):
    """Cycles that a product from memory may take."""
    moved = shape.bytes_once(config.dim) / config.bus_bytes
    return 1.05 * max(shape.bound(config.dim), moved) + 200


OTHERS = [Shape.parse(text) for text in (
    "128x128x128", "1x384x1000", "2000x16x256", "33x1000x300", "100x60x3285", "129x257x511",
)]  # fmt: skip


@pytest.mark.parametrize("bus_bytes", [16, 8])
def test_products_are_predicted_to_run_at_the_speed_of_the_hardware(bus_bytes):
    config = replace(PRESETS["bench"], bus_bytes=bus_bytes)
    for shape in OTHERS[0 if bus_bytes == 16 else 3 :]:
        _, cycles = gemm.choose(config, shape)
        assert cycles <= target(config, shape), shape


def test_memories_of_a_few_tiles_are_enough(seed):
    config = Config(
        dim=4, lanes=2, bus_bytes=4, weight_rows=16, activation_rows=64, accumulator_rows=16
    )
    shape = Shape(30, 21, 40)
    program = compile_gemm(config, [shape], "dram")
    memory = program.memory()
    ((a, w),) = operands([shape], seed)
    write_operands(program, memory, 0, a, w)
    InterleavedMachine(config, memory, np.random.default_rng(seed)).run()
    assert np.array_equal(read_result(program, memory, 0, shape.n), expected(a, w, "dram"))


def test_bounds_and_errors():
    assert Shape.parse("128x256x64").bound(16) == 8192
    assert Shape.parse("1x384x384").bound(16) == 9216
    for text in ("12x3", "0x1x1", "axbxc", "1x1x70000", "-1x2x3"):
        with pytest.raises(UserError, match="A shape is MxNxK"):
            Shape.parse(text)
    with pytest.raises(DoesNotFit, match="weight memory has 8192 rows"):
        compile_gemm(PRESETS["small"], [Shape(16, 1024, 1024)], "scratchpad")
