"""Commands that measure."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from systolith.cli_options import PIN, bar, config_option, pinned
from systolith.config import load_config

if TYPE_CHECKING:
    from systolith.config import Config


@click.group()
def bench() -> None:
    """Measure on the RTL; every run is checked against numpy, bit for bit."""


def _print(results: Any, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(results, indent=2))
        return
    for result in results if isinstance(results, list) else [results]:
        click.echo("  ".join(f"{name} {value}" for name, value in result.items()))


def _fail_unless_exact(results: Sequence[dict[str, Any]]) -> None:
    if not all(result["bit_exact"] for result in results):
        click.echo("systolith: the results are not bit-exact", err=True)
        sys.exit(1)


@bench.command()
@click.option("--dim", type=int, default=16, show_default=True, help="4, 8, 16 or 32.")
@click.option("--shape", "first", required=True, multiple=True, metavar="MxNxK")
@click.argument("more", nargs=-1, metavar="[MxNxK]...")
@click.option("--source", type=click.Choice(["scratchpad", "dram"]), default="scratchpad")
@click.option("--queue", is_flag=True, help="All shapes in one program, measured as one.")
@click.option("--seed", default=1, show_default=True)
@click.option("--latency", default=40, show_default=True, help="Cycles of the memory.")
@click.option("--bus-bytes", type=int, help="Bytes per cycle of the bus, if not the preset's.")
@click.option("--predict", is_flag=True, help="Beside the cycles, those that the compiler expects.")
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
def gemm(
    dim: int,
    first: tuple[str, ...],
    more: tuple[str, ...],
    source: str,
    queue: bool,
    seed: int,
    latency: int,
    bus_bytes: int | None,
    predict: bool,
    as_json: bool,
) -> None:
    """Cycles of int8 matrix products: `--shape 128x256x256 64x64x64`."""
    from systolith.compiler.gemm import Shape
    from systolith.sim.measure import config_of_dim, measure_gemm

    shapes = [Shape.parse(text) for text in (*first, *more)]
    config = config_of_dim(dim)
    if bus_bytes:
        config = replace(config, bus_bytes=bus_bytes)
    results = measure_gemm(
        config,
        shapes,
        source=source,
        queue=queue,
        predicted=predict,
        seed=seed,
        latency=latency,
    )
    _print(results, as_json)
    _fail_unless_exact(results)


@bench.command()
@click.option("--rows", default=16, show_default=True)
@click.option("--length", default=128, show_default=True)
@config_option("bench")
@click.option("--bits", type=click.Choice(["8", "16"]), default="16", show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def softmax(rows: int, length: int, config_name: str, bits: str, seed: int, as_json: bool) -> None:
    """Cycles and accuracy of the softmax unit."""
    config = load_config(config_name)
    from systolith.sim.measure_softmax import measure_softmax

    result = measure_softmax(config, rows, length, seed=seed, wide=bits == "16")
    _print(result, as_json)
    _fail_unless_exact([result])


_SHAPE = (
    click.option("--tokens", default=128, show_default=True),
    click.option("--hidden", default=384, show_default=True, help="Channels."),
    click.option("--heads", default=12, show_default=True),
)
_MACHINE = (
    config_option("bench"),
    click.option("--bus-bytes", type=int, help="Bytes per cycle of the bus, if not the preset's."),
    click.option("--weight-ports", type=int, help="Weight rows that enter the array in a cycle."),
    click.option("--latency", default=40, show_default=True, help="Cycles of the memory."),
    click.option("--seed", default=1, show_default=True),
    click.option("--json", "as_json", is_flag=True, help="One JSON list."),
)
_BITS = click.option(
    "--bits",
    type=click.Choice(["8", "16"]),
    multiple=True,
    default=["8", "16"],
    show_default=True,
    help="Of the operands; may be given twice.",
)


def _options(*groups: Sequence[Any]) -> Any:
    """A decorator that adds several groups of options."""

    def add(command: Any) -> Any:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return add


def _machine(config_name: str, bus_bytes: int | None, weight_ports: int | None) -> "Config":
    config = load_config(config_name)
    changes = {"bus_bytes": bus_bytes, "weight_ports": weight_ports}
    return replace(config, **{name: value for name, value in changes.items() if value})


@bench.command()
@_options(_SHAPE, [_BITS], _MACHINE)
def attention(
    tokens: int, hidden: int, heads: int, bits: tuple[str, ...], config_name: str,
    bus_bytes: int | None, weight_ports: int | None, latency: int, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Attention from memory to memory, with softmax and without."""
    from systolith.sim import workloads
    from systolith.sim.measure_model import measure_attention

    config = _machine(config_name, bus_bytes, weight_ports)
    results = []
    for width in bits:
        graph = workloads.attention(int(width), hidden=hidden, heads=heads, seed=seed)
        found = measure_attention(graph, config, tokens, seed=seed, latency=latency)
        results.append({"bits": int(width)} | found)
    _print(results, as_json)
    _fail_unless_exact(results)


