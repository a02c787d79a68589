"""1BitSquared iCEBreaker, iCE40 UP5K; pins from amaranth-boards."""

from systolith.boards.board import Board, amaranth_pins
from systolith.boards.family_ice40 import Ice40

BOARD = Board(
    name="icebreaker",
    title="1BitSquared iCEBreaker",
    family=Ice40(),
    device="iCE40UP5K",
    package="sg48",
    speed="",
    clock_mhz=12,
    find_pins=lambda: amaranth_pins("icebreaker", "ICEBreakerPlatform", {
        "clk": ("clk12", 0, ""),
        "uart_rx": ("uart", 0, "rx"),
        "uart_tx": ("uart", 0, "tx"),
        "led": [("led_r", 0, ""), ("led_g", 0, "")],
        "reset_button": ("button", 0, ""),
    }),
    preset="tiny",
    wanted_mhz=24,
    block_bytes=128 << 10,
    loader=("-b", "ice40_generic"),
    notes="model and data in SPRAM",
)  # fmt: skip
