"""The options of commands that execute something: which backend, which machine, which board."""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from systolith.cli_counters import CLOCK_MHZ
from systolith.cli_options import Step
from systolith.config import PRESETS, Config, load_config
from systolith.errors import UserError
from systolith.host_link import BAUD

if TYPE_CHECKING:
    from systolith.boards.device import Device

BACKENDS = ("golden", "machine", "rtl", "board")
_CONFIG = "bench"
SIMULATED = "sim:"
"""What the port of a simulated board begins with."""


@dataclass(frozen=True)
class Backend:
    """``name``: one of ``BACKENDS``. ``clock``: MHz, for rates. ``board``: if it is that."""

    name: str
    config: Config
    clock: float
    board: "Device | None" = None

    @property
    def executor(self) -> "str | Device":
        """What ``sim.generate`` and ``sim.execute`` take."""
        return self.name if self.board is None else self.board

    @property
    def has_counters(self) -> bool:
        return self.name in ("rtl", "board")

    def announce(self, what: str, step: Step) -> None:
        """Says what is about to be executed."""
        if self.name == "rtl":
            step(f"Verilog of the D = {self.config.dim} machine, Verilator build (kept)")
        if self.board is None:
            step(f"{what} on {self.name}")
        else:
            board = self.board.link.identity.board
            step(f"{what} on {board}, D = {self.config.dim}, {self.clock:g} MHz")


def _port_needed(name: str, port: str | None) -> None:
    if name == "board" and port is None:
        raise UserError("The backend board needs a port: give --port, for instance /dev/ttyUSB0")
    if name != "board" and port is not None:
        raise UserError("--port is for a board: add --backend board")


@contextmanager
def _loading() -> Iterator[Callable[[int, int], None]]:
    """A bar for what goes to a board, there while it goes."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    columns = "to the board", BarColumn(), DownloadColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("", total=None)

    def progress(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)
        if done == total:
            bar.stop()

    try:
        yield progress
    finally:
        bar.stop()


@contextmanager
def open_board(port: str, baud: int, config_name: str | None) -> Iterator["Device"]:
    """The board at a serial port, or at ``sim:NAME`` a simulated one, which lives as long."""
    from systolith.boards.device import Device

    with ExitStack() as stack:
        config = None if config_name is None else load_config(config_name)
        if port.startswith(SIMULATED):
            from systolith.boards.simulated import simulated_board

            name = port.removeprefix(SIMULATED)
            port = stack.enter_context(simulated_board(name, config))
        device = Device.open(port, baud, config)
        stack.callback(device.close)
        device.progress = stack.enter_context(_loading())
        yield device


port_options = [
    click.option(
        "--port",
        help=f"Serial port of a board, for instance /dev/ttyUSB0, or {SIMULATED}NAME for a "
        "simulated one.",
    ),
    click.option("--baud", default=BAUD, show_default=True, help="Speed of the port."),
]


def backend_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --backend, --config, --port, --baud and --clock; the command gets a ``Backend``."""

    @functools.wraps(command)
    def wrapped(
        *args: Any,
        backend: str,
        config_name: str | None,
        port: str | None,
        baud: int,
        clock: float | None,
        **named: Any,
    ) -> None:
        _port_needed(backend, port)
        if port is None:
            config = load_config(config_name or _CONFIG)
            command(*args, backend=Backend(backend, config, clock or CLOCK_MHZ), **named)
            return
        with open_board(port, baud, config_name) as board:
            mhz = clock or board.link.identity.clock_hz / 1e6
            command(*args, backend=Backend(backend, board.config, mhz, board), **named)

    options = [
        click.option(
            "--backend",
            type=click.Choice(BACKENDS),
            default="golden",
            show_default=True,
            help="Integer forward, golden machine, Verilog under Verilator, or an FPGA board.",
        ),
        click.option(
            "--config",
            "config_name",
            default=None,
            show_default=f"{_CONFIG}, or the board's",
            help=f"Configuration: {', '.join(PRESETS)}, or a JSON file.",
        ),
        *port_options,
        click.option(
            "--clock",
            type=float,
            default=None,
            show_default=f"{CLOCK_MHZ:g}, or the board's",
            help="MHz, for rates per second.",
        ),
    ]
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped
