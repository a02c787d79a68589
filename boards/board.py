"""What a board is: an FPGA, a clock, pins with plain names, memory, and how it is programmed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from systolith.cache import cache_directory
from systolith.errors import UserError
from systolith.hdl.sdram_chip import SdramChip

if TYPE_CHECKING:
    from systolith.boards.family import Family


class BoardError(UserError):
    """A board that is not known, or that lacks what is asked of it."""


@dataclass(frozen=True)
class Pin:
    """One name at the top: package pins from bit 0 up, and what its I/O cells are set to.

    ``direction``: "in", "out" or "inout", seen from the FPGA. ``inverted``: the pin is low when the
    signal inside is 1. ``attributes``: of the family's constraints, such as IO_TYPE.
    """

    locations: tuple[str, ...]
    direction: str
    inverted: bool = False
    attributes: tuple[tuple[str, str], ...] = ()

    @property
    def width(self) -> int:
        return len(self.locations)


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board, as short as its file.

    Pins: ``clk``, ``uart_rx``, ``uart_tx``, ``led``, where there is one ``reset_button``, and with
    ``sdram`` the pins of ``SDRAM_PINS``.
    """

    name: str
    title: str
    family: "Family"
    device: str
    """As the family's data sheet names it, a key of ``family.devices``."""
    package: str
    speed: str
    """Speed grade, in the words of the family's nextpnr."""
    clock_mhz: float
    """Of the oscillator at the pin ``clk``."""
    find_pins: Callable[[], dict[str, Pin]] = field(repr=False)
    """Called when pins are wanted: it may need a package that boards alone need."""
    preset: str
    """Configuration that is built unless another one is named."""
    wanted_mhz: float
    """Clock that place and route aims at; the clock in the bitstream is never above it."""
    block_bytes: int
    """Block memory (or SPRAM) beside the machine, for model and data."""
    loader: tuple[str, ...]
    """Arguments of openFPGALoader that find the board; the bitstream is added."""
    sdram: SdramChip | None = None
    notes: str = ""

    @property
    def memory_map(self) -> list[dict[str, int | str]]:
        """What the machine and the host see: block memory at 0, the SDRAM right behind it."""
        found: list[dict[str, int | str]] = [
            {"name": "block", "base": 0, "bytes": self.block_bytes}
        ]
        if self.sdram is not None:
            found.append(
                {"name": "sdram", "base": self.block_bytes, "bytes": self.sdram.size_bytes}
            )
        return found

    @property
    def memory_bytes(self) -> int:
        """All memories together."""
        return self.block_bytes + (0 if self.sdram is None else self.sdram.size_bytes)

    @cached_property
    def pins(self) -> dict[str, Pin]:
        return self.find_pins()


SDRAM_PINS = (
    "sdram_clk", "sdram_cke", "sdram_cs_n", "sdram_ras_n", "sdram_cas_n", "sdram_we_n",
    "sdram_dqm", "sdram_ba", "sdram_a", "sdram_dq",
)  # fmt: skip


def amaranth_pins(
    module: str, platform: str, names: dict[str, tuple[str, int, str] | list[tuple[str, int, str]]]
) -> dict[str, Pin]:
    """Pins of a platform of amaranth-boards.

    ``names``: of each of our pins the resource's name, number, and subsignal ("" if it has none); a
    list of them becomes one pin of as many bits.
    """
    from importlib import import_module

    try:
        platform_class = getattr(import_module(f"amaranth_boards.{module}"), platform)
    except ModuleNotFoundError:
        raise BoardError(
            "amaranth-boards, which knows the pins of this board, is not installed: "
            "run pip install 'systolith[boards]'"
        ) from None
    resources = {(r.name, r.number): r for r in platform_class.resources}
    return {
        name: _joined([_pin(resources[source[:2]], source[2]) for source in _list(sources)])
        for name, sources in names.items()
    }


def amaranth_sdram() -> dict[str, tuple[str, int, str]]:
    """The names of amaranth-boards for an ``SDRAMResource``."""
    subsignals = ("clk", "clk_en", "cs", "ras", "cas", "we", "dqm", "ba", "a", "dq")
    return {
        pin: ("sdram", 0, subsignal) for pin, subsignal in zip(SDRAM_PINS, subsignals, strict=True)
    }


def _list(sources):
    return sources if isinstance(sources, list) else [sources]


def _joined(pins: list[Pin]) -> Pin:
    first = pins[0]
    if any((p.direction, p.inverted, p.attributes) !=
           (first.direction, first.inverted, first.attributes) for p in pins):  # fmt: skip
        raise BoardError("pins of one name must be alike")
    locations = tuple(place for pin in pins for place in pin.locations)
    return Pin(locations, first.direction, first.inverted, first.attributes)


def _pin(resource, subsignal: str) -> Pin:
    """A pin of one of Amaranth's resources. What is inverted there by the name of our pin alone
    (``sdram_cs_n``) is not inverted once more here."""
    attributes = dict(resource.attrs)
    found = resource.ios[0]
    if subsignal:
        (sub,) = [io for io in resource.ios if io.name == subsignal]
        attributes |= dict(sub.attrs)
        found = sub.ios[0]
    active_low = resource.name == "sdram" and subsignal in ("cs", "ras", "cas", "we")
    direction = {"i": "in", "o": "out", "io": "inout"}[found.dir]
    return Pin(
        tuple(found.names),
        direction,
        found.invert and not active_low,
        tuple(sorted((name, str(value)) for name, value in attributes.items())),
    )


def bitstreams() -> Path:
    """Where builds are kept unless another folder is named, a folder for each board."""
    return cache_directory() / "bitstreams"
