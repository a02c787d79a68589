# amaranth: UnusedElaboratable=no
import numpy as np
import pytest
from amaranth.back import verilog
from amaranth.sim import Simulator

from systolith.hdl.systolic import SystolicArray


def test_dim_must_be_supported():
    with pytest.raises(ValueError, match=r"^Dim must be one of 4, 8, 16, 32, not 5$"):
        SystolicArray(5)


@pytest.mark.parametrize("dim", [4, 8])
def test_converts(dim):
    assert "module" in verilog.convert(SystolicArray(dim))


def simulate(dim: int, stimulus: list[dict]) -> list[np.ndarray]:
    """Drive the array; ``sums`` of every cycle."""
    dut = SystolicArray(dim)
    sums = []

    async def bench(ctx):
        for now in stimulus:
            for i in range(dim):
                ctx.set(dut.activations[i], int(now["activations"][i]))
                ctx.set(dut.weights[i], int(now["weights"][i]))
            for name in ("load", "index", "columns", "swap"):
                ctx.set(getattr(dut, name), int(now[name]))
            sums.append(np.array([ctx.get(dut.sums[i]) for i in range(dim)]))
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return sums


def check(dim: int, seed: int, lengths: list[int], *, gaps: bool) -> None:
    """Tiles of ``lengths`` activation rows each, scheduled as tightly as the contract allows."""
    rng = np.random.default_rng(seed)
    latency = 2 * dim + 1
    total = sum(lengths) + (dim + 8 * gaps) * (len(lengths) + 2) * (3 if gaps else 1) + latency
    noise = [
        {
            "activations": rng.integers(-256, 256, dim),
            "weights": rng.integers(-128, 128, dim),
            "load": 0,
            "index": rng.integers(dim),
            "columns": rng.integers(2),
            "swap": 0,
        }
        for _ in range(total)
    ]
    expected: dict[int, tuple[np.ndarray, str]] = {}
    load, swap, streamed = 0, -1, 0
    for tile, length in enumerate(lengths):
        weights = rng.choice([-128, 127, 0, 1], (dim, dim))
        weights = np.where(rng.random((dim, dim)) < 0.5, weights, rng.integers(-128, 128))
        load = max(load, swap)  # rows of a tile may come from the cycle of the last swap on
        load += int(rng.integers(0, 4)) if gaps else 0
        columns = bool(rng.integers(2))
        for j in range(dim):
            noise[load + j] |= {
                "weights": weights[:, j] if columns else weights[j],
                "load": 1,
                "index": j,
                "columns": columns,
            }
        swap = max(load + 1, streamed) + (int(rng.integers(0, 5)) if gaps else 0)
        load += dim
        noise[swap]["swap"] = 1
        for m in range(length):
            row = noise[swap + 1 + m]["activations"]
            if m == 0:
                row[:] = rng.choice([-256, -128, 255], dim)
            expected[swap + 1 + m + latency] = (row @ weights, f"tile {tile}, row {m}")
        streamed = swap + length
    sums = simulate(dim, noise[: streamed + latency + 1])
    assert len(expected) == sum(lengths)
    for cycle, (row, where) in expected.items():
        np.testing.assert_array_equal(sums[cycle], row, f"seed {seed}, {where}, cycle {cycle}")
    if not gaps and min(lengths) >= dim:
        # Full throughput: nothing but the load of the first row precedes the rows, without gaps.
        cycles = sorted(expected)
        assert cycles == list(range(cycles[0], cycles[0] + sum(lengths)))
        assert cycles[0] == 2 + latency


@pytest.mark.parametrize("dim", [4, 8])
def test_tiles_without_a_bubble(dim, seed):
    check(dim, seed, [dim, dim, dim + 1, dim, 2 * dim, dim + 3, dim], gaps=False)


@pytest.mark.parametrize("dim", [4, 8])
def test_short_tiles_are_bound_by_the_load(dim, seed):
    check(dim, seed, [1, 2, dim - 1, 1, dim, 1, 1], gaps=False)


@pytest.mark.parametrize("round_", range(3))
@pytest.mark.parametrize("dim", [4, 8])
def test_random_gaps(dim, round_, seed):
    rng = np.random.default_rng(1000 * round_ + seed)
    lengths = [int(x) for x in rng.integers(1, 2 * dim, 8)]
    check(dim, 1000 * round_ + seed, lengths, gaps=True)
