"""Commands for boards: the list of them, bitstreams, and programming."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from systolith.cli_options import steps
from systolith.config import PRESETS, load_config
from systolith.errors import UserError

_TOKENS = 16
"""Written by a model whose speed is asked for."""


def _table(title: str, header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Prints a table; numbers to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None)
    for index, name in enumerate(header):
        number = bool(rows) and isinstance(rows[0][index], int | float)
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    # As wide as it needs to be where there is no terminal.
    console = Console()
    Console(width=None if console.is_terminal else 200).print(table)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON list.")
@click.option("--names", is_flag=True, help="Names alone, one a line.")
def boards(as_json: bool, names: bool) -> None:
    """List the boards that bitstreams can be built for."""
    from systolith.boards.catalog import NAMES, all_boards

    if names:
        click.echo("\n".join(NAMES))
        return
    found = [
        {
            "board": board.name,
            "title": board.title,
            "family": board.family.name,
            "device": board.device,
            "clock_mhz": board.clock_mhz,
            "wanted_mhz": board.wanted_mhz,
            "preset": board.preset,
            "block_kib": board.block_bytes >> 10,
            "sdram_mib": board.sdram.size_bytes >> 20 if board.sdram else 0,
            "notes": board.notes,
        }
        for board in all_boards()
    ]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    _table(
        "",
        ("board", "", "device", "MHz in", "MHz wanted", "preset", "KiB", "SDRAM MiB", ""),
        [
            (b["board"], b["title"], b["device"], b["clock_mhz"], b["wanted_mhz"], b["preset"],
             b["block_kib"], b["sdram_mib"], b["notes"])
            for b in found
        ],
    )  # fmt: skip


@click.command()
@click.option("--board", "board_name", required=True, help="A board of `systolith boards`.")
@click.option(
    "--preset",
    help=f"Configuration: {', '.join(PRESETS)}, or a JSON file; otherwise the board's own.",
)
@click.option("--echo", is_flag=True, help="No machine: a UART echo and a blinking LED.")
@click.option("--seed", default=1, show_default=True, help="Of the placer.")
@click.option("--mhz", type=click.FloatRange(min=0, min_open=True), help="Clock to aim at.")
@click.option("--strict-clock", is_flag=True, help="Fail where that clock is not reached.")
@click.option("--model", help="A language model, to tell how fast it will be.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for the tools' files.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("-o", "output", type=click.Path(path_type=Path), help="Folder for the bitstream.")
def build(
    board_name: str,
    preset: str | None,
    echo: bool,
    seed: int,
    mhz: float | None,
    strict_clock: bool,
    model: str | None,
    keep: Path | None,
    as_json: bool,
    output: Path | None,
) -> None:
    """Build a bitstream for a board; report what it takes and its clock.

    With --model also tokens per second: the model writes on the simulated board, and the cycles
    that its RTL takes are counted at the clock of the bitstream.
    """
    from systolith.boards import build as building
    from systolith.boards.board import bitstreams
    from systolith.boards.catalog import find_board
    from systolith.boards.core import machine_core
    from systolith.boards.echo import Echo
    from systolith.boards.figures import speed_at
    from systolith.cli_load import language_model

    if model is not None and echo:
        raise UserError("--echo has no machine for --model to run on: leave one of them out")
    board = find_board(board_name)
    preset = board.preset if preset is None else preset
    config = load_config(preset)
    step = steps()
    # A model that cannot be read is found out before the tools run.
    graph = None if model is None else language_model(model, None, step)[0]
    core: Any = Echo if echo else machine_core
    report = building.build(
        board,
        core,
        config,
        output or bitstreams() / board.name,
        preset="echo" if echo else preset,
        seed=seed,
        wanted_mhz=mhz,
        strict_clock=strict_clock,
        keep=keep,
        step=step,
    )
    speed = {}
    if graph is not None:
        step(f"{model} on the simulated board")
        speed = {"model": model, **speed_at(board, config, report.clock_mhz, graph, _TOKENS)}
    if as_json:
        click.echo(json.dumps(asdict(report) | speed, indent=2))
        return
    _show(report, board)
    if "problem" in speed:
        click.echo(f"{model}: {speed['problem']}")
    elif speed:
        click.echo(
            f"{model}: {speed['tokens_per_second']:,} tokens/s, {speed['cycles_per_token']:,} "
            f"cycles per token with a context of {speed['context']}"
        )


def _show(report: Any, board: Any) -> None:
    family, there = board.family, board.family.devices[board.device]
    rows = []
    for resource, unit in family.units.items():
        used, available = getattr(report, resource), getattr(there, resource)
        if available:
            rows.append((unit, used, available, f"{100 * used / available:.1f} %"))
    _table(f"{board.title}, {report.preset}", ("", "used", "of", ""), rows)
    columns = [name for name in family.units if getattr(there, name)]
    _table(
        "by block (yosys)",
        ("", *columns),
        [(block, *(usage[name] for name in columns)) for block, usage in report.blocks.items()],
    )
    click.echo(f"reached {report.fmax_mhz} MHz, clock {report.clock_mhz:g} MHz")
    click.echo(f"slowest path: {' ─▶ '.join(report.critical_path)}")
    for name, good in report.checks.items():
        click.echo(f"{'yes' if good else 'NO '}  {name}")
    for note in report.notes:
        click.echo(f"Note: {note}")
    click.echo(f"{report.bitstream} (build {report.build_hash}, {report.seconds} s)")


@click.command()
@click.option("--board", "board_name", required=True, help="A board of `systolith boards`.")
@click.option("--bitstream", type=click.Path(path_type=Path), help="Instead of the last one built.")
@click.option("--flash", is_flag=True, help="Into the flash memory, to stay.")
def program(board_name: str, bitstream: Path | None, flash: bool) -> None:
    """Load a bitstream into a board."""
    from systolith.boards.board import bitstreams
    from systolith.boards.catalog import find_board
    from systolith.boards.program import program as load

    board = find_board(board_name)
    path = bitstream or bitstreams() / board.name / board.family.bitstream
    click.echo(load(board, path, flash=flash))
