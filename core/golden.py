"""The specification: integer-only numpy semantics of every operation of the machine.

Quantizer, golden machine, RTL and board conform to these functions bit for bit. They know nothing
of hardware parameters such as the array dimension or the lane count: results do not depend on them.
Arrays are ``int64`` holding values of the stated widths.
"""

import numpy as np
from numpy.typing import ArrayLike

from systolith import tables
from systolith.fixed import Int, requantize, round_shift, saturate, wrap

SUM_GUARD_BITS = 8
"""Bits below an exponential's mantissa that the softmax sum keeps."""
MAX_EXPONENT = 31
"""Distances to the row maximum (in powers of two) beyond this one count as this one."""
NORM_FRACTION_BITS = 15
"""Fraction bits of a normalised value before gain and bias."""


def _int(x: ArrayLike) -> Int:
    return np.asarray(x, dtype=np.int64)


def matmul(a: ArrayLike, w: ArrayLike, acc: ArrayLike = 0) -> Int:
    """``acc + a @ w`` modulo 2**32, as signed 32-bit.

    ``a``: (M, K) signed or unsigned 8- or 16-bit; ``w``: (K, N) int8; ``acc``: (M, N) int32 or 0.
    A 16-bit ``a`` equals two passes of the array: ``low @ w + ((high @ w) << 8)``.
    """
    # Products and sums are exact in float64 (|sum| < 2**53), and BLAS is much faster on it.
    product = np.asarray(a, dtype=np.float64) @ np.asarray(w, dtype=np.float64)
    return wrap(product.astype(np.int64) + _int(acc), 32)


def scale(x: ArrayLike, bias: ArrayLike, mult: ArrayLike, shift: ArrayLike) -> Int:
    """First stage of the vector unit: add the bias (modulo 2**32) and requantize to int16.

    ``x``: (..., N) int32; per channel: ``bias`` int32, ``mult`` uint16, ``shift`` 0..62.
    """
    return requantize(wrap(_int(x) + _int(bias), 32), mult, shift, 16)


def lookup(x: ArrayLike, table: ArrayLike) -> Int:
    """Run-time function table, int16 → int16, linear inside 256 segments.

    ``table``: (256, 2) int16, base and slope of each segment (``tables.function_table``).
    """
    x, table = _int(x), _int(table)
    segment, fraction = (x >> 8) + 128, x & 255
    return saturate(table[segment, 0] + ((table[segment, 1] * fraction + 128) >> 8), 16)


def lookup8(x: ArrayLike, table: ArrayLike) -> Int:
    """Run-time function table, int8 → int16, exact; ``x`` is first saturated to int8."""
    return _int(table)[saturate(x, 8) + 128, 0]


def add(a: ArrayLike, b: ArrayLike, mult_a: int, mult_b: int, shift: int, bits: int) -> Int:
    """Residual add: both int16 inputs scaled by uint16 mantissas, added, rounded once."""
    return saturate(round_shift(_int(a) * mult_a + _int(b) * mult_b, shift), bits)


def multiply(a: ArrayLike, b: ArrayLike, mult: int, shift: int, bits: int) -> Int:
    """Element-wise product of two int16 tensors, requantized."""
    return requantize(_int(a) * _int(b), mult, shift, bits)


def rope(x: ArrayLike, cos: ArrayLike, sin: ArrayLike, shift: int, bits: int) -> Int:
    """Rotary embedding of adjacent pairs: ``x[i] * cos[i] + x[i ^ 1] * sin[i]``, rounded once.

    ``x``: (..., N) int16. ``cos``, ``sin``: Q1.15, broadcastable to x; the sign of the rotation is
    in ``sin`` (negative at even i). ``shift`` is 15, or more to leave fraction bits behind.
    Checkpoints that rotate halves are brought to adjacent pairs by permuting weight rows.
    """
    x = _int(x)
    partner = x.reshape(*x.shape[:-1], -1, 2)[..., ::-1].reshape(x.shape)
    return saturate(round_shift(x * _int(cos) + partner * _int(sin), shift), bits)


