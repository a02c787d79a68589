"""Models by the name that a user gives them on the command line."""

from pathlib import Path
from typing import TYPE_CHECKING

from systolith.cli_options import SUFFIX, Step
from systolith.errors import UserError

if TYPE_CHECKING:
    from systolith.artifact import Artifact
    from systolith.graph import Graph
    from systolith.quant.vocabulary import AnyTokenizer


def load_artifact(model: str, tokenizer: str | None, step: Step) -> "Artifact":
    """A quantized-model file, or a checkpoint, quantized unless that was done before."""
    from systolith.artifact import Artifact
    from systolith.quant.kept import quantize_or_find

    if model.endswith(SUFFIX):
        artifact = Artifact.load(Path(model))
    else:
        artifact = quantize_or_find(model, tokenizer, progress=step)
    step(f"quantized: int8 weights, {artifact.graph.bytes() / 1e3:.0f} kB of constants")
    return artifact


def vocabulary_of(artifact: "Artifact", model: str) -> "AnyTokenizer":
    """The vocabulary in a quantized model that is called ``model``."""
    from systolith.quant.vocabulary import tokenizer_from_bytes

    if not artifact.tokenizer:
        raise UserError(f"{model} has no vocabulary: name one with --tokenizer")
    return tokenizer_from_bytes(artifact.tokenizer, model, artifact.graph.vocabulary)


def language_model(
    model: str, tokenizer: str | None, step: Step
) -> "tuple[Graph, AnyTokenizer]":
    """The integer graph and the vocabulary of a checkpoint, or of a quantized-model file."""
    artifact = load_artifact(model, tokenizer, step)
    if not artifact.graph.generative:
        raise UserError(f"{model} is no language model: it cannot continue a text")
    return artifact.graph, vocabulary_of(artifact, model)
