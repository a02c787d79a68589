"""Runs of programs for their cycles alone: what they compute does not matter, and is not checked.

    made = profile(program, prepare(program, tokens=16, new=8), measure=True)
    made.predicted.cycles, made.measured.cycles
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from systolith.compiler.decoder import set_prompt
from systolith.compiler.timeline import Timeline
from systolith.compiler.timing import Memory, simulate
from systolith.compiler.unroll import unroll, words_of
from systolith.errors import UserError
from systolith.program import Program


@dataclass(frozen=True)
class Profile:
    """A run as it was predicted and, if that was asked for, as the RTL was seen to do it."""

    predicted: Timeline
    measured: Timeline | None = None


def prepare(program: Program, *, tokens: int, new: int) -> NDArray[np.uint8]:
    """The memory of a program that is to process ``tokens`` tokens, all of them 0.

    A language model's are its prompt, and ``new`` ones are written behind it; both as far as its
    context goes. Programs of other kinds than a model's are run as they are.
    """
    if tokens < 1 or new < 1:
        raise UserError(f"Tokens must be at least 1, not {min(tokens, new)}")
    memory = program.memory()
    kind = program.metadata.get("kind")
    if kind == "decoder":
        context = program.metadata["context"]
        tokens = min(tokens, context)
        set_prompt(program, memory, [0] * tokens, min(tokens + new, context + 1))
    elif kind == "sequence":
        length = min(tokens, program.metadata["tokens"])
        program.write(memory, "control", np.array([length], dtype=np.uint32))
    return memory


def predicted_run(program: Program, memory: NDArray[np.uint8], settings: Memory) -> Timeline:
    """What the timing model says of a program in a memory with these settings."""
    stream = unroll(words_of(program.image, program.instructions), memory)
    return simulate(program.config, stream, memory=settings)


def profile(
    program: Program,
    memory: NDArray[np.uint8],
    *,
    measure: bool = False,
    latency: int = 40,
    bus_bytes_per_cycle: float | None = None,
) -> Profile:
    """Predicts a run and, with ``measure``, lets the RTL do it. ``memory``: see ``prepare``."""
    settings = Memory.of(
        program.config, latency=latency, bus_bytes_per_cycle=bus_bytes_per_cycle
    )
    predicted = predicted_run(program, memory, settings)
    if not measure:
        return Profile(predicted)
    from systolith.sim.machine_tb import MachineSim, size_for

    machine = MachineSim(
        program.config,
        size_bytes=size_for(len(memory)),
        latency=settings.latency,
        bandwidth=settings.bandwidth,
    )
    measured = machine.run(memory, trace=True).timeline
    assert measured is not None
    return Profile(predicted, measured.with_items(predicted).with_code(program.code()))
