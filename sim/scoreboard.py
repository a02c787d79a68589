"""Compare what hardware gave with what the golden says; name the first difference."""

from collections.abc import Sequence
from typing import Any

import numpy as np

_NEIGHBOURS = 3


def compare(
    actual: Any,
    expected: Any,
    *,
    what: str = "result",
    axes: Sequence[str] = (),
    seed: int | None = None,
) -> None:
    """Raise AssertionError unless both arrays (or sequences, or bytes) are equal, shapes included.

    The text has the number of differences, the coordinates of the first one in C order (named by
    `axes`), both values, their neighbours along the last axis, and the seed.

        result differs in 3 of 64 elements, first at row 1, column 7: got -4, expected 12
        column 4 to 10: got [1 2 3 -4 5 6 7], expected [1 2 3 12 5 6 7] (seed 5)
    """
    got, want = _array(actual), _array(expected)
    suffix = "" if seed is None else f" (seed {seed})"
    if got.shape != want.shape:
        raise AssertionError(f"{what} has shape {got.shape}, expected {want.shape}{suffix}")
    wrong = np.argwhere(got != want)
    if not len(wrong):
        return
    at = tuple(int(index) for index in wrong[0])
    if not at:
        raise AssertionError(f"{what} is {got}, expected {want}{suffix}")
    names = [axes[i] if i < len(axes) else f"axis {i}" for i in range(got.ndim)]
    place = ", ".join(f"{name} {index}" for name, index in zip(names, at, strict=True))
    first = max(at[-1] - _NEIGHBOURS, 0)
    last = min(at[-1] + _NEIGHBOURS, got.shape[-1] - 1)
    near = (*at[:-1], slice(first, last + 1))
    raise AssertionError(
        f"{what} differs in {len(wrong)} of {got.size} elements, first at {place}: "
        f"got {got[at]}, expected {want[at]}\n"
        f"{names[-1]} {first} to {last}: got {got[near]}, expected {want[near]}{suffix}"
    )


def _array(value: Any) -> np.ndarray:
    if isinstance(value, bytes | bytearray | memoryview):
        return np.frombuffer(value, dtype=np.uint8)
    return np.asarray(value)
