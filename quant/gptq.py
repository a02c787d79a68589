"""GPTQ: weights rounded one input channel after the other, later ones making up for each error.

Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers,
2023. With H the mean of ``x^T x`` over the inputs x [K] of a layer, the error of rounding column j
of the weights is undone as far as possible by changing the columns after it, which row j of the
Cholesky factor of H's inverse tells how to.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

Float = NDArray[np.float64]
Step = Callable[[int, Float], Float]

DAMPING = 0.01
"""Part of the mean of H's diagonal that is added to the diagonal."""
BLOCK = 128
"""Columns that are finished before the rest of the matrix learns of their errors."""


def inverse_factor(hessian: Float) -> Float:
    """Upper triangular U [K, K] with ``U^T U`` the inverse of the damped Hessian.

    A channel that was always 0 gets no error from others and gives none. All of them: no channel
    does.
    """
    mean = float(np.diag(hessian).mean())
    one = torch.eye(len(hessian), dtype=torch.float64)
    damped = torch.from_numpy(hessian) + (DAMPING * mean if mean > 0 else 1.0) * one
    # The factor of a matrix turned upside down is that of its inverse, turned and inverted.
    lower = torch.linalg.cholesky(damped.flip(0, 1))
    inverse = torch.linalg.solve_triangular(lower, one, upper=False)
    return np.ascontiguousarray(inverse.flip(0, 1).numpy())


def round_columns(
    weight: Float, factor: Float, step: Step, *, width: int, limit: int
) -> NDArray[np.int8]:
    """Integers (N, K) in [-limit, limit] for ``weight`` (N, K), by GPTQ.

    ``factor``: see `inverse_factor`. ``step(first, part)``: the weight of one LSB of each row, [N],
    for the ``width`` columns from ``first``, told their weights ``part`` (N, width) with all errors
    before them made up for. ``width`` divides `BLOCK`, or there is one step for all columns.
    """
    n, k = weight.shape
    # Columns are rows here: each is worked on alone.
    left = np.ascontiguousarray(weight.T)
    values = np.empty((k, n), dtype=np.int8)
    lsb = np.ones(n)
    for start in range(0, k, BLOCK):
        stop = min(start + BLOCK, k)
        errors = np.empty((stop - start, n))
        for j in range(start, stop):
            if j % width == 0:
                lsb = step(j, left[j : j + width].T)
            values[j] = np.clip(np.rint(left[j] / lsb), -limit, limit)
            error = errors[j - start] = (left[j] - values[j] * lsb) / factor[j, j]
            left[j + 1 : stop] -= factor[j, j + 1 : stop, None] * error
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return np.ascontiguousarray(values.T)
