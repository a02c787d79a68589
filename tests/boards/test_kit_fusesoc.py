"""The FuseSoC core file: FuseSoC reads it; its lint target passes, and fails where it should."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from systolith.boards.kit import fusesoc_name, make_kit
from systolith.sim import machine_tb
from systolith.sim.verilator import find
from tests.boards.kit_case import CONFIG

FUSESOC = Path(sys.executable).with_name("fusesoc")

pytestmark = pytest.mark.skipif(
    not FUSESOC.exists(), reason="FuseSoC is not installed: pip install fusesoc"
)


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    path = tmp_path / "kit"
    make_kit(CONFIG, path, verilog=machine_tb.verilog(CONFIG))
    return path


def fusesoc(kit: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """FuseSoC in an empty folder, without anyone's settings, and with the project's Verilator."""
    tools = find()
    environment = {**os.environ, **tools.environment, "HOME": str(kit), "XDG_CONFIG_HOME": str(kit)}
    environment["PATH"] = f"{tools.executable.parent}{os.pathsep}{environment['PATH']}"
    work = kit.parent / "work"
    work.mkdir(exist_ok=True)
    command = [FUSESOC, "--cores-root", kit, *arguments]
    return subprocess.run(
        command, cwd=work, env=environment, capture_output=True, text=True, check=False
    )


def test_the_core_is_found(kit: Path) -> None:
    answer = fusesoc(kit, "core", "show", fusesoc_name())
    assert answer.returncode == 0, answer.stderr
    targets = answer.stdout.partition("Targets:")[2]
    assert all(target in targets for target in ("default", "lint"))


def test_lint_passes(kit: Path) -> None:
    answer = fusesoc(kit, "run", "--target", "lint", fusesoc_name())
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "%Warning" not in answer.stdout + answer.stderr


def test_lint_sees_a_mistake(kit: Path) -> None:
    """What is waived are styles: a net that nobody declared is not."""
    text = (kit / "systolith.v").read_text()
    end = text.rindex("endmodule")
    extra = "  assign missing_name = clk;\n"
    (kit / "systolith.v").write_text(text[:end] + extra + text[end:])
    answer = fusesoc(kit, "run", "--target", "lint", fusesoc_name())
    assert answer.returncode != 0
    assert "missing_name" in answer.stdout + answer.stderr


def test_the_default_target_brings_the_driver(kit: Path) -> None:
    answer = fusesoc(kit, "run", "--setup", "--target", "default", "--tool", "icarus",
                     fusesoc_name())  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr
    copied = {path.name for path in (kit.parent / "work").rglob("*.[ch]")}
    assert copied == {"systolith.h", "systolith_driver.h", "systolith_driver.c"}
