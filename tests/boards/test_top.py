"""The top of every board, simulated with its pins and the models of its family's primitives."""

from fractions import Fraction
from pathlib import Path

import pytest

import systolith.sim
from systolith.boards.board import Board
from systolith.boards.catalog import all_boards, find_board
from systolith.boards.family import Clock
from systolith.boards.top import RESET_US, TOP, top_verilog
from systolith.config import PRESETS
from systolith.sim import runner
from systolith.sim.build import build

from .probe import Probe

BENCH = Path(__file__).with_name("bench_top.py")
PRIMITIVES = Path(systolith.sim.__file__).parent / "primitives"
HASH = 0x8000_0000_0000_0001
BOARDS = [board.name for board in all_boards()]


def bench_verilog(board: Board) -> str:
    """A module that joins the pins of the data bus: outside a simulator's top has no tristates."""
    ports, wires = [], []
    for name, pin in board.pins.items():
        if pin.direction == "inout":
            continue
        direction = "input" if pin.direction == "in" else "output"
        ports.append(f"{direction} wire [{pin.width - 1}:0] {name}")
        wires.append(f".{name}({name})")
    ports.append("input wire drive")
    body = ""
    if board.sdram:
        high = board.sdram.data_bits - 1
        ports += [f"input wire [{high}:0] outside", f"output wire [{high}:0] sdram_dq_seen"]
        body = (
            f"wire [{high}:0] dq; assign dq = drive ? outside : {high + 1}'bz; "
            "assign sdram_dq_seen = dq;"
        )
        wires.append(".sdram_dq(dq)")
    return f"module bench({', '.join(ports)}); {body} {TOP} board({', '.join(wires)}); endmodule"


def parity(value: int) -> int:
    return value.bit_count() & 1


@pytest.mark.parametrize("name", BOARDS)
def test_the_pins_of_a_board(name: str) -> None:
    check_pins(find_board(name), through=False)


def test_a_clock_that_goes_through() -> None:
    """The bench drives the pin at the frequency of the PLL's output."""
    check_pins(find_board("ulx3s"), through=True)


def check_pins(board: Board, through: bool) -> None:
    clock = board.family.clock(board.clock_mhz, 61)
    text = top_verilog(board, Probe, PRESETS["tiny"], clock, HASH)
    model = PRIMITIVES / f"{board.family.name}.v"
    sources = [PRIMITIVES / "pll.v", *([model] if model.exists() else [])]
    defines = {"SYSTOLITH_PLL_THROUGH": 1} if through else {}
    made = build(text + bench_verilog(board), "bench", sources=sources, defines=defines)
    period = Fraction(10**12) / (clock.hz if through else clock.input_hz)
    result = runner.run(
        made,
        str(BENCH),
        {
            "clock_ps": 2 * round(period / 2),
            "led_inverted": board.pins["led"].inverted,
            "button_inverted": board.pins["reset_button"].inverted,
            "leds": board.pins["led"].width,
            "sdram": board.sdram is not None,
        },
    )
    wanted = 10**12 / clock.hz
    assert result["period_ps"] == pytest.approx(float(wanted), rel=1e-3)
    assert result["dark"]
    assert RESET_US <= result["start_us"] < RESET_US + 5
    assert RESET_US <= result["restart_us"] < RESET_US + 5
    if board.pins["led"].width > 1:
        assert result["odd"] == bool(parity(HASH) ^ parity(round(clock.hz)))
    if board.sdram is None:
        assert result["inverted_back"] == [1, 0, 1]
        return
    # Data change with the rising edge of the clock; the SDRAM samples them half a cycle later.
    assert result["setup_ps"] == pytest.approx(float(wanted / 2), abs=2)
    assert result["high_ps"] == pytest.approx(float(wanted / 2), abs=2)
    assert result["sdram_a"] == 5
    driven = 0xA5A5A5A4 & ((1 << board.sdram.data_bits) - 1)
    assert result["outside_even"] == [0, 3] and result["outside_odd"] == [1, 1]
    assert result["driven"] == [parity(driven), driven]


def test_a_pll_out_of_its_range_stops_the_simulation() -> None:
    """The models refuse what the data sheets do: the oscillator of an ECP5 at 1000 MHz."""
    board = find_board("ulx3s")
    wrong = {"CLKI_DIV": 1, "CLKFB_DIV": 1, "CLKOP_DIV": 40, "CLKOS_DIV": 20}
    clock = Clock(Fraction(25_000_000), Fraction(50_000_000), "EHXPLLL", parameters=wrong)
    text = top_verilog(board, Probe, PRESETS["tiny"], clock, HASH) + bench_verilog(board)
    made = build(text, "bench", sources=[PRIMITIVES / "pll.v", PRIMITIVES / "ecp5.v"])
    asked = {"clock_ps": 40_000, "led_inverted": False, "button_inverted": False, "leds": 8}
    with pytest.raises(runner.BenchFailure, match=r"PLL: +vco of 1000\.0* MHz is not from 400"):
        runner.run(made, str(BENCH), {**asked, "sdram": True})
