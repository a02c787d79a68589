"""The command line: the group of all commands, each imported when it is called.

A command is a click command of the same name in the module that `COMMANDS` gives. Such modules are
light, and every heavy import happens inside the command that needs it.
"""

import os
from importlib import import_module
from typing import Any

import click

from systolith.errors import UserError

# Small products: threads that wait for each other cost more than they bring.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

COMMANDS = {
    "quantize": "cli_model",
    "export": "cli_model",
    "compile": "cli_model",
    "run": "cli_run",
    "embed": "cli_run",
    "generate": "cli_text",
    "demo": "cli_text",
    "report": "cli_report",
    "rtl": "cli_hardware",
    "kit": "cli_kit",
    "synth": "cli_hardware",
    "boards": "cli_boards",
    "build": "cli_boards",
    "program": "cli_boards",
    "selftest": "cli_selftest",
    "simulate": "cli_selftest",
    "bench": "cli_bench",
    "explore": "cli_explore",
}
"""The module of each command, in the order in which --help lists them."""


class _Group(click.Group):
    """Finds commands by `COMMANDS`; prints a user's mistake as one sentence and exits with 2."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        module = COMMANDS.get(name)
        return None if module is None else getattr(import_module(f"systolith.{module}"), name)

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
