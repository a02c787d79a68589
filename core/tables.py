"""Piecewise-linear tables: the fixed ones of softmax and norm, and run-time function tables.

The three fixed functions (``2**f``, ``1/x``, ``1/sqrt(x)``) share one evaluation rule; bases and
slopes carry three guard bits, so that the result is rounded once::

    y = (base[segment] + ((slope[segment] * fraction) >> fraction_bits) + 4) >> 3

Bases are moved by half of the segment's interpolation error, which centres it. With 128 to 512
segments no Newton step is needed: one multiplier and one block RAM (36 bits wide) per evaluation.

A run-time table holds 256 segments over the int16 range (or one entry for each int8 value), so any
scalar function is data: the hardware knows none of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from systolith.fixed import Int, saturate

GUARD_BITS = 3
"""Fraction bits of the bases and slopes of a fixed table."""
TABLE_ENTRIES = 256
"""Entries of one run-time function table."""


@dataclass(frozen=True, eq=False)
class Rom:
    """A fixed piecewise-linear function.

    ``base``: unsigned, ``bits + GUARD_BITS`` bits; ``slope``: signed 15-bit. ``bits`` is the width
    of the unsigned result, ``fraction_bits`` that of the position inside a segment.
    """

    base: Int
    slope: Int
    fraction_bits: int
    bits: int

    def __call__(self, segment: Int, fraction: Int) -> Int:
        line = self.base[segment] + ((self.slope[segment] * fraction) >> self.fraction_bits)
        return saturate((line + (1 << (GUARD_BITS - 1))) >> GUARD_BITS, self.bits, signed=False)


def _rom(
    function: Callable[[np.ndarray], np.ndarray],
    starts: np.ndarray,
    fraction_bits: int,
    bits: int,
    unused: int = 0,
) -> Rom:
    width, unit = 1 << fraction_bits, 1 << GUARD_BITS
    left, right = function(starts) * unit, function(starts + width) * unit
    middle = function(starts + width / 2) * unit
    centred = (middle - (left + right) / 2) / 2
    base = np.minimum(np.rint(left + centred), (1 << (bits + GUARD_BITS)) - 1).astype(np.int64)
    slope = np.rint(right - left).astype(np.int64)
    pad = np.zeros(unused, dtype=np.int64)
    return Rom(np.concatenate([pad, base]), np.concatenate([pad, slope]), fraction_bits, bits)


@cache
def exp2() -> Rom:
    """``2**17 * 2**(f / 2**16)`` for a 16-bit fraction f: segment ``f >> 9``, 128 entries.

    Values lie in ``[2**17, 2**18)``: the 18-bit mantissa of a power of two.
    """
    return _rom(lambda f: 2.0 ** (17 + f / 65536), np.arange(128) * 512.0, 9, 18)


@cache
def reciprocal() -> Rom:
    """``2**37 / x`` for x in ``[2**19, 2**20)``: segment ``(x >> 10) & 511``, 512 entries.

    Values lie in ``[2**17, 2**18)``; the exact power of two, 2**18, is clamped to 2**18 - 1.
    """
    return _rom(lambda x: 2.0**37 / x, (1 << 19) + np.arange(512) * 1024.0, 10, 18)


@cache
def rsqrt() -> Rom:
    """``2**25 / sqrt(x)`` for x in ``[2**16, 2**18)``: segment ``x >> 9``, 512 entries.

    Entries 0 to 127 are never used and hold 0. Values lie in ``[2**16, 2**17)``; the exact power
    of two, 2**17, is clamped to 2**17 - 1.
    """
    starts = (1 << 16) + np.arange(384) * 512.0
    return _rom(lambda x: 2.0**25 / np.sqrt(x), starts, 9, 17, unused=128)


def function_table(
    function: Callable[[np.ndarray], np.ndarray], scale_in: float, scale_out: float
) -> Int:
    """Run-time table of a scalar function for int16 → int16, shape (256, 2): base and slope.

    Entry i covers the inputs ``(i - 128) * 256 .. + 255``; the machine computes
    ``base + ((slope * (x & 255) + 128) >> 8)``. Both are saturated to int16; functions that jump
    by more than half the output range inside a segment are not represented exactly.
    """
    edges = (np.arange(TABLE_ENTRIES + 1) - 128) * 256.0
    exact = np.asarray(function(edges * scale_in), dtype=np.float64) / scale_out
    middles = np.asarray(function((edges[:-1] + 128) * scale_in), dtype=np.float64) / scale_out
    centred = (middles - (exact[:-1] + exact[1:]) / 2) / 2
    base = saturate(np.rint(exact[:-1] + centred).astype(np.int64), 16)
    slope = saturate(np.rint(exact[1:] - exact[:-1]).astype(np.int64), 16)
    return np.stack([base, slope], axis=1)


def exact_table(
    function: Callable[[np.ndarray], np.ndarray], scale_in: float, scale_out: float, bits: int = 8
) -> Int:
    """Run-time table of a scalar function for int8 → ``bits``-bit, shape (256, 2), slopes 0.

    Entry i holds the exact rounded result for the input ``i - 128``.
    """
    x = np.arange(TABLE_ENTRIES) - 128.0
    exact = np.asarray(function(x * scale_in), dtype=np.float64) / scale_out
    base = saturate(np.rint(exact).astype(np.int64), bits)
    return np.stack([base, np.zeros_like(base)], axis=1)
