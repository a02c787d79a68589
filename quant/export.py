"""From a checkpoint to a quantized model."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from systolith.quant.calibration_data import batches_for
from systolith.quant.checkpoint import Loaded, load_network
from systolith.quant.network import TOKENS, Embed, Linear, Network
from systolith.quant.posttraining import Progress, QuantizedModel, quantize_network, silent
from systolith.quant.recipe import Recipe
from systolith.quant.vocabulary import AnyTokenizer

SMALL = 10_000_000
"""Parameters of a model below which a second thread gains nothing."""


def quantize_checkpoint(
    path: str | Path,
    tokenizer: str | Path | AnyTokenizer | None = None,
    *,
    recipe: Recipe | None = None,
    calibration: Path | None = None,
    progress: Progress = silent,
) -> QuantizedModel:
    """Loads a checkpoint (see `checkpoint.load_network`), calibrates and quantizes it.

    ``calibration``: a file, see `calibration_data.batches_for`. The same checkpoint and arguments
    give the same model on the same machine.
    """
    progress("loading", 0.0)
    context = None if recipe is None else recipe.context
    loaded = load_network(path, tokenizer, context=context)
    return quantize_loaded(loaded, recipe, calibration, progress)


def quantize_loaded(
    loaded: Loaded,
    recipe: Recipe | None = None,
    calibration: Path | None = None,
    progress: Progress = silent,
) -> QuantizedModel:
    """The same for a checkpoint that is loaded already."""
    with _few_threads(loaded.network):
        batches, source = batches_for(loaded, calibration)
        made = quantize_network(loaded.network, batches, recipe, bos=loaded.bos, eos=loaded.eos,
                                progress=progress)
    facts = {
        "checkpoint": loaded.name,
        "source_sha256": network_hash(loaded.network),
        "calibration": source,
        "calibration_tokens": int(sum(
            batch["attention_mask"].sum() if "attention_mask" in batch else batch[TOKENS].size
            for batch in batches)),
    }
    data = b"" if loaded.tokenizer is None else loaded.tokenizer.to_bytes()
    return replace(made, tokenizer=data, metadata=made.metadata | facts)


@contextmanager
def _few_threads(network: Network) -> Iterator[None]:
    """One thread for a small model: on a busy machine its threads would wait for each other, and
    calibration would take minutes instead of seconds."""
    threads = torch.get_num_threads()
    if sum(op.weight.numel() for op in network.of_kind(Linear)) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def network_hash(network: Network) -> str:
    """sha256 of a float network's embeddings and matrices."""
    digest = hashlib.sha256()
    for op in network.ops:
        if isinstance(op, Linear | Embed):
            value = op.weight if isinstance(op, Linear) else op.table
            digest.update(op.name.encode() + value.detach().numpy().astype("<f4").tobytes())
    return digest.hexdigest()
