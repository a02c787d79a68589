"""What several commands share: options, and how progress is shown."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from systolith.config import PRESETS
from systolith.errors import UserError

SUFFIX = ".slq"
"""Of quantized-model files."""
PROGRAM_SUFFIX = ".slp"
"""Of program files."""

Step = Callable[..., None]
"""Told what happens, in a phrase, and which part of the work (0 to 1) is behind it, if known."""


def config_option(default: str):
    return click.option(
        "--config",
        "config_name",
        default=default,
        show_default=True,
        help=f"Configuration: {', '.join(PRESETS)}, or a JSON file.",
    )


def steps() -> Step:
    """Prints phrases with the time since now."""
    started = time.monotonic()

    def step(text: str, part: float = 0.0) -> None:
        click.secho(f"[{time.monotonic() - started:6.1f} s] {text}", dim=True, err=True)

    return step


PIN = click.option(
    "--pin",
    "pins",
    multiple=True,
    metavar="PATTERN=BITS",
    help="8 or 16 bits for the tensors of a name pattern, whatever the budget.",
)


def pinned(pins: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Patterns and bits of a recipe."""
    for pin in pins:
        pattern, _, bits = pin.rpartition("=")
        if not pattern or bits not in ("8", "16"):
            raise UserError(f"--pin takes PATTERN=8 or PATTERN=16, not {pin!r}")
    return tuple((pin.rpartition("=")[0], int(pin.rpartition("=")[2])) for pin in pins)


@contextmanager
def bar() -> Iterator[Step]:
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


def check_output(path: Path | None, suffix: str = "") -> None:
    """Raises ``UserError`` for a file that cannot be written, or whose suffix is another one."""
    if path is None:
        return
    if suffix and path.suffix != suffix:
        raise UserError(f"The output must end with {suffix}, not {path.name!r}")
    if not path.parent.is_dir():
        raise UserError(f"There is no folder {path.parent} to write {path.name} to: make it")
