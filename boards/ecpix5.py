"""LambdaConcept ECPIX-5 with an LFE5UM5G-85F; pins from amaranth-boards. Its DDR3 is not used."""

from systolith.boards.board import Board, amaranth_pins
from systolith.boards.family_ecp5 import Ecp5

BOARD = Board(
    name="ecpix5",
    title="LambdaConcept ECPIX-5 85F",
    family=Ecp5(),
    device="LFE5UM5G-85F",
    package="CABGA554",
    speed="8",
    clock_mhz=100,
    find_pins=lambda: amaranth_pins("ecpix5", "ECPIX585Platform", {
        "clk": ("clk100", 0, ""),
        "uart_rx": ("uart", 0, "rx"),
        "uart_tx": ("uart", 0, "tx"),
        "led": [("rgb_led", i, "g") for i in range(4)],
        "reset_button": ("rst", 0, ""),
    }),
    preset="lean",
    wanted_mhz=90,
    block_bytes=256 << 10,
    loader=("-b", "ecpix5_r03"),
    notes="the DDR3 is not used",
)  # fmt: skip
