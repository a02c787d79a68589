"""The fixed tables over their whole domains, and run-time tables, against float64."""

import math

import numpy as np
import pytest

from systolith import golden, tables

EXP2_X = np.arange(1 << 16)
RECIPROCAL_X = np.arange(1 << 19, 1 << 20)
RSQRT_X = np.arange(1 << 16, 1 << 18)


def evaluate(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Results of a fixed table over its whole domain, and the exact values."""
    if name == "exp2":
        return tables.exp2()(EXP2_X >> 9, EXP2_X & 511), 2.0 ** (17 + EXP2_X / 65536)
    if name == "reciprocal":
        x = RECIPROCAL_X
        return tables.reciprocal()((x >> 10) & 511, x & 1023), 2.0**37 / x
    return tables.rsqrt()(RSQRT_X >> 9, RSQRT_X & 511), 2.0**25 / np.sqrt(RSQRT_X)


@pytest.mark.parametrize(("name", "bits"), [("exp2", 18), ("reciprocal", 18), ("rsqrt", 17)])
def test_fixed_tables_are_near_and_normalised(name: str, bits: int) -> None:
    got, exact = evaluate(name)
    worst = np.argmax(np.abs(got - exact))
    assert abs(got[worst] - exact[worst]) <= 1.01, f"entry {worst} of {name}"
    assert got.min() >= 1 << (bits - 1), "the top bit of the mantissa is always set"
    assert got.max() < 1 << bits


@pytest.mark.parametrize("name", ["exp2", "reciprocal", "rsqrt"])
def test_fixed_tables_fit_their_words(name: str) -> None:
    rom = getattr(tables, name)()
    assert rom.base.min() >= 0 and rom.base.max() < 1 << (rom.bits + tables.GUARD_BITS)
    assert rom.slope.min() >= -(1 << 14) and rom.slope.max() < 1 << 14
    assert len(rom.base) == len(rom.slope) == {"exp2": 128}.get(name, 512)


def test_a_table_line_by_hand() -> None:
    rom = tables.Rom(np.array([800, 4095]), np.array([-100, 7]), fraction_bits=4, bits=9)
    # (800 + ((-100 * 5) >> 4) + 4) >> 3 = (800 - 32 + 4) >> 3
    assert rom(np.array(0), np.array(5)) == 96
    # (4095 + ((7 * 15) >> 4) + 4) >> 3 = 513, clamped to nine bits
    assert rom(np.array(1), np.array(15)) == 511


FUNCTIONS = {
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_interpolated_tables_are_near(name: str) -> None:
    function, scale_in, scale_out = FUNCTIONS[name], 8 / 32768, 8 / 32768
    x = np.arange(-32768, 32768)
    table = tables.function_table(function, scale_in, scale_out)
    error = np.abs(golden.lookup(x, table) - function(x * scale_in) / scale_out)
    # Chords over 1/16 of curvature below 1, centred, cost 1/16**2 / 16 = 1 LSB; rounding the rest.
    assert error.max() <= 2.5, f"input {x[np.argmax(error)]}"


def test_interpolated_table_of_a_line_is_exact() -> None:
    x = np.arange(-32768, 32768)
    table = tables.function_table(lambda v: v, 1.0, 1.0)
    assert golden.lookup(x, table).tolist() == x.tolist()


def test_interpolated_tables_saturate() -> None:
    table = tables.function_table(lambda x: 3.0 * x, 1.0, 1.0)
    assert table[0, 0] == -32768 and table[-1, 0] == 32767
    assert golden.lookup([-32768, 32767, 100], table).tolist() == [-32768, 32767, 300]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_exact_tables_are_exact(name: str, bits: int) -> None:
    function, scale_in = FUNCTIONS[name], 8 / 128
    scale_out = 8 / 2 ** (bits - 1)
    x = np.arange(-128, 128)
    got = golden.lookup8(x, tables.exact_table(function, scale_in, scale_out, bits))
    exact = np.rint(function(x * scale_in) / scale_out)
    high = 2 ** (bits - 1) - 1
    assert got.tolist() == np.clip(exact, -high - 1, high).astype(int).tolist()
