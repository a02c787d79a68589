"""Models by the name that a user gives them on the command line."""

from pathlib import Path
from typing import TYPE_CHECKING

from systolith.cli_options import SUFFIX, Step
from systolith.errors import UserError

if TYPE_CHECKING:
    from systolith.graph import Graph
    from systolith.quant.vocabulary import AnyTokenizer


def language_model(model: str, tokenizer: str | None, step: Step) -> "tuple[Graph, AnyTokenizer]":
    """The integer graph and the vocabulary of a checkpoint, or of a quantized-model file."""
    from systolith.artifact import Artifact
    from systolith.quant.export import quantize_checkpoint
    from systolith.quant.vocabulary import tokenizer_from_bytes

    if model.endswith(SUFFIX):
        artifact = Artifact.load(Path(model))
    else:
        artifact = quantize_checkpoint(model, tokenizer, progress=step).artifact()
    graph = artifact.graph
    step(f"quantized: int8 weights, {graph.bytes() / 1e3:.0f} kB of constants")
    if not graph.generative:
        raise UserError(f"{model} is no language model: it cannot continue a text")
    if not artifact.tokenizer:
        raise UserError(f"{model} has no vocabulary: name one with --tokenizer")
    return graph, tokenizer_from_bytes(artifact.tokenizer, model, graph.vocabulary)
