"""How far a quantized model is from its float model: what `systolith bench accuracy` prints."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from systolith.forward import IntegerModel
from systolith.quant.checkpoint import load_model
from systolith.quant.evaluate import held_out_tokens, sample
from systolith.quant.export import compare, quantize_checkpoint

LENGTH = 256
FIRST_SEED = 5000
"""Evaluation text i is sampled with this seed + i, far from the seeds of calibration."""


def measure_accuracy(
    path: str | Path, *, tokenizer: str | Path | None = None, sequences: int = 10, seed: int = 0
) -> dict[str, Any]:
    """Perplexity of float and integer model on the same tokens.

    The bundled model is measured on all of its held-out text, other models on ``sequences`` texts
    of 256 tokens that the float model writes at temperature 1, with seeds that calibration does not
    use. ``agreement``: part of the positions where both models find the same token likeliest.
    """
    model, _ = load_model(path, tokenizer)
    artifact = quantize_checkpoint(path, tokenizer=tokenizer)
    if str(path) == "bundled":
        text, tokens = "held out", list(held_out_tokens())
    else:
        length = min(LENGTH, model.config.max_seq_len)
        text = f"sampled, seeds {FIRST_SEED + seed} and on"
        tokens = [sample(model, length, FIRST_SEED + seed + i) for i in range(sequences)]
    quality = compare(model, IntegerModel(artifact.graph), [np.asarray(t) for t in tokens])
    return {
        "model": Path(path).name,
        "text": text,
        "tokens": quality.tokens,
        "float_perplexity": round(quality.float_perplexity, 4),
        "perplexity": round(quality.perplexity, 4),
        "ratio": round(quality.perplexity / quality.float_perplexity, 5),
        "loss": round(math.log(quality.perplexity), 4),
        "agreement": round(quality.agreement, 4),
    }
