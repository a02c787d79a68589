"""How to quantize: the choices that a user makes, in one frozen and serialisable place."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from systolith.errors import UserError
from systolith.weights import GROUPS

METHODS = ("minmax", "percentile", "mse", "entropy")
ROUNDINGS = ("nearest", "gptq")


class RecipeError(UserError):
    """A recipe that means nothing, or does not fit its network."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to quantize.

    bits              pairs of a pattern of tensor names and 8 or 16, the last match counts; what
                      no pattern matches has 16. Names are those of the network's tensors that a
                      matrix product reads, but keys and values.
    keys              the same for keys, 8 or 12; what no pattern matches has 8. Keys of 12 bits
                      cost a second product for the scores. (Values always have 8.)
    weights           pairs of a pattern of names of Linear operations and 8 or 4, the last match
                      counts; what no pattern matches has 8
    group             input channels that share a scale where weights have 4 bits: 32, 64 or 128
    rounding          of weights: "nearest", or "gptq", by which later ones make up for the errors
                      of earlier ones
    probability_bits  bits of the attention probabilities, 8 or 16
    range             of 8-bit tensors: see `calibrate.Range.clip`
    percentile        part of the values, in percent, that "percentile" does not saturate
    headroom          16-bit tensors can hold this multiple of the largest magnitude seen
    smoothing         0: none; else the part of a channel's outlier that moves to the weights
    clip_weights      weight ranges of the least error instead of the largest weight
    bias_correction   the mean error that rounded weights cause is taken out of the bias
    context           longest sequence of the integer model; None for that of the float network
    """

    bits: tuple[tuple[str, int], ...] = ()
    keys: tuple[tuple[str, int], ...] = ()
    weights: tuple[tuple[str, int], ...] = ()
    group: int = 64
    rounding: str = "gptq"
    probability_bits: int = 16
    range: str = "percentile"
    percentile: float = 99.99
    headroom: float = 2.0
    smoothing: float = 0.0
    clip_weights: bool = True
    bias_correction: bool = True
    context: int | None = None

    def __post_init__(self) -> None:
        def check(name: str, good: bool, rule: str) -> None:
            if not good:
                raise RecipeError(f"{name} must be {rule}, not {getattr(self, name)!r}")

        good = all(isinstance(p, str) and b in (8, 16) for p, b in self.bits)
        check("bits", good, "pairs of a pattern and 8 or 16")
        good = all(isinstance(p, str) and b in (8, 12) for p, b in self.keys)
        check("keys", good, "pairs of a pattern and 8 or 12")
        good = all(isinstance(p, str) and b in (4, 8) for p, b in self.weights)
        check("weights", good, "pairs of a pattern and 8 or 4")
        check("group", self.group in GROUPS, f"one of {', '.join(map(str, GROUPS))}")
        check("rounding", self.rounding in ROUNDINGS, f"one of {', '.join(ROUNDINGS)}")
        check("probability_bits", self.probability_bits in (8, 16), "8 or 16")
        check("range", self.range in METHODS, f"one of {', '.join(METHODS)}")
        check("percentile", 50 <= self.percentile <= 100, "from 50 to 100")
        check("headroom", 1 <= self.headroom <= 64, "from 1 to 64")
        check("smoothing", 0 <= self.smoothing <= 1, "from 0 to 1")
        good = self.context is None or (type(self.context) is int and self.context > 0)
        check("context", good, "a positive integer")

    def activation_bits(self, name: str) -> int:
        """Bits of the tensor ``name`` where a matrix product reads it."""
        return _last_match(self.bits, name, 16)

    def key_bits(self, name: str) -> int:
        """Bits of the key ``name``."""
        return _last_match(self.keys, name, 8)

    def weight_bits(self, name: str) -> int:
        """Bits in which the weights of the Linear ``name`` are stored."""
        return _last_match(self.weights, name, 8)


def _last_match(patterns: tuple[tuple[str, int], ...], name: str, otherwise: int) -> int:
    chosen = otherwise
    for pattern, value in patterns:
        if fnmatchcase(name, pattern):
            chosen = value
    return chosen
