"""Measures a language model: its text, and how well it predicts the text of others.

The float model and the integer one are measured by the same functions: whatever maps tokens to
logits will do.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from systolith.quant.checkpoint import BUNDLED
from systolith.quant.llama import KVCache, Llama
from systolith.quant.tokenizer import BOS

LogitsFn = Callable[[np.ndarray], np.ndarray]
"""Tokens int64 [T] to logits [T, vocab_size]: row t predicts token t + 1."""


def float_logits(model: Llama) -> LogitsFn:
    """The float model as a function of one sequence."""
    @torch.no_grad()
    def logits(tokens: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(np.asarray(tokens, dtype=np.int64))[None])[0].numpy()
    return logits


@torch.no_grad()
def sample(model: Llama, n_tokens: int, seed: int, temperature: float = 1.0) -> np.ndarray:
    """n_tokens tokens, int64, of which BOS is the first and the model draws the others.

    Temperature 0 takes the most likely token each time, and the seed then means nothing. The
    draws come from numpy's generator: the same seed gives the same text wherever the logits are
    the same. A BOS that the model draws, which ends its text, does not end the sequence. More
    tokens than the model has positions raise ValueError.
    """
    if not 1 <= n_tokens <= model.config.max_seq_len:
        raise ValueError(f"Number of tokens must be 1 to {model.config.max_seq_len}, "
                         f"not {n_tokens}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"Temperature must be at least 0, not {temperature}")
    rng = np.random.default_rng(seed)
    cache = KVCache()
    tokens = [BOS]
    while len(tokens) < n_tokens:
        logits = model(torch.tensor([tokens[-1:]]), cache)[0, -1].double().numpy()
        if temperature == 0:
            tokens.append(int(logits.argmax()))
            continue
        weight = np.exp((logits - logits.max()) / temperature)
        cumulative = weight.cumsum()
        drawn = int(cumulative.searchsorted(rng.random() * cumulative[-1], side="right"))
        tokens.append(min(drawn, len(logits) - 1))  # the product may round up to the whole
    return np.array(tokens, dtype=np.int64)


def perplexity(logits_fn: LogitsFn, tokens: np.ndarray) -> float:
    """exp of the mean negative log likelihood of every token but the first of each sequence.

    tokens: integers [T] or [N, T]. The sequences are independent; log-softmax is in float64.
    """
    rows = np.atleast_2d(np.asarray(tokens, dtype=np.int64))
    if rows.ndim != 2 or rows.shape[0] < 1 or rows.shape[1] < 2:
        raise ValueError(f"Tokens must have the shape [T] or [N, T] with T at least 2, "
                         f"not {list(np.shape(tokens))}")
    total = 0.0
    for row in rows:
        logits = np.asarray(logits_fn(row), dtype=np.float64)[:-1]
        top = logits.max(axis=-1, keepdims=True)
        normaliser = np.log(np.exp(logits - top).sum(axis=-1)) + top[:, 0]
        total += (normaliser - logits[np.arange(len(logits)), row[1:]]).sum()
    return math.exp(total / (rows.size - len(rows)))


def held_out_tokens() -> np.ndarray:
    """Text that the bundled model has not seen: int64 [N, 256], each row begins with BOS.

    Stored as tokens, because the text itself differs between versions of Python.
    """
    return np.load(BUNDLED / "held_out.npy").astype(np.int64)
