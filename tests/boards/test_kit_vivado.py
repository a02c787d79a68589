"""The Vivado projects, as far as they can be judged without Vivado: the scripts run on a model of
its Tcl (tcl_model.py), and Verilator lints the wrapper."""

import json
import re
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from systolith import registers
from systolith.boards.kit import make_kit
from systolith.boards.kit_vivado import TARGETS
from systolith.config import PRESETS
from systolith.errors import UserError
from systolith.registers import Error
from systolith.sim import machine_tb
from systolith.sim.ports import parse_ports
from systolith.sim.verilator import find
from tests.boards.kit_case import CONFIG, product_case

tkinter = pytest.importorskip("tkinter", reason="no Tcl in this Python: apt-get install python3-tk")
from tests.boards.tcl_model import Vivado  # noqa: E402 - imports tkinter

VLNV = "systolith:accelerator:systolith_ip:1.0"
ARTIX = [name for name, target in TARGETS.items() if not target.zynq]


def kit(folder: Path, target: str) -> Path:
    make_kit(CONFIG, folder, target=target, verilog=machine_tb.verilog(CONFIG))
    return folder


@pytest.mark.parametrize("target", TARGETS)
def test_the_scripts_make_a_whole_design(target: str, tmp_path: Path) -> None:
    board = TARGETS[target]
    vivado = Vivado(VLNV)
    folder = kit(tmp_path, target)
    vivado.source(folder / "vivado" / "project.tcl")
    assert not vivado.undriven()
    assert vivado.bus_clocks == {"M_AXI": "aclk", "S_AXIL": "aclk"}
    assert vivado.registers == [register.name for register in registers.REGISTERS]
    for register in registers.REGISTERS:
        key = f"register {register.name}"
        assert int(vivado.properties[key, "address_offset"], 0) == register.offset
        assert vivado.properties[key, "size"] == ("64" if register.wide else "32")
        assert vivado.properties[key, "description"] == register.doc
    master = "ps7/Data" if board.zynq else "jtag/Data"
    assert (master, "systolith/S_AXIL/registers", board.registers, "4K") in vivado.addresses
    reach = [size for space, _, offset, size in vivado.addresses if space == "systolith/M_AXI"]
    assert len(reach) == 1 and offsets_are_apart(vivado)
    assert folder / "vivado" / f"{target}.xdc" in vivado.files

    vivado.source(folder / "vivado" / f"{target}.xdc")
    placed = {port for port, name in vivado.properties if name == "PACKAGE_PIN"}
    assert placed == set(vivado.ports), "every port of the top has its pin"
    pins = [vivado.properties[port, "PACKAGE_PIN"] for port in placed]
    assert len(set(pins)) == len(pins)
    assert vivado.clocks == ([] if board.zynq else [(10.0, "sys_clk")])


def offsets_are_apart(vivado: Vivado) -> bool:
    spaces = {space for space, *_ in vivado.addresses}
    for space in spaces:
        ranges = sorted(
            (offset, offset + (int(size[:-1]) << {"K": 10, "M": 20}[size[-1]]))
            for where, _, offset, size in vivado.addresses
            if where == space
        )
        if any(end > start for (_, end), (start, _) in pairwise(ranges)):
            return False
    return True


def test_a_bitstream_and_timing_that_does_not_close(tmp_path: Path) -> None:
    script = kit(tmp_path, "arty-a7-35") / "vivado" / "project.tcl"
    Vivado(VLNV, argument="bitstream").source(script)
    late = Vivado(VLNV, argument="bitstream")
    late.slack = -0.1
    with pytest.raises(tkinter.TclError, match="timing does not close at 50 MHz"):
        late.source(script)
    with pytest.raises(tkinter.TclError, match="the only argument is bitstream, not bits"):
        Vivado(VLNV, argument="bits").source(script)


def test_board_files_bring_the_preset(tmp_path: Path) -> None:
    script = kit(tmp_path, "pynq-z2") / "vivado" / "project.tcl"
    without, with_files = Vivado(VLNV), Vivado(VLNV, board_files=True)
    for vivado, preset in ((without, "0"), (with_files, "1")):
        vivado.source(script)
        assert vivado.properties["automation", "preset"] == preset
    part = with_files.properties["current_project", "board_part"]
    assert part == "tul.com.tw:pynq-z2:part0:1.0"


