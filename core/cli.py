"""The command line. Every heavy import happens inside the command that needs it."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from systolith.config import PRESETS, Config, load_config
from systolith.errors import UserError

if TYPE_CHECKING:
    from systolith.graph import Graph
    from systolith.quant.vocabulary import AnyTokenizer
    from systolith.sim.generate import Generation

# Small products: threads that wait for each other cost more than they bring.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

CLOCK_MHZ = 100.0
DEMO_PROMPT = "If the expression"
DEMO_TOKENS = 48
SUFFIX = ".slq"
"""Of quantized-model files."""

Step = Callable[..., None]
"""Told what happens, in a phrase, and which part of the work (0 to 1) is behind it, if known."""


class _Group(click.Group):
    """Prints a user's mistake as one sentence and exits with 2."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except UserError as error:
            click.echo(f"systolith: {error}", err=True)
            context.exit(2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="systolith")
def main() -> None:
    """From a torch model to RTL whose every output bit is predicted."""


def _config_option(default: str):
    return click.option(
        "--config",
        "config_name",
        default=default,
        show_default=True,
        help=f"Configuration: {', '.join(PRESETS)}, or a JSON file.",
    )


def _steps() -> Step:
    """Prints phrases with the time since now."""
    started = time.monotonic()

    def step(text: str, part: float = 0.0) -> None:
        click.secho(f"[{time.monotonic() - started:6.1f} s] {text}", dim=True, err=True)

    return step


_PIN = click.option(
    "--pin",
    "pins",
    multiple=True,
    metavar="PATTERN=BITS",
    help="8 or 16 bits for the tensors of a name pattern, whatever the budget.",
)


