"""Which known function a formula is: found by what it computes, not by how it is written."""

from dataclasses import dataclass

import torch
from torch import Tensor

from systolith.quant.capture_values import Formula, Mix, Place, counted, labels_of
from systolith.quant.network import FUNCTIONS

SCALAR = frozenset((
    "add", "sub", "rsub", "mul", "div", "neg", "pow", "square", "sqrt", "rsqrt", "exp",
    "reciprocal", "relu", "gelu", "silu", "sigmoid", "tanh", "erf", "abs", "clamp", "clamp_min",
    "clamp_max", "softplus", "log", "log1p", "expm1", "sin", "cos", "elu", "leaky_relu",
    "hardtanh", "relu6", "hardswish", "hardsigmoid", "mish", "selu", "celu", "log_sigmoid",
    "softsign",
))  # fmt: skip
"""Operators that compute each element from the same element."""
REDUCING = frozenset(("mean", "sum", "var", "std", "linalg_vector_norm", "norm", "var_mean"))
"""Operators over the last dimension that formulas may contain."""
TOLERANCE = 1e-6


def scalar_function(formula: Formula) -> tuple[str, float] | None:
    """A function of `FUNCTIONS` and 1, or "" and a number that the argument is multiplied by."""
    if any(f.kind not in SCALAR or f.tables() for f in formula.formulas()):
        return None
    x = torch.linspace(-12, 12, 2401, dtype=torch.float64)
    y = formula.evaluate(x)
    for name, function in FUNCTIONS.items():
        if torch.allclose(y, function.torch(x), rtol=0, atol=TOLERANCE):
            return name, 1.0
    factor = float(y[-1] / x[-1])
    return ("", factor) if torch.allclose(y, x * factor, rtol=0, atol=TOLERANCE) else None


@dataclass(frozen=True)
class Normalization:
    """LayerNorm (``center``) or RMSNorm with an eps and a gain [C]."""

    center: bool
    eps: float
    gain: Tensor


def _probe(shape: tuple[int, ...]) -> Tensor:
    """Rows of very different size (so that eps shows) and mean; reproducible."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=random, dtype=torch.float64)
    size = torch.rand((*shape[:-1], 1), generator=random, dtype=torch.float64) * 6 - 5
    return (x + torch.randn((*shape[:-1], 1), generator=random, dtype=torch.float64)) * 10 ** size


def normalization(formula: Formula) -> Normalization | None:
    """The norm over the last dimension that the formula is."""
    x = _probe(formula.base.shape)
    y = formula.evaluate(x)
    centered = x - x.mean(-1, keepdim=True)
    # The norm of a multiple of the base is one of the base, with another eps.
    sizes = {a.factor for f in formula.formulas() for a in f.args if isinstance(a, Mix)} | {1.0}
    numbers = (n / size ** 2 for n in formula.numbers() for size in sizes)
    for eps in dict.fromkeys((*numbers, 0.0)):
        for center, z in ((False, x), (True, centered)):
            if eps < 0:
                continue
            expected = z * (z.square().mean(-1, keepdim=True) + eps).rsqrt()
            over = tuple(range(x.dim() - 1))
            gain = (y * expected).sum(over) / expected.square().sum(over)
            if torch.allclose(y, expected * gain, rtol=TOLERANCE, atol=TOLERANCE):
                # An eps of 0 would make a row of zeros no number at all.
                return Normalization(center, eps or 1e-24, gain.float())
    return None


def unit_length(formula: Formula) -> bool:
    """Whether the formula divides the last dimension by its L2 norm."""
    if formula.shape != formula.base.shape:
        return False
    x = _probe(formula.base.shape)
    expected = x / x.norm(dim=-1, keepdim=True)
    return torch.allclose(formula.evaluate(x), expected, rtol=TOLERANCE, atol=TOLERANCE)


def causality(visible: Tensor | None) -> bool | None:
    """Of what queries see [..., T, T]: all (False), the past and themselves (True), else None."""
    if visible is None or bool(visible.all()):
        return False
    return True if torch.equal(visible, torch.ones_like(visible).tril()) else None


MASKED = -1000.0
"""What is added to hidden scores is at most this: e**-1000 is nothing."""


def visible(bias: Tensor) -> Tensor | None:
    """What a constant that is added to scores leaves visible; None if it is more than a mask."""
    hidden = bias <= MASKED
    return ~hidden if bool((hidden | (bias == 0)).all()) else None


@dataclass(frozen=True)
class Rotation:
    """Rotary positions: tables [T, head_dim / 2], and which rotated channels a value shows."""

    cos: Tensor
    sin: Tensor
    head_dim: int
    pairs: str
    labels: Tensor
    factor: float


def rotation(value: Mix, channels: int, length: int, place: Place) -> Rotation:
    """The rotation that a sum of two terms of one tensor is.

    At position 0 nothing is turned, so there the term that counts is the element's own.
    """
    wrong = place.error("Elements of one tensor are combined with constant factors in a way that "
                        "is no rotation of pairs by the position")
    if len(value.terms) != 2 or length < 2:
        raise wrong
    labels = [labels_of(term, value.shape) for term in value.terms]
    factors = [torch.as_tensor(term.factor, dtype=torch.float32).expand(value.shape)
               for term in value.terms]
    token = [label.div(channels, rounding_mode="floor") for label in labels]
    if not torch.equal(*token):
        raise wrong
    position = token[0] % length
    order = counted(length)
    dim = next((d for d, n in enumerate(value.shape) if n == length and torch.equal(
        position, order.view([-1 if i == d else 1 for i in range(position.dim())])
        .expand(value.shape))), None)
    if dim is None:
        raise wrong
    own = factors[0].abs() > factors[1].abs()
    own = own.select(dim, 0).unsqueeze(dim).expand(value.shape)
    mine, other = (torch.where(own, *pair) for pair in
                   (labels, labels[::-1]))
    along, across = (torch.where(own, *pair) for pair in (factors, factors[::-1]))
    channel, partner = mine % channels, other % channels
    size = float(along.select(dim, 0).flatten()[0])
    low = channel < partner
    distance = (channel - partner).abs()
    apart = int(distance.flatten()[0])
    across = torch.where(low, -across, across) / size
    along = along / size
    if not (distance == apart).all() or apart == 0 or not size > 0:
        raise wrong
    spread = int(mine.select(dim, 0).flatten(0, -2)[0].max() % channels
                 - mine.select(dim, 0).flatten(0, -2)[0].min() % channels) + 1
    if apart == 1:
        pairs = "adjacent"
        head_dim = spread
        pair = channel % head_dim // 2
        right = torch.minimum(channel, partner) % 2 == 0
    else:
        pairs, head_dim = "halves", 2 * apart
        pair = channel % apart
        right = torch.minimum(channel, partner) % head_dim < apart
    if not right.all() or head_dim % 2 or channels % head_dim:
        raise wrong
    cos = torch.zeros(length, head_dim // 2)
    sin = torch.zeros(length, head_dim // 2)
    cos[position.flatten(), pair.flatten()] = along.flatten()
    sin[position.flatten(), pair.flatten()] = across.flatten()
    same = (torch.allclose(cos[position, pair], along, atol=1e-6)
            and torch.allclose(sin[position, pair], across, atol=1e-6)
            and torch.allclose(cos.square() + sin.square(), torch.tensor(1.0), atol=1e-4))
    if not same:
        raise wrong
    return Rotation(cos, sin, head_dim, pairs, mine, size)
