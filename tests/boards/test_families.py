"""Pins, constraints and the counting of cells, family by family."""

import json
import sys
from collections import Counter

import pytest

from systolith.boards import board as boards
from systolith.boards.board import SDRAM_PINS, Board, BoardError, Pin
from systolith.boards.catalog import NAMES, all_boards, find_board
from systolith.boards.family import Usage
from systolith.boards.sizes import check_fits, excess, fitting_presets
from systolith.config import PRESETS
from systolith.errors import UserError

TWO = {
    "clk": Pin(("A1",), "in", attributes=(("IO_TYPE", "LVCMOS33"),)),
    "led": Pin(("B1", "B2"), "out", inverted=True),
}
CONSTRAINTS = {
    "ulx3s": [
        'LOCATE COMP "clk" SITE "A1";',
        'IOBUF PORT "clk" IO_TYPE=LVCMOS33;',
        'LOCATE COMP "led[0]" SITE "B1";',
        'LOCATE COMP "led[1]" SITE "B2";',
    ],
    "icebreaker": ["set_io clk A1", "set_io led[0] B1", "set_io led[1] B2"],
    "tang_nano_20k": [
        'IO_LOC "clk" A1;',
        'IO_PORT "clk" IO_TYPE=LVCMOS33;',
        'IO_LOC "led[0]" B1;',
        'IO_LOC "led[1]" B2;',
    ],
    "olimex_gatemate": [
        'Pin_in "clk" Loc = "A1" | IO_TYPE=LVCMOS33;',
        'Pin_out "led[0]" Loc = "B1";',
        'Pin_out "led[1]" Loc = "B2";',
    ],
    "crosslink_nx_evn": [
        "ldc_set_location -site {A1} [get_ports {clk}]",
        "ldc_set_port -iobuf {IO_TYPE=LVCMOS33} [get_ports {clk}]",
        "ldc_set_location -site {B1} [get_ports {led[0]}]",
        "ldc_set_location -site {B2} [get_ports {led[1]}]",
    ],
}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints(name: str) -> None:
    assert find_board(name).family.constraints(TWO).splitlines() == CONSTRAINTS[name]


@pytest.mark.parametrize("board", all_boards(), ids=lambda board: board.name)
def test_a_board_is_complete(board: Board) -> None:
    assert board.device in board.family.devices
    assert board.preset in PRESETS
    pins = board.pins
    assert {"clk", "uart_rx", "uart_tx", "led", "reset_button"} <= set(pins)
    directions = {name: pin.direction for name, pin in pins.items()}
    assert directions["clk"] == directions["uart_rx"] == directions["reset_button"] == "in"
    assert directions["uart_tx"] == directions["led"] == "out"
    places = Counter(place for pin in pins.values() for place in pin.locations)
    assert max(places.values()) == 1, "two signals on one pin"
    clock = board.family.clock(board.clock_mhz, board.wanted_mhz)
    assert 0.95 * board.wanted_mhz <= clock.mhz <= board.wanted_mhz
    if board.sdram is None:
        assert not set(SDRAM_PINS) & set(pins)
        return
    assert set(SDRAM_PINS) <= set(pins)
    assert 1 << pins["sdram_a"].width == board.sdram.rows
    assert 1 << pins["sdram_ba"].width == board.sdram.banks
    assert pins["sdram_dq"].width == board.sdram.data_bits == 8 * pins["sdram_dqm"].width
    assert pins["sdram_dq"].direction == "inout"
    # The names say what is active low; nothing is inverted a second time.
    assert not any(pins[name].inverted for name in SDRAM_PINS)
    block, sdram = board.memory_map
    assert (block["base"], sdram["base"]) == (0, block["bytes"])
    assert sdram["bytes"] == board.sdram.size_bytes


def test_known_pins() -> None:
    """From the boards' documentation, not from where the code has them."""
    pins = find_board("ulx3s").pins
    assert pins["clk"].locations == ("G2",) and pins["sdram_clk"].locations == ("F19",)
    assert pins["sdram_dq"].locations[0] == "J16" and pins["sdram_a"].locations[12] == "G19"
    assert pins["led"].locations[0] == "B2" and pins["led"].width == 8
    assert find_board("ulx3s").sdram.size_bytes == 32 << 20
    pins = find_board("icebreaker").pins
    assert (pins["clk"].locations, pins["uart_rx"].locations) == (("35",), ("6",))
    assert pins["led"] == Pin(("11", "37"), "out", True, (("IO_STANDARD", "SB_LVCMOS"),))
    apycula = pytest.importorskip("apycula")
    assert apycula
    pins = find_board("tang_nano_20k").pins
    assert pins["sdram_clk"].locations == ("IOR11B",)
    assert pins["sdram_dq"].locations[:2] == ("IOL3A", "IOL3B")
    assert find_board("tang_nano_20k").sdram.size_bytes == 8 << 20


def test_pins_of_one_name_are_alike() -> None:
    with pytest.raises(BoardError, match="alike"):
        boards._joined([Pin(("A",), "in"), Pin(("B",), "out")])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("amaranth_boards")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "amaranth_boards", None)
    with pytest.raises(BoardError, match=r"amaranth-boards.*pip install 'systolith\[boards\]'"):
        boards.amaranth_pins("ulx3s", "ULX3S_85F_Platform", {"clk": ("clk25", 0, "")})


def test_an_unknown_board_lists_the_known() -> None:
    with pytest.raises(BoardError, match=f"no board 'ulx4s': name one of {', '.join(NAMES)}"):
        find_board("ulx4s")


