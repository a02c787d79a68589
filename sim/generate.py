"""Text from a quantized language model on one of the backends that agree to the last bit.

- ``golden``: the integer forward, the fastest;
- ``machine``: the golden machine executes the compiled program;
- ``rtl``: the Verilog of the machine executes it, under Verilator.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from systolith.compiler.decoder import NO_STOP, compile_decoder, logits, set_prompt
from systolith.config import Config
from systolith.errors import UserError
from systolith.fixed import Int
from systolith.forward import IntegerModel
from systolith.graph import Graph
from systolith.program import Program

BACKENDS = ("golden", "machine", "rtl")
LATENCY = 40
"""Cycles from a read request to the first data beat of the simulated memory."""


class Mismatch(UserError):
    """Two descriptions of a computation disagree: a bug of this project."""


@dataclass(frozen=True)
class Generation:
    """A generated text.

    ``tokens``: prompt and text. ``logits``: (new tokens, vocabulary) int16, row i chose new token
    i. ``counters``: the machine's registers (rtl). ``simulated``, ``seconds``: clock cycles and
    wall time of the simulation.
    """

    prompt: int
    tokens: list[int]
    logits: Int
    counters: dict[str, int] = field(default_factory=dict)
    simulated: int = 0
    seconds: float = 0.0

    @property
    def new(self) -> int:
        """Tokens that were generated."""
        return len(self.tokens) - self.prompt


def check_length(context: int, prompt: Sequence[int], tokens: int) -> None:
    """Raises ``UserError`` where the prompt and ``tokens`` new ones do not fit into the context."""
    if not prompt:
        raise UserError("The prompt is empty: give some text")
    if tokens < 1:
        raise UserError(f"The number of tokens must be at least 1, not {tokens}")
    if len(prompt) + tokens > context + 1:
        raise UserError(
            f"The prompt has {len(prompt)} tokens and {tokens} more are asked for, which is beyond "
            f"the context of {context}: shorten the prompt or ask for fewer"
        )


def integer_text(
    graph: Graph,
    prompt: Sequence[int],
    tokens: int,
    stop: int = NO_STOP,
    on_token: Callable[[int], None] | None = None,
) -> Generation:
    """Greedy text by the integer forward."""
    check_length(graph.context, prompt, tokens)
    model, text = IntegerModel(graph), list(prompt)
    rows: list[Int] = []
    block: Sequence[int] = prompt
    while len(text) < len(prompt) + tokens:
        rows.append(model.step(block)[-1])
        text.append(int(np.argmax(rows[-1])))
        block = text[-1:]
        if on_token:
            on_token(text[-1])
        if text[-1] == stop:
            break
    return Generation(len(prompt), text, np.array(rows))


def machine_text(
    program: Program,
    prompt: Sequence[int],
    tokens: int,
    backend: str,
    stop: int = NO_STOP,
    on_token: Callable[[int], None] | None = None,
    waves: Path | None = None,
    **memory_settings: int,
) -> Generation:
    """Greedy text by a compiled program, on the golden machine or on the RTL.

    ``waves``: file for the waveform; ``memory_settings``: latency, bandwidth, … of the simulated
    memory (both rtl).
    """
    check_length(program.metadata["context"], prompt, tokens)
    memory = program.memory()
    set_prompt(program, memory, list(prompt), len(prompt) + tokens, stop)

    seen = len(prompt)

    def mark(value: int) -> None:
        nonlocal seen
        if on_token and value >> 16 > seen:  # the end of a program shows the last mark again
            on_token(value & 0xFFFF)
        seen = value >> 16

    counters: dict[str, int] = {}
    simulated, seconds = 0, 0.0
    if backend == "machine":
        from systolith.sim.machine import GoldenMachine

        marks: list[int] = []

        def note(value: int) -> None:
            marks.append(value)
            mark(value)

        GoldenMachine(program.config, memory, note).run()
        end = marks[-1] >> 16
    else:
        from systolith.sim.machine_tb import MachineSim

        settings = {"latency": LATENCY, **memory_settings}
        machine = MachineSim(program.config, waves=waves is not None, **settings)
        result = machine.run(memory, on_mark=mark, waves=waves)
        memory, counters, end = result.memory, result.counters, result.mark >> 16
        simulated, seconds = result.simulated, result.seconds
    text = program.read(memory, "tokens")[:end].tolist()
    rows = logits(program, memory)[len(prompt) - 1 : end - 1]
    return Generation(len(prompt), text, rows, counters, simulated, seconds)


def generate(
    graph: Graph,
    config: Config,
    prompt: Sequence[int],
    tokens: int,
    backend: str,
    stop: int = NO_STOP,
    on_token: Callable[[int], None] | None = None,
    waves: Path | None = None,
    **memory_settings: int,
) -> Generation:
    """Greedy text on ``backend``; on the machine and the RTL, every logit is checked.

    Raises ``Mismatch`` with the first position that differs from the integer forward.
    """
    if backend == "golden":
        return integer_text(graph, prompt, tokens, stop, on_token)
    check_length(graph.context, prompt, tokens)
    program = compile_decoder(graph, config)
    result = machine_text(
        program, prompt, tokens, backend, stop, on_token, waves, **memory_settings
    )
    compare(result, integer_text(graph, prompt, tokens, stop))
    return result


def compare(result: Generation, reference: Generation) -> None:
    """Raises ``Mismatch`` where tokens or logits differ from the reference."""
    rows = min(len(result.logits), len(reference.logits))
    wrong = np.argwhere(result.logits[:rows] != reference.logits[:rows])
    if len(wrong):
        token, channel = wrong[0]
        raise Mismatch(
            f"Logit {channel} of new token {token} is {result.logits[token, channel]} and should "
            f"be {reference.logits[token, channel]} ({len(wrong)} logits differ)"
        )
    if result.tokens != reference.tokens:
        raise Mismatch(f"The tokens are {result.tokens} and should be {reference.tokens}")
