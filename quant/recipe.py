"""How to quantize: the choices that a user makes, in one frozen and serialisable place."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from systolith.errors import UserError
from systolith.quant.budget import Budget
from systolith.weights import GROUPS

METHODS = ("minmax", "percentile", "mse", "entropy")
ROUNDINGS = ("nearest", "gptq")


class RecipeError(UserError):
    """A recipe that means nothing, or does not fit its network."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to quantize.

    budget            the accuracy that a search for 8-bit tensors must keep, such as "cosine=0.999"
                      or "ppl=1.005" (see `budget.Budget`); "" for no search
    bits              pairs of a pattern of names and 8 or 16, the last match counts; what no
                      pattern matches has 16, or what the search finds. Names are those of the
                      tensors that a matrix product streams: the inputs of Linears, queries, and
                      an attention's name with ".probabilities".
    keys              the same for keys, 8 or 12; what no pattern matches has 12, or what the search
                      finds. Keys of 12 bits cost a second product for the scores.
    values            the same for values, 8 or 16; what no pattern matches has 16, or what the
                      search finds. Values of 16 bits cost half as much again for probabilities
                      times values, and need probabilities of 16 bits: with 8, values have 8.
    weights           pairs of a pattern of names of Linear operations and 8 or 4, the last match
                      counts; what no pattern matches has 8
    group             input channels that share a scale where weights have 4 bits: 32, 64 or 128
    rounding          of weights: "nearest", or "gptq", by which later ones make up for the errors
                      of earlier ones
    range             of 8-bit tensors but keys and values: see `calibrate.Range.clip`
    percentile        part of the values, in percent, that "percentile" does not saturate
    margin            8-bit tensors can hold this multiple of their range; keys and values, whatever
                      their bits, this multiple of the largest magnitude seen
    headroom          16-bit tensors can hold this multiple of the largest magnitude seen
    centering         ranges of channels are moved to lie around zero, and biases make up for it
    smoothing         0: none; else the part of a channel's outlier that moves to the weights
    clip_weights      weight ranges of the least error instead of the largest weight
    bias_correction   the mean error that rounded weights cause is taken out of the bias
    context           longest sequence of the integer model; None for that of the float network
    """

    budget: str = ""
    bits: tuple[tuple[str, int], ...] = ()
    keys: tuple[tuple[str, int], ...] = ()
    values: tuple[tuple[str, int], ...] = ()
    weights: tuple[tuple[str, int], ...] = ()
    group: int = 64
    rounding: str = "gptq"
    range: str = "minmax"
    percentile: float = 99.99
    margin: float = 1.1
    headroom: float = 2.0
    centering: bool = True
    smoothing: float = 0.5
    clip_weights: bool = True
    bias_correction: bool = True
    context: int | None = None

    def __post_init__(self) -> None:
        def check(name: str, good: bool, rule: str) -> None:
            if not good:
                raise RecipeError(f"{name} must be {rule}, not {getattr(self, name)!r}")

        if self.budget:
            Budget.parse(self.budget)
        good = all(isinstance(p, str) and b in (8, 16) for p, b in self.bits)
        check("bits", good, "pairs of a pattern and 8 or 16")
        good = all(isinstance(p, str) and b in (8, 12) for p, b in self.keys)
        check("keys", good, "pairs of a pattern and 8 or 12")
        good = all(isinstance(p, str) and b in (8, 16) for p, b in self.values)
        check("values", good, "pairs of a pattern and 8 or 16")
        good = all(isinstance(p, str) and b in (4, 8) for p, b in self.weights)
        check("weights", good, "pairs of a pattern and 8 or 4")
        check("group", self.group in GROUPS, f"one of {', '.join(map(str, GROUPS))}")
        check("rounding", self.rounding in ROUNDINGS, f"one of {', '.join(ROUNDINGS)}")
        check("range", self.range in METHODS, f"one of {', '.join(METHODS)}")
        check("percentile", 50 <= self.percentile <= 100, "from 50 to 100")
        check("margin", 1 <= self.margin <= 64, "from 1 to 64")
        check("headroom", 1 <= self.headroom <= 64, "from 1 to 64")
        check("smoothing", 0 <= self.smoothing <= 1, "from 0 to 1")
        good = self.context is None or (type(self.context) is int and self.context > 0)
        check("context", good, "a positive integer")

    def activation_bits(self, name: str) -> int:
        """Bits of the tensor ``name`` where a matrix product reads it."""
        return _last_match(self.bits, name, 16)

    def key_bits(self, name: str) -> int:
        """Bits of the key ``name``."""
        return _last_match(self.keys, name, 12)

    def value_bits(self, name: str) -> int:
        """Bits of the value ``name``."""
        return _last_match(self.values, name, 16)

    def pinned(self, kind: str, name: str) -> bool:
        """Whether a pattern of ``bits``, ``keys`` or ``values`` has the name: no search changes it.
        """
        return any(fnmatchcase(name, pattern) for pattern, _ in getattr(self, kind))

    def weight_bits(self, name: str) -> int:
        """Bits in which the weights of the Linear ``name`` are stored."""
        return _last_match(self.weights, name, 8)


def _last_match(patterns: tuple[tuple[str, int], ...], name: str, otherwise: int) -> int:
    chosen = otherwise
    for pattern, value in patterns:
        if fnmatchcase(name, pattern):
            chosen = value
    return chosen
