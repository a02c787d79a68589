"""Commands that write text with a language model."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from systolith.cli_load import language_model
from systolith.cli_options import config_option, steps
from systolith.config import Config, load_config
from systolith.errors import UserError

if TYPE_CHECKING:
    from systolith.sim.generate import Generation

CLOCK_MHZ = 100.0
DEMO_PROMPT = "If the expression"
DEMO_TOKENS = 48


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
    step = steps()
    graph, vocabulary = language_model(model, tokenizer, step)
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


@click.command()
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
@config_option("bench")
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


@click.command()
@config_option("bench")
def demo(config_name: str) -> None:
    """The bundled language model writes on the RTL (`make sim`)."""
    config = load_config(config_name)
    _write_text("bundled", None, DEMO_PROMPT, DEMO_TOKENS, "rtl", config, CLOCK_MHZ)
