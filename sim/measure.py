"""Measurements on the RTL: cycles from the hardware counters of runs that are bit-exact."""

from dataclasses import replace
from typing import Any

import numpy as np

from systolith import golden
from systolith.compiler.gemm import (
    MULT,
    SHIFT,
    Shape,
    compile_gemm,
    read_result,
    write_operands,
)
from systolith.compiler.timing import Memory as Bus
from systolith.compiler.timing import simulate
from systolith.config import PRESETS, Config, ConfigError
from systolith.fixed import Int, saturate
from systolith.sim.machine_tb import MachineSim

MEMORY_BYTES = 1 << 25


def config_of_dim(dim: int) -> Config:
    """The preset with this array, or ``bench`` with another array."""
    for config in PRESETS.values():
        if config.dim == dim:
            return config
    if dim != 32:
        raise ConfigError(f"dim must be one of 4, 8, 16, 32, not {dim}")
    return replace(PRESETS["bench"], dim=32)


def measure_gemm(
    config: Config,
    shapes: list[Shape],
    *,
    source: str = "scratchpad",
    queue: bool = False,
    predicted: bool = False,
    seed: int = 1,
    **memory_settings: int,
) -> list[dict[str, Any]]:
    """One result for each shape; with ``queue``, one for all of them in a row.

    ``cycles``: from the first matmul's start to the last accumulator write (scratchpad), or of the
    whole program (dram). ``bound``: ⌈K/D⌉ ⌈N/D⌉ max(M, D / W), summed over a queue. From memory
    there is also ``memory_bound``, the cycles in which the bus moves operands and results once.
    ``predicted``: what the compiler's model of the machine says ``cycles`` are, too.
    """
    machine = MachineSim(config, size_bytes=MEMORY_BYTES, **{"latency": 40, **memory_settings})
    groups = [shapes] if queue else [[shape] for shape in shapes]
    rng = np.random.default_rng(seed)
    return [_gemm(machine, group, source, rng, predicted) for group in groups]


def _gemm(
    machine: MachineSim, shapes: list[Shape], source: str, rng: np.random.Generator, predicted: bool
) -> dict[str, Any]:
    config = machine.config
    program = compile_gemm(config, shapes, source, machine.settings["latency"])
    memory = program.memory()
    expected: list[Int] = []
    for index, shape in enumerate(shapes):
        a = rng.integers(-128, 128, (shape.m, shape.k))
        w = rng.integers(-127, 128, (shape.n, shape.k))
        write_operands(program, memory, index, a, w)
        product = golden.matmul(a, w.T)
        if source == "dram":
            product = saturate(golden.scale(product, 0, MULT, SHIFT), 8)
        expected.append(product)
    result = machine.run(memory)
    exact = all(
        np.array_equal(read_result(program, result.memory, index, shape.n), product)
        for index, (shape, product) in enumerate(zip(shapes, expected, strict=True))
    )
    counter = "MATMUL_SPAN" if source == "scratchpad" else "CYCLES"
    cycles = result.counters[counter]
    more: dict[str, Any] = {}
    if source == "dram":
        moved = sum(shape.bytes_once(config.dim) for shape in shapes)
        more["memory_bound"] = -(-moved // config.bus_bytes)
    if predicted:
        bus = Bus.from_settings(machine.settings)
        timeline = simulate(config, program.code(), memory=bus)
        more["predicted"] = timeline.counters[counter]
    bound = sum(shape.bound(config.dim, config.weight_ports) for shape in shapes)
    first = shapes[0]
    names: dict[str, Any] = {"m": first.m, "n": first.n, "k": first.k}
    if len(shapes) > 1:
        names = {"queue": [str(shape) for shape in shapes]}
    useful = sum(shape.m * shape.n * shape.k for shape in shapes) / config.dim**2
    return names | {
        "dim": config.dim,
        "source": source,
        "cycles": cycles,
        "bound": bound,
        **more,
        "utilisation": round(useful / cycles, 4),
        "bit_exact": exact,
    }
