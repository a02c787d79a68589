"""Sipeed Tang Nano 20K, Gowin GW2AR-18; pins as in LiteX's platform of the same name.

The package holds an SDRAM of 64 Mbit whose pads Apicula's database lists.
"""

from systolith.boards.board import Board, Pin
from systolith.boards.family_gowin import Gowin, embedded_sdram
from systolith.hdl.sdram_chip import TANG_NANO_20K_SDRAM

_IO = (("IO_TYPE", "LVCMOS33"),)


def _pins() -> dict[str, Pin]:
    return {
        "clk": Pin(("4",), "in", attributes=_IO),
        "uart_rx": Pin(("70",), "in", attributes=_IO),
        "uart_tx": Pin(("69",), "out", attributes=_IO),
        "led": Pin(("15", "16", "17", "18", "19", "20"), "out", inverted=True, attributes=_IO),
        "reset_button": Pin(("88",), "in", attributes=_IO),
        **embedded_sdram(),
    }


BOARD = Board(
    name="tang_nano_20k",
    title="Sipeed Tang Nano 20K",
    family=Gowin(),
    device="GW2AR-18",
    package="GW2AR-LV18QN88C8/I7",
    speed="C8/I7",
    clock_mhz=27,
    find_pins=_pins,
    preset="tiny",
    wanted_mhz=27,
    block_bytes=16 << 10,
    loader=("-b", "tangnano20k"),
    sdram=TANG_NANO_20K_SDRAM,
)  # fmt: skip
