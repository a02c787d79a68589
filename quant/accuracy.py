"""How far quantized models are from their float models: what `systolith bench accuracy` prints."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from systolith.graph import Linear
from systolith.quant.budget import Budget
from systolith.quant.calibration_data import sampled_text
from systolith.quant.checkpoint import Loaded, load_network
from systolith.quant.compare import compare, cosines, integer_logits, network_logits
from systolith.quant.evaluate import held_out_tokens
from systolith.quant.export import quantize_loaded
from systolith.quant.posttraining import Progress, QuantizedModel, silent
from systolith.quant.recipe import Recipe, RecipeError
from systolith.quant.sentences import evaluation_sentences, tokenized

FIRST_SEED = 5000
"""Of evaluation text, far from the seed of calibration."""


def measure_accuracy(
    path: str | Path,
    *,
    tokenizer: str | Path | None = None,
    budgets: Sequence[str] = (),
    bits: tuple[tuple[str, int], ...] = (),
    sequences: int = 80,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """A checkpoint quantized and measured on data that calibration has not seen.

    The bundled model is measured on all of its held-out text, other Llamas on ``sequences`` texts
    of 256 tokens that the float model writes at temperature 1: perplexities, and the part of the
    positions where both models find the same token likeliest. A sentence model: the cosine of its
    vectors for the package's evaluation sentences. ``eight_bit_inputs``: part of the inputs of
    Linears that have 8 bits. ``budgets``: the one whose metric suits the model is kept, "ppl" of
    language models and "cosine" of others; without one nothing is searched for. ``bits``: of
    the recipe.
    """
    loaded = load_network(path, tokenizer)
    metric = "ppl" if loaded.network.generative else "cosine"
    budget = next((text for text in budgets if Budget.parse(text).metric == metric), "")
    started = time.monotonic()
    made = quantize_loaded(loaded, Recipe(budget=budget, bits=bits), progress=progress)
    seconds = time.monotonic() - started
    if loaded.network.generative:
        found = _language(loaded, made, sequences, seed, str(path) == "bundled")
    elif loaded.tokenizer is not None:
        found = _sentences(loaded, made)
    else:
        raise RecipeError(f"{loaded.name} has no vocabulary, so there is no text to measure it on")
    inputs = [made.graph.tensors[node.x].bits for node in made.graph.of_kind(Linear)]
    return {
        "model": loaded.name, "budget": budget, **found,
        "linears": len(inputs), "eight_bit_inputs": inputs.count(8),
        "quantize_seconds": round(seconds, 1),
    }


def _language(loaded: Loaded, made: QuantizedModel, sequences: int, seed: int, held_out: bool
              ) -> dict[str, Any]:
    if held_out:
        text, tokens = "held out", list(held_out_tokens())
    elif loaded.llama is not None:
        text = f"sampled, seed {FIRST_SEED + seed}"
        tokens = sampled_text(loaded.llama, sequences, FIRST_SEED + seed)
    else:
        raise RecipeError(f"{loaded.name}: only Llamas write the text that they are measured on")
    quality = compare(network_logits(loaded.network), integer_logits(made.graph),
                      [np.asarray(t) for t in tokens])
    return {
        "text": text,
        "tokens": quality.tokens,
        "float_perplexity": round(quality.float_perplexity, 4),
        "perplexity": round(quality.perplexity, 4),
        "ratio": round(quality.ratio, 5),
        "float_loss": round(math.log(quality.float_perplexity), 4),
        "loss": round(math.log(quality.perplexity), 4),
        "divergence": round(quality.divergence, 5),
        "agreement": round(quality.agreement, 4),
    }


def _sentences(loaded: Loaded, made: QuantizedModel) -> dict[str, Any]:
    assert loaded.tokenizer is not None
    rows = tokenized(loaded.tokenizer, evaluation_sentences(), made.graph.context)
    found = cosines(loaded.network, made.graph, rows)
    return {
        "text": "evaluation sentences",
        "sentences": len(rows),
        "tokens": sum(map(len, rows)),
        "mean_cosine": round(float(found.mean()), 5),
        "worst_cosine": round(float(found.min()), 5),
    }
