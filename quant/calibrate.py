"""Calibration: what a float network's tensors hold, gathered batch by batch.

Magnitudes are counted in a histogram with logarithmic bins, which needs no range in advance; every
method of choosing an 8-bit range reads it afterwards.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from systolith.errors import UserError
from systolith.quant.network import TOKENS, Embed, Network, Rope, rotated

BINS_PER_OCTAVE = 32
OCTAVES = 40
LOWEST = -24
"""Exponent of the smallest magnitude told apart; values below share the first bin."""
POSITIONS = 16
"""How many positions of the context, evenly spaced, a rotated tensor is looked at."""
CLIPS = np.linspace(0.3, 1.0, 71)
"""Parts of the largest magnitude that are tried as a range."""
LEVELS = 128
"""Magnitudes of an 8-bit tensor."""
LINEAR_BINS = 2048

Float = NDArray[np.float64]
Inputs = dict[str, Tensor]
MASK = "attention_mask"


class CalibrationError(UserError):
    """Calibration data that does not fit the network, or that it cannot process."""


def batches_of(
    network: Network, batches: Iterable[ArrayLike | Mapping[str, ArrayLike]],
    context: int | None = None
) -> Iterator[tuple[Inputs, Tensor | None]]:
    """Inputs and lengths for `Network.run`, cut to ``context`` tokens.

    A batch is a mapping of inputs, each [T, ...] or [B, T, ...], that may hold an "attention_mask"
    (1 inside, padding on the right), or the tokens alone.
    """
    context = context or network.context
    count = 0
    for count, batch in enumerate(batches, start=1):
        named = batch if isinstance(batch, Mapping) else {TOKENS: batch}
        inputs: Inputs = {}
        for name in (*network.indices, *network.given):
            if name not in named:
                raise CalibrationError(f"Calibration batch {count} lacks the input {name!r}")
            x = torch.as_tensor(np.asarray(named[name]))
            axes = 2 if name in network.indices else 3
            if x.dim() not in (axes - 1, axes) or not x.numel():
                raise CalibrationError(f"Calibration batch {count}: {name!r} must have {axes} axes "
                                       f"and be not empty, not the shape {list(x.shape)}")
            x = x[None] if x.dim() < axes else x
            inputs[name] = (x.long() if axes == 2 else x.float())[:, :context]
        shapes = {tuple(x.shape[:2]) for x in inputs.values()}
        if len(shapes) != 1:
            raise CalibrationError(f"Calibration batch {count}: its inputs have different shapes")
        for name in network.indices:
            rows = min(len(op.table) for op in network.of_kind(Embed) if op.index == name)
            x = inputs[name]
            if int(x.min()) < 0 or int(x.max()) >= rows:
                raise CalibrationError(f"Calibration batch {count}: {name!r} must be 0 to "
                                       f"{rows - 1}, not {int(x.min())} to {int(x.max())}")
        lengths = None
        if MASK in named:
            mask = torch.as_tensor(np.asarray(named[MASK])).long()
            lengths = (mask[None] if mask.dim() == 1 else mask)[:, :context].sum(dim=1)
        yield inputs, lengths
    if not count:
        raise CalibrationError("Calibration needs at least one batch")


@dataclass
class Range:
    """What calibration has seen of one tensor, for each of its channels.

    ``low``, ``high``: smallest and largest value; ``counts``: int64 [channels, bins], how often
    each magnitude was seen, or None; ``total``, ``squares``: sums of the values and of their
    squares over ``tokens``; ``products``: float64 [channels, channels], the sum of ``x^T x``, or
    None.
    """

    low: Float
    high: Float
    total: Float
    squares: Float
    counts: NDArray[np.int64] | None = None
    tokens: int = 0
    products: Float | None = None

    @property
    def largest(self) -> Float:
        """The largest magnitude."""
        return np.maximum(-self.low, self.high).clip(min=0)

    @property
    def middle(self) -> Float:
        """Half way between the smallest and the largest value."""
        return (self.low + self.high) / 2

    @property
    def mean(self) -> Float:
        return self.total / max(self.tokens, 1)

    def energy(self, removed: float = 0.0) -> Float:
        """Mean squares [channels] of what is left of the values without ``removed`` of their mean,
        0 to 1."""
        less = removed * (2 - removed) * self.mean**2
        return np.maximum(self.squares / max(self.tokens, 1) - less, 0)

    def hessian(self, removed: float = 0.0) -> Float | None:
        """Mean of ``x^T x``, [channels, channels], without ``removed`` of the mean of x; None
        where no products were gathered."""
        if self.products is None:
            return None
        less = removed * (2 - removed) * np.outer(self.mean, self.mean)
        return self.products / max(self.tokens, 1) - less

    def clip(self, method: str, percent: float = 99.99, *, per_channel: bool = False) -> Float:
        """Range of an 8-bit tensor: magnitudes [channels], or [1] for the whole tensor.

        "minmax": the largest; "percentile": what ``percent`` of the values do not exceed; "mse":
        the least squared error of rounding and saturating; "entropy": the least Kullback-Leibler
        divergence of the rounded distribution (Migacz, 8-bit inference with TensorRT, 2017).
        """
        largest = self.largest if per_channel else self.largest.max(keepdims=True)
        if method == "minmax":
            return largest
        if self.counts is None:
            raise ValueError("This range needs a histogram")
        counts = self.counts if per_channel else self.counts.sum(axis=0, keepdims=True)
        if method == "percentile":
            return np.minimum(_percentile(counts, percent), largest)
        if method == "mse":
            return largest * _mse_clip(counts, largest)
        if method == "entropy":
            return np.array([_entropy_clip(c, m) for c, m in zip(counts, largest, strict=True)])
        raise ValueError(f"no such method: {method!r}")


def _edges() -> Float:
    """Upper ends of the bins."""
    return 2.0 ** (np.arange(1, BINS_PER_OCTAVE * OCTAVES + 1) / BINS_PER_OCTAVE + LOWEST)


def _percentile(counts: NDArray[np.int64], percent: float) -> Float:
    cumulative = counts.cumsum(axis=1)
    wanted = np.ceil(cumulative[:, -1:] * percent / 100 - 1e-6)
    return _edges()[(cumulative >= np.maximum(wanted, 1)).argmax(axis=1)]


def _mse_clip(counts: NDArray[np.int64], largest: Float) -> Float:
    """The part of the largest magnitude of each row that has the least squared error."""
    middle = _edges() * 2 ** (-0.5 / BINS_PER_OCTAVE)
    errors = []
    for part in CLIPS:
        limit = largest[:, None] * part
        step = limit / (LEVELS - 1)
        inside = np.where(middle < step / 2, middle**2, step**2 / 12)
        errors.append((counts * np.where(middle > limit, (middle - limit)**2, inside)).sum(axis=1))
    return CLIPS[np.argmin(errors, axis=0)]


def _entropy_clip(counts: NDArray[np.int64], largest: float) -> float:
    if largest <= 0:
        return 0.0
    edges = np.concatenate(([0.0], _edges()))
    cumulative = np.concatenate(([0], counts.cumsum()))
    p = np.diff(np.interp(np.linspace(0, largest, LINEAR_BINS + 1), edges, cumulative))
    best, chosen = np.inf, LINEAR_BINS
    for stop in range(LEVELS * 2, LINEAR_BINS + 1, 16):
        wanted = p[:stop].copy()
        wanted[-1] += p[stop:].sum()
        # Each level spreads its count evenly over those of its bins that are not empty.
        level = np.arange(stop) * LEVELS // stop
        used = p[:stop] > 0
        total = np.bincount(level, p[:stop], LEVELS)
        share = total / np.maximum(np.bincount(level, used, LEVELS), 1)
        found = np.where(used, share[level], 0.0)
        both = (wanted > 0) & (found > 0)
        lost = wanted[(wanted > 0) & ~both].sum()
        a, b = wanted[both] / wanted.sum(), found[both] / found.sum()
        divergence = (a * np.log(a / b)).sum() + lost / wanted.sum() * 10
        if divergence < best:
            best, chosen = divergence, stop
    return largest * chosen / LINEAR_BINS


def calibrate(
    network: Network, batches: Iterable[tuple[Inputs, Tensor | None]], histograms: set[str],
    context: int | None = None, *, hessians: Collection[str] = ()
) -> dict[str, Range]:
    """Ranges of every tensor; those named in ``histograms`` with a histogram, those named in
    ``hessians`` with the products of their channels.

    A rotated tensor counts at positions all over the context: a pair that turns slowly gets
    elsewhere than in the few hundred tokens of a calibration sequence. Raises `CalibrationError`
    for a tensor that is not finite.
    """
    ranges: dict[str, Range] = {}
    context = context or network.context
    for inputs, lengths in batches:
        values = network.run(inputs, lengths)
        within = inside(next(iter(values.values())), lengths)
        for op in network.ops:
            x = values[op.name][within]
            if not torch.isfinite(x).all():
                raise CalibrationError(f"The tensor {op.name!r} ({op.source}) is not finite in "
                                       f"calibration; check the model and its inputs")
            _add(ranges, op.name, x, op.name in histograms)
            if op.name in hessians:
                seen = ranges[op.name]
                # Products of one batch in float32: GPTQ adds a hundredth of their mean anyway.
                products = (x.T @ x).double().numpy()
                seen.products = products if seen.products is None else seen.products + products
            if isinstance(op, Rope):
                for offset in range(0, context, max(context // POSITIONS, 1)):
                    turned = replace(op, cos=op.cos[:context].roll(-offset, 0),
                                     sin=op.sin[:context].roll(-offset, 0))
                    _add(ranges, op.name, rotated(turned, values[op.x])[within],
                         op.name in histograms)
    return ranges


def inside(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Where a tensor [B, T, channels] holds tokens and not padding: bool [B, T]."""
    if lengths is None:
        return torch.ones(x.shape[:2], dtype=torch.bool)
    return torch.arange(x.shape[1]) < lengths[:, None]


def _add(ranges: dict[str, Range], name: str, values: Tensor, histogram: bool) -> None:
    """Adds the values [tokens, channels] of a tensor."""
    x = values.double().numpy()
    channels, bins = x.shape[1], BINS_PER_OCTAVE * OCTAVES
    if name not in ranges:
        counts = np.zeros((channels, bins), dtype=np.int64) if histogram else None
        ranges[name] = Range(np.full(channels, np.inf), np.full(channels, -np.inf),
                             np.zeros(channels), np.zeros(channels), counts)
    seen, magnitude = ranges[name], np.abs(x)
    np.minimum(seen.low, x.min(axis=0), out=seen.low)
    np.maximum(seen.high, x.max(axis=0), out=seen.high)
    seen.total += x.sum(axis=0)
    seen.squares += (x * x).sum(axis=0)
    seen.tokens += len(x)
    if seen.counts is not None:
        exponent = np.log2(np.maximum(magnitude, 2.0**LOWEST)) - LOWEST
        index = np.clip(exponent * BINS_PER_OCTAVE, 0, bins - 1).astype(np.int64)
        flat = (index + np.arange(channels) * bins).reshape(-1)
        seen.counts += np.bincount(flat, minlength=channels * bins).reshape(channels, bins)
