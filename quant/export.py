"""From a checkpoint to a quantized-model file, and how much the integers differ from the floats."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from systolith.artifact import Artifact
from systolith.forward import IntegerModel
from systolith.graph import ArgMax
from systolith.quant.checkpoint import load_model
from systolith.quant.evaluate import float_logits
from systolith.quant.llama import KVCache, Llama
from systolith.quant.observe import trace
from systolith.quant.quantize import QuantizedModel, QuantizeError, Recipe, quantize
from systolith.quant.tokenizer import BOS, Tokenizer

CALIBRATION_SEQUENCES = 16
CALIBRATION_LENGTH = 256
CALIBRATION_SEED = 1000
"""Of the default calibration text."""
SMALL = 10_000_000
"""Parameters of a model below which a second thread gains nothing."""

Sequences = list[NDArray[np.int64]]


def quantize_checkpoint(
    path: str | Path,
    tokenizer: str | Path | Tokenizer | None = None,
    *,
    recipe: Recipe | None = None,
    text: str | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Artifact:
    """Loads a checkpoint (see `checkpoint.load_model`), calibrates and quantizes it.

    ``text`` is what the model is calibrated on; without it, text that the model itself writes with
    a fixed seed. ``progress`` is told what happens, one phrase at a time. The same checkpoint and
    arguments give the same artifact on the same machine.
    """
    progress("loading")
    model, vocabulary = load_model(path, tokenizer)
    with _few_threads(model):
        progress("calibrating")
        sequences = sampled_text(model) if text is None else given_text(model, vocabulary, text)
        progress("quantizing")
        quantized = quantize(model, sequences, recipe)
    return make_artifact(quantized, vocabulary, model, {
        "checkpoint": "bundled" if str(path) == "bundled" else Path(path).name,
        "calibration": "sampled from the model" if text is None else "given text",
        "calibration_tokens": sum(map(len, sequences)),
    })


@contextmanager
def _few_threads(model: Llama) -> Iterator[None]:
    """One thread for a small model: on a busy machine its threads would wait for each other, and
    calibration would take minutes instead of seconds."""
    threads = torch.get_num_threads()
    if sum(weight.numel() for weight in model.parameters()) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def make_artifact(
    quantized: QuantizedModel, tokenizer: Tokenizer, model: Llama, metadata: dict | None = None
) -> Artifact:
    """The artifact of a quantized model; its metadata names the recipe and the float weights."""
    facts = {"recipe": asdict(quantized.recipe), "source_sha256": model_hash(model)}
    return Artifact(quantized.graph, tokenizer.to_bytes(), facts | (metadata or {}))


def model_hash(model: Llama) -> str:
    """sha256 of a float model's configuration and weights."""
    digest = hashlib.sha256(repr(model.config).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.numpy().astype("<f4").tobytes())
    return digest.hexdigest()


@torch.no_grad()
def sampled_text(
    model: Llama, count: int = CALIBRATION_SEQUENCES, seed: int = CALIBRATION_SEED
) -> Sequences:
    """``count`` texts that the model writes: they need no data, and suit every language model.

    Unlike in `evaluate.sample`, all sequences grow together.
    """
    rng = np.random.default_rng(seed)
    cache = KVCache()
    tokens = np.full((count, 1), BOS, dtype=np.int64)
    while tokens.shape[1] < min(CALIBRATION_LENGTH, model.config.max_seq_len):
        logits = model(torch.from_numpy(tokens[:, -1:]), cache)[:, -1].double()
        cumulative = logits.softmax(dim=1).cumsum(dim=1).numpy()
        drawn = rng.random((count, 1)) * cumulative[:, -1:]
        following = np.minimum((cumulative <= drawn).sum(axis=1), cumulative.shape[1] - 1)
        tokens = np.column_stack((tokens, following))
    return list(tokens)


