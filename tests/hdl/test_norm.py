# amaranth: UnusedElaboratable=no
"""Norm under Verilator: bit exact to the golden for any waits, and as fast as it says."""

import math
import random
from functools import cache

import numpy as np
import pytest
from amaranth.sim import Simulator

from systolith import golden, tables
from systolith.hdl.norm import Norm
from systolith.hdl.norm_deviation import STEPS, InverseDeviation
from systolith.hdl.norm_lane import Affine, Normalise
from systolith.hdl.verilog import to_verilog
from systolith.sim.build import Build, build
from systolith.sim.runner import run
from systolith.sim.scoreboard import compare
from systolith.sim.stimulus import PATTERNS

MAX_FEATURES = 512
KINDS = ("random", "small", "constant", "one-hot", "extreme", "zero", "offset")


@cache
def built(lanes: int, max_features: int = MAX_FEATURES) -> Build:
    return build(to_verilog(Norm(lanes, max_features), "norm"), "norm")


@pytest.mark.parametrize(
    ("lanes", "max_features", "message"),
    [
        (6, 512, r"^Lanes must be one of 2, 4, 8, 16, 32, not 6$"),
        (4, 384, r"^Maximum features must be a power of two from 8 to 4096, not 384$"),
        (8, 8, r"^Maximum features must be a power of two from 16 to 4096, not 8$"),
        (8, 8192, r"^Maximum features must be a power of two from 16 to 4096, not 8192$"),
    ],
)
def test_constructor_checks_its_arguments(lanes: int, max_features: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Norm(lanes, max_features)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((17, 20, 40), r"^Count width must be from 1 to 16, not 17$"),
        ((12, 30, 40), r"^Total width must be from 1 to 29, not 30$"),
        ((12, 28, 49), r"^Squares width must be from 1 to 48, not 49$"),
    ],
)
def test_deviation_checks_its_widths(widths: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InverseDeviation(*widths)


@pytest.mark.parametrize(
    "component",
    [Norm(16, 32), Norm(2, 4096), InverseDeviation(12, 28, 43), Normalise(10, 25), Affine()],
)
def test_converts(component: object) -> None:
    assert "module unit" in to_verilog(component, "unit")


def expected_inverse(q: int) -> tuple[int, int]:
    """Mantissa of the reciprocal root and the right shift, less 2, as golden.norm has them."""
    even = (q.bit_length() - 17) & ~1
    mantissa = q >> even if even >= 0 else q << -even
    value = tables.rsqrt()(np.array(mantissa >> 9), np.array(mantissa & 511))
    return int(value), 8 + even // 2


def test_deviation_takes_a_row_in_four_cycles(seed: int) -> None:
    """Radicands of every bit length, a start every STEPS cycles or with pauses."""
    dut = InverseDeviation(12, 28, 43)
    rng = random.Random(seed)
    cases = [(1, 0, 0, 0, 0), (4095, 4095 << 15, 4095 << 30, 65535, 38), (7, -7, 7, 0, 5)]
    for bits in range(1, 42):
        count = rng.randrange(1, 4096)
        squares = rng.getrandbits(bits) | 1 << (bits - 1)
        most = min(math.isqrt(count * squares), 2**27 - 1)
        cases.append((count, rng.randrange(-most, most + 1), squares, 0, 0))
    cases += [(5, 0, 0, 1 << bits, 0) for bits in range(16)]
    cases += [(5, 0, 0, rng.randrange(32768, 65536), shift) for shift in range(39)]
    rng.shuffle(cases)
    got: list[tuple[int, int, int]] = []
    starts: list[int] = []

    async def drive(ctx) -> None:
        cycle = 0
        for index, case in enumerate(cases):
            names = ("count", "total", "squares", "eps", "eps_shift")
            for name, value in zip(names, case, strict=True):
                ctx.set(getattr(dut, name), value)
            ctx.set(dut.start, 1)
            starts.append(cycle)
            await ctx.tick()
            ctx.set(dut.start, 0)
            ctx.set(dut.squares, rng.getrandbits(43))
            wait = STEPS - 1 + (rng.randrange(4) if index > len(cases) // 2 else 0)
            await ctx.tick().repeat(wait)
            cycle += 1 + wait

    async def watch(ctx) -> None:
        cycle = 0
        while len(got) < len(cases):
            _, _, done, inverse, shift = await ctx.tick().sample(dut.done, dut.inverse, dut.shift)
            if done:
                got.append((cycle, inverse, shift))
            cycle += 1

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(drive)
    sim.add_testbench(watch)
    sim.run()
    for index, (count, total, squares, eps, eps_shift) in enumerate(cases):
        q = max(count * squares - total * total + (eps << eps_shift), 1)
        want = (starts[index] + dut.LATENCY, *expected_inverse(q))
        assert got[index] == want, f"case {index}: {cases[index]}, seed {seed}"


def row_of(kind: str, length: int, rng: np.random.Generator) -> np.ndarray:
    if kind == "random":
        return rng.integers(-32768, 32768, length)
    if kind == "small":
        return rng.integers(-2, 3, length)
    if kind == "constant":
        return np.full(length, rng.integers(-32768, 32768))
    if kind == "one-hot":
        return np.where(np.arange(length) == rng.integers(length), 32767, -32768)
    if kind == "extreme":
        return rng.choice([-32768, 32767], length)
    if kind == "zero":
        return np.zeros(length, dtype=np.int64)
    return rng.integers(-50, 51, length) + 31000


def channels(count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    shift = rng.choice([0, 12, 15, 16, 20, 41, 62], count)
    return {
        "gain": rng.choice([-32768, 32767, *rng.integers(-32768, 32768, 30)], count),
        "bias": rng.integers(-(2**31), 2**31, count) >> rng.integers(0, 31, count),
        "shift": np.where(rng.random(count) < 0.5, 15, shift),
    }


def check(
    lanes: int, rows: list[np.ndarray], seed: int, max_features: int = MAX_FEATURES, **settings
) -> dict:
    """Runs ragged rows with settings for each row; compares each with the golden."""
    per_channel = channels(max(len(row) for row in rows), np.random.default_rng(seed))
    arguments = {"x": rows, **per_channel, **settings}
    result = run(built(lanes, max_features), "norm", arguments, seed=seed)
    for index, row in enumerate(rows):
        eps, eps_shift, center, bits = (
            value[index] if isinstance(value, list) else value
            for value in (settings[name] for name in ("eps", "eps_shift", "center", "bits"))
        )
        own = {name: value[: len(row)] for name, value in per_channel.items()}
        want = golden.norm(row[None], **own, eps=eps << eps_shift, center=center, bits=bits)[0]
        what = f"row {index} of {len(row)} features, center {center}, {bits} bits"
        compare(result["y"][index], want, what=what, axes=("channel",), seed=seed)
    return result


WAITS = [(4, idle, held) for idle in PATTERNS for held in PATTERNS] + [
    (lanes, *pattern) for lanes in (2, 8) for pattern in (("none", "none"), ("random", "bursty"))
]


@pytest.mark.parametrize(("lanes", "idle", "back_pressure"), WAITS)
def test_is_bit_exact(lanes: int, idle: str, back_pressure: str, seed: int) -> None:
    """Rows of all kinds and lengths, settings drawn for each row, in random order."""
    rng = np.random.default_rng(seed + lanes)
    lengths = sorted({1, 2, 3, lanes - 1, lanes, lanes + 1, 17, 100, MAX_FEATURES})
    rows = [row_of(kind, length, rng) for kind in KINDS for length in lengths]
    rows = [rows[index] for index in rng.permutation(len(rows))]
    check(
        lanes,
        rows,
        seed,
        eps=[int(rng.choice([0, 1, rng.integers(2**15, 2**16)])) for _ in rows],
        eps_shift=[int(rng.integers(0, 39)) for _ in rows],
        center=[bool(rng.integers(2)) for _ in rows],
        bits=[int(rng.choice([8, 16])) for _ in rows],
        idle=idle,
        back_pressure=back_pressure,
    )


def test_longest_row_of_the_widest_sums(seed: int) -> None:
    """4095 features at the ends of int16: every sum at its largest."""
    rng = np.random.default_rng(seed)
    rows = [
        np.full(4095, -32768),
        row_of("extreme", 4095, rng),
        row_of("one-hot", 4095, rng),
        row_of("random", 4095, rng),
    ]
    for center in (False, True):
        check(8, rows, seed, 4096, eps=65535, eps_shift=38, center=center, bits=16)


@pytest.mark.parametrize(
    ("lanes", "rows", "length"), [(2, 30, 8), (4, 40, 1), (4, 30, 17), (8, 12, 384), (8, 1, 64)]
)
def test_rows_follow_each_other_without_a_bubble(
    lanes: int, rows: int, length: int, seed: int
) -> None:
    x = np.random.default_rng(seed).integers(-3000, 3000, (rows, length))
    result = check(lanes, list(x), seed, eps=1000, eps_shift=4, center=True, bits=16)
    beats = -(-length // lanes)
    latency = beats + 34 + int(math.log2(lanes))
    assert result["latency"] == latency
    assert result["cycles"] == latency + (rows - 1) * max(beats, STEPS) + beats
