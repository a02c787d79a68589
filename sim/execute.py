"""Programs for whole sequences (`compiler.sequence`) on the golden machine or on the RTL.

    inputs = Inputs(length=3, indices={"tokens": [101, 2054, 102]})
    made = run_sequences(program, [inputs], "rtl")[0]
    compare_outputs(made.outputs, integer_sequence(IntegerModel(graph), inputs))     # every bit
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from systolith.compiler.sequence import outputs, set_inputs
from systolith.errors import UserError
from systolith.fixed import Int
from systolith.forward import IntegerModel
from systolith.program import Program
from systolith.sim.generate import LATENCY, Mismatch
from systolith.sim.jobs import Job, Machine, demand_done

_INPUTS = ("control", "index", "given")
"""How the names of the regions begin that ``set_inputs`` writes."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A sequence of ``length`` tokens: (length,) integers for each index input, (length, channels)
    integers for each given tensor, by their names in the graph."""

    length: int
    indices: Mapping[str, Sequence[int]] = field(default_factory=dict)
    given: Mapping[str, ArrayLike] = field(default_factory=dict)


class SequenceRun(NamedTuple):
    """``outputs``: (length, channels) int64 by the tensors' names. ``counters``: the machine's
    (rtl). ``seconds``: wall-clock time of the execution; ``simulated``: clock cycles in it."""

    outputs: dict[str, Int]
    counters: dict[str, int]
    seconds: float
    simulated: int = 0


def run_sequences(
    program: Program, inputs: Sequence[Inputs], backend: str | Machine, **memory_settings: int
) -> list[SequenceRun]:
    """Executes a program for one sequence after another.

    ``backend``: "machine", "rtl" or a board.
    ``memory_settings``: of the simulated memory, such as latency. An error status raises
    ``MachineError``.
    """
    if backend == "machine":
        return [_golden(program, _memory(program, item), item.length) for item in inputs]
    if isinstance(backend, str) and backend != "rtl":
        raise UserError(f"A program is executed on machine, rtl or a board, not on {backend}")
    symbols = program.symbols
    written = [name for name in symbols if name.split()[0] in _INPUTS]
    read = [(s.address, s.size) for name, s in symbols.items() if name.split()[0] == "output"]
    jobs = []
    for index, item in enumerate(inputs):
        memory = _memory(program, item)
        writes = [program.region(memory, name) for name in written]
        # The constants are loaded once; a program must not depend on what one before it left.
        jobs.append(Job(program if index == 0 else None, writes=writes, reads=read))
    if isinstance(backend, str):
        from systolith.sim.machine_tb import MachineSim, size_for

        settings = {"latency": LATENCY, **memory_settings}
        size = size_for(program.memory_bytes)
        machine: Machine = MachineSim(program.config, size_bytes=size, **settings)
    else:
        machine = backend
    runs = []
    for item, result in zip(inputs, machine.run_all(jobs), strict=True):
        demand_done(result)
        found = outputs(program, result.memory, item.length)
        runs.append(SequenceRun(found, result.counters, result.seconds, result.simulated))
    return runs


def run_sequence(
    program: Program,
    length: int,
    indices: Mapping[str, Sequence[int]],
    given: Mapping[str, ArrayLike],
    backend: str | Machine,
    **memory_settings: int,
) -> SequenceRun:
    """Executes a program for one sequence; see `run_sequences`."""
    inputs = Inputs(length=length, indices=indices, given=given)
    return run_sequences(program, [inputs], backend, **memory_settings)[0]


def _memory(program: Program, inputs: Inputs) -> NDArray[np.uint8]:
    memory = program.memory()
    set_inputs(program, memory, inputs.length, inputs.indices, inputs.given)
    return memory


def _golden(program: Program, memory: NDArray[np.uint8], length: int) -> SequenceRun:
    from systolith.sim.machine import GoldenMachine

    started = time.monotonic()
    GoldenMachine(program.config, memory).run()
    return SequenceRun(outputs(program, memory, length), {}, time.monotonic() - started)


def integer_sequence(model: IntegerModel, inputs: Inputs) -> dict[str, Int]:
    """The same tensors by the integer forward."""
    model.reset()
    values = model.trace({**inputs.indices, **inputs.given})
    return {output.tensor: values[output.tensor] for output in model.graph.outputs}


def compare_outputs(found: Mapping[str, Int], reference: Mapping[str, Int], what: str = "") -> None:
    """Raises ``Mismatch`` with the first value that is not the reference's."""
    for name, expected in reference.items():
        wrong = np.argwhere(found[name] != expected)
        if len(wrong):
            token, channel = wrong[0]
            raise Mismatch(
                f"{what}{name}: channel {channel} of token {token} is "
                f"{found[name][token, channel]} and should be {expected[token, channel]} "
                f"({len(wrong)} values differ)"
            )
