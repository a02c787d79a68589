"""What a checkpoint is calibrated on: a file of the user's, sentences, or the model's own text."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from systolith.quant.calibrate import MASK, CalibrationError
from systolith.quant.checkpoint import Loaded
from systolith.quant.llama import KVCache, Llama
from systolith.quant.network import TOKENS
from systolith.quant.sentences import calibration_sentences, tokenized
from systolith.quant.tokenizer import BOS

SEQUENCES = 16
LENGTH = 256
SEED = 1000
"""Of the text that a model writes to be calibrated on."""
TOGETHER = 16
"""Sentences of a padded batch."""

Sequences = list[NDArray[np.int64]]
Batch = dict[str, NDArray[np.int64]]


def batches_for(loaded: Loaded, file: Path | None = None) -> tuple[list[Batch], str]:
    """Calibration batches of a loaded model, and where they come from in a few words.

    ``file``: text; one sentence a line, if the model is no language model. Or ``.npy``: tokens
    int [N, T]. Without a file a Llama writes its own text, and a BERT gets this package's
    sentences. Raises `CalibrationError` where there is nothing to calibrate on.
    """
    if file is not None:
        return _from_file(loaded, file), file.name
    if loaded.llama is not None:
        return [{TOKENS: row[None]} for row in sampled_text(loaded.llama)], "sampled from the model"
    if loaded.family == "bert" and loaded.tokenizer is not None:
        sentences = tokenized(loaded.tokenizer, calibration_sentences(), loaded.network.context)
        return padded(sentences), "sentences of the package"
    raise CalibrationError(f"{loaded.name} needs text to be calibrated on: name a file with "
                           f"--calibration FILE")


def _from_file(loaded: Loaded, file: Path) -> list[Batch]:
    try:
        if file.suffix == ".npy":
            tokens = np.load(file, allow_pickle=False)
            if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or not tokens.size:
                raise CalibrationError(f"{file} must hold integers of the shape [N, T], not "
                                       f"{tokens.dtype} {list(tokens.shape)}")
            return [{TOKENS: row[None].astype(np.int64)} for row in tokens]
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise CalibrationError(f"Cannot read {file}: {error.strerror or error}") from None
    except ValueError as error:
        raise CalibrationError(f"{file} is neither text nor a .npy file: {error}") from None
    if not text.strip():
        raise CalibrationError(f"The calibration text {file} is empty")
    if loaded.network.generative:
        return [{TOKENS: row[None]} for row in given_text(loaded, text)]
    return padded([np.array(loaded.encode(line)) for line in text.splitlines() if line.strip()])


def padded(sequences: Sequences) -> list[Batch]:
    """Batches of sequences of about the same length, with an attention mask."""
    order = sorted(sequences, key=len)
    batches = []
    for at in range(0, len(order), TOGETHER):
        part = order[at:at + TOGETHER]
        lengths = np.array([len(row) for row in part])
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        tokens = np.zeros_like(mask)
        tokens[mask == 1] = np.concatenate(part)
        batches.append({TOKENS: tokens, MASK: mask})
    return batches


@torch.no_grad()
def sampled_text(model: Llama, count: int = SEQUENCES, seed: int = SEED) -> Sequences:
    """``count`` texts that the model writes: they need no data, and suit every language model.

    Unlike in `evaluate.sample`, all sequences grow together.
    """
    rng = np.random.default_rng(seed)
    cache = KVCache()
    tokens = np.full((count, 1), BOS, dtype=np.int64)
    while tokens.shape[1] < min(LENGTH, model.config.max_seq_len):
        logits = model(torch.from_numpy(tokens[:, -1:]), cache)[:, -1].double()
        cumulative = logits.softmax(dim=1).cumsum(dim=1).numpy()
        drawn = rng.random((count, 1)) * cumulative[:, -1:]
        following = np.minimum((cumulative <= drawn).sum(axis=1), cumulative.shape[1] - 1)
        tokens = np.column_stack((tokens, following))
    return list(tokens)


def given_text(loaded: Loaded, text: str) -> Sequences:
    """A text in sequences that each begin with the model's BOS, if it has one."""
    if loaded.tokenizer is None:
        raise CalibrationError(f"{loaded.name} has no vocabulary: calibrate on tokens (.npy)")
    tokens = loaded.tokenizer.encode(text, bos=False)
    start = [] if loaded.bos is None else [loaded.bos]
    length = max(min(LENGTH, loaded.network.context) - len(start), 1)
    return [np.array([*start, *tokens[at:at + length]], dtype=np.int64)
            for at in range(0, len(tokens), length)]
