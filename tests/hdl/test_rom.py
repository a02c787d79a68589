# amaranth: UnusedElaboratable=no
import numpy as np
import pytest
from amaranth.sim import Simulator

from systolith import tables
from systolith.hdl.rom import PiecewiseLinear
from systolith.hdl.verilog import to_verilog
from systolith.sim.scoreboard import compare

NAMES = ("exp2", "reciprocal", "rsqrt")


def test_rom_must_be_a_table():
    with pytest.raises(TypeError, match=r"^Rom must be a tables.Rom, not 'exp2'$"):
        PiecewiseLinear("exp2")


def test_segments_must_be_a_power_of_two():
    three = np.zeros(3, dtype=np.int64)
    with pytest.raises(ValueError, match=r"^Segments must be a power of two .* not 3$"):
        PiecewiseLinear(tables.Rom(three, three, 9, 17))


@pytest.mark.parametrize("name", NAMES)
def test_converts(name):
    assert "module rom" in to_verilog(PiecewiseLinear(getattr(tables, name)()), "rom")


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_table_every_cycle(name, seed):
    """Both ends of every segment and random points, a new one in each cycle."""
    rom = getattr(tables, name)()
    dut = PiecewiseLinear(rom)
    rng = np.random.default_rng(seed)
    segments = np.flatnonzero(rom.base)
    last = (1 << rom.fraction_bits) - 1
    pairs = [(s, f) for s in segments for f in (0, last, rng.integers(0, last))]
    rng.shuffle(pairs)
    segment, fraction = np.array(pairs).T
    got = []

    async def bench(ctx):
        for cycle in range(len(pairs) + dut.LATENCY):
            now = min(cycle, len(pairs) - 1)
            ctx.set(dut.segment, int(segment[now]))
            ctx.set(dut.fraction, int(fraction[now]))
            if cycle >= dut.LATENCY:
                got.append(ctx.get(dut.value))
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    compare(got, rom(segment, fraction), what=name, axes=("pair",), seed=seed)
