# amaranth: UnusedElaboratable=no
"""Requantization of a lane against the golden."""

import numpy as np
from amaranth.sim import Simulator

from systolith import golden
from systolith.hdl.requant import Requantize
from systolith.hdl.verilog import to_verilog
from systolith.sim.benches.vector_program import wide_integers
from systolith.sim.scoreboard import compare


def test_against_golden() -> None:
    """Every shift with values of every magnitude; results around both ends of int16 included."""
    seed = 11
    print("seed", seed)
    rng = np.random.default_rng(seed)
    count = 4000
    x, bias = wide_integers(rng, (2, count), 32)
    mult = np.where(rng.random(count) < 0.1, rng.choice([0, 1, 2, 0xFFFF], count),
                    rng.integers(0, 1 << 16, count))  # fmt: skip
    shift = np.arange(count) % 64
    near = rng.random(count) < 0.3  # results next to saturation, and ties
    x = np.where(near, rng.choice([-1, 1], count) << 15, x)
    bias = np.where(near, rng.integers(-3, 4, count), bias)
    mult = np.where(near, rng.choice([1, 2, 256], count), mult)
    shift = np.where(near, rng.integers(0, 12, count), shift)
    expected = golden.scale(x, bias, mult, shift)
    assert np.count_nonzero(np.abs(expected) > 32760) > 300
    assert np.count_nonzero(np.abs(expected) < 32760) > 300

    dut = Requantize()
    found = []

    async def bench(ctx) -> None:
        for index in range(count + dut.LATENCY):
            at = min(index, count - 1)
            ctx.set(dut.x, int(x[at]))
            ctx.set(dut.bias, int(bias[at]))
            ctx.set(dut.mult, int(mult[at]))
            ctx.set(dut.shift, int(shift[at]))
            if index >= dut.LATENCY:
                found.append(ctx.get(dut.result))
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    compare(found, expected, what="requantized value", axes=("index",), seed=seed)


def test_converts() -> None:
    assert "module requantize" in to_verilog(Requantize(), "requantize")
