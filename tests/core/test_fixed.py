"""Rounding, saturation and rescale factors, by hand-worked cases and against exact integers."""

from fractions import Fraction

import numpy as np
import pytest

from systolith.fixed import multiplier, requantize, round_shift, saturate, wrap


@pytest.mark.parametrize(
    ("x", "shift", "expected"),
    [
        (5, 0, 5),
        (-5, 0, -5),
        (5, 1, 3),  # 2.5: the tie goes up
        (-5, 1, -2),  # -2.5: the tie goes towards plus infinity, not away from zero
        (7, 2, 2),  # 1.75
        (6, 2, 2),  # 1.5
        (5, 2, 1),  # 1.25
        (-6, 2, -1),  # -1.5
        (-7, 2, -2),  # -1.75
        (2, 2, 1),  # 0.5
        (-2, 2, 0),  # -0.5
        (1, 62, 0),
        (2**61, 62, 1),  # 0.5
        (2**61 - 1, 62, 0),
        (-(2**61), 62, 0),  # -0.5
        (-(2**61) - 1, 62, -1),
    ],
)
def test_round_shift_ties_go_up(x: int, shift: int, expected: int) -> None:
    assert round_shift(x, shift) == expected


def test_round_shift_is_floor_of_x_plus_a_half(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(-(2**60), 2**60, 2000)
    shift = rng.integers(0, 63, 2000)
    exact = [
        (Fraction(int(a), 2 ** int(s)) + Fraction(1, 2)).__floor__() if s else int(a)
        for a, s in zip(x, shift, strict=True)
    ]
    assert round_shift(x, shift).tolist() == exact


@pytest.mark.parametrize(
    ("x", "bits", "signed", "expected"),
    [
        (127, 8, True, 127),
        (128, 8, True, 127),
        (-128, 8, True, -128),
        (-129, 8, True, -128),
        (255, 8, False, 255),
        (256, 8, False, 255),
        (-1, 8, False, 0),
        (2**31, 32, True, 2**31 - 1),
        (-(2**31) - 1, 32, True, -(2**31)),
        (2**40, 16, False, 65535),
    ],
)
def test_saturate(x: int, bits: int, signed: bool, expected: int) -> None:
    assert saturate(x, bits, signed=signed) == expected


@pytest.mark.parametrize(
    ("x", "bits", "expected"),
    [
        (2**31, 32, -(2**31)),
        (-(2**31) - 1, 32, 2**31 - 1),
        (2**32, 32, 0),
        (-1, 32, -1),
        (2**40 + 5, 32, 5),
        (128, 8, -128),
        (383, 8, 127),
    ],
)
def test_wrap_keeps_the_low_bits(x: int, bits: int, expected: int) -> None:
    assert wrap(x, bits) == expected


@pytest.mark.parametrize(
    ("x", "mult", "shift", "bits", "expected"),
    [
        (100, 2**15, 15, 8, 100),
        (1, 2**15, 16, 8, 1),  # 0.5
        (-1, 2**15, 16, 8, 0),  # -0.5
        (3, 2**15, 16, 8, 2),  # 1.5
        (-3, 2**15, 16, 8, -1),  # -1.5
        (127, 65535, 16, 8, 127),
        (128, 65535, 16, 8, 127),
        (2**31 - 1, 65535, 0, 32, 2**31 - 1),
        (-(2**31), 65535, 0, 32, -(2**31)),
        (-(2**31), 65535, 47, 16, -1),
        (-(2**31), 2**15, 62, 16, 0),
    ],
)
def test_requantize(x: int, mult: int, shift: int, bits: int, expected: int) -> None:
    assert requantize(x, mult, shift, bits) == expected


def test_requantize_equals_exact_integers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(-(2**31), 2**31, 2000)
    mult = rng.integers(0, 2**16, 2000)
    shift = rng.integers(0, 63, 2000)
    got = requantize(x, mult, shift, 16)
    for i, (a, m, s) in enumerate(zip(x.tolist(), mult.tolist(), shift.tolist(), strict=True)):
        rounded = (a * m + (1 << s >> 1)) >> s
        assert got[i] == max(-32768, min(32767, rounded)), f"element {i}, seed {seed}"


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (1.0, (2**15, 15)),
        (0.5, (2**15, 16)),
        (1.5, (49152, 15)),
        (65535.0, (65535, 0)),
        (2.0**-47, (2**15, 62)),
        (2.0**-48, (2**14, 62)),  # denormal: the shift is at its end
        (0.0, (0, 0)),
        (1 - 2.0**-30, (2**15, 15)),  # the mantissa rounds up to the next power of two
    ],
)
def test_multiplier(ratio: float, expected: tuple[int, int]) -> None:
    assert multiplier(ratio) == expected


def test_multiplier_is_normalised_and_near(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for ratio in 2.0 ** rng.uniform(-46, 15.9, 500):
        mult, shift = multiplier(float(ratio))
        assert 2**15 <= mult < 2**16 and 0 <= shift <= 62, ratio
        assert abs(mult * 2.0**-shift / ratio - 1) <= 2.0**-16, ratio


def test_multiplier_with_a_smaller_shift() -> None:
    assert multiplier(2.0**-20, max_shift=31) == (2**11, 31)


@pytest.mark.parametrize("ratio", [-1.0, float("inf"), float("nan")])
def test_multiplier_refuses_what_is_no_ratio(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"^A rescale ratio must be finite and not negative, not"):
        multiplier(ratio)


@pytest.mark.parametrize("ratio", [65536.0, 65535.9, 1e9])
def test_multiplier_refuses_large_ratios(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"^A rescale ratio must be below 65536, not"):
        multiplier(ratio)
