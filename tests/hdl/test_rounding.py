# amaranth: UnusedElaboratable=no
import numpy as np
import pytest
from amaranth.sim import Simulator

from systolith.fixed import round_shift, saturate
from systolith.hdl.rounding import RoundShift
from systolith.hdl.verilog import to_verilog
from systolith.sim.scoreboard import compare


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((16, 6, 17), r"^Output width must be from 1 to 16, not 17$"),
        ((16, 6, 0), r"^Output width must be from 1 to 16, not 0$"),
        ((16, 3, 8), r"^Shift width must be from 4 to 6, not 3$"),
        ((16, 7, 8), r"^Shift width must be from 4 to 6, not 7$"),
    ],
)
def test_widths_must_fit(widths, message):
    with pytest.raises(ValueError, match=message):
        RoundShift(*widths)


def test_converts():
    assert "module round" in to_verilog(RoundShift(48, 6, 32), "round")


def stimulus(in_bits, shift_bits, out_bits, rng):
    """Random values of all sizes, and those around the ends of the output range at each shift."""
    limit = 1 << (in_bits - 1)
    values, shifts = [-limit, limit - 1, 0, -1], [0, 0, 0, 0]
    for shift in range(1 << shift_bits):
        edges = [s * ((1 << (out_bits - 1)) << shift) + d for s in (-1, 1) for d in (-2, -1, 0, 1)]
        half = (1 << shift) >> 1
        near = [v + h for v in edges for h in (-half, 0)]
        sizes = [int(rng.integers(-limit, limit)) >> int(rng.integers(0, in_bits)) for _ in edges]
        chosen = [v for v in near + sizes if -limit <= v < limit]
        values += chosen
        shifts += [shift] * len(chosen)
    return values, shifts


@pytest.mark.parametrize(
    ("in_bits", "shift_bits", "out_bits"), [(48, 6, 32), (41, 6, 16), (20, 5, 20), (12, 4, 3)]
)
def test_equals_round_shift_and_saturate(in_bits, shift_bits, out_bits, seed):
    dut = RoundShift(in_bits, shift_bits, out_bits)
    values, shifts = stimulus(in_bits, shift_bits, out_bits, np.random.default_rng(seed))
    got = []

    async def bench(ctx):
        for cycle in range(len(values) + dut.LATENCY):
            now = min(cycle, len(values) - 1)
            ctx.set(dut.x, values[now])
            ctx.set(dut.shift, shifts[now])
            if cycle >= dut.LATENCY:
                got.append(ctx.get(dut.result))
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    # The golden's shifts end at 62; a shift by 63 leaves 0 as well.
    want = saturate(round_shift(values, np.minimum(shifts, 62)), out_bits)
    compare(got, want, what=f"{in_bits} to {out_bits} bits", axes=("value",), seed=seed)
