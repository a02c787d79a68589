"""Olimex GateMateA1-EVB, Cologne Chip CCGM1A1; pins as in LiteX's platform of that board."""

from systolith.boards.board import Board, Pin
from systolith.boards.family_gatemate import GateMate

BOARD = Board(
    name="olimex_gatemate",
    title="Olimex GateMateA1-EVB",
    family=GateMate(),
    device="CCGM1A1",
    package="FBGA324",
    speed="2",  # economy: a core voltage of 1.0 V
    clock_mhz=10,
    find_pins=lambda: {
        "clk": Pin(("IO_SB_A8",), "in", attributes=(("SCHMITT_TRIGGER", "true"),)),
        "uart_rx": Pin(("IO_SA_A6",), "in"),
        "uart_tx": Pin(("IO_SA_B6",), "out"),
        "led": Pin(("IO_SB_B6",), "out", inverted=True),
        "reset_button": Pin(("IO_SB_B7",), "in", inverted=True),
    },
    preset="tiny",
    wanted_mhz=25,
    block_bytes=64 << 10,
    loader=("-b", "olimex_gatemateevb"),
)
