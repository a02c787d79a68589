"""The measuring commands: bounds kept, results checked, on the RTL of the whole machine."""

from dataclasses import replace

import pytest

from systolith.compiler.gemm import Shape
from systolith.config import PRESETS, ConfigError
from systolith.sim.measure import config_of_dim, measure_gemm

SHAPES = [Shape(16, 16, 16), Shape(7, 9, 30), Shape(31, 18, 5), Shape(1, 8, 8)]


def check(results, shapes, dim):
    for shape, result in zip(shapes, results, strict=True):
        assert (result["m"], result["n"], result["k"]) == (shape.m, shape.n, shape.k)
        assert result["bit_exact"]
        assert result["bound"] == shape.bound(dim)
        assert result["bound"] < result["cycles"] <= result["bound"] + 80, result


def test_gemm_from_the_scratchpad(seed):
    check(measure_gemm(PRESETS["tiny"], SHAPES, seed=seed), SHAPES, 4)


def test_a_queue_costs_the_sum_of_its_bounds(seed):
    (result,) = measure_gemm(PRESETS["tiny"], SHAPES, queue=True, seed=seed)
    assert result["bit_exact"] and result["queue"] == [str(shape) for shape in SHAPES]
    assert result["cycles"] <= sum(shape.bound(4) for shape in SHAPES) + 80


def test_gemm_from_memory_is_exact(seed):
    results = measure_gemm(PRESETS["tiny"], SHAPES, source="dram", seed=seed, stall_r=60)
    assert all(result["bit_exact"] for result in results)


def keeps_to_the_hardware(result):
    """Whether a product from memory is exact, and takes what array or bus need and little more."""
    assert result["bit_exact"], result
    limit = 1.05 * max(result["bound"], result["memory_bound"]) + 200
    return result["cycles"] <= limit and abs(result["predicted"] / result["cycles"] - 1) < 0.01


def test_products_from_memory_run_at_the_speed_of_the_hardware(seed):
    """One that the array bounds, one that the bus does."""
    shapes = [Shape(128, 256, 256), Shape(3, 200, 1000)]
    for result in measure_gemm(PRESETS["bench"], shapes, source="dram", predicted=True, seed=seed):
        assert keeps_to_the_hardware(result), result


@pytest.mark.slow
@pytest.mark.parametrize("bus_bytes", [16, 8])
def test_many_products_from_memory_run_at_the_speed_of_the_hardware(bus_bytes, seed):
    config = replace(PRESETS["bench"], bus_bytes=bus_bytes)
    shapes = [
        Shape.parse(text)
        for text in (
            "128x256x256", "256x256x256", "128x384x1536", "128x1536x384", "64x832x2560",
            "1x384x1000", "33x1000x300", "100x60x3285", "129x257x511",
        )
    ]  # fmt: skip
    for result in measure_gemm(config, shapes, source="dram", predicted=True, seed=seed):
        assert keeps_to_the_hardware(result), result


@pytest.mark.slow
def test_gemm_of_the_bench_machine(seed):
    shapes = [
        Shape(*mnk)
        for mnk in (
            (16, 16, 16), (64, 64, 64), (31, 66, 30), (128, 256, 64), (128, 256, 256),
            (256, 256, 256), (128, 384, 1536), (17, 100, 333),
        )
    ]  # fmt: skip
    check(measure_gemm(PRESETS["bench"], shapes, seed=seed), shapes, 16)
    small = shapes[:4]
    (queue,) = measure_gemm(PRESETS["bench"], small, queue=True, seed=seed)
    assert queue["bit_exact"] and queue["cycles"] <= queue["bound"] + 80


def test_configurations_by_dim():
    assert config_of_dim(8) is PRESETS["small"]
    assert config_of_dim(32).dim == 32
    with pytest.raises(ConfigError, match="dim must be one of 4, 8, 16, 32, not 5"):
        config_of_dim(5)
