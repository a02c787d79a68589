"""The integration kit: a machine as files for other people's flows.

    make_kit(PRESETS["small"], Path("build/kit"), target="pynq-z2", program=packed)

writes, beside what `hdl.verilog.export` writes (Verilog, manifest, C header): a C driver, a FuseSoC
core file, a LiteX module, and on request a program with an example that runs it (`kit_program`) and
a Vivado project (`kit_vivado`). Templates and files are in ``kit_files``.
"""

import functools
import importlib.metadata
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from systolith.boards.kit_program import PackedProgram, program_files
from systolith.boards.kit_vivado import TARGETS, Target, find_target, vivado_files
from systolith.config import Config
from systolith.hdl.verilog import header, machine_verilog, manifest
from systolith.publish import publish

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["TARGETS", "PackedProgram", "fusesoc_name", "kit_files", "make_kit"]

FILES = Path(__file__).with_name("kit_files")
VERBATIM = ("systolith_driver.h", "systolith_driver.c", "systolith_litex.py")

WAIVED = (
    "ASCRANGE", "CASEINCOMPLETE", "CASEOVERLAP", "CMPCONST", "COMBDLY", "DECLFILENAME", "LATCH",
    "PROCASSINIT", "SELRANGE", "UNOPTFLAT", "UNSIGNED", "UNUSEDSIGNAL", "WIDTHEXPAND",
    "WIDTHTRUNC",
)  # fmt: skip
"""Warnings of Verilator that the Verilog of Yosys trips by its style."""


@functools.cache
def _templates() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(FILES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(template: str, **values: Any) -> str:
    """The text that a template of ``kit_files`` gives for ``values``."""
    return _templates().get_template(template).render(**values)


def fusesoc_name() -> str:
    """Vendor, library, name and version of the FuseSoC core."""
    return f"systolith:accelerator:systolith:{importlib.metadata.version('systolith')}"


def kit_files(
    config: Config,
    *,
    target: str | None = None,
    program: PackedProgram | None = None,
    verilog: str | None = None,
) -> dict[str, str | bytes]:
    """The contents of a kit's files, by their paths in it.

    ``target``: one of ``TARGETS``, for a Vivado project in ``vivado/``. ``program``: with the
    example that runs it. ``verilog``: of the machine, if it is at hand. Raises ``UserError`` for an
    unknown target, a program of another configuration or one whose name does not do.
    """
    board = None if target is None else find_target(target)
    if program is not None:
        program.program.check_config(config)
    text = machine_verilog(config) if verilog is None else verilog
    described = manifest(config, text)
    files: dict[str, str | bytes] = {
        "systolith.v": text,
        "systolith.h": header(config),
        "manifest.json": json.dumps(described, indent=2) + "\n",
    }
    for name in VERBATIM:
        files[name] = (FILES / name).read_text(encoding="utf-8")
    files["systolith.core"] = render(
        "systolith.core.j2",
        configuration=described["configuration_hash"],
        vlnv=fusesoc_name(),
        dim=config.dim,
    )
    files["systolith.vlt"] = render("systolith.vlt.j2", waived=WAIVED)
    if program is not None:
        files |= program_files(program, render, *_addresses(board))
    if board is not None:
        files |= {f"vivado/{name}": text for name, text in vivado_files(board, described, render)}
    return files


def _addresses(target: Target | None) -> tuple[str, str]:
    """Of the registers and of a program, as the example's commentary proposes them."""
    if target is None:
        return "0x...", "0x..."
    return f"{target.registers:#010x}", f"{target.program:#010x}"


def make_kit(
    config: Config,
    directory: Path,
    *,
    target: str | None = None,
    program: PackedProgram | None = None,
    verilog: str | None = None,
) -> list[Path]:
    """Writes a kit (see ``kit_files``) and returns its paths.

    Equal arguments give equal files; see ``publish``. ``manifest.json``, which has the hash of the
    Verilog, comes last. Raises ``UserError`` where it cannot write.
    """
    files = kit_files(config, target=target, program=program, verilog=verilog)
    names = sorted(files, key=lambda name: (name == "manifest.json", name))
    return publish(directory, {name: files[name] for name in names})
