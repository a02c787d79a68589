"""What a family of FPGAs gives the build flow; one subclass for each family.

A family knows the commands of its tools, the format of its constraints, its PLL, how to count cells
and how many a device has. ``boards/build.py`` calls the parts in order, in one folder: the
WebAssembly tools see nothing outside of it, so every file is named without a path.
"""

import abc
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any, ClassVar

from systolith.boards.board import Board, Pin
from systolith.errors import UserError


@dataclass(frozen=True)
class Usage:
    """Device cells: LUTs, flip-flops, multipliers, block RAMs, and the family's large RAMs
    (``spram``: SPRAM of an iCE40 UltraPlus, LRAM of a Nexus)."""

    lut: int = 0
    ff: int = 0
    dsp: int = 0
    bram: int = 0
    spram: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        pairs = zip(asdict(self).items(), asdict(other).values(), strict=True)
        return Usage(**{name: a + b for (name, a), b in pairs})


@dataclass(frozen=True)
class Clock:
    """A legal setting of a family's PLL, or the input clock itself (``cell`` is "").

    ``hz``: exact output frequency. ``pfd_hz``, ``vco_hz``: phase detector and oscillator.
    """

    input_hz: Fraction
    hz: Fraction
    cell: str = ""
    pfd_hz: Fraction = Fraction(0)
    vco_hz: Fraction = Fraction(0)
    parameters: Mapping[str, int | str] = field(default_factory=dict, hash=False)

    @property
    def mhz(self) -> float:
        return float(self.hz / 10**6)


@dataclass(frozen=True)
class Pattern:
    """Cells whose whole type matches ``pattern`` count ``amount`` of ``resource``."""

    pattern: str
    resource: str
    amount: int = 1


class Family(abc.ABC):
    """One family. Class attributes:

    ``name``, ``title``; ``devices``: capacity of each device; ``units``: what the data sheet calls
    each resource; ``cells``: how yosys's cells are counted; ``report_cells``: how the names in
    nextpnr's report are; ``packages``: command → package on PyPI; ``constraints_file``,
    ``bitstream``: file names; ``multipliers``: types of yosys's cells that multiply;
    ``lut_memories``: whether LUTs can be small memories (where they cannot, flip-flops are);
    ``infers_spram``: whether yosys makes the large RAMs of memories by itself;
    ``block_ram_bytes``: of a block RAM whose words are whole bytes; 0 where the large RAMs are the
    board's memory.
    """

    name: str
    title: str
    devices: ClassVar[dict[str, Usage]]
    units: ClassVar[dict[str, str]]
    cells: tuple[Pattern, ...]
    report_cells: tuple[Pattern, ...]
    packages: ClassVar[dict[str, str]]
    constraints_file: str
    bitstream: str
    multipliers: tuple[str, ...] = ()
    lut_memories: bool = True
    infers_spram: bool = False
    block_ram_bytes: int = 2048

    @abc.abstractmethod
    def synthesis(self, top: str, device: str) -> str:
        """The yosys script after ``read_verilog``; it writes ``yosys.json``."""

    def files(self) -> dict[str, str]:
        """Further files that the script reads: name → text."""
        return {}

    def prepare(self, netlist: dict, device: str) -> None:  # noqa: B027
        """What is done to the top module of yosys's netlist, in place."""

    def untimed(self, netlist: dict) -> list[str]:
        """Which paths of a netlist nextpnr leaves out of its clock: "through multipliers"."""
        return []

    @abc.abstractmethod
    def constraints(self, pins: Mapping[str, Pin]) -> str:
        """The constraints file: where each pin is."""

    @abc.abstractmethod
    def place_and_route(self, board: Board, seed: int, mhz: float) -> list[str]:
        """nextpnr's command line; it reads ``netlist.json`` and writes ``report.json``."""

    def stalls(self, log: str) -> bool:
        """Whether nextpnr, whose log so far this is, gets nowhere and is to be stopped."""
        return False

    @abc.abstractmethod
    def pack(self, board: Board) -> list[str]:
        """The command that makes ``bitstream`` of what nextpnr wrote."""

    def check_place_and_route(self, log: str, clock: Clock) -> None:  # noqa: B027
        """Raises ``ToolError`` for what nextpnr's log says and its exit code does not."""

    @abc.abstractmethod
    def pll_settings(self, input_hz: Fraction, wanted_hz: Fraction) -> Iterator[Clock]:
        """Legal settings with outputs up to ``wanted_hz``; where several give the same clock the
        first is the best."""

    @abc.abstractmethod
    def pll_ports(self, clock: Clock, pin: Any, output: Any, locked: Any) -> dict[str, Any]:
        """Arguments of Amaranth's ``Instance`` for the PLL's ports."""

    def clock(self, input_mhz: float, wanted_mhz: float) -> Clock:
        """The fastest clock not above ``wanted_mhz``: of the PLL, or the input clock.

        Raises ``UserError`` if there is none.
        """
        given, wanted = exact_hz(input_mhz), exact_hz(wanted_mhz)
        best = Clock(given, given) if given <= wanted else None
        for setting in self.pll_settings(given, wanted):
            if setting.hz <= wanted and (best is None or setting.hz > best.hz):
                best = setting
        if best is None:
            raise UserError(
                f"The PLL of {self.title} makes no clock of {wanted_mhz:g} MHz or less from "
                f"{input_mhz:g} MHz: the design is too slow for this board"
            )
        return best

    def output_buffer(self, kind: str, **ports: Any) -> tuple[str, dict[str, Any]]:
        """Primitive of a "tristate" pad (i, o, oe, pad) or of an "inverted_clock" pad (clk, o).

        Raises ``UserError`` where the family has none of it here.
        """
        raise UserError(f"{self.title} boards have no {kind} pins here")

    def count(self, types: Mapping[str, int]) -> Usage:
        """Yosys's cells, by type, as device cells."""
        return _count(types, self.cells)

    def count_report(self, utilization: Mapping[str, Mapping[str, int]], which: str) -> Usage:
        """``which``: "used" or "available" of the ``utilization`` in nextpnr's report."""
        amounts = {name: values[which] for name, values in utilization.items()}
        return _count(amounts, self.report_cells)


def exact_hz(mhz: float) -> Fraction:
    """A frequency as it was written down: 14.7456 MHz is 14,745,600 Hz and no other."""
    return Fraction(str(mhz)) * 10**6


def _count(amounts: Mapping[str, int], patterns: tuple[Pattern, ...]) -> Usage:
    total = dict.fromkeys(asdict(Usage()), 0)
    for name, amount in amounts.items():
        for pattern in patterns:
            if re.fullmatch(pattern.pattern, name):
                total[pattern.resource] += amount * pattern.amount
    return Usage(**total)


def in_range(hz: Fraction, mhz: tuple[float, float]) -> bool:
    """Whether a frequency is within limits in MHz."""
    return exact_hz(mhz[0]) <= hz <= exact_hz(mhz[1])


def pin_bits(pins: Mapping[str, Pin]) -> Iterator[tuple[str, str, Pin]]:
    """Every bit of every pin: its name in the netlist, its place, the pin."""
    for name, pin in pins.items():
        for index, place in enumerate(pin.locations):
            yield (f"{name}[{index}]" if pin.width > 1 else name), place, pin
