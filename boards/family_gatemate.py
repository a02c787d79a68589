"""Cologne Chip GateMate: yosys, nextpnr-himbaechel, gmpack of Project Peppercorn."""

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, ClassVar

from systolith.boards.board import Board, Pin
from systolith.boards.family import Clock, Family, Pattern, Usage, in_range, pin_bits
from systolith.boards.tools import ToolError, tool

# Data sheet DS1001, chapter on the PLL, and the search for dividers in nextpnr's GateMate back
# end, at the core voltage of 1.0 V ("economy").
INPUT_MHZ = 1, 50
OUTPUT_MHZ = 1, 312.5
VCO_MHZ = 1000, 2000
N1_INPUT_MHZ = 1250
"""The oscillator over PDIV1 = 2 must not be faster, the input of N2 half of that."""
PDIV1 = 2
_DECIMALS = 4
"""Of the output frequency in MHz, which is a text: others are not asked for."""


class GateMate(Family):
    """Capacity: data sheet DS1001. A CPE is two LUT trees of four inputs and two flip-flops; a
    multiplication is made of CPEs. Block RAMs count 20 kbit."""

    name = "gatemate"
    title = "Cologne Chip GateMate"
    devices: ClassVar = {"CCGM1A1": Usage(lut=40960, ff=40960, bram=64)}
    units: ClassVar = {"lut": "half CPEs", "ff": "flip-flops", "bram": "block RAMs of 20 kbit"}
    # A product of M by N bits takes about M · N / 2 CPEs; CC_MULT has its widths in parameters and
    # not in its type, so it is counted in the report of place and route.
    cells = (
        Pattern("CC_LUT[1-4]|CC_L2T4|CC_ADDF|CC_MX2", "lut"),
        Pattern("CC_L2T5|CC_MX4", "lut", 2),
        Pattern("CC_MX8", "lut", 4),
        Pattern("CC_DFF|CC_DLT", "ff"),
        Pattern("CC_BRAM_20K", "bram"),
        Pattern("CC_BRAM_40K", "bram", 2),
    )
    report_cells = (
        Pattern("CPE_L2T4|CPE_LT|CPE_LT_[LU]", "lut"),
        Pattern("CPE_FF|CPE_FF_[LU]", "ff"),
        Pattern("RAM_HALF", "bram"),
        Pattern("RAM", "bram", 2),
    )
    packages: ClassVar = {
        "yowasp-nextpnr-himbaechel-gatemate": "yowasp-nextpnr-himbaechel-gatemate",
        "yowasp-gmpack": "yowasp-nextpnr-himbaechel-gatemate",
    }
    constraints_file = "pins.ccf"
    bitstream = "systolith.bit"
    multipliers = ("CC_MULT",)
    lut_memories = False

    def synthesis(self, top: str, device: str) -> str:
        return f"synth_gatemate -top {top} -luttree -nomx8 -json yosys.json"

    def constraints(self, pins: Mapping[str, Pin]) -> str:
        words = {"in": "Pin_in", "out": "Pin_out", "inout": "Pin_inout"}
        lines = []
        for bit, place, pin in pin_bits(pins):
            settings = "".join(f" | {name}={value}" for name, value in pin.attributes)
            lines.append(f'{words[pin.direction]} "{bit}" Loc = "{place}"{settings};')
        return "\n".join(lines) + "\n"

    def place_and_route(self, board: Board, seed: int, mhz: float) -> list[str]:
        command = [tool("yowasp-nextpnr-himbaechel-gatemate"), "--device", board.device]
        command += ["--vopt", "ccf=pins.ccf", "--vopt", "out=routed.txt"]
        command += ["--vopt", f"fpga_mode={board.speed}", "--vopt", "time_mode=3"]
        command += ["--json", "netlist.json", "--router", "router2"]
        command += ["--seed", str(seed), "--freq", f"{mhz:g}", "--timing-allow-fail"]
        return [*command, "--report", "report.json"]

    def pack(self, board: Board) -> list[str]:
        packer = tool("yowasp-gmpack", "yowasp-nextpnr-himbaechel-gatemate")
        return [packer, "routed.txt", self.bitstream]

    def pll_settings(self, input_hz: Fraction, wanted_hz: Fraction) -> Iterator[Clock]:
        """nextpnr finds the dividers of an output frequency itself, and may miss it. Given here are
        frequencies that it can meet exactly: input · n / 2 m, m even or 1, with an oscillator in
        range, and few enough decimals to be written down."""
        if not in_range(input_hz, INPUT_MHZ):
            return
        for n in range(1, int(VCO_MHZ[1] * 10**6 / input_hz / PDIV1) + 1):
            vco = input_hz * PDIV1 * n
            # nextpnr wants more than the least.
            if not in_range(vco, VCO_MHZ) or vco == VCO_MHZ[0] * 10**6:
                continue
            if not _splits(n, vco / PDIV1):
                continue
            for m in (1, *range(2, 1025, 2)):
                hz = vco / (2 * PDIV1 * m)
                if hz > wanted_hz or not in_range(hz, OUTPUT_MHZ) or not _splits(m, vco / PDIV1):
                    continue
                if (hz / 10**6 * 10**_DECIMALS).denominator == 1:
                    yield Clock(input_hz, hz, "CC_PLL", input_hz, vco, {"OUT_CLK": _text(hz)})
                    break  # a larger divider is slower

    def check_place_and_route(self, log: str, clock: Clock) -> None:
        """Raises ``ToolError`` if nextpnr chose dividers of another frequency than asked for."""
        found = re.search(r"PLL fout= *([0-9.]+) MHz", log)
        if clock.cell and (found is None or abs(float(found[1]) - clock.mhz) > 10**-_DECIMALS):
            made = found[1] if found else "no frequency"
            raise ToolError(f"nextpnr's PLL makes {made} MHz of the {clock.mhz:g} MHz asked for")

    def pll_ports(self, clock: Clock, pin: Any, output: Any, locked: Any) -> dict[str, Any]:
        parameters = {
            **clock.parameters, "REF_CLK": _text(clock.input_hz), "PERF_MD": "ECONOMY",
            "LOW_JITTER": 1, "CI_FILTER_CONST": 2, "CP_FILTER_CONST": 4, "LOCK_REQ": 1,
        }  # fmt: skip
        return {
            **{f"p_{name}": value for name, value in parameters.items()},
            **{f"i_{name}": 0 for name in ("CLK_FEEDBACK", "USR_CLK_REF", "USR_LOCKED_STDY_RST")},
            "i_CLK_REF": pin, "o_CLK0": output, "o_USR_PLL_LOCKED": locked,
        }  # fmt: skip


def _splits(divider: int, input_hz: Fraction) -> bool:
    """Whether a divider is a first one of up to 64 and a second of up to 1024, with the inputs of
    both in range."""
    limit = N1_INPUT_MHZ * 10**6
    return any(
        divider % first == 0 and divider // first <= 1024
        and input_hz <= limit and input_hz / first <= limit / 2
        for first in range(1, 65)
    )  # fmt: skip


def _text(hz: Fraction) -> str:
    """A frequency in MHz with the decimals that it has, at least one."""
    text = f"{float(hz / 10**6):.{_DECIMALS}f}".rstrip("0")
    return text + "0" if text.endswith(".") else text
