"""What is executed on a machine, simulated or real, and what it leaves behind."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from systolith.compiler.timeline import Timeline
from systolith.config import Config
from systolith.errors import UserError
from systolith.program import Program
from systolith.registers import Error


@dataclass(frozen=True)
class Window:
    """What the host reads at a mark, and what it writes then, before the machine goes on.

    At the mark v it reads ``size`` bytes at ``first + (v >> 16) * size`` of the program's memory,
    and writes what ``answer(v, bytes)`` returns: addresses and bytes, in this order.
    """

    first: int
    size: int
    answer: Callable[[int, NDArray[np.uint8]], list[tuple[int, bytes]]]


@dataclass(frozen=True)
class Job:
    """A program to be executed.

    ``program``: one, or memory contents that start with its instructions, (bytes,) uint8; None: the
    memory stays as the job before left it. ``writes``: addresses and bytes that the host writes
    then. ``reads``: addresses and sizes of what the result's memory has (the rest is 0); None: all.
    Addresses count from the program's first byte.
    ``base``: where in memory it is put, a multiple of 32. ``watchdog``: cycles without movement
    before an error. ``settings``: of the memory, beyond those of the ``MachineSim``.
    ``reset_after``: cycles after which the host resets the machine instead of waiting for the end;
    0: it does not.
    """

    program: Program | NDArray[np.uint8] | None
    writes: Sequence[tuple[int, bytes]] = ()
    reads: Sequence[tuple[int, int]] | None = None
    base: int = 0
    watchdog: int = 1 << 20
    max_cycles: int = 1 << 32
    reset_after: int = 0
    settings: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class MachineResult:
    """What a run left behind.

    ``done``: the program reached ``halt``; else ``error`` and ``error_pc`` say what stopped it.
    ``memory``: (memory_bytes,) uint8 from BASE on. ``counters``: by the names in ``registers``.
    ``mark``: the last value marked. ``seconds``: wall-clock time of the run itself;
    ``simulated``: clock cycles in it. ``timeline``: what was executed when, if asked for.
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
    timeline: Timeline | None = None

    @property
    def cycles_per_second(self) -> float:
        return self.simulated / self.seconds


class MachineError(UserError):
    """A program that ended with an error status on the RTL."""


def demand_done(result: MachineResult) -> None:
    """Raises ``MachineError`` where a program ended with an error status."""
    if not result.done:
        raise MachineError(
            f"The program stopped with error {result.error.name} at instruction {result.error_pc}"
        )


class Machine(Protocol):
    """Something that executes jobs: ``machine_tb.MachineSim``, or a board.

    A machine that has ``peek`` may leave out marks that others soon followed: a callback can read
    there what it missed, (bytes,) from an address of the program on, while the program runs.
    """

    config: Config
    memory_bytes: int | None
    """As much memory as a program may have; None: any."""
    peek: Callable[[int, int], bytes] | None

    def run_all(
        self,
        jobs: Sequence[Job],
        *,
        on_mark: Callable[[int], None] | None = None,
        window: Window | None = None,
    ) -> list[MachineResult]: ...
