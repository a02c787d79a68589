"""Weights of four bits in groups, as files hold them, and the int8 weights that they stand for.

Two levels (QServe, Lin et al. 2024): a group of 32, 64 or 128 neighbouring input channels of a row
shares a small integer, its scale, and ``weight = value * scale`` is int8 again. What multiplies,
rescales and proves sees int8 weights with one real scale for each row, as it always does.
"""

import numpy as np
from numpy.typing import NDArray

GROUPS = (32, 64, 128)
"""Input channels that may share a scale."""
LARGEST_VALUE = 7
"""Largest magnitude of a 4-bit value: symmetric, as int8 weights are."""
LARGEST_SCALE = 18
"""Largest scale of a group: ``7 * 18`` is within 127."""


def packed_shape(n: int, k: int) -> tuple[int, int]:
    """Shape of the packed values of N rows of K."""
    return n, -(-k // 2)


def scale_shape(n: int, k: int, group: int) -> tuple[int, int]:
    """Shape of the scales of the groups of N rows of K; the last group may be shorter."""
    return n, -(-k // group)


def pack(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Values (N, K) in [-8, 7], two in a byte, that of even k in the low half: (N, ceil(K / 2)).

    The last high half of an odd K is 0.
    """
    even = np.pad(values, ((0, 0), (0, values.shape[1] % 2))).view(np.uint8)
    return ((even[:, 0::2] & 15) | (even[:, 1::2] << 4)).astype(np.uint8)


def unpack(packed: NDArray[np.uint8], k: int) -> NDArray[np.int8]:
    """Inverse of `pack`: int8 (N, K)."""
    halves = np.stack([packed << 4, packed], axis=-1).view(np.int8) >> 4
    return np.ascontiguousarray(halves.reshape(len(packed), -1)[:, :k])


def expand(values: NDArray[np.int8], scale: NDArray[np.uint8], group: int) -> NDArray[np.int8]:
    """``values[n, k] * scale[n, k // group]``: int8 (N, K)."""
    each = np.repeat(scale.view(np.int8), group, axis=1)[:, : values.shape[1]]
    return values * each