def given_text(model: Llama, tokenizer: Tokenizer, text: str) -> Sequences:
    """A text in sequences that each begin with BOS; raises ``QuantizeError`` if it is empty."""
    tokens = tokenizer.encode(text, bos=False)
    if not tokens:
        raise QuantizeError("The calibration text is empty")
    length = max(min(CALIBRATION_LENGTH, model.config.max_seq_len) - 1, 1)
    return [np.array([BOS, *tokens[at:at + length]], dtype=np.int64)
            for at in range(0, len(tokens), length)]


# How much the integers differ ----------------------------------------------------------------


@dataclass(frozen=True)
class TensorError:
    """One tensor of a graph against the float reference.

    sqnr        signal to quantization noise in dB, over all tokens and channels
    peak        largest magnitude, as a part of the full range
    saturated   part of the values at an end of the range
    """

    name: str
    bits: int
    sqnr: float
    peak: float
    saturated: float


def tensor_errors(
    quantized: QuantizedModel, sequences: Iterable[NDArray[np.int64]]
) -> list[TensorError]:
    """The error of every tensor, in the graph's order, over sequences of tokens, each int64 [T].

    Errors accumulate along the graph: a tensor's includes those of all before it.
    """
    graph = quantized.graph
    integers = IntegerModel(graph)
    names = [node.out for node in graph.nodes if not isinstance(node, ArgMax)]
    # Per tensor: signal energy, noise energy, largest magnitude, saturated values, all values.
    sums = {name: np.zeros(5) for name in names}
    for tokens in sequences:
        integers.reset()
        values, floats = integers.trace(tokens), trace(quantized.reference, tokens)
        for name in names:
            x, real = values[name], floats[name].double().numpy()
            noise = x * np.array(graph.tensors[name].scale) - real
            full = 1 << (graph.tensors[name].bits - 1)
            ends = ((x == -full) | (x == full - 1)).sum()
            total = sums[name]
            total += (real**2).sum(), (noise**2).sum(), 0, ends, x.size
            total[2] = max(total[2], np.abs(x).max() / full)
    return [TensorError(name, graph.tensors[name].bits, _decibel(s / n if n else math.inf),
                        float(peak), float(ends / count))
            for name, (s, n, peak, ends, count) in sums.items()]


def _decibel(ratio: float) -> float:
    return 10 * math.log10(ratio) if ratio > 0 else -math.inf


def report(errors: Iterable[TensorError]) -> str:
    """A table of tensor errors, one line each."""
    lines = [f"{'tensor':32} bits  SQNR dB  peak %  saturated %"]
    lines += [f"{e.name:32} {e.bits:4} {e.sqnr:8.1f} {100 * e.peak:7.1f} {100 * e.saturated:12.4f}"
              for e in errors]
    return "\n".join(lines)


@dataclass(frozen=True)
class Quality:
    """An integer model against its float model on the same tokens.

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


def compare(
    model: Llama, integers: IntegerModel, sequences: Iterable[NDArray[np.int64]]
) -> Quality:
    """Predictions of every token but the first of each sequence, each int64 [T], T at least 2."""
    floats = float_logits(model)
    losses, divergences, same = [], [], []
    for tokens in sequences:
        tokens = np.asarray(tokens, dtype=np.int64)
        p, q = (_log_softmax(f(tokens)[:-1]) for f in (floats, integers.logits))
        row = np.arange(len(p))
        losses.append([-p[row, tokens[1:]], -q[row, tokens[1:]]])
        divergences.append((np.exp(p) * (p - q)).sum(axis=1))
        same.append(p.argmax(axis=1) == q.argmax(axis=1))
    loss = np.concatenate(losses, axis=1).mean(axis=1)
    return Quality(
        float_perplexity=float(np.exp(loss[0])), perplexity=float(np.exp(loss[1])),
        divergence=float(np.concatenate(divergences).mean()),
        agreement=float(np.concatenate(same).mean()), tokens=sum(map(len, same)))


def _log_softmax(logits: NDArray) -> NDArray[np.float64]:
    logits = np.asarray(logits, dtype=np.float64)
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
