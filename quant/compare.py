"""How much an integer model differs from its float model: language models, sentence models."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from systolith.graph import Graph
from systolith.quant.calibrate import MASK
from systolith.quant.calibration_data import padded
from systolith.quant.network import TOKENS, Network
from systolith.quant.torch_model import IntegerModule

LogitsFn = Callable[[NDArray[np.int64]], NDArray]
"""Tokens int64 [B, T] to logits [B, T, vocabulary]: row t predicts token t + 1."""
TOGETHER = 8
"""Sequences of one batch."""


@dataclass(frozen=True)
class Quality:
    """An integer language model against its float model on the same tokens.

    float_perplexity, perplexity   of the two models; ``ratio`` is their quotient
    divergence                     mean Kullback-Leibler divergence of a prediction in nats; exp of
                                   it is the ratio that is expected on the float model's own text
    agreement                      part of the positions where both find the same token likeliest
    tokens                         number of predictions
    """

    float_perplexity: float
    perplexity: float
    divergence: float
    agreement: float
    tokens: int

    @property
    def ratio(self) -> float:
        return self.perplexity / self.float_perplexity

    def __str__(self) -> str:
        return (f"perplexity {self.perplexity:.4f}, float {self.float_perplexity:.4f}, ratio "
                f"{self.ratio:.4f}; divergence {self.divergence:.5f} nats; the same likeliest "
                f"token at {100 * self.agreement:.1f} % of {self.tokens} positions")


def network_logits(network: Network) -> LogitsFn:
    """Of a float network."""
    def logits(tokens: NDArray[np.int64]) -> NDArray:
        return network.results(network.run({TOKENS: torch.from_numpy(tokens)}))[0].numpy()
    return logits


def integer_logits(graph: Graph) -> LogitsFn:
    """Of an integer graph."""
    module = IntegerModule(graph)
    return lambda tokens: module(torch.from_numpy(tokens)).numpy()


def compare(
    floats: LogitsFn, integers: LogitsFn, sequences: Iterable[NDArray[np.int64]]
) -> Quality:
    """Predictions of every token but the first of each sequence, each int64 [T], T at least 2."""
    losses, divergences, same = [], [], []
    for tokens in _batches(sequences):
        p, q = (_log_softmax(f(tokens)[:, :-1]) for f in (floats, integers))
        following = tokens[:, 1:, None]
        losses.append([-np.take_along_axis(x, following, axis=2).ravel() for x in (p, q)])
        divergences.append((np.exp(p) * (p - q)).sum(axis=2).ravel())
        same.append((p.argmax(axis=2) == q.argmax(axis=2)).ravel())
    loss = np.concatenate(losses, axis=1).mean(axis=1)
    return Quality(
        float_perplexity=float(np.exp(loss[0])), perplexity=float(np.exp(loss[1])),
        divergence=float(np.concatenate(divergences).mean()),
        agreement=float(np.concatenate(same).mean()), tokens=sum(map(len, same)))


def _batches(sequences: Iterable[NDArray[np.int64]]) -> Iterable[NDArray[np.int64]]:
    """Neighbours of the same length together, [B, T]."""
    part: list[NDArray[np.int64]] = []
    for row in sequences:
        row = np.asarray(row, dtype=np.int64)
        if part and (len(part) == TOGETHER or len(row) != len(part[0])):
            yield np.stack(part)
            part = []
        part.append(row)
    if part:
        yield np.stack(part)


def _log_softmax(logits: NDArray) -> NDArray[np.float64]:
    logits = np.asarray(logits, dtype=np.float64)
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def cosines(
    network: Network, graph: Graph, sequences: list[NDArray[np.int64]]
) -> NDArray[np.float64]:
    """Cosine of the first output's vector between float network and integer graph, for each
    sequence of tokens int64 [T]; float64, sorted by the length of the sequences."""
    module, found = IntegerModule(graph), []
    for batch in padded(sequences):
        tokens, mask = torch.from_numpy(batch[TOKENS]), torch.from_numpy(batch[MASK])
        lengths = mask.sum(dim=1)
        exact = network.results(network.run({TOKENS: tokens}, lengths), lengths)[0]
        integer = module.results(module.trace({TOKENS: tokens}, lengths), lengths)[0]
        found.append(torch.nn.functional.cosine_similarity(exact.double(), integer, dim=-1))
    return torch.cat(found).numpy()
