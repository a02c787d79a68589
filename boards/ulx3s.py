"""Radiona ULX3S with an LFE5U-85F; pins from amaranth-boards."""

from systolith.boards.board import Board, amaranth_pins, amaranth_sdram
from systolith.boards.family_ecp5 import Ecp5
from systolith.hdl.sdram_chip import ULX3S_SDRAM

BOARD = Board(
    name="ulx3s",
    title="Radiona ULX3S-85F",
    family=Ecp5(),
    device="LFE5U-85F",
    package="CABGA381",
    speed="6",
    clock_mhz=25,
    find_pins=lambda: amaranth_pins("ulx3s", "ULX3S_85F_Platform", {
        "clk": ("clk25", 0, ""),
        "uart_rx": ("uart", 0, "rx"),
        "uart_tx": ("uart", 0, "tx"),
        "led": [("led", i, "") for i in range(8)],
        "reset_button": ("button_fire", 0, ""),
        **amaranth_sdram(),
    }),
    preset="resident",
    wanted_mhz=68,
    block_bytes=48 << 10,
    loader=("-b", "ulx3s"),
    sdram=ULX3S_SDRAM,
)  # fmt: skip
