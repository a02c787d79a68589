"""ruff and mypy, run as tests."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("hdl", "quant", "compiler", "sim", "boards")


def test_ruff() -> None:
    command = [sys.executable, "-m", "ruff", "check", "--quiet", "--output-format=concise", "."]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_mypy(tmp_path: Path, build_cache: Path) -> None:
    """mypy finds a package by its folder: show it one that has the installed layout."""
    package = tmp_path / "systolith"
    package.mkdir()
    for file in (ROOT / "core").glob("*.py"):
        (package / file.name).symlink_to(file)
    for folder in FOLDERS:
        (package / folder).symlink_to(ROOT / folder)
    command = [
        sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"),
        "--cache-dir", str(build_cache / "mypy"), "-p", "systolith",
    ]  # fmt: skip
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
