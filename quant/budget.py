"""How far integers may be from floats, and how far they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from systolith.errors import UserError

METRICS = ("cosine", "ppl")
TAIL = 16
"""The worst sequences are one in so many: their mean is less a matter of chance than the worst."""
WORST = 3.0
"""They may have this multiple of the mean error that a cosine budget allows."""


class BudgetError(UserError):
    """A budget that means nothing, or that no choice of bits keeps."""


@dataclass(frozen=True)
class Error:
    """Over the sequences, ``mean`` of all and ``worst``, of the worst sixteenth.

    Nats of divergence, or 1 - cosine.
    """

    mean: float
    worst: float


@dataclass(frozen=True)
class Budget:
    """The least accuracy of an integer model against its float model.

    metric  "cosine": of the outputs; of the vector itself, where an output is pooled, otherwise
            the mean over the tokens of a sequence. "ppl": how much larger the perplexity on the
            float model's own text is expected to be, exp of the mean Kullback-Leibler divergence of
            its predictions; for language models.
    limit   the least mean cosine, below 1, or the largest ratio of perplexities, above 1. With a
            cosine of 1 - e, the mean of the worst sixteenth must be 1 - 3 e at least.
    """

    metric: str
    limit: float

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise BudgetError(f"A budget is one of {', '.join(METRICS)}, not {self.metric!r}")
        if self.metric == "cosine" and not 0 < self.limit < 1:
            raise BudgetError(f"A cosine budget must be between 0 and 1, not {self.limit}")
        if self.metric == "ppl" and not 1 < self.limit < math.inf:
            raise BudgetError(f"A perplexity budget is a ratio above 1, not {self.limit}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "cosine=0.999" or "ppl=1.005"."""
        metric, _, limit = text.partition("=")
        try:
            return cls(metric.strip(), float(limit))
        except ValueError:
            raise BudgetError(f"A budget is cosine=NUMBER or ppl=NUMBER, not {text!r}") from None

    def error(self, exact: Sequence[Sequence[Tensor]], found: Sequence[Sequence[Tensor]],
              lengths: Sequence[Tensor | None]) -> Error:
        """Of outputs, batch by batch: each [B, T, C], or [B, C] where pooled."""
        errors, weights = [], []
        for before, after, count in zip(exact, found, lengths, strict=True):
            parts = [self._errors(a, b, count) for a, b in zip(before, after, strict=True)]
            errors.append(torch.stack(parts).mean(dim=0))
            # Every prediction counts alike, and every sentence.
            tokens = before[0].shape[1] if before[0].dim() == 3 and self.metric == "ppl" else 1
            weights.append(torch.full((len(parts[0]),), float(tokens))
                           if count is None or self.metric != "ppl" else count.double())
        error, weight = torch.cat(errors), torch.cat(weights)
        worst = error.topk(max(len(error) // TAIL, 1)).values.mean()
        return Error(float((error * weight).sum() / weight.sum()), float(worst))

    def _errors(self, exact: Tensor, found: Tensor, lengths: Tensor | None) -> Tensor:
        """Of one output, for each sequence: float64 [B]."""
        a, b = exact.double(), found.double()
        if self.metric == "ppl":
            p, q = a.log_softmax(-1), b.log_softmax(-1)
            error = (p.exp() * (p - q)).sum(-1)                                       # [B, T]
        else:
            error = 1 - torch.nn.functional.cosine_similarity(a, b, dim=-1)     # [B, T] or [B]
        if error.dim() == 1:
            return error
        if lengths is None:
            return error.mean(dim=1)
        inside = torch.arange(error.shape[1]) < lengths[:, None]
        return (error * inside).sum(dim=1) / lengths.clamp(min=1)

    def kept(self, error: Error) -> bool:
        """Whether an error is within the budget."""
        if self.metric == "ppl":
            return error.mean <= math.log(self.limit)
        return error.mean <= 1 - self.limit and error.worst <= WORST * (1 - self.limit)

    def shown(self, error: Error) -> str:
        """An error in the words of the budget."""
        if self.metric == "ppl":
            return f"perplexity ratio {math.exp(error.mean):.5f}"
        return f"mean cosine {1 - error.mean:.5f}, worst sixteenth {1 - error.worst:.5f}"