@pytest.mark.parametrize(
    "break_it, message",
    [
        (("systolith/aclk", "systolith/clk"), "systolith has no clk"),
        (("create_bd_design", "create_design"), 'invalid command name "create_design"'),
        (("CONFIG.NUM_SI 2", "CONFIG.PORTS 2"), "bus has no CONFIG.PORTS"),
        (("axi_bram_ctrl:4.1", "axi_bram:4.1"), "there is no IP xilinx.com:ip:axi_bram:4.1"),
        (("systolith/aclk jtag/aclk", "jtag/aclk"), "undriven"),
        (("foreach pin {", "foreach pin {{"), "brace"),
    ],
)
def test_the_lint_sees_mistakes(tmp_path: Path, break_it: tuple[str, str], message: str) -> None:
    folder = kit(tmp_path, "arty-a7-100") / "vivado"
    script = folder / "block_design.tcl"
    text = script.read_text()
    assert break_it[0] in text
    script.write_text(text.replace(*break_it))
    vivado = Vivado(VLNV)
    if message == "undriven":
        vivado.source(folder / "project.tcl")
        assert vivado.undriven() == ["systolith/aclk"]
        return
    with pytest.raises(tkinter.TclError, match=re.escape(message)):
        vivado.source(folder / "project.tcl")


@pytest.mark.parametrize("name", PRESETS)
def test_the_wrapper_has_every_port_with_its_interface(name: str, tmp_path: Path) -> None:
    """For each preset's widths; the machine itself may be an empty module for that."""
    config = PRESETS[name]
    make_kit(config, tmp_path, target="arty-a7-35", verilog="")
    text = (tmp_path / "vivado" / "systolith_ip.v").read_text()
    ports = {port.name: port for port in parse_ports(text, "systolith_ip")}
    described = json.loads((tmp_path / "manifest.json").read_text())["ports"]
    wanted = {p["name"]: (p["direction"], p["width"]) for p in described}
    wanted = {n: w for n, w in wanted.items() if n not in ("clk", "rst")}
    wanted |= {"aclk": ("input", 1), "aresetn": ("input", 1)}
    assert {n: (p.direction, p.width) for n, p in ports.items()} == wanted
    infos = re.findall(r'X_INTERFACE_INFO = "(\S+) (\S+) (\S+)" \*\)', text)
    assert len(infos) == len(ports)
    signals = [signal for _, bus, signal in infos if bus == "M_AXI"]
    assert {"AWADDR", "WLAST", "BREADY", "ARLEN", "RDATA", "RID"} <= set(signals)
    assert len(set(signals)) == len(signals) == 37
    assert sum(bus == "S_AXIL" for _, bus, _ in infos) == 19
    assert f"DATA_WIDTH {8 * config.bus_bytes}, " in text and 'RST"' in text


def test_verilator_lints_the_wrapper(tmp_path: Path) -> None:
    folder = kit(tmp_path, "pynq-z2")
    tools = find()
    command = [
        tools.executable, "--lint-only", "-Wall", folder / "systolith.vlt",
        folder / "vivado" / "systolith_ip.v", folder / "systolith.v", "--top-module",
        "systolith_ip",
    ]  # fmt: skip
    environment = {"PATH": "/usr/bin:/bin", **tools.environment}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