@pytest.mark.parametrize(
    ("name", "types", "expected"),
    [
        (
            "ulx3s",
            {"LUT4": 10, "CCU2C": 3, "TRELLIS_DPR16X4": 2, "TRELLIS_FF": 7, "MULT18X18D": 1,
             "DP16KD": 4, "PDPW16KD": 1, "$scopeinfo": 9, "EHXPLLL": 1},
            Usage(lut=10 + 6 + 12, ff=7, dsp=1, bram=5),
        ),
        (
            "icebreaker",
            {"SB_LUT4": 10, "SB_CARRY": 5, "SB_DFFESR": 3, "SB_DFF": 1, "SB_MAC16": 2,
             "SB_RAM40_4KNR": 1, "SB_RAM40_4K": 1, "SB_SPRAM256KA": 4},
            Usage(lut=10, ff=4, dsp=2, bram=2, spram=4),
        ),
        (
            "tang_nano_20k",
            {"LUT1": 1, "LUT4": 2, "ALU": 3, "MUX2_LUT5": 9, "RAM16SDP4": 2, "DFFRE": 5,
             "MULT9X9": 3, "MULT18X18": 2, "SDPX9B": 1, "DPB": 1, "SPX9": 1, "rPLL": 1},
            Usage(lut=6 + 8, ff=5, dsp=4, bram=3),
        ),
        (
            "olimex_gatemate",
            {"CC_LUT2": 2, "CC_L2T4": 3, "CC_L2T5": 1, "CC_ADDF": 2, "CC_DFF": 4,
             "CC_BRAM_20K": 1, "CC_BRAM_40K": 2, "CC_PLL": 1},
            Usage(lut=9, ff=4, bram=5),
        ),
        (
            "crosslink_nx_evn",
            {"LUT4": 4, "INV": 1, "CCU2": 2, "WIDEFN9": 1, "DPR16X4": 1, "FD1P3IX": 3,
             "MULT9X9": 1, "MULT18X18": 1, "PDPSC16K": 2, "DPSC512K": 1},
            Usage(lut=5 + 4 + 2 + 6, ff=3, dsp=2, bram=2, spram=1),
        ),
    ],
)  # fmt: skip
def test_counting(name: str, types: dict[str, int], expected: Usage) -> None:
    assert find_board(name).family.count(types) == expected


def test_paths_without_delays_are_named() -> None:
    def netlist(*kinds: str, **parameters: str) -> dict:
        cells = [{"type": kind, "parameters": parameters} for kind in kinds]
        return {"cells": dict(enumerate(cells))}

    gowin, ice40 = find_board("tang_nano_20k").family, find_board("icebreaker").family
    assert gowin.untimed(netlist("LUT4", "DFF")) == []
    assert gowin.untimed(netlist("MULT9X9", "SPX9", "RAM16SDP4")) == [
        "through multipliers", "out of block RAM", "through LUT RAM"
    ]  # fmt: skip
    assert ice40.untimed(netlist("SB_DFF")) == []
    assert ice40.untimed(netlist("SB_MAC16", TOPOUTPUT_SELECT="01")) == []
    direct = netlist("SB_MAC16", TOPOUTPUT_SELECT="11", PIPELINE_16x16_MULT_REG2="0")
    assert ice40.untimed(direct) == ["through multipliers without output register"]
    assert find_board("ulx3s").family.untimed(netlist("MULT18X18D")) == []


def test_excess() -> None:
    assert excess(Usage(lut=5, dsp=3), Usage(lut=7, dsp=1)) == Usage(dsp=2)


def test_too_large_says_what_by_how_much_and_what_fits() -> None:
    board = find_board("icebreaker")
    with pytest.raises(UserError) as caught:
        check_fits(board, Usage(lut=26793, ff=25991, dsp=57, bram=215), "tiny")
    assert str(caught.value) == (
        "The configuration tiny does not fit icebreaker (iCE40UP5K): it needs 26,793 LUT4 of 5,280 "
        "(21,513 too many), 25,991 flip-flops of 5,280 (20,711 too many), 57 SB_MAC16 of 8 "
        "(49 too many), 215 SB_RAM40_4K of 30 (185 too many); no preset fits; name a smaller "
        "configuration (a JSON file) with --preset"
    )
    check_fits(board, Usage(lut=5280, ff=5280, dsp=8, bram=30, spram=4), "tiny")
    with pytest.raises(UserError, match=r"needs 300 MULT18X18D of 156 \(144 too many\); use --"):
        check_fits(find_board("ulx3s"), Usage(dsp=300), "bench")


def test_sizes_that_were_measured() -> None:
    assert fitting_presets(find_board("ulx3s")) == ["tiny", "small", "lean", "resident"]
    # Its block memory leaves no room for a machine with much of its own.
    assert fitting_presets(find_board("ecpix5")) == ["tiny", "lean"]
    assert fitting_presets(find_board("icebreaker")) == []
    assert "tiny" in fitting_presets(find_board("crosslink_nx_evn"))
    assert "tiny" not in fitting_presets(find_board("tang_nano_20k"))


def test_usage_survives_json() -> None:
    usage = Usage(1, 2, 3, 4, 5) + Usage(lut=1)
    assert json.loads(json.dumps(usage.__dict__)) == {
        "lut": 2, "ff": 2, "dsp": 3, "bram": 4, "spram": 5
    }  # fmt: skip
