"""Fixed-point arithmetic shared by every bit-exact description of the machine.

All functions take and return ``numpy.int64`` arrays (or Python integers) and are exact: no float
touches a value between the quantizer and the board. One rounding rule is used everywhere,
``(x + 2**(s - 1)) >> s``: round to nearest, ties towards plus infinity. It is the single-rounding
mode that TFLite documents and the ``RequantShift`` of Deeploy.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Int = NDArray[np.int64]

MULT_BITS = 16
"""Bits of the unsigned mantissa of a rescale; normalised mantissas have the top bit set."""
SHIFT_BITS = 6
"""Bits of the right shift of a rescale."""


def saturate(x: ArrayLike, bits: int, *, signed: bool = True) -> Int:
    """Clamps ``x`` to the range of a ``bits``-bit integer."""
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    return np.clip(np.asarray(x, dtype=np.int64), low, high)


def wrap(x: ArrayLike, bits: int) -> Int:
    """Reduces ``x`` to the signed ``bits``-bit integer with the same low bits."""
    x = np.asarray(x, dtype=np.int64)
    half = np.int64(1 << (bits - 1))
    return ((x + half) & np.int64((1 << bits) - 1)) - half


def round_shift(x: ArrayLike, shift: ArrayLike) -> Int:
    """``(x + 2**(shift - 1)) >> shift``, and ``x`` where ``shift`` is 0.

    Ties go towards plus infinity. ``|x|`` must stay below ``2**62`` and ``shift`` within 0..62.
    """
    x = np.asarray(x, dtype=np.int64)
    shift = np.asarray(shift, dtype=np.int64)
    half = np.where(shift > 0, np.int64(1) << np.maximum(shift - 1, 0), 0)
    return (x + half) >> shift


def requantize(x: ArrayLike, mult: ArrayLike, shift: ArrayLike, bits: int) -> Int:
    """``saturate((x * mult + 2**(shift - 1)) >> shift)`` to ``bits`` signed bits.

    ``x`` is signed 32-bit, ``mult`` an unsigned 16-bit mantissa, ``shift`` within 0..62.
    """
    product = np.asarray(x, dtype=np.int64) * np.asarray(mult, dtype=np.int64)
    return saturate(round_shift(product, shift), bits)


def multiplier(ratio: float, *, max_shift: int = 62) -> tuple[int, int]:
    """The normalised ``(mult, shift)`` nearest to ``ratio``: ``ratio ≈ mult * 2**-shift``.

    ``mult`` lies in ``[2**15, 2**16)`` unless ``ratio`` is so small that ``shift`` would pass
    ``max_shift``; then the mantissa is denormal (0 for a ratio of 0). Raises ``ValueError`` for a
    negative or non-finite ratio, or one of ``2**16`` and more.
    """
    if not math.isfinite(ratio) or ratio < 0:
        raise ValueError(f"A rescale ratio must be finite and not negative, not {ratio!r}")
    if ratio == 0:
        return 0, 0
    fraction, exponent = math.frexp(ratio)  # fraction in [0.5, 1)
    mult, shift = round(fraction * (1 << MULT_BITS)), MULT_BITS - exponent
    if mult == 1 << MULT_BITS:
        mult, shift = mult >> 1, shift - 1
    if shift < 0:
        raise ValueError(f"A rescale ratio must be below 65536, not {ratio!r}")
    if shift > max_shift:
        mult, shift = mult >> (shift - max_shift), max_shift
    return mult, shift
