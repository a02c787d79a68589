"""Who may import whom: the direction of the dependencies, read from the source."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("core", "hdl", "quant", "compiler", "sim", "boards")
# Beside itself, each folder may import from these.
ALLOWED = {
    "core": set(),
    "hdl": {"core"},
    "quant": {"core"},
    "compiler": {"core"},
    "sim": {"core", "compiler", "hdl"},
    "boards": {"core", "hdl", "compiler", "sim"},
}
# Nobody but these imports them when the module is loaded, or at all (torch: only quant ever does).
OWNERS = {
    "torch": {"quant"},
    "amaranth": {"hdl", "boards", "sim"},
    "amaranth_boards": {"boards"},
    "cocotb": {"sim"},
    "cocotb_tools": {"sim"},
    "cocotbext": {"sim"},
}
CORE_MAY_USE = {"numpy", "safetensors"}
# These sit in core and call everything, from inside their functions: the modules of these names,
# and those whose names begin with one and an underscore.
COMMAND_LINE, SESSION = "cli", "session"
COMMAND_LINE_MAY_USE = {"click", "rich"}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path, *, loaded_only: bool = False) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a file imports; loaded_only: not what functions import."""
    todo: list[ast.AST] = [ast.parse(path.read_text(), str(path))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if not (loaded_only and (lazy or typing_only)):
            todo.extend(ast.iter_child_nodes(node))


def owner(name: str) -> str:
    """The folder that a systolith module lives in."""
    part = name.split(".")[1] if "." in name else ""
    return part if part in FOLDERS and part != "core" else "core"


def of_command_line(path: Path) -> bool:
    return path.stem.split("_")[0] == COMMAND_LINE


def calls_everything(path: Path) -> bool:
    return path.parent == ROOT / "core" and path.stem.split("_")[0] in (COMMAND_LINE, SESSION)


@pytest.mark.parametrize("folder", FOLDERS)
def test_directions(folder: str) -> None:
    wrong = []
    for path in sources(folder):
        lazy = calls_everything(path)
        for line, name in imports(path, loaded_only=lazy):
            top = name.split(".")[0]
            where = f"{path.relative_to(ROOT)}:{line} imports {name}"
            if top in FOLDERS or top == "tests":
                wrong.append(f"{where}: use systolith")
            inward = top == "systolith" and owner(name) not in ALLOWED[folder] | {folder}
            if inward or folder not in OWNERS.get(top, {folder}):
                wrong.append(where)
    assert not wrong, "\n".join(wrong)


def test_core_needs_numpy_alone() -> None:
    wrong = []
    for path in sources("core"):
        command_line = of_command_line(path)
        allowed = CORE_MAY_USE | (COMMAND_LINE_MAY_USE if command_line else set())
        for line, name in imports(path, loaded_only=calls_everything(path)):
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names | allowed | {"systolith"}:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_golden_knows_no_hardware() -> None:
    """Importing everything in core loads neither Amaranth nor torch nor cocotb."""
    modules = ["systolith", *(f"systolith.{p.stem}" for p in sources("core") if p.stem[0] != "_")]
    code = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        f"print(*sorted({set(OWNERS)!r} & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split() == []


def test_no_future_annotations_beside_components() -> None:
    """The import breaks annotated Amaranth components on Python 3.11."""
    for folder in FOLDERS:
        for path in sources(folder):
            found = {name for _, name in imports(path)}
            hardware = any(name.startswith("amaranth") for name in found)
            assert not (hardware and "__future__.annotations" in found), path


def test_the_only_top_level_name_is_systolith() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]
    assert {name.split(".")[0] for name in packages} == {"systolith"}
    folders = project["tool"]["setuptools"]["package-dir"]
    assert sorted(folders.values()) == sorted(FOLDERS)
    with_code = {
        ".".join(["systolith", *path.parent.relative_to(ROOT).parts]).replace(".core", "", 1)
        for path in ROOT.glob("*/**/__init__.py")
        if path.relative_to(ROOT).parts[0] in FOLDERS
    }
    assert with_code == set(packages), "pyproject.toml must list every package, and no other"


@pytest.mark.parametrize("folder", FOLDERS)
def test_bare_name_is_refused(folder: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {folder}"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 1
    assert "install the project (pip install -e .)" in answer.stderr
    assert "systolith" in answer.stderr


def test_the_checks_see_a_violation(tmp_path: Path) -> None:
    """The parser that the tests above rest on finds what it should, where it should."""
    path = tmp_path / "module.py"
    path.write_text(
        "import torch\nfrom systolith.hdl import pe\ndef late():\n    import cocotb.clock\n"
        "if TYPE_CHECKING:\n    from systolith import quant\n"
    )
    everything = {
        (1, "torch"), (2, "systolith.hdl.pe"), (4, "cocotb.clock"), (6, "systolith.quant"),
    }  # fmt: skip
    assert set(imports(path)) == everything
    assert set(imports(path, loaded_only=True)) == {(1, "torch"), (2, "systolith.hdl.pe")}
    assert owner("systolith.hdl.pe") == "hdl" and owner("systolith.config.Config") == "core"