def argmax(x: ArrayLike) -> Int:
    """Index of the largest value along the last axis; the lowest index wins a tie."""
    return np.argmax(_int(x), axis=-1).astype(np.int64)


def _bit_length(x: Int) -> Int:
    # frexp is exact below 2**53; larger values are looked at in their upper half.
    high = x >> 32
    low = np.frexp((x & 0xFFFFFFFF).astype(np.float64))[1]
    return np.where(high > 0, np.frexp(high.astype(np.float64))[1] + 32, low).astype(np.int64)


def softmax(scores: ArrayLike, mult: int, shift: int, limit: ArrayLike, bits: int) -> Int:
    """Softmax of each row over its first ``limit`` scores; base 2, divided once after the sum.

    ``scores``: (R, T) int32. ``x = score * mult * 2**-shift`` is the exponent in base 2 with 16
    fraction bits (so ``mult * 2**-shift`` is ``scale * log2(e) * 2**16``), saturated to int32.
    ``limit``: (R,) or scalar, 1..T. Returns (R, T) unsigned probabilities of ``bits`` (8 or 16)
    bits, scale ``1 / (2**bits - 1)``; zero at and beyond the limit.
    """
    scores = _int(scores)
    valid = np.arange(scores.shape[1]) < np.broadcast_to(_int(limit), scores.shape[:1])[:, None]
    x = requantize(scores, mult, shift, 32)
    exponent, fraction = x >> 16, x & 0xFFFF
    mantissa = tables.exp2()(fraction >> 9, fraction & 511)
    top = np.where(valid, exponent, np.int64(-(1 << 15))).max(axis=1, keepdims=True)
    distance = np.clip(top - exponent, 0, MAX_EXPONENT)
    terms = (mantissa << SUM_GUARD_BITS) >> distance
    total = np.where(valid, terms, 0).sum(axis=1, keepdims=True)
    # 20-bit mantissa of the sum, rounded; a carry out of the rounding moves the exponent.
    length = _bit_length(total)
    rounded = round_shift(total, np.maximum(length - 20, 0))
    carry = rounded >> 20
    rounded, length = rounded >> carry, length + carry
    inverse = tables.reciprocal()((rounded >> 10) & 511, rounded & 1023)
    product = mantissa * inverse
    product -= product >> bits  # times (2**bits - 1) / 2**bits
    right = np.minimum(length + distance + 9 - bits, 40)
    p = saturate(round_shift(product, right), bits, signed=False)
    return np.where(valid, p, 0)


def norm(
    x: ArrayLike,
    gain: ArrayLike,
    bias: ArrayLike,
    shift: ArrayLike,
    eps: int,
    *,
    center: bool,
    bits: int,
) -> Int:
    """LayerNorm (``center``) or RMSNorm of each row, with exact integer sums.

    ``x``: (R, N) int16, N up to 4095. With S the sum (0 for RMSNorm) and SS the sum of squares,
    ``q = N * SS - S**2 + eps`` (at least 1, below 2**55), ``d = N * x - S`` and the normalised
    value is ``d / sqrt(q)`` with 15 fraction bits, z. ``eps`` is in units of N² input LSB².
    Per channel: ``y = saturate((z * gain + bias + 2**(shift - 1)) >> shift)``; ``gain`` int16,
    ``bias`` int32. Returns (R, N) of ``bits`` signed bits.
    """
    x = _int(x)
    n = x.shape[1]
    total = x.sum(axis=1, keepdims=True) if center else np.zeros((len(x), 1), dtype=np.int64)
    squares = (x * x).sum(axis=1, keepdims=True)
    q = np.maximum(n * squares - total * total + eps, 1)
    length = _bit_length(q)
    even = (length - 17) & ~np.int64(1)  # q >> even lies in [2**16, 2**18)
    mantissa = np.where(even >= 0, q >> np.maximum(even, 0), q << np.maximum(-even, 0))
    inverse = tables.rsqrt()(mantissa >> 9, mantissa & 511)
    z = round_shift((n * x - total) * inverse, 25 - NORM_FRACTION_BITS + even // 2)
    z = saturate(z, 24)
    return saturate(round_shift(z * _int(gain) + _int(bias), shift), bits)
