"""The command that says where a program's cycles go, and what commands show of it."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from systolith.cli_options import SUFFIX, Step, check_output, config_option, steps
from systolith.config import Config, load_config
from systolith.errors import UserError

if TYPE_CHECKING:
    from systolith.compiler.layers import Layer
    from systolith.program import Program


def print_layers(layers: "list[Layer]", measured: "list[Layer] | None" = None) -> None:
    """A table on the terminal: cycles of each layer, and how well they use the array."""
    from rich.console import Console
    from rich.table import Table

    total = sum(layer.cycles for layer in layers)
    table = Table()
    table.add_column("layer", overflow="fold")
    names = ["cycles", *(["measured"] if measured else []), "share", "array use", "bytes"]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    theirs = {layer.label: layer.cycles for layer in measured or []}
    for layer in layers:
        cells = [f"{layer.cycles:,}", *([f"{theirs.get(layer.label, 0):,}"] if measured else [])]
        cells += [
            f"{layer.cycles / total:.1%}",
            f"{layer.use:.1%}" if layer.macs else "",
            f"{layer.read_bytes + layer.write_bytes:,}",
        ]
        table.add_row(layer.label, *cells)
    cells = [f"{total:,}", *([f"{sum(theirs.values()):,}"] if measured else []), "", "", ""]
    table.add_section()
    table.add_row("all", *cells)
    Console().print(table)


def _program(model: str, config: Config, tokens: int, step: Step) -> "Program":
    """The program of a checkpoint or quantized-model file."""
    from systolith.artifact import Artifact
    from systolith.compiler.decoder import compile_decoder
    from systolith.compiler.sequence import compile_sequence

    if model.endswith(SUFFIX):
        graph = Artifact.load(Path(model)).graph
    else:
        from systolith.quant.export import quantize_checkpoint

        graph = quantize_checkpoint(model, None, progress=step).artifact().graph
    if graph.generative:
        return compile_decoder(graph, config)
    return compile_sequence(graph, config, tokens=min(tokens, graph.context))


@click.command()
@click.option("--model", default="bundled", show_default=True, help="Checkpoint, or `bundled`.")
@click.option("--program", type=click.Path(path_type=Path), help="A compiled program instead.")
@config_option("bench")
@click.option("--prompt-tokens", default=16, show_default=True, help="Tokens to process at first.")
@click.option("--tokens", default=16, show_default=True, help="Tokens a language model writes.")
@click.option("--latency", default=40, show_default=True, help="Cycles of the memory.")
@click.option("--bus-bytes-per-cycle", type=float, help="Of the memory, if less than the bus's.")
@click.option("--clock", default=100.0, show_default=True, help="MHz.")
@click.option("--measure", is_flag=True, help="Run it on the RTL, too.")
@click.option("-o", "output", type=click.Path(path_type=Path), help="An .html file.")
@click.option("--trace", type=click.Path(path_type=Path), help="A .json file for ui.perfetto.dev.")
def report(
    model: str,
    program: Path | None,
    config_name: str,
    prompt_tokens: int,
    tokens: int,
    latency: int,
    bus_bytes_per_cycle: float | None,
    clock: float,
    measure: bool,
    output: Path | None,
    trace: Path | None,
) -> None:
    """Say where the cycles of a model or a program go: predicted, and measured on the RTL.

    Prints cycles per layer; -o writes a page with the roofline, the use of the units and what they
    waited for.
    """
    for path, suffix in ((output, ".html"), (trace, ".json")):
        check_output(path, suffix)
    if clock <= 0:
        raise UserError(f"The clock must be above 0 MHz, not {clock:g}")
    step = steps()
    from systolith.compiler.layers import per_layer
    from systolith.compiler.perfetto import write_trace
    from systolith.compiler.report import Report
    from systolith.program import Program
    from systolith.sim.profile import prepare, profile

    if program is None:
        image = _program(model, load_config(config_name), prompt_tokens, step)
    else:
        image = Program.load(program)
    config = image.config
    labels = image.metadata.get("labels", [])
    memory = prepare(image, tokens=prompt_tokens, new=tokens)
    step("predicting" + (", then the RTL" if measure else ""))
    made = profile(
        image, memory, measure=measure, latency=latency, bus_bytes_per_cycle=bus_bytes_per_cycle
    )
    found = Report(
        title=f"{Path(model).name if program is None else program.name}: where the cycles go",
        config=config,
        predicted=made.predicted,
        labels=labels,
        measured=made.measured,
        clock_mhz=clock,
        bandwidth=bus_bytes_per_cycle or float(config.bus_bytes),
        latency=latency,
    )
    measured = per_layer(made.measured, labels, config) if made.measured else None
    print_layers(found.layers, measured)
    click.echo(f"predicted {made.predicted.cycles:,} cycles, "
               f"{made.predicted.cycles / clock / 1e3:,.3f} ms at {clock:g} MHz")  # fmt: skip
    if made.measured is not None:
        error = made.predicted.cycles / made.measured.cycles - 1
        click.echo(f"measured {made.measured.cycles:,} cycles: {error:+.2%}")
    if output is not None:
        output.write_text(found.html(), encoding="utf-8")
        click.echo(output)
    if trace is not None:
        runs = {"predicted": made.predicted}
        if made.measured is not None:
            runs["RTL"] = made.measured
        write_trace(trace, runs, labels, clock_mhz=clock)
        click.echo(trace)
