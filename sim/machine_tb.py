"""The whole machine under Verilator, with a DRAM stand-in: run program images on the RTL.

    machine = MachineSim(PRESETS["tiny"], latency=40)
    result = machine.run(program)                     # a systolith.program.Program
    result.memory                                     # the program's memory afterwards
    result.counters["CYCLES"]
    text = machine.run(program, on_mark=show)         # show(value) at each mark, while it runs

The memory, the clock and the waiting are inside the simulated design, so that Python wakes up only
at the start, at interrupts and at the end.
"""

import functools
import hashlib
import importlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systolith.cache import cache_directory
from systolith.compiler.timeline import Timeline
from systolith.config import Config
from systolith.errors import UserError
from systolith.program import Program
from systolith.registers import STATUS_DONE, Error
from systolith.sim.build import Build, build
from systolith.sim.issue_trace import INSIDE, PLUSARG, read_trace
from systolith.sim.jobs import Job, MachineResult, Window, demand_done
from systolith.sim.memory import AXI_MEMORY, SETTINGS, memory_top
from systolith.sim.runner import run

MEMORY_BYTES = 1 << 25


def size_for(program_bytes: int) -> int:
    """Bytes of a simulated memory for a program: a power of two, so that simulators are reused."""
    return max(MEMORY_BYTES, 1 << (program_bytes - 1).bit_length())


def verilog(config: Config) -> str:
    """The machine's Verilog, kept in the cache until the configuration or a source file changes."""
    import amaranth

    sources = sorted(
        path
        for package in ("systolith", "systolith.hdl")
        for folder in importlib.import_module(package).__path__
        for path in Path(folder).glob("*.py")
    )
    content = [config.to_json(), amaranth.__version__, *(path.read_text() for path in sources)]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:20]
    kept = cache_directory() / "verilog" / f"systolith-{key}.v"
    if not kept.exists():
        from systolith.hdl.verilog import machine_verilog

        kept.parent.mkdir(exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}")
        partial.write_text(machine_verilog(config))
        partial.rename(kept)
    return kept.read_text()


