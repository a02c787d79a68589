"""What a bitstream holds behind its pins: the machine, memories and host link of a board."""

from systolith.boards.board import Board
from systolith.config import Config
from systolith.hdl.board_core import BoardCore
from systolith.hdl.uart import bit_cycles
from systolith.host_link import BAUD, Identity


def machine_core(
    config: Config, board: Board, clock_hz: int, *, cycles: int | None = None
) -> BoardCore:
    """The core of ``board`` with a machine of ``config``.

    ``cycles``: clock cycles of a bit on the serial line (default: those of ``BAUD``).
    """
    identity = Identity(
        board=board.name,
        clock_hz=clock_hz,
        config_hash=config.hash,
        build=0,
        block_bytes=board.block_bytes,
        memory_bytes=board.memory_bytes,
        bus_bytes=config.bus_bytes,
    )
    cycles = bit_cycles(clock_hz, BAUD) if cycles is None else cycles
    single_port = board.family.devices[board.device].spram > 0
    return BoardCore(config, identity, cycles, board.sdram, single_port=single_port)