class Jtag:
    """Vivado's hardware manager with a board behind it: words by address."""

    def __init__(self, script: Path, **values: int) -> None:
        self.tcl = tkinter.Tcl()
        self.words: dict[int, int] = {}
        self.writes: list[tuple[int, int]] = []
        self.base = TARGETS["arty-a7-35"].registers
        for name, value in values.items():
            self.words[self.base + registers.BY_NAME[name].offset] = value
        self.pending: tuple[str, int, int] = ("", 0, 0)
        self.tcl.createcommand("get_hw_axis", lambda *_: "hw_axi_1")
        self.tcl.createcommand("reset_hw_axi", lambda *_: "")
        self.tcl.createcommand("get_hw_axi_txns", lambda name: name)
        self.tcl.createcommand("create_hw_axi_txn", self.create)
        self.tcl.createcommand("run_hw_axi", self.run)
        self.tcl.createcommand("get_property", lambda *_: f"{self.words[self.pending[1]]:08x}")
        self.tcl.eval(f"source {{{script}}}")

    def create(self, *arguments: str) -> str:
        def option(name: str) -> str:
            return arguments[arguments.index(name) + 1]

        kind, address = option("-type"), int(option("-address"), 16)
        data = int(option("-data"), 16) if kind == "write" else 0
        assert option("-len") == "1" and address % 4 == 0
        self.pending = kind, address, data
        return ""

    def run(self, *arguments: str) -> str:
        kind, address, data = self.pending
        if kind == "write":
            self.writes.append((address, data))
            self.words[address] = data
        return ""


@pytest.fixture
def jtag_script(tmp_path: Path) -> Path:
    return kit(tmp_path / "kit", "arty-a7-35") / "vivado" / "jtag.tcl"


def test_jtag_runs_a_program(jtag_script: Path, tmp_path: Path) -> None:
    packed, _ = product_case(1)
    path = tmp_path / "program.bin"
    path.write_bytes(packed.image[:-1])  # a length that is no multiple of four
    board = Jtag(
        jtag_script, ID=registers.IDENTIFICATION, CONFIG_HASH=CONFIG.hash,
        STATUS=registers.STATUS_DONE, CYCLES=1234,
    )  # fmt: skip
    board.words[board.base + registers.BY_NAME["CYCLES"].offset + 4] = 2
    board.tcl.eval("systolith_check")
    size = packed.program.memory_bytes
    board.tcl.eval(f"systolith_load {{{path}}} {size}")
    written = b"".join(board.words[at].to_bytes(4, "little") for at in range(0, size, 4))
    assert written == packed.image[:-1].ljust(size, b"\0")
    assert board.writes[-1] == (board.base + registers.BY_NAME["BASE"].offset, 0)
    assert int(board.tcl.eval("systolith_run")) == 1234 + (2 << 32)
    assert board.writes[-1] == (board.base + registers.BY_NAME["CONTROL"].offset, 1)
    dumped = [int(byte) for byte in board.tcl.eval("systolith_dump 0x5 9").split()]
    assert bytes(dumped) == packed.image[5:14]


def test_jtag_says_what_is_wrong(jtag_script: Path, tmp_path: Path) -> None:
    def fails(board: Jtag, command: str, message: str) -> None:
        with pytest.raises(tkinter.TclError, match=message):
            board.tcl.eval(command)

    good = {"ID": registers.IDENTIFICATION, "CONFIG_HASH": CONFIG.hash}
    fails(Jtag(jtag_script, **good | {"ID": 0}), "systolith_check", "no systolith machine")
    other = good | {"CONFIG_HASH": CONFIG.hash ^ 1}
    fails(Jtag(jtag_script, **other), "systolith_check", "another configuration")
    for error in Error:
        if error != Error.NONE:
            stopped = Jtag(
                jtag_script, STATUS=registers.STATUS_ERROR, ERROR=int(error), ERROR_PC=77
            )
            fails(stopped, "systolith_run", f"error {error.name} at instruction 77")
    endless = Jtag(jtag_script, STATUS=registers.STATUS_BUSY)
    fails(endless, "systolith_run 5", "has not ended: the machine was reset")
    assert endless.writes[-1][1] == registers.CONTROL_RESET
    large = tmp_path / "large.bin"
    large.write_bytes(bytes((64 << 10) + 1))
    fails(Jtag(jtag_script), f"systolith_load {{{large}}}", "does not fit into 65536 bytes")


def test_unknown_target(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no Vivado target 'vc707': name one of arty-a7-35"):
        make_kit(CONFIG, tmp_path / "kit", target="vc707", verilog="")
    assert not (tmp_path / "kit").exists()
