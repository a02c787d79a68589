# amaranth: UnusedElaboratable=no
import numpy as np
import pytest
from amaranth.back import verilog
from amaranth.sim import Simulator

from systolith.hdl.systolic import SystolicArray

SHAPES = [(4, 1), (4, 2), (4, 4), (8, 1), (8, 2), (8, 4)]
"""D and W."""


def test_dim_must_be_supported():
    with pytest.raises(ValueError, match=r"^Dim must be one of 4, 8, 16, 32, not 5$"):
        SystolicArray(5)


def test_ports_must_be_supported():
    with pytest.raises(ValueError, match=r"^Ports must be one of 1, 2, 4, not 3$"):
        SystolicArray(4, 3)


@pytest.mark.parametrize("dim, ports", SHAPES)
def test_converts(dim, ports):
    assert "module" in verilog.convert(SystolicArray(dim, ports))


def simulate(dim: int, ports: int, stimulus: list[dict]) -> list[np.ndarray]:
    """Drive the array; ``sums`` of every cycle."""
    dut = SystolicArray(dim, ports)
    sums = []

    async def bench(ctx):
        for now in stimulus:
            for i in range(dim):
                ctx.set(dut.activations[i], int(now["activations"][i]))
            for port in range(ports):
                for i in range(dim):
                    ctx.set(dut.weights[port][i], int(now["weights"][port][i]))
                for name in ("load", "index", "columns"):
                    ctx.set(getattr(dut, name)[port], int(now[name][port]))
            ctx.set(dut.swap, now["swap"])
            sums.append(np.array([ctx.get(dut.sums[i]) for i in range(dim)]))
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return sums


def check(dim: int, ports: int, seed: int, lengths: list[int], *, gaps: bool) -> None:
    """Tiles of ``lengths`` activation rows each, scheduled as tightly as the contract allows."""
    rng = np.random.default_rng(seed)
    latency = 2 * dim + 1
    port_rows = dim // ports
    total = sum(lengths) + (dim + 8 * gaps) * (len(lengths) + 2) * (3 if gaps else 1) + latency
    noise = [
        {
            "activations": rng.integers(-256, 256, dim),
            "weights": rng.integers(-128, 128, (ports, dim)),
            "load": [0] * ports,
            "index": rng.integers(port_rows, size=ports),
            "columns": rng.integers(2, size=ports),
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
            now, port = noise[load + j], j // port_rows
            now["weights"][port] = weights[:, j] if columns else weights[j]
            now["load"][port] = 1
            now["index"][port] = j % port_rows
            now["columns"][port] = columns
        swap = max(load + 1, streamed) + (int(rng.integers(0, 5)) if gaps else 0)
        load += port_rows
        noise[swap]["swap"] = 1
        for m in range(length):
            row = noise[swap + 1 + m]["activations"]
            if m == 0:
                row[:] = rng.choice([-256, -128, 255], dim)
            expected[swap + 1 + m + latency] = (row @ weights, f"tile {tile}, row {m}")
        streamed = swap + length
    sums = simulate(dim, ports, noise[: streamed + latency + 1])
    assert len(expected) == sum(lengths)
    for cycle, (row, where) in expected.items():
        np.testing.assert_array_equal(sums[cycle], row, f"seed {seed}, {where}, cycle {cycle}")
    if not gaps and min(lengths) >= port_rows:
        # Full throughput: nothing but the load of the first row precedes the rows, without gaps.
        cycles = sorted(expected)
        assert cycles == list(range(cycles[0], cycles[0] + sum(lengths)))
        assert cycles[0] == 2 + latency


@pytest.mark.parametrize("dim, ports", SHAPES)
def test_tiles_without_a_bubble(dim, ports, seed):
    short = dim // ports
    lengths = [short, short, short + 1, short, 2 * short, dim + 3, short, short]
    check(dim, ports, seed, lengths, gaps=False)


@pytest.mark.parametrize("dim, ports", SHAPES)
def test_short_tiles_are_bound_by_the_load(dim, ports, seed):
    check(dim, ports, seed, [1, 2, dim - 1, 1, dim, 1, 1, 1, 1], gaps=False)


@pytest.mark.parametrize("round_", range(3))
@pytest.mark.parametrize("dim, ports", SHAPES)
def test_random_gaps(dim, ports, round_, seed):
    rng = np.random.default_rng(1000 * round_ + seed)
    lengths = [int(x) for x in rng.integers(1, 2 * dim, 8)]
    check(dim, ports, 1000 * round_ + seed, lengths, gaps=True)
