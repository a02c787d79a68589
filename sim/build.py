"""Compile Verilog with Verilator and cocotb's support into a cached, content-addressed simulator.

    from systolith.sim.build import amaranth_verilog, build
    made = build(amaranth_verilog(Counter(8), "counter"), "counter")      # seconds, then instant
    result = systolith.sim.runner.run(made, "counter", {"cycles": 100})

Contract: `build()` returns a `Build` whose folder is named by a hash of everything that went in
(Verilog, source files, parameters, waves, exposed names, versions of the tools). Equal inputs never
compile twice, not even in two processes at once (a file lock), and an interrupted build leaves
nothing that looks finished (a rename publishes it). Only the ports of the top module are visible to
cocotb, plus the names given as `public`; everything else stays free for Verilator to optimise. On a
16 x 16 array that is 10 s of compilation instead of 55, and five times the simulation speed.

The folder of the cache is that of `systolith.cache`.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import cocotb_tools.config
import cocotb_tools.runner

from systolith.cache import cache_directory
from systolith.sim import verilator as tool_finder
from systolith.sim.ports import parse_ports

# What Yosys writes is correct and trips these by style; they are waived in the exported file alone.
WAIVED = (
    "ASCRANGE", "CASEINCOMPLETE", "CASEOVERLAP", "CMPCONST", "COMBDLY", "LATCH", "PROCASSINIT",
    "SELRANGE", "UNOPTFLAT", "UNSIGNED", "WIDTHEXPAND", "WIDTHTRUNC",
)  # fmt: skip
_ARGUMENTS = (
    "-O3", "--timing", "--assert", "--x-assign", "fast", "--x-initial", "fast",
    # Functions of ten thousand lines take the compiler minutes; pieces of them take seconds.
    "--output-split", "5000", "--output-split-cfuncs", "500",
)  # fmt: skip
_OPTIMISE = ("OPT_FAST=-O2", "OPT_SLOW=-O0", "OPT_GLOBAL=-O2")


@dataclass(frozen=True)
class Build:
    """A compiled simulator: `executable` in `directory`; `waves` is "", "fst" or "vcd"."""

    directory: Path
    top: str
    waves: str
    ports: tuple[str, ...]

    @property
    def executable(self) -> Path:
        return self.directory / self.top


class BuildFailure(Exception):
    """Verilator or the C++ compiler refused the design. The text ends with the tail of the log."""


def amaranth_verilog(component: Any, name: str) -> str:
    """Verilog text of an Amaranth component; the top module is `name`, its ports the signature's.

    The text is stable from run to run (no source locations), so that it can key a cache.
    """
    from systolith.hdl.verilog import to_verilog

    return to_verilog(component, name)


def build(
    verilog: str,
    top: str,
    *,
    sources: Sequence[Path] = (),
    defines: Mapping[str, object] | None = None,
    parameters: Mapping[str, object] | None = None,
    waves: bool = False,
    public: Sequence[str] = (),
) -> Build:
    """Compile `verilog` (text) and `sources` (files) with top module `top`, or find it in the
    cache.

    parameters: of the top module; defines: macros. waves: able to record waveforms (FST, or VCD
    where lz4 is not installed), slower. public: more names for cocotb, as "signal" (of the top
    module) or "module.signal". The top may stand in the text or in a source file. Raises
    `BuildFailure` with the compiler's words, or `UserError` if a tool is missing.
    """
    tools = tool_finder.find()
    trace = tools.trace if waves else ""
    files = {Path(source).name: Path(source).read_bytes() for source in sources}
    if len(files) != len(sources):
        raise ValueError("Sources must have distinct file names")
    text = "\n".join([verilog, *(data.decode() for data in files.values())])
    ports = tuple(port.name for port in parse_ports(text, top))
    exposed = [name.rpartition(".") for name in public]
    control = _control_file(
        top, [*((top, p) for p in ports), *((m or top, v) for m, _, v in exposed)]
    )
    key = _key(
        verilog, top, files, dict(defines or {}), dict(parameters or {}), trace, control,
        [tools.version, tools.compiler_version, tools.make_flags, _ARGUMENTS, _OPTIMISE],
        [importlib.metadata.version("cocotb"), str(cocotb_tools.config.libs_dir)],
    )  # fmt: skip
    made = Build(cache_directory() / "sim" / f"{top}-{key}", top, trace, ports)
    if made.executable.exists():
        return made
    made.directory.parent.mkdir(parents=True, exist_ok=True)
    with _lock(made.directory.with_suffix(".lock")):
        if not made.executable.exists():
            work = made.directory.with_suffix(".partial")
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            (work / "design.v").write_text(verilog)
            (work / "control.vlt").write_text(control)
            for name, data in files.items():
                (work / name).write_bytes(data)
            _Compiler(tools, trace).compile(work, top, list(files), defines or {}, parameters or {})
            _publish(work, made)
    return made


def _key(*parts: object) -> str:
    """Hash of a description that JSON can write (bytes enter by their own hash)."""

    def default(value: object) -> str:
        return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)

    text = json.dumps(parts, sort_keys=True, default=default)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _control_file(top: str, exposed: Sequence[tuple[str, str]]) -> str:
    """Verilator's control file: what cocotb may see, and which warnings are waived."""
    lines = ["`verilator_config"]
    lines += [f'public_flat_rw -module "{module}" -var "{name}"' for module, name in exposed]
    lines += [f'lint_off -rule {rule} -file "*design.v"' for rule in WAIVED]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; the kernel frees it if this one dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _publish(work: Path, made: Build) -> None:
    """Keep the simulator, its inputs and its log, drop the rest, and rename into place."""
    for path in work.iterdir():
        if path.suffix in {".o", ".d", ".a", ".gch", ".cpp", ".h", ".dat", ".mk", ".tmp"}:
            path.unlink()
    shutil.rmtree(made.directory, ignore_errors=True)
    work.rename(made.directory)


