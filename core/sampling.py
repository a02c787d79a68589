"""How a token is chosen from logits: the most likely one, or one at random by its probability.

    sampler = Sampler(temperature=0.8, top_p=0.9, seed=1)
    token = sampler.choose(logits, scale, position=17)

The choice at a position depends on the logits, the settings and the position alone, so whoever has
the same logits writes the same text: integer forward, golden machine and RTL.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from systolith import golden
from systolith.errors import UserError


class SamplingError(UserError):
    """Settings that no token can be chosen by."""


@dataclass(frozen=True)
class Sampler:
    """Chooses tokens.

    ``temperature``: divides the logits; 0 takes the first of the largest, as the device does.
    ``top_k``: only so many of the most likely tokens take part; 0: all. ``top_p``: of these only
    the fewest most likely whose probabilities add up to at least ``top_p``; 1: all. Of equally
    likely tokens the first come first. ``seed``: of the random numbers, at least 0. Raises
    ``SamplingError`` for values outside these ranges.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise SamplingError(f"The temperature must be 0 or above, not {self.temperature}")
        if self.top_k < 0:
            raise SamplingError(
                f"top_k must be at least 1, or 0 for all tokens, not {self.top_k}"
            )
        if not 0 < self.top_p <= 1:
            raise SamplingError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.seed < 0:
            raise SamplingError(f"The seed must be 0 or above, not {self.seed}")

    @property
    def greedy(self) -> bool:
        """Whether no chance is involved."""
        return self.temperature == 0

    def choose(self, logits: ArrayLike, scale: float, position: int) -> int:
        """The token at ``position`` of a text.

        ``logits``: (vocabulary,) integers, ``scale`` their unit.
        """
        logits = np.asarray(logits, dtype=np.int64)
        if self.greedy:
            return int(golden.argmax(logits))
        tokens, probabilities = self.distribution(logits, scale)
        edges = np.cumsum(probabilities)
        random = np.random.default_rng((self.seed, position)).random() * edges[-1]
        return int(tokens[min(np.searchsorted(edges, random, side="right"), len(tokens) - 1)])

    def distribution(
        self, logits: ArrayLike, scale: float
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The tokens that take part, the most likely first, and their probabilities.

        Raises ``SamplingError`` at temperature 0, where there are none.
        """
        if self.greedy:
            raise SamplingError("There are no probabilities at temperature 0")
        logits = np.asarray(logits, dtype=np.int64)
        tokens = np.argsort(-logits, kind="stable")[: self.top_k or None]
        above = (logits[tokens] - logits[tokens[0]]) * (scale / self.temperature)
        probabilities = np.exp(above)
        probabilities /= probabilities.sum()
        if self.top_p < 1:
            count = int(np.searchsorted(np.cumsum(probabilities), self.top_p)) + 1
            tokens, probabilities = tokens[:count], probabilities[:count]
            probabilities = probabilities / probabilities.sum()
        return tokens, probabilities


GREEDY = Sampler()
