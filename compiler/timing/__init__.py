"""Predicts how many cycles the machine takes for a program, instruction by instruction.

    timing = predict(program, memory)           # memory: as the host left it, for `ldr`
    timing.cycles, timing.counters["MATMUL_BUSY"]
    timing.executed[0].start                    # and pc, unit, queued, granted, end

No data is looked at: see `systolith.compiler.unroll` for what that leaves open. `simulate` does
the same for a list of instructions, for schedules that have not become a program.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from systolith.compiler.timeline import Timeline
from systolith.compiler.timing.machine import Deadlock, Machine
from systolith.compiler.timing.memory import Memory
from systolith.compiler.timing.parameters import PARAMETERS, Parameters
from systolith.compiler.unroll import Dynamic, unroll, words_of
from systolith.config import Config
from systolith.isa import Instruction
from systolith.program import Program

__all__ = ["PARAMETERS", "Deadlock", "Memory", "Parameters", "predict", "simulate"]


def predict(
    program: Program,
    memory: NDArray[np.uint8] | None = None,
    *,
    latency: int = 40,
    bus_bytes_per_cycle: float | None = None,
    write_latency: int = 0,
    parameters: Parameters = PARAMETERS,
) -> Timeline:
    """The predicted run of a program, from start to halt.

    ``memory``: the program's, (memory_bytes,) uint8, as the host left it (default: as compiled).
    ``latency``: cycles from a read's address to its data; ``write_latency``: from a write's data to
    its response. ``bus_bytes_per_cycle``: what memory can deliver and take, at most the width of
    the bus (default). Raises ``ProgramError`` for programs
    that do not come to an end.
    """
    code = words_of(program.image, program.instructions)
    memory = program.memory() if memory is None else memory
    settings = Memory.of(
        program.config,
        latency=latency,
        write_latency=write_latency,
        bus_bytes_per_cycle=bus_bytes_per_cycle,
    )
    stream = unroll(code, memory)
    return simulate(program.config, stream, memory=settings, parameters=parameters)


def simulate(
    config: Config,
    program: Sequence[Dynamic | Instruction],
    *,
    memory: Memory | None = None,
    base: int = 0,
    parameters: Parameters = PARAMETERS,
) -> Timeline:
    """The predicted run of a list of instructions as they are executed, registers added.

    For candidates of a schedule: `Instruction`s without an image stand for straight-line code from
    pc 0 on. It need not end with ``halt``; then it ends when the last unit is done. ``base``: byte
    address of the program in memory. Raises ``Deadlock``.
    """
    stream = [
        item if isinstance(item, Dynamic) else Dynamic(index, item)
        for index, item in enumerate(program)
    ]
    return Machine(config, stream, memory or Memory(), base, parameters).run()