class _Compiler(cocotb_tools.runner.Verilator):
    """cocotb's Verilator runner without --public-flat-rw, and with a cached run-time library."""

    def __init__(self, tools: tool_finder.Toolchain, trace: str) -> None:
        super().__init__()
        self.tools = tools
        self.trace = trace

    def compile(
        self,
        work: Path,
        top: str,
        names: Sequence[str],
        defines: Mapping[str, object],
        parameters: Mapping[str, object],
    ) -> None:
        self.log.setLevel("WARNING")
        # cocotb lets $WAVES override its argument; ours decides.
        before = os.environ.pop("WAVES", None)
        try:
            self.build(
                sources=[work / name for name in ("control.vlt", "design.v", *names)],
                defines=defines,
                parameters=parameters,
                build_args=_ARGUMENTS,
                hdl_toplevel=top,
                build_dir=work,
                timescale=("1ns", "1ps"),
                waves=bool(self.trace),
                log_file=work / "build.log",
            )
        finally:
            if before is not None:
                os.environ["WAVES"] = before

    def _simulator_in_path_build_only(self) -> None:
        self.executable = str(self.tools.executable)

    def _set_env_build(self) -> None:
        super()._set_env_build()
        self.env.update(self.tools.environment)
        for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):  # of a make that may have started us
            self.env.pop(name, None)

    def _build_command(self) -> list[list[str]]:
        verilate, make = super()._build_command()
        verilate.remove("--public-flat-rw")
        if self.trace:
            verilate[verilate.index("--trace")] = f"--trace-{self.trace}"
        make[0] = self.tools.make
        return [verilate, [*make, *self.tools.make_flags, *_OPTIMISE]]

    def _execute_cmds(
        self, cmds: Sequence[list[str]], cwd: Any, stdout: TextIO | None = None
    ) -> None:
        assert stdout is not None
        verilate, make = cmds
        self._call(verilate, stdout)
        library = _Runtime(self.build_dir, self.tools)
        library.seed()
        self._call(make, stdout)
        library.keep()

    def _call(self, command: list[str], log: TextIO) -> None:
        log.write(" ".join(command) + "\n")
        log.flush()
        answer = subprocess.run(
            command,
            cwd=self.build_dir,
            env=self.env,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if answer.returncode != 0:
            path = self.build_dir / "build.log"
            lines = path.read_text(errors="replace").splitlines()
            errors = [line for line in lines if re.search("%(Error|Warning)-?|error: ", line)]
            raise BuildFailure(
                "\n".join(
                    [
                        f"{Path(command[0]).name} failed; the log is {path}",
                        *errors[:10],
                        *lines[-30:],
                    ]
                )
            )


class _Runtime:
    """Verilator's run-time library as objects: the same for every design, half of a small build."""

    def __init__(self, work: Path, tools: tool_finder.Toolchain) -> None:
        self.work = work
        text = (work / "Vtop_classes.mk").read_text()
        switches = re.findall(r"^VM_[A-Z_]+ = \d+$", text, re.MULTILINE)
        key = _key(tools.version, tools.compiler_version, tools.make_flags, _OPTIMISE, switches)
        self.kept = cache_directory() / "sim" / f"verilated-{key}"

    def seed(self) -> None:
        """Put kept objects into the build folder, newer than its makefile."""
        if self.kept.is_dir():
            for path in self.kept.iterdir():
                shutil.copyfile(path, self.work / path.name)

    def keep(self) -> None:
        if self.kept.is_dir():
            return
        partial = self.kept.with_name(f"{self.kept.name}.{os.getpid()}")
        partial.mkdir()
        for path in self.work.glob("verilated*.o"):
            shutil.copyfile(path, partial / path.name)
        try:
            partial.rename(self.kept)
        except OSError:  # another process was first
            shutil.rmtree(partial)
