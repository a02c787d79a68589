"""The whole machine under Verilator, with a DRAM stand-in: run program images on the RTL.

    machine = MachineSim(PRESETS["tiny"], latency=40)
    result = machine.run(program)                     # a systolith.program.Program
    result.memory                                     # the program's memory afterwards
    result.counters["CYCLES"]
    text = machine.run(program, on_mark=show)         # show(value) at each mark, while it runs

The memory, the clock and the waiting are inside the simulated design, so that Python wakes up only
at the start, at interrupts and at the end.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systolith.config import Config
from systolith.errors import UserError
from systolith.program import Program
from systolith.registers import Error
from systolith.sim.build import Build, build
from systolith.sim.memory import AXI_MEMORY, SETTINGS, memory_top
from systolith.sim.runner import run

MEMORY_BYTES = 1 << 25
_IMAGE, _AFTER = "image.bin", "after.bin"


@dataclass(frozen=True)
class MachineResult:
    """What a run left behind.

    ``done``: the program reached ``halt``; else ``error`` and ``error_pc`` say what stopped it.
    ``memory``: (memory_bytes,) uint8 from BASE on. ``counters``: by the names in ``registers``.
    ``mark``: the last value marked. ``seconds``: wall-clock time of the run itself;
    ``simulated``: clock cycles in it.
    """

    done: bool
    error: Error
    error_pc: int
    memory: NDArray[np.uint8]
    counters: dict[str, int]
    registers: dict[str, int]
    mark: int
    simulated: int
    seconds: float

    @property
    def cycles_per_second(self) -> float:
        return self.simulated / self.seconds


class MachineError(UserError):
    """A program that ended with an error status on the RTL."""


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
        self.size_bytes = size_bytes
        self.settings = memory
        self.waves = waves

    @property
    def build(self) -> Build:
        """The simulator, compiled if it is not in the cache."""
        from systolith.hdl.verilog import TOP, machine_verilog

        text, top = memory_top(machine_verilog(self.config), TOP, size_bytes=self.size_bytes)
        return build(text, top, sources=[AXI_MEMORY], waves=self.waves)

    def run(
        self,
        program: Program | NDArray[np.uint8],
        *,
        base: int = 0,
        watchdog: int = 1 << 20,
        max_cycles: int = 1 << 32,
        timeout_s: float = 3600,
        on_mark: Callable[[int], None] | None = None,
        settings: Mapping[str, int] | None = None,
        waves: Path | None = None,
        check: bool = True,
    ) -> MachineResult:
        """Executes a program, or the memory contents that start with one, and waits for its end.

        ``base``: where in memory it is put, a multiple of 32. ``on_mark`` is called while the
        simulation runs; a mark that follows within some twenty cycles of another replaces it.
        ``check``: an error status raises ``MachineError``; otherwise it is in the result. A program
        that does not end within ``max_cycles`` raises ``BenchFailure``.
        """
        if isinstance(program, Program):
            program.check_config(self.config)
            memory = program.memory()
        else:
            memory = np.ascontiguousarray(program, dtype=np.uint8)
        if base + len(memory) > self.size_bytes:
            raise UserError(
                f"The program needs {len(memory)} bytes at {base:#x}, but the simulated memory has "
                f"{self.size_bytes}: choose a larger size_bytes"
            )
        after: dict[str, NDArray[np.uint8]] = {}

        def progress(item: dict[str, Any]) -> None:
            if "mark" in item and on_mark is not None:
                on_mark(item["mark"])
            if "after" in item:  # the file is there, and gone when run() returns
                after["memory"] = np.fromfile(item["after"], dtype=np.uint8)

        made = self.build
        answer = run(
            made,
            "machine",
            {
                "base": base,
                "bytes": len(memory),
                "image": _IMAGE,
                "after": _AFTER,
                "watchdog": watchdog,
                "max_cycles": max_cycles,
                "marks": on_mark is not None,
                "settings": {**self.settings, **(settings or {})},
            },
            files={_IMAGE: memory.tobytes()},
            progress=progress,
            timeout_s=timeout_s,
            waves=waves,
        )
        registers = answer["registers"]
        result = MachineResult(
            done=answer["done"],
            error=Error(registers["ERROR"]),
            error_pc=registers["ERROR_PC"],
            memory=after["memory"],
            counters=answer["counters"],
            registers=registers,
            mark=registers["MARK"],
            simulated=answer["simulated"],
            seconds=answer["seconds"],
        )
        if check and not result.done:
            raise MachineError(
                f"The program stopped with error {result.error.name} at instruction "
                f"{result.error_pc}"
            )
        return result
