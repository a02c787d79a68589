"""Lattice CrossLink-NX evaluation board, LIFCL-40; pins as in LiteX's platform of that board.

Its UART needs R15 and R17 populated, and port B of the FT2232H as a serial port.
"""

from systolith.boards.board import Board, Pin
from systolith.boards.family_nexus import Nexus

_IO = (("IO_TYPE", "LVCMOS33"),)

BOARD = Board(
    name="crosslink_nx_evn",
    title="Lattice CrossLink-NX evaluation board",
    family=Nexus(),
    device="LIFCL-40",
    package="LIFCL-40-9BG400C",
    speed="9",
    clock_mhz=12,
    find_pins=lambda: {
        "clk": Pin(("L13",), "in", attributes=_IO),
        "uart_rx": Pin(("F16",), "in", attributes=_IO),
        "uart_tx": Pin(("F18",), "out", attributes=_IO),
        "led": Pin(("E17", "F13", "G13", "F14"), "out", attributes=_IO),
        "reset_button": Pin(("G14",), "in", inverted=True, attributes=_IO),
    },
    preset="tiny",
    wanted_mhz=12,
    block_bytes=64 << 10,
    loader=("-b", "crosslinknx_evn"),
    notes="no PLL: runs at its oscillator's 12 MHz; the UART needs R15 and R17",
)