@bench.command()
@_options(_SHAPE, [_BITS], _MACHINE)
@click.option("--ffn", default=1536, show_default=True, help="Channels between the last layers.")
@click.option("--layers", default=1, show_default=True)
def layer(
    tokens: int, hidden: int, heads: int, bits: tuple[str, ...], config_name: str,
    bus_bytes: int | None, weight_ports: int | None, latency: int, seed: int, as_json: bool,
    ffn: int, layers: int,
) -> None:  # fmt: skip
    """Encoder layers from memory to memory; the defaults are a layer of all-MiniLM-L6-v2."""
    from systolith.sim import workloads
    from systolith.sim.measure_model import measure_sequence

    config = _machine(config_name, bus_bytes, weight_ports)
    results = []
    for width in bits:
        graph = workloads.encoder(
            int(width), hidden=hidden, heads=heads, ffn=ffn, layers=layers, seed=seed
        )
        found = measure_sequence(graph, config, tokens, seed=seed, latency=latency)
        results.append({"bits": int(width)} | found)
    _print(results, as_json)
    _fail_unless_exact(results)


@bench.command()
@click.option(
    "--model",
    default="random",
    show_default=True,
    help="Checkpoint, .slq file, `bundled`, or `random`: a Llama of 10 M parameters.",
)
@click.option("--tokenizer", default=None, help="Vocabulary file, if not beside the checkpoint.")
@click.option("--resident", is_flag=True, help="All weights on chip, loaded once.")
@click.option("--prompt", default=4, show_default=True, help="Tokens of the prompt.")
@click.option("--tokens", default=8, show_default=True, help="New tokens to measure.")
@_options(_MACHINE)
def decode(
    model: str, tokenizer: str | None, resident: bool, prompt: int, tokens: int, config_name: str,
    bus_bytes: int | None, weight_ports: int | None, latency: int, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Cycles of a token of a language model, and how much of the bus and the array they use."""
    from systolith.sim.measure_model import measure_decode

    config = _machine(config_name, bus_bytes, weight_ports)
    if model == "random":
        from systolith.sim.workloads import llama

        graph = llama(8, seed=seed)
    else:
        from systolith.cli_load import language_model

        with bar() as step:
            graph, _ = language_model(
                model, tokenizer, lambda text, part=0.0: step(text, part)
            )
    result = measure_decode(
        graph, config, resident=resident, prompt=prompt, tokens=(2, 2 + tokens), seed=seed,
        latency=latency,
    )  # fmt: skip
    _print([{"model": model, "bus_bytes": config.bus_bytes} | result], as_json)


@bench.command()
@click.option(
    "--model", default="minilm", show_default=True, help="Checkpoint, .slq file, or `bundled`."
)
@click.option("--tokenizer", default=None, help="Vocabulary file, if not beside the checkpoint.")
@click.option("--tokens", default=128, show_default=True, help="Of the sequence, or new ones.")
@_options(_MACHINE)
def model(
    model: str, tokenizer: str | None, tokens: int, config_name: str, bus_bytes: int | None,
    weight_ports: int | None, latency: int, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """A whole model: one sequence of an encoder, or a text of a language model."""
    from systolith.cli_load import load_artifact
    from systolith.sim.measure_model import measure_sequence, measure_text

    config = _machine(config_name, bus_bytes, weight_ports)
    with bar() as step:
        graph = load_artifact(model, tokenizer, lambda text, part=0.0: step(text, part)).graph
    measure = measure_text if graph.generative else measure_sequence
    result = measure(graph, config, tokens, seed=seed, latency=latency)
    _print([{"model": model} | result], as_json)
    _fail_unless_exact([result])


@bench.command()
@click.option(
    "--model",
    "models",
    multiple=True,
    default=["bundled", "minilm"],
    show_default=True,
    help="Checkpoint, `bundled` or `minilm`; may be given several times.",
)
@click.option("--tokenizer", default=None, help="Vocabulary file, if not beside the checkpoint.")
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    default=["cosine=0.9992"],
    show_default=True,
    help="Kept by sentence models (cosine) or language models (ppl); may be given twice.",
)
@PIN
@click.option("--sequences", default=80, show_default=True, help="Texts of 256 tokens to sample.")
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
def accuracy(
    models: tuple[str, ...],
    tokenizer: str | None,
    budgets: tuple[str, ...],
    pins: tuple[str, ...],
    sequences: int,
    seed: int,
    as_json: bool,
) -> None:
    """Integer models beside their float models, on text that calibration has not seen."""
    from systolith.quant.accuracy import measure_accuracy

    results = []
    for model in models:
        with bar() as step:
            results.append(
                measure_accuracy(
                    model,
                    tokenizer=tokenizer,
                    budgets=budgets,
                    bits=pinned(pins),
                    sequences=sequences,
                    seed=seed,
                    progress=step,
                )
            )
    _print(results, as_json)


@bench.command()
@click.option("--model", default="bundled", show_default=True, help="A language model.")
@click.option("--tokenizer", default=None, help="Vocabulary file, if not beside the checkpoint.")
@click.option("--board", "names", multiple=True, help="Only these; default: all that are built.")
@click.option("--tokens", default=16, show_default=True, help="Tokens to write on each board.")
@click.option("--json", "as_json", is_flag=True, help="A JSON list instead of Markdown.")
def boards(
    model: str, tokenizer: str | None, names: tuple[str, ...], tokens: int, as_json: bool
) -> None:
    """Every bitstream that `build` has left: what it takes, its clock, tokens per second.

    The model runs on the simulated board, with the cycles of its RTL, at the bitstream's clock.
    """
    from systolith.boards.figures import built, markdown, row
    from systolith.cli_load import language_model

    reports = built(names)
    with bar() as step:
        graph, _ = language_model(model, tokenizer, lambda text, part=0.0: step(text, part))
    rows = [row(report, graph, tokens) for report in reports]
    click.echo(json.dumps(rows, indent=2) if as_json else markdown(rows, Path(model).stem))
