"""Real weights of a linear layer to integers: int8, or four bits in groups (see `weights.py`).

To nearest, or by GPTQ where the Hessian of the layer's input is known.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from systolith import bounds
from systolith.quant import gptq
from systolith.weights import LARGEST_SCALE, LARGEST_VALUE, expand

Float = NDArray[np.float64]

ROW_CLIPS = np.linspace(0.7, 1.0, 25)
"""Parts of a row's largest weight that are tried as its range."""
GROUPED_CLIPS = np.linspace(0.5, 1.0, 11)
"""The same for rows in groups; a smaller range makes the groups' scales finer, too."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Integer weights of N rows of K; ``values * scale[:, None]`` are near the real ones.

    ``values``: int8 [N, K] in [-127, 127]; ``bias``: int32 [N]; ``scale``: float [N]. Weights of
    four bits also have their factors ``fours``, int8 [N, K] in [-7, 7], and ``group_scale``, uint8
    [N, ceil(K / group)], of which `systolith.weights.expand` makes the values.
    """

    values: NDArray[np.int8]
    bias: NDArray[np.int32]
    scale: Float
    fours: NDArray[np.int8] | None = None
    group_scale: NDArray[np.uint8] | None = None


def quantize_rows(
    weight: Float, bias: Float, x_scale: float, x_bits: int, energy: Float | None = None, *,
    hessian: Float | None = None, group: int | None = None
) -> Weights:
    """Integers for weights (N, K) and biases [N] that meet an x of ``x_bits`` bits.

    ``energy`` [K]: mean squares of x, with which a range has the least squared error of the output;
    None: the largest weight is the range. ``hessian`` [K, K]: mean of ``x^T x``, for GPTQ; None:
    every weight to nearest. ``group``: 32, 64 or 128 input channels of four-bit weights that share
    a scale; None: int8. Where an accumulator could pass 32 bits, the row gets a coarser scale.
    """
    scale = _grouped_scale(weight, energy, group) if group else _row_scale(weight, energy)
    scale = np.maximum(scale, np.abs(bias) / x_scale / 2**30)
    rounder = _Rounder(energy, hessian, group)
    values, group_scale = rounder.round(weight, scale)
    while True:
        made = values if group is None else expand(values, group_scale, group)
        offset = np.rint(bias / (scale * x_scale)).astype(np.int64)
        excess = bounds.linear_bound(made, offset, x_bits) / bounds.LARGEST
        wrong = excess > 1
        if not wrong.any():
            break
        scale = np.where(wrong, scale * excess * 1.001, scale)
        values[wrong], group_scale[wrong] = rounder.round(weight[wrong], scale[wrong])
    parts = {} if group is None else {"fours": values, "group_scale": group_scale}
    return Weights(values=made, bias=offset.astype(np.int32), scale=scale, **parts)


def _row_scale(weight: Float, energy: Float | None) -> Float:
    """The scale of each row of int8 weights, [N]."""
    largest = np.abs(weight).max(axis=1)
    base = scale = np.where(largest > 0, largest / 127, 1.0)
    if energy is not None:
        best = np.full(len(weight), np.inf)
        for part in ROW_CLIPS:
            tried = base * part
            rounded = np.clip(np.rint(weight / tried[:, None]), -127, 127) * tried[:, None]
            error = (rounded - weight)**2 @ energy
            scale = np.where(error < best, tried, scale)
            best = np.minimum(error, best)
    return scale


def _grouped_scale(weight: Float, energy: Float | None, group: int) -> Float:
    """The scale of each row of four-bit weights in groups, [N]."""
    largest = np.abs(weight).max(axis=1)
    base = scale = np.where(largest > 0, largest / (LARGEST_VALUE * LARGEST_SCALE), 1.0)
    if energy is not None:
        best = np.full(len(weight), np.inf)
        for part in GROUPED_CLIPS:
            error = np.zeros(len(weight))
            for first in range(0, weight.shape[1], group):
                columns = slice(first, first + group)
                error += _group_scale(weight[:, columns], base * part, energy[columns])[1]
            scale = np.where(error < best, base * part, scale)
            best = np.minimum(error, best)
    return scale


def _group_scale(
    weight: Float, scale: Float, energy: Float | None
) -> tuple[NDArray[np.uint8], Float]:
    """The scales, 1 to 18, of one group (N, width) in rows of ``scale`` [N], and the squared error
    that rounding has then, [N]; without an energy the finest that saturates nothing."""
    if energy is None:
        needed = np.ceil(np.abs(weight).max(axis=1) / (LARGEST_VALUE * scale) - 1e-9)
        return np.clip(needed, 1, LARGEST_SCALE).astype(np.uint8), np.zeros(len(weight))
    chosen = np.ones(len(weight), dtype=np.uint8)
    best = np.full(len(weight), np.inf)
    real = weight / scale[:, None]
    for tried in range(1, LARGEST_SCALE + 1):
        rounded = np.clip(np.rint(real / tried), -LARGEST_VALUE, LARGEST_VALUE) * tried
        error = (rounded - real)**2 @ energy
        chosen = np.where(error < best, np.uint8(tried), chosen)
        best = np.minimum(error, best)
    return chosen, best * scale**2


class _Rounder:
    """Rounds rows of given scales."""

    def __init__(self, energy: Float | None, hessian: Float | None, group: int | None):
        self.energy, self.group = energy, group
        self.factor = self.order = None
        if hessian is not None:
            # The channels of the largest inputs first, while there is most to make up with. Groups
            # are neighbours, and keep their order.
            importance = np.zeros(len(hessian)) if group else np.diag(hessian)
            order = np.argsort(-importance, kind="stable")
            self.order, self.factor = order, gptq.inverse_factor(hessian[np.ix_(order, order)])

    def round(self, weight: Float, scale: Float) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
        """Integers (N, K), of 8 or 4 bits, and scales of the groups; int8 rows are one group."""
        n, k = weight.shape
        width = self.group or k
        limit = LARGEST_VALUE if self.group else 127
        group_scale = np.ones((n, -(-k // width)), dtype=np.uint8)

        def step(first: int, part: Float) -> Float:
            if self.group:
                energy = None if self.energy is None else self.energy[first:first + width]
                group_scale[:, first // width] = _group_scale(part, scale, energy)[0]
            return scale * group_scale[:, first // width]

        if self.factor is None:
            values = np.empty((n, k), dtype=np.int8)
            for first in range(0, k, width):
                part = weight[:, first:first + width]
                rounded = np.rint(part / step(first, part)[:, None])
                values[:, first:first + width] = np.clip(rounded, -limit, limit)
            return values, group_scale
        values = np.empty((n, k), dtype=np.int8)
        values[:, self.order] = gptq.round_columns(
            weight[:, self.order], self.factor, step, width=width, limit=limit)
        return values, group_scale
