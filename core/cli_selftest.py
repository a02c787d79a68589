"""Commands around a board that is there, or simulated: selftest and simulate."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from systolith.cli_backend import open_board, port_options
from systolith.cli_options import check_output
from systolith.config import load_config
from systolith.errors import UserError

if TYPE_CHECKING:
    from systolith.boards.selftest import Result
    from systolith.graph import Graph


def _options(command):
    for option in reversed(port_options):
        command = option(command)
    return command


def _expected_build(manifest: Path | None) -> int | None:
    """The fingerprint in the manifest of a bitstream."""
    if manifest is None:
        return None
    try:
        return int(json.loads(manifest.read_text(encoding="utf-8"))["build_hash"], 16)
    except OSError as error:
        raise UserError(f"Cannot read {manifest}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{manifest} is no manifest of a bitstream: give the manifest.json that build wrote"
        ) from None


def _model(name: str | None) -> "Graph | None":
    if name is None:
        return None
    from systolith.cli_load import language_model
    from systolith.cli_options import steps

    return language_model(name, None, steps())[0]


def _tell(result: "Result") -> None:
    state = "FAILED" if result.problem else "skipped" if result.skipped else "ok"
    colour = {"FAILED": "red", "skipped": "yellow", "ok": "green"}[state]
    text = result.problem or result.skipped or result.detail
    shown = click.style(f"{state:8}", fg=colour)
    click.echo(f"{shown}{result.name} ({result.seconds:.1f} s): {text}")


@click.command()
@_options
@click.option("--config", "config_name", help="Configuration, if it is no preset.")
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    help="The manifest.json beside the bitstream that the board must have.",
)
@click.option("--model", help="A language model to write with, such as `bundled`.")
@click.option("--tokens", default=8, show_default=True, help="Tokens that it writes.")
@click.option("--seed", default=1, show_default=True, help="Of the programs and contents.")
@click.option("--whole-memory", is_flag=True, help="Test every byte of the memory.")
@click.option("--junit", "junit_file", type=click.Path(path_type=Path), help="A file for CI.")
def selftest(
    port: str | None,
    baud: int,
    config_name: str | None,
    manifest: Path | None,
    model: str | None,
    tokens: int,
    seed: int,
    whole_memory: bool,
    junit_file: Path | None,
) -> None:
    """Test a board: its memory, each unit, a whole model, against the golden machine.

    Exits with status 1 if anything is wrong.
    """
    if port is None:
        raise UserError("There is no port: give --port, for instance /dev/ttyUSB0 or sim:ulx3s")
    if tokens < 1:
        raise UserError(f"--tokens must be at least 1, not {tokens}")
    check_output(junit_file)
    build, graph = _expected_build(manifest), _model(model)
    with open_board(port, baud, config_name) as device:
        from systolith.boards.selftest import junit
        from systolith.boards.selftest import selftest as check

        results = check(
            device, build=build, model=graph, tokens=tokens, seed=seed,
            whole_memory=whole_memory, told=_tell,
        )  # fmt: skip
        name = device.link.identity.board
    if junit_file is not None:
        junit_file.write_text(junit(results, name), encoding="utf-8")
    failed = [result.name for result in results if not result.good]
    if failed:
        click.echo(f"{len(failed)} of {len(results)} checks failed: {', '.join(failed)}", err=True)
        raise SystemExit(1)


@click.command()
@click.option("--board", "board_name", default="ulx3s", show_default=True, help="See `boards`.")
@click.option("--config", "config_name", help="Configuration, if not the board's.")
def simulate(board_name: str, config_name: str | None) -> None:
    """Run a board under Verilator until Ctrl-C; its serial port is a pseudo-terminal."""
    config = None if config_name is None else load_config(config_name)
    from systolith.boards.simulated import simulated_board

    with simulated_board(board_name, config) as port:
        click.echo(f"{board_name} is at {port}: use it as --port {port}, end with Ctrl-C")
        try:
            while True:
                time.sleep(1)
        except KeyboardInterrupt:
            click.echo()
