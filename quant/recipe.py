"""How to quantize: the choices that a user makes, in one frozen and serialisable place."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from systolith.errors import UserError
from systolith.quant.budget import Budget

METHODS = ("minmax", "percentile", "mse", "entropy")


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
                      finds. Keys of 12 bits cost a second product for the scores. (Values have 8.)
    range             of 8-bit tensors: see `calibrate.Range.clip`
    percentile        part of the values, in percent, that "percentile" does not saturate
    headroom          16-bit tensors can hold this multiple of the largest magnitude seen
    smoothing         0: none; else the part of a channel's outlier that moves to the weights
    clip_weights      weight ranges of the least error instead of the largest weight
    bias_correction   the mean error that rounded weights cause is taken out of the bias
    context           longest sequence of the integer model; None for that of the float network
    """

    budget: str = ""
    bits: tuple[tuple[str, int], ...] = ()
    keys: tuple[tuple[str, int], ...] = ()
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

        if self.budget:
            Budget.parse(self.budget)
        good = all(isinstance(p, str) and b in (8, 16) for p, b in self.bits)
        check("bits", good, "pairs of a pattern and 8 or 16")
        good = all(isinstance(p, str) and b in (8, 12) for p, b in self.keys)
        check("keys", good, "pairs of a pattern and 8 or 12")
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
        return _last_match(self.keys, name, 12)


    def pinned(self, name: str, *, key: bool = False) -> bool:
        """Whether a pattern says how many bits a tensor or a key has, so that no search may."""
        patterns = self.keys if key else self.bits
        return any(fnmatchcase(name, pattern) for pattern, _ in patterns)


def _last_match(patterns: tuple[tuple[str, int], ...], name: str, otherwise: int) -> int:
    chosen = otherwise
    for pattern, value in patterns:
        if fnmatchcase(name, pattern):
            chosen = value
    return chosen
