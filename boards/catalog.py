"""All boards, by name. A board is a module of this package with a ``BOARD``."""

from importlib import import_module

from systolith.boards.board import Board, BoardError

NAMES = ("ulx3s", "ecpix5", "icebreaker", "tang_nano_20k", "olimex_gatemate", "crosslink_nx_evn")


def find_board(name: str) -> Board:
    """The board of that name; ``BoardError`` lists the known ones."""
    if name not in NAMES:
        raise BoardError(f"There is no board {name!r}: name one of {', '.join(NAMES)}")
    return import_module(f"systolith.boards.{name}").BOARD


def all_boards() -> list[Board]:
    return [find_board(name) for name in NAMES]
