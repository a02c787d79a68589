"""Commands that make files of a model: quantize, export, compile."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from systolith.cli_counters import show_table
from systolith.cli_load import load_artifact
from systolith.cli_options import PIN, SUFFIX, bar, check_output, config_option, pinned, steps
from systolith.config import load_config
from systolith.errors import UserError

if TYPE_CHECKING:
    from systolith.program import Program


@click.command()
@click.argument("model")
@click.option("--tokenizer", default=None, help="Vocabulary file, if not beside the checkpoint.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Text (for sentence models one sentence a line), or tokens [N, T] as .npy.",
)
@click.option("--budget", default="", help="cosine=0.999 or ppl=1.005: 8 bits where it allows.")
@PIN
@click.option("--context", type=int, help="Longest sequence, if not the model's own.")
@click.option("-o", "output", required=True, type=click.Path(path_type=Path), help="A .slq file.")
@click.option("--report", type=click.Path(path_type=Path), help="Every tensor on an HTML page.")
def quantize(
    model: str,
    tokenizer: str | None,
    calibration: Path | None,
    budget: str,
    pins: tuple[str, ...],
    context: int | None,
    output: Path,
    report: Path | None,
) -> None:
    """Quantize a checkpoint to a file that `generate --model` reads.

    MODEL: `bundled`, `minilm`, a llama2.c .bin file, safetensors with config.json (Llama, BERT,
    GPT-2), or a float .onnx file.
    """
    check_output(output, SUFFIX)
    check_output(report)
    from systolith.quant.export import quantize_checkpoint
    from systolith.quant.recipe import Recipe

    recipe = Recipe(budget=budget, bits=pinned(pins), context=context)
    with bar() as step:
        made = quantize_checkpoint(
            model, tokenizer, recipe=recipe, calibration=calibration, progress=step
        )
        step("measuring every tensor", 0.95)
        found = made.report()
    made.save(output)
    click.echo(found)
    if budget:
        click.echo(f"{budget} is kept: {made.metadata['reached']}")
    if report is not None:
        report.write_text(found.html(f"{Path(model).name}, quantized"), encoding="utf-8")
        click.echo(report)
    click.echo(output)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "output", required=True, type=click.Path(path_type=Path), help="A .onnx file.")
def export(model: Path, output: Path) -> None:
    """Write a quantized model (.slq) as ONNX QDQ, to be run and compared elsewhere."""
    if output.suffix != ".onnx":
        raise UserError(f"The output must end with .onnx, not {output.name!r}")
    from systolith.artifact import Artifact
    from systolith.quant.onnx_export import export_onnx

    export_onnx(Artifact.load(model).graph, output)
    click.echo(output)


@click.command()
@click.argument("model")
@click.option("--tokenizer", default=None, help="Vocabulary file, if not beside the checkpoint.")
@config_option("bench")
@click.option("--tokens", type=int, help="Longest sequence, if not the longest possible.")
@click.option("-o", "output", required=True, type=click.Path(path_type=Path), help="A .slp file.")
@click.option("--listing", is_flag=True, help="Print the instructions.")
def compile(
    model: str,
    tokenizer: str | None,
    config_name: str,
    tokens: int | None,
    output: Path,
    listing: bool,
) -> None:
    """Compile a checkpoint or quantized model to a program image.

    A language model becomes a program that writes text, any other one for whole sequences, which
    `run` takes.
    """
    config = load_config(config_name)
    from systolith import isa
    from systolith.compiler.decoder import compile_decoder
    from systolith.compiler.describe import described
    from systolith.compiler.sequence import compile_sequence

    graph = load_artifact(model, tokenizer, steps()).graph
    if graph.generative:
        program = compile_decoder(graph, config, context=tokens)
    else:
        longest = min(graph.context, config.max_length)
        program = compile_sequence(graph, config, tokens=longest if tokens is None else tokens)
    program = described(program, graph)
    program.save(output)
    if listing:
        click.echo(isa.listing(program.code()))
    _describe(program)
    click.echo(f"{output}: {program.instructions} instructions, {len(program.image)} bytes")


def _describe(program: "Program") -> None:
    """Memory, local memories, and predicted cycles by layer: two tokens, or a whole sequence."""
    from systolith.cli_report import print_layers
    from systolith.compiler.decoder import set_prompt
    from systolith.compiler.layers import per_layer
    from systolith.compiler.memory_map import memory_map, on_chip_map
    from systolith.compiler.timing import predict

    show_table(
        [
            (kind, f"{count:,} region{'s' * (count > 1)}, {size:,} bytes")
            for kind, (count, size) in memory_map(program).items()
        ]
    )
    dim = program.config.dim
    show_table(
        [
            (use, f"{rows:,} of {whole:,} rows, {rows * dim:,} bytes")
            for use, (rows, whole) in on_chip_map(program).items()
        ]
    )
    memory = program.memory()
    if program.metadata["kind"] == "decoder":
        set_prompt(program, memory, [0], min(3, program.metadata["context"] + 1))
        click.echo("Predicted cycles of a prompt of one token and a new one:")
    else:
        length = program.metadata["tokens"]
        program.write(memory, "control", np.array([length], dtype=np.uint32))
        click.echo(f"Predicted cycles of {length} tokens:")
    print_layers(per_layer(predict(program, memory), program.metadata["labels"], program.config))
