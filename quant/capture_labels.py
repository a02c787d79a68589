"""Arithmetic with labels: what elements of which tokens and channels a value shows."""

import torch
from torch import Tensor

from systolith.quant.capture_values import Mix, Term, labels_of


def unit(value: Mix) -> Mix:
    """The same elements with the factor one."""
    if value.plain:
        return Mix(value.shape, [Term(value.x, value.terms[0].labels)])
    return value


def expanded(value: Mix, shape: tuple[int, ...]) -> Mix:
    """Broadcast to a shape."""
    shape = tuple(shape)
    if value.shape == shape:
        return value
    terms = [Term(t.x, labels_of(t, value.shape).expand(shape),
                  t.factor.expand(shape) if isinstance(t.factor, Tensor) else t.factor)
             for t in value.terms]
    return Mix(shape, terms)


def channels_of(labels: Tensor, channels: int) -> Tensor:
    """Which channels occur in labels, bool [channels]."""
    used = torch.zeros(channels, dtype=torch.bool)
    rows = alike(labels, channels)
    if rows is None:
        used[labels.flatten() % channels] = True
    else:
        start, offset = rows
        first = torch.zeros(channels, dtype=torch.bool)
        first[start.flatten() % channels] = True
        used[(first.nonzero() + offset).flatten()] = True
    return used


def renumbered(labels: Tensor, channels: int, new: Tensor, count: int) -> Tensor:
    """The labels for a tensor of ``count`` channels, of which ``new`` [channels] has the numbers.
    """
    rows = alike(labels, channels)
    if rows is not None:
        start, offset = rows
        token, channel = start.div(channels, rounding_mode="floor"), start % channels
        moved = new[channel.flatten().unique()[:, None] + offset]                   # [starts, K]
        moved = moved - moved[:, :1]
        if (moved == moved[0]).all():
            return (token * count + new[channel])[..., None] + moved[0]
    return labels.div(channels, rounding_mode="floor") * count + new[labels % channels]


def alike(labels: Tensor, channels: int) -> tuple[Tensor, Tensor] | None:
    """``start`` [...] and ``offset`` [K] of which labels [..., K] are the sum, each row within a
    token; None where they are not. Spares most of the arithmetic with labels."""
    if labels.dim() == 0:
        return None
    start = labels[..., 0]
    offset = labels[(0,) * (labels.dim() - 1)]
    offset = offset - offset[0]
    lowest = start % channels
    if lowest.min() + offset.min() < 0 or lowest.max() + offset.max() >= channels:
        return None
    return (start, offset) if torch.equal(labels, start[..., None] + offset) else None


def equal(a: Mix, b: Mix) -> bool:
    """Whether two values have the same tokens and channels, of whatever tensors."""
    if a.terms[0].labels is None and b.terms[0].labels is None:
        return True
    return torch.equal(a.labels, b.labels)
