"""The command that searches configurations."""

from pathlib import Path

import click

from systolith.cli_options import bar, check_output


@click.command()
@click.option("--model", default="bundled", show_default=True, help="Checkpoint, or a .slq file.")
@click.option("--tokenizer", default=None, help="Vocabulary file, if not beside the checkpoint.")
@click.option("--budget", default="", help="dsp=156,bram=208: multipliers and 18 kbit block RAMs.")
@click.option("--tokens", type=int, help="Of a sequence, or of the context, if not 64.")
@click.option("--trials", default=64, show_default=True, type=click.IntRange(1))
@click.option("--jobs", default=2, show_default=True, type=click.IntRange(1), help="Processes.")
@click.option(
    "--bus-bytes",
    default="8",
    show_default=True,
    type=click.Choice(["4", "8", "16", "32"]),
    help="Most bytes per cycle of the bus.",
)
@click.option("--seed", default=0, show_default=True)
@click.option("-o", "output", type=click.Path(path_type=Path), help="A .json file for the front.")
@click.option("--choose", default=1, show_default=True, help="The machine for --save-config.")
@click.option(
    "--save-config",
    type=click.Path(path_type=Path),
    help="A .json file for a machine of the front, which --config takes.",
)
def explore(
    model: str,
    tokenizer: str | None,
    budget: str,
    tokens: int | None,
    trials: int,
    jobs: int,
    bus_bytes: str,
    seed: int,
    output: Path | None,
    choose: int,
    save_config: Path | None,
) -> None:
    """Search machines for a model: predicted cycles against multipliers and block RAMs."""
    from rich.console import Console
    from rich.table import Table

    from systolith.cli_load import load_artifact
    from systolith.sim import explore as search

    limits = search.parse_budget(budget)
    for path in (output, save_config):
        check_output(path, ".json")
    with bar() as step:
        graph = load_artifact(model, tokenizer, lambda text, part=0.0: step(text, part)).graph
    with bar() as step:
        found = search.explore(
            graph,
            budget=limits,
            tokens=tokens,
            trials=trials,
            jobs=jobs,
            bus_bytes=int(bus_bytes),
            seed=seed,
            progress=lambda done: step(f"{done} of {trials} machines", done / trials),
        )
    unit = "token" if graph.generative else "sequence"
    table = Table()
    names = ("", f"cycles per {unit}", "DSP", "block RAM", "D", "V", "W", "weights", "activations")
    for column in names:
        table.add_column(column, justify="right")
    for number, one in enumerate(found.front, 1):
        config = one.config
        table.add_row(
            str(number),
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
    if save_config is not None:
        save_config.write_text(found.choose(choose).to_json() + "\n", encoding="utf-8")
        click.echo(save_config)