class MachineSim:
    """A compiled machine with a memory of ``size_bytes``; compiling takes a minute, once.

    ``memory``: settings of ``sim/axi_memory.sv`` by name, for instance ``latency=40``,
    ``bandwidth=128`` (half a beat a cycle). They do not need another compilation.
    """

    def __init__(
        self,
        config: Config,
        *,
        size_bytes: int = MEMORY_BYTES,
        waves: bool = False,
        **memory: int,
    ) -> None:
        unknown = sorted(set(memory) - set(SETTINGS))
        if unknown:
            raise ValueError(f"Setting must be one of {', '.join(SETTINGS)}, not {unknown[0]!r}")
        self.config = config
        self.memory_bytes = None  # as many as a program wants
        self.peek = None  # every mark is passed on
        self.size_bytes = size_bytes
        self.settings = memory
        self.waves = waves

    @functools.cached_property
    def build(self) -> Build:
        """The simulator, compiled if it is not in the cache."""
        text, top = memory_top(
            verilog(self.config), "systolith", size_bytes=self.size_bytes, inside=INSIDE
        )
        return build(text, top, sources=[AXI_MEMORY], waves=self.waves)

    def run(
        self,
        program: Program | NDArray[np.uint8],
        *,
        check: bool = True,
        timeout_s: float = 3600,
        waves: Path | None = None,
        on_mark: Callable[[int], None] | None = None,
        window: Window | None = None,
        trace: bool = False,
        **options: Any,
    ) -> MachineResult:
        """Executes a program, or the memory contents that start with one, and waits for its end.

        ``options``: see ``Job``. ``on_mark`` is called while the simulation runs; a mark that
        follows within some twenty cycles of another replaces it. ``window``: the host takes part at
        each mark; the program must wait for it. ``trace``: the result says when each instruction
        was queued, started and finished. ``check``: an error status raises
        ``MachineError``; otherwise it is in the result. A program that does not end within
        ``max_cycles`` raises ``BenchFailure``.
        """
        job = Job(program, **options)
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "trace.txt") if trace else None
            (result,) = self.run_all(
                [job], timeout_s=timeout_s, waves=waves, on_mark=on_mark, window=window, trace=log
            )
            if log is not None:
                timeline = Timeline(read_trace(log), result.counters["CYCLES"], result.counters)
                result = replace(result, timeline=timeline)
        if check:
            demand_done(result)
        return result

    def run_all(
        self,
        jobs: Sequence[Job],
        *,
        timeout_s: float = 3600,
        waves: Path | None = None,
        on_mark: Callable[[int], None] | None = None,
        window: Window | None = None,
        trace: Path | None = None,
    ) -> list[MachineResult]:
        """Executes several programs, one after another, on one machine.

        ``trace``: file for the events of all of them, which ``issue_trace.read_trace`` reads.

        The memories inside keep what the program before left there. Behind an error the machine is
        reset by its register, and the next program must find it as good as new.
        """
        results: list[MachineResult] = []
        files, arguments, sizes = {}, [], []

        def progress(item: dict[str, Any]) -> None:
            if "mark" in item and on_mark is not None:
                on_mark(item["mark"])
            if "result" in item:  # its files are there, and gone when run() returns
                index = len(results)
                results.append(_result(item["result"], sizes[index], arguments[index]["reads"]))

        for index, job in enumerate(jobs):
            if job.program is None and not files:
                raise ValueError("The first job must have a program")
            if job.program is not None:
                memory = self._memory(job)
                files[f"image{index}.bin"] = memory.tobytes()
            sizes.append(len(memory))
            arguments.append(
                {
                    "base": job.base,
                    "image": None if job.program is None else f"image{index}.bin",
                    "writes": [[at, data.hex()] for at, data in job.writes],
                    "reads": [(0, len(memory))] if job.reads is None else list(job.reads),
                    "after": f"after{index}.bin",
                    "watchdog": job.watchdog,
                    "max_cycles": job.max_cycles,
                    "reset_after": job.reset_after,
                    "marks": on_mark is not None or window is not None,
                    "window": None if window is None else [window.first, window.size],
                    "settings": {**dict.fromkeys(SETTINGS, 0), **self.settings, **job.settings},
                }
            )
        run(
            self.build,
            "machine",
            {"jobs": arguments},
            files=files,
            progress=progress,
            answer=None if window is None else functools.partial(_answer, window),
            timeout_s=timeout_s,
            waves=waves,
            plusargs=[f"+{PLUSARG}={trace}"] if trace else [],
        )
        return results

    def _memory(self, job: Job) -> NDArray[np.uint8]:
        if isinstance(job.program, Program):
            job.program.check_config(self.config)
            memory = job.program.memory()
        else:
            memory = np.ascontiguousarray(job.program, dtype=np.uint8)
        if job.base + len(memory) > self.size_bytes:
            raise UserError(
                f"The program needs {len(memory)} bytes at {job.base:#x}, but the simulated memory "
                f"has {self.size_bytes}: choose a larger size_bytes"
            )
        return memory


def _answer(window: Window, question: dict[str, Any]) -> dict[str, Any]:
    raw = np.frombuffer(bytes.fromhex(question["bytes"]), np.uint8)
    return {"writes": [[at, data.hex()] for at, data in window.answer(question["mark"], raw)]}


def _result(
    item: dict[str, Any], size: int, reads: Sequence[tuple[int, int]]
) -> MachineResult:
    values = item["registers"]
    memory = np.zeros(size, dtype=np.uint8)
    with open(item["after"], "rb") as file:
        for address, count in reads:
            memory[address : address + count] = np.fromfile(file, np.uint8, count)
    return MachineResult(
        done=bool(values["STATUS"] & STATUS_DONE),
        error=Error(values["ERROR"]),
        error_pc=values["ERROR_PC"],
        memory=memory,
        counters=item["counters"],
        registers=values,
        mark=values["MARK"],
        simulated=item["simulated"],
        seconds=item["seconds"],
    )
