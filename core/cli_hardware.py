"""Commands for the machine itself: Verilog, and place and route."""

import json
from pathlib import Path

import click

from systolith.cli_options import config_option
from systolith.config import load_config


@click.command()
@config_option("small")
@click.option("-o", "output", required=True, type=click.Path(path_type=Path), help="Folder.")
def rtl(config_name: str, output: Path) -> None:
    """Write Verilog, manifest and C header of a machine."""
    config = load_config(config_name)
    from systolith.hdl.verilog import export

    export(config, output)
    for path in sorted(output.iterdir()):
        click.echo(path)


@click.command()
@config_option("small")
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
