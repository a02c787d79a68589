# amaranth: UnusedElaboratable=no
"""Softmax under Verilator: bit exact to the golden for any waits, and as fast as it says."""

import math
from functools import cache

import numpy as np
import pytest

from systolith import golden
from systolith.config import Config
from systolith.hdl.softmax import Softmax
from systolith.hdl.softmax_lane import Exponential, Probability
from systolith.hdl.verilog import to_verilog
from systolith.sim.build import Build, build
from systolith.sim.measure_softmax import measure_softmax
from systolith.sim.runner import run
from systolith.sim.scoreboard import compare
from systolith.sim.stimulus import PATTERNS

MAX_LENGTH = 512
KINDS = ("random", "constant", "one-hot", "ascending", "descending", "extreme")


@cache
def built(lanes: int) -> Build:
    return build(to_verilog(Softmax(lanes, MAX_LENGTH), "softmax"), "softmax")


@pytest.mark.parametrize(
    ("lanes", "max_length", "message"),
    [
        (3, 512, r"^Lanes must be one of 2, 4, 8, 16, 32, not 3$"),
        (1, 512, r"^Lanes must be one of 2, 4, 8, 16, 32, not 1$"),
        (4, 500, r"^Maximum length must be a power of two from 8 to 4096, not 500$"),
        (4, 4, r"^Maximum length must be a power of two from 8 to 4096, not 4$"),
        (4, 8192, r"^Maximum length must be a power of two from 8 to 4096, not 8192$"),
    ],
)
def test_constructor_checks_its_arguments(lanes: int, max_length: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Softmax(lanes, max_length)


@pytest.mark.parametrize(
    "component", [Softmax(16, 32), Softmax(2, 4096), Exponential(), Probability(5)]
)
def test_converts(component: object) -> None:
    assert "module unit" in to_verilog(component, "unit")


def row_of(kind: str, length: int, rng: np.random.Generator) -> np.ndarray:
    if kind == "random":
        return rng.integers(-(2**31), 2**31, length) >> int(rng.integers(0, 24))
    if kind == "constant":
        return np.full(length, rng.integers(-(2**31), 2**31))
    if kind == "one-hot":
        return np.where(np.arange(length) == rng.integers(length), 30000, -2000)
    if kind == "ascending":
        return np.arange(length) * 700 - 100000
    if kind == "descending":
        return 100000 - np.arange(length) * 700
    return rng.choice([-(2**31), 2**31 - 1], length)


def check(lanes: int, rows: list[np.ndarray], seed: int, **settings: object) -> dict:
    """Runs ragged rows with settings for each row; compares each with the golden."""
    arguments = {"scores": rows, **settings}
    result = run(built(lanes), "softmax", arguments, seed=seed)
    for index, row in enumerate(rows):
        mult, shift, limit, bits = (
            value[index] if isinstance(value, list) else value
            for value in (settings[name] for name in ("mult", "shift", "limits", "bits"))
        )
        want = golden.softmax(row[None], mult, shift, limit, bits)[0]
        what = f"row {index} of {len(row)} scores, limit {limit}, {bits} bits"
        compare(result["probabilities"][index], want, what=what, axes=("column",), seed=seed)
    return result


WAITS = [(4, idle, held) for idle in PATTERNS for held in PATTERNS] + [
    (lanes, *pattern) for lanes in (2, 8) for pattern in (("none", "none"), ("random", "bursty"))
]


@pytest.mark.parametrize(("lanes", "idle", "back_pressure"), WAITS)
def test_is_bit_exact(lanes: int, idle: str, back_pressure: str, seed: int) -> None:
    """Rows of all kinds and lengths, settings drawn for each row, in random order."""
    rng = np.random.default_rng(seed + lanes)
    lengths = sorted({1, 2, 3, lanes - 1, lanes, lanes + 1, 17, 100, MAX_LENGTH} - {0})
    rows = [row_of(kind, length, rng) for kind in KINDS for length in lengths]
    rows = [rows[index] for index in rng.permutation(len(rows))]
    pick = [rng.random() for _ in rows]
    check(
        lanes,
        rows,
        seed,
        mult=[int(rng.choice([rng.integers(2**15, 2**16), 65535, 0])) for _ in rows],
        shift=[int(rng.choice([rng.integers(0, 24), 0, 12, 62])) for _ in rows],
        limits=[
            int(len(row) if p < 0.5 else rng.integers(1, len(row) + 1))
            for p, row in zip(pick, rows, strict=True)
        ],
        bits=[int(rng.choice([8, 16])) for _ in rows],
        idle=idle,
        back_pressure=back_pressure,
    )


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("lanes", [2, 4, 8])
def test_causal_limits(lanes: int, bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = list(rng.integers(-60000, 60000, (41, 41)))
    limits = list(range(1, 42))
    check(lanes, rows, seed, mult=47274, shift=11, limits=limits, bits=bits)


@pytest.mark.parametrize(
    ("lanes", "rows", "length"),
    [(2, 50, 2), (4, 100, 1), (4, 40, 17), (8, 12, 100), (8, 1, 512)],
)
def test_rows_follow_each_other_without_a_bubble(
    lanes: int, rows: int, length: int, seed: int
) -> None:
    scores = np.random.default_rng(seed).integers(-30000, 30000, (rows, length))
    result = check(lanes, list(scores), seed, mult=47274, shift=11, limits=length, bits=16)
    beats = -(-length // lanes)
    latency = 2 * beats + 29 + int(math.log2(lanes))
    assert result["latency"] == latency
    assert result["cycles"] == latency + rows * beats
    assert result["cycles"] <= rows * (beats + 2) + 3 * beats + 60


@pytest.mark.parametrize("wide", [True, False])
def test_measurement(wide: bool, seed: int) -> None:
    measured = measure_softmax(Config(dim=8, lanes=4), 8, 512, seed, wide)
    assert measured["bit_exact"]
    assert measured["cycles"] == 10 * 128 + 31
    assert measured["elements_per_cycle"] == 4
    assert measured["max_error_lsb"] <= 1
    # 512 roundings to 8 bits cost more; 16 bits are there for long rows.
    assert measured["row_sum_error"] <= (0.01 if wide else 0.5)


@pytest.mark.parametrize(
    ("rows", "length", "message"),
    [
        (0, 5, r"^Rows must be at least 1, not 0$"),
        (1, 0, r"^Length must be from 1 to 512, not 0$"),
        (1, 513, r"^Length must be from 1 to 512, not 513$"),
    ],
)
def test_measurement_checks_its_arguments(rows: int, length: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_softmax(Config(), rows, length, 1)