def _pinned(pins: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Patterns and bits of a recipe."""
    for pin in pins:
        pattern, _, bits = pin.rpartition("=")
        if not pattern or bits not in ("8", "16"):
            raise UserError(f"--pin takes PATTERN=8 or PATTERN=16, not {pin!r}")
    return tuple((pin.rpartition("=")[0], int(pin.rpartition("=")[2])) for pin in pins)


@contextmanager
def _bar() -> Iterator[Step]:
    """A progress bar with the phrase of the moment beside it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn()
    console = Console(stderr=True)
    with Progress(*columns, TextColumn("{task.description}"), console=console) as progress:
        task = progress.add_task("", total=1.0)

        def step(text: str, part: float) -> None:
            progress.update(task, completed=part, description=text)

        yield step
        progress.update(task, completed=1.0, description="done")


# Text ------------------------------------------------------------------------------------------


def _write_text(
    model: str,
    tokenizer: str | None,
    prompt: str,
    tokens: int,
    backend: str,
    config: Config,
    clock: float,
    waves: Path | None = None,
) -> None:
    """Loads, quantizes, compiles, writes text and reports; everything on the terminal."""
    step = _steps()
    graph, vocabulary = _quantized(model, tokenizer, step)
    from systolith.sim.generate import check_length, generate

    ids = vocabulary.encode(prompt)
    check_length(graph.context, ids, tokens)
    if backend == "rtl":
        from systolith.sim.machine_tb import MachineSim

        step(f"Verilog of the D = {config.dim} machine, Verilator build (kept for the next time)")
        simulator = MachineSim(config, waves=waves is not None).build
    step(f"writing {tokens} tokens on {backend}")
    previous = ids[-1]

    def show(token: int) -> None:
        nonlocal previous
        piece = vocabulary.piece(previous, token)
        click.echo(piece.decode("utf-8", errors="replace"), nl=False)
        sys.stdout.flush()
        previous = token

    click.echo(prompt, nl=False)
    sys.stdout.flush()
    result = generate(graph, config, ids, tokens, backend, on_token=show, waves=waves)
    click.echo()
    if backend == "golden":
        step(f"{result.new} tokens by the integer forward")
        return
    step(f"{result.new} tokens × {graph.vocabulary} logits equal the golden forward, every bit")
    if backend == "rtl":
        if waves is not None:
            step(f"waveform: {waves.with_suffix('.' + simulator.waves)}")
        _report(result, config, clock)


def _quantized(model: str, tokenizer: str | None, step: Step) -> "tuple[Graph, AnyTokenizer]":
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


def _report(result: "Generation", config: Config, clock: float) -> None:
    """What the hardware counters say."""
    from rich.console import Console
    from rich.table import Table

    counters = result.counters
    cycles = counters["CYCLES"]
    moved = counters["READ_BYTES"] + counters["WRITE_BYTES"]
    rows = [
        ("cycles", f"{cycles:,}"),
        ("cycles per new token (prompt included)", f"{cycles / result.new:,.0f}"),
        (f"tokens/s at {clock:g} MHz", f"{result.new * clock * 1e6 / cycles:,.0f}"),
        ("array: a matmul under way", f"{counters['MATMUL_BUSY'] / cycles:.1%} of the cycles"),
        ("array: rows entering", f"{counters['ARRAY_ROWS'] / cycles:.1%} of the cycles"),
        ("vector unit busy", f"{counters['VECTOR_BUSY'] / cycles:.1%} of the cycles"),
        (
            "bus",
            f"{moved / cycles / config.bus_bytes:.1%} of {config.bus_bytes} bytes per cycle",
        ),
        ("simulation", f"{result.simulated / result.seconds:,.0f} cycles/s"),
    ]
    table = Table(show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    Console().print(table)


@main.command()
@click.option("--model", default="bundled", show_default=True, help="Checkpoint, or `bundled`.")
@click.option("--tokenizer", default=None, help="Vocabulary file, if not beside the checkpoint.")
@click.option("--prompt", default=DEMO_PROMPT, show_default=True)
@click.option("--tokens", default=DEMO_TOKENS, show_default=True, help="Tokens to write.")
@click.option(
    "--backend",
    type=click.Choice(["golden", "machine", "rtl"]),
    default="golden",
    show_default=True,
    help="Integer forward, golden machine, or Verilog under Verilator.",
)
@_config_option("bench")
@click.option("--clock", default=CLOCK_MHZ, show_default=True, help="MHz, for tokens per second.")
@click.option("--waves", type=click.Path(path_type=Path), help="File for the waveform (rtl).")
def generate(
    model: str,
    tokenizer: str | None,
    prompt: str,
    tokens: int,
    backend: str,
    config_name: str,
    clock: float,
    waves: Path | None,
) -> None:
    """Continue a text with a language model, greedily."""
    config = load_config(config_name)
    if waves is not None and backend != "rtl":
        raise UserError("A waveform needs the backend rtl: add --backend rtl")
    _write_text(model, tokenizer, prompt, tokens, backend, config, clock, waves)


@main.command()
@_config_option("bench")
def demo(config_name: str) -> None:
    """The bundled language model writes on the RTL (`make sim`)."""
    config = load_config(config_name)
    _write_text("bundled", None, DEMO_PROMPT, DEMO_TOKENS, "rtl", config, CLOCK_MHZ)


@main.command()
@click.argument("model")
@click.option("--tokenizer", default=None, help="Vocabulary file, if not beside the checkpoint.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Text (for sentence models one sentence a line), or tokens [N, T] as .npy.",
)
@click.option("--budget", default="", help="cosine=0.999 or ppl=1.005: 8 bits where it allows.")
@_PIN
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
    if output.suffix != SUFFIX:
        raise UserError(f"The output must end with {SUFFIX}, not {output.name!r}")
    for path in (output, report):
        if path is not None and not path.parent.is_dir():
            raise UserError(f"There is no folder {path.parent} to write {path.name} to: make it")
    from systolith.quant.export import quantize_checkpoint
    from systolith.quant.recipe import Recipe

    recipe = Recipe(budget=budget, bits=_pinned(pins), context=context)
    with _bar() as step:
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


@main.command()
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


@main.command()
@click.argument("model")
@click.option("--tokenizer", default=None, help="Vocabulary file, if not beside the checkpoint.")
@_config_option("bench")
@click.option("-o", "output", required=True, type=click.Path(path_type=Path), help="Program file.")
@click.option("--listing", is_flag=True, help="Print the instructions.")
def compile(
    model: str, tokenizer: str | None, config_name: str, output: Path, listing: bool
) -> None:
    """Compile a checkpoint or quantized model to a program image."""
    config = load_config(config_name)
    from systolith import isa
    from systolith.compiler.decoder import compile_decoder

    graph, _ = _quantized(model, tokenizer, _steps())
    program = compile_decoder(graph, config)
    program.save(output)
    if listing:
        click.echo(isa.listing(program.code()))
    click.echo(f"{output}: {program.instructions} instructions, {len(program.image)} bytes")


# Hardware --------------------------------------------------------------------------------------


@main.command()
@_config_option("small")
@click.option("-o", "output", required=True, type=click.Path(path_type=Path), help="Folder.")
def rtl(config_name: str, output: Path) -> None:
    """Write Verilog, manifest and C header of a machine."""
    config = load_config(config_name)
    from systolith.hdl.verilog import export

    export(config, output)
    for path in sorted(output.iterdir()):
        click.echo(path)


@main.command()
@_config_option("small")
@click.option("--family", type=click.Choice(["ecp5"]), default="ecp5", show_default=True)
@click.option("--device", type=click.Choice(["25k", "45k", "85k"]), default="85k")
@click.option("--speed", type=click.IntRange(6, 8), default=6, show_default=True)
@click.option("--seed", default=1, show_default=True, help="Of the placer.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for the tools' files.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def synth(
    config_name: str,
    family: str,
    device: str,
    speed: int,
    seed: int,
    keep: Path | None,
    as_json: bool,
) -> None:
    """Place and route a whole machine; report resources and clock."""
    config = load_config(config_name)
    from systolith.boards.ecp5 import synthesize_machine

    report = synthesize_machine(config, device=device, speed=speed, seed=seed, keep=keep)
    if as_json:
        click.echo(report.to_json())
        return
    for name, value in json.loads(report.to_json()).items():
        click.echo(f"{name:24s} {value}")


# Measurements ----------------------------------------------------------------------------------


@main.group()
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
    as_json: bool,
) -> None:
    """Cycles of int8 matrix products: `--shape 128x256x256 64x64x64`."""
    from dataclasses import replace

    from systolith.compiler.gemm import Shape
    from systolith.sim.measure import config_of_dim, measure_gemm

    shapes = [Shape.parse(text) for text in (*first, *more)]
    config = config_of_dim(dim)
    if bus_bytes:
        config = replace(config, bus_bytes=bus_bytes)
    results = measure_gemm(config, shapes, source=source, queue=queue, seed=seed, latency=latency)
    _print(results, as_json)
    _fail_unless_exact(results)


@bench.command()
@click.option("--rows", default=16, show_default=True)
@click.option("--length", default=128, show_default=True)
@_config_option("bench")
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
@_PIN
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
        with _bar() as step:
            results.append(
                measure_accuracy(
                    model,
                    tokenizer=tokenizer,
                    budgets=budgets,
                    bits=_pinned(pins),
                    sequences=sequences,
                    seed=seed,
                    progress=step,
                )
            )
    _print(results, as_json)
