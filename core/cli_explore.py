"""The command that searches configurations."""

from pathlib import Path

import click

from systolith.cli_options import bar
from systolith.cli_report import check_output


@click.command()
@click.option("--model", default="bundled", show_default=True, help="Checkpoint, or a .slq file.")
@click.option("--tokenizer", default=None, help="Vocabulary file, if not beside the checkpoint.")
@click.option("--budget", default="", help="dsp=156,bram=208: multipliers and 18 kbit block RAMs.")
@click.option("--tokens", default=64, show_default=True, help="Of a sequence, or of the context.")
@click.option("--trials", default=64, show_default=True, type=click.IntRange(1))
@click.option("--jobs", default=2, show_default=True, type=click.IntRange(1), help="Processes.")
@click.option("--bus-bytes", default=8, show_default=True, help="Most bytes per cycle of the bus.")
@click.option("--seed", default=0, show_default=True)
@click.option("-o", "output", type=click.Path(path_type=Path), help="A .json file for the front.")
def explore(
    model: str,
    tokenizer: str | None,
    budget: str,
    tokens: int,
    trials: int,
    jobs: int,
    bus_bytes: int,
    seed: int,
    output: Path | None,
) -> None:
    """Search machines for a model: predicted cycles against multipliers and block RAMs."""
    from rich.console import Console
    from rich.table import Table

    from systolith.cli_load import load_artifact
    from systolith.sim import explore as search

    limits = search.parse_budget(budget)
    check_output(output, ".json")
    with bar() as step:
        graph = load_artifact(model, tokenizer, lambda text, part=0.0: step(text, part)).graph
    with bar() as step:
        found = search.explore(
            graph,
            budget=limits,
            tokens=tokens,
            trials=trials,
            jobs=jobs,
            bus_bytes=bus_bytes,
            seed=seed,
            progress=lambda done: step(f"{done} of {trials} machines", done / trials),
        )
    unit = "token" if graph.generative else "sequence"
    table = Table()
    names = (f"cycles per {unit}", "DSP", "block RAM", "D", "V", "W", "weights", "activations")
    for column in names:
        table.add_column(column, justify="right")
    for one in found.front:
        config = one.config
        table.add_row(
            f"{one.cycles:,.0f}",
            str(one.resources.dsp),
            str(one.resources.bram),
            str(config.dim),
            str(config.lanes),
            str(config.weight_ports),
            f"{config.weight_rows * config.dim / 1024:,.0f} kB",
            f"{config.activation_rows * config.dim / 1024:,.0f} kB",
        )
    Console().print(table)
    for reason, count in sorted(found.failed.items()):
        click.echo(f"{count} of {found.tried} machines: {reason}")
    if output is not None:
        found.save(output)
        click.echo(output)
