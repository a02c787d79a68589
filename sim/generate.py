"""Text from a quantized language model on one of the backends that agree to the last bit.

- ``golden``: the integer forward, the fastest;
- ``machine``: the golden machine executes the compiled program;
- ``rtl``: the Verilog of the machine executes it, under Verilator.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from systolith.compiler.decoder import (
    NO_STOP,
    STOP_WORD,
    compile_for,
    logit_rows,
    logits,
    set_prompt,
)
from systolith.compiler.timeline import Timeline
from systolith.compiler.timing import Memory
from systolith.config import Config
from systolith.errors import UserError
from systolith.fixed import Int
from systolith.forward import IntegerModel
from systolith.graph import Graph
from systolith.program import Program
from systolith.sim.jobs import Job, Machine, Window, demand_done
from systolith.sim.profile import predicted_run
from systolith.sim.writer import Request, Writer

LATENCY = 40
"""Cycles from a read request to the first data beat of the simulated memory."""

OnToken = Callable[[int], None]


class Mismatch(UserError):
    """Two descriptions of a computation disagree: a bug of this project."""


@dataclass(frozen=True)
class Generation:
    """A generated text.

    ``prompt``: tokens of the prompt; ``tokens``: prompt and text. ``logits``: (new tokens,
    vocabulary) int16, row i chose new token i. ``end``: see ``Request.end``. ``counters``: the
    machine's registers (rtl). ``simulated``, ``seconds``: clock cycles and wall time of the
    simulation; ``waves``: the file of its waveform. ``timelines``: the run, measured and predicted,
    by these names, if it was traced; ``labels``: of the program's instructions.
    """

    prompt: int
    tokens: list[int]
    logits: Int
    end: str = "tokens"
    counters: dict[str, int] = field(default_factory=dict)
    simulated: int = 0
    seconds: float = 0.0
    waves: Path | None = None
    timelines: dict[str, Timeline] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)

    @property
    def new(self) -> int:
        """Tokens that were generated."""
        return len(self.tokens) - self.prompt


def logits_scale(graph: Graph) -> float:
    """The unit of a language model's logits."""
    return graph.tensors[graph.logits].scale[0]


def integer_text(
    graph: Graph, request: Request, on_token: OnToken | None = None, context: int | None = None
) -> Generation:
    """Text by the integer forward; ``context``: a shorter one than the graph's."""
    context = graph.context if context is None else context
    writer = Writer(request, logits_scale(graph), context, on_token)
    model = IntegerModel(graph)
    rows = [model.step(request.prompt)[-1]]
    writer.choose(rows[-1])
    while not writer.finished:
        rows.append(model.step(writer.text[-1:])[-1])
        writer.choose(rows[-1])
    end = request.end(writer.text, context)
    return Generation(len(request.prompt), writer.text, np.array(rows), end)


class _Dialogue:
    """What the host does at the marks of a program that writes text.

    Where the host chooses, it reads the row of logits that a mark is about, and answers with the
    words that it writes: the token to stop at, if the text ends, before the token itself.
    """

    def __init__(
        self, program: Program, writer: Writer, peek: Callable[[int, int], bytes] | None = None
    ) -> None:
        self.program, self.writer, self.peek = program, writer, peek
        symbol = program.symbols["logits"]
        self.row_bytes = symbol.shape[1]
        self.first = symbol.address - 2 * self.row_bytes
        """The row of a mark for n tokens is at ``first + n * row_bytes``."""

    def token(self, mark: int) -> None:
        """The device has written a token, or several if marks were missed; the end of a program
        shows the last mark again."""
        first, end = len(self.writer.text), mark >> 16
        if end > first + 1 and self.peek is not None:
            at = self.program.symbols["tokens"].address + 4 * first
            for token in np.frombuffer(self.peek(at, 4 * (end - first)), "<u4").tolist():
                self.writer.append(token)
        elif end > first:
            self.writer.append(mark & 0xFFFF)

    def answer(self, mark: int, raw: np.ndarray) -> list[tuple[int, bytes]]:
        """Addresses and bytes to write, for a mark and the row of logits."""
        count = mark >> 16
        token = self.writer.choose(logit_rows(self.program, raw)[0])
        word = token.to_bytes(4, "little")
        symbols = self.program.symbols
        stop = [(symbols["control"].address + STOP_WORD, word)] if self.writer.stopped else []
        return [*stop, (symbols["tokens"].address + 4 * (count - 1), word)]

    def in_memory(self, mark: int, memory: np.ndarray) -> None:
        """Reads and answers in a memory, (bytes,) uint8."""
        at = self.first + (mark >> 16) * self.row_bytes
        for address, data in self.answer(mark, memory[at : at + self.row_bytes]):
            memory[address : address + len(data)] = np.frombuffer(data, np.uint8)


def machine_text(
    program: Program,
    request: Request,
    backend: str | Machine,
    on_token: OnToken | None = None,
    waves: Path | None = None,
    trace: bool = False,
    **memory_settings: int,
) -> Generation:
    """Text by a compiled program, on the golden machine, on the RTL or on a board.

    ``backend``: "machine", "rtl", or what executes it.
    ``waves``: file for the waveform; ``trace``: the result has timelines; ``memory_settings``:
    latency, bandwidth, … of the simulated memory (all rtl).
    """
    context = program.metadata["context"]
    writer = Writer(request, program.metadata["logits_scale"], context, on_token)
    board = None if isinstance(backend, str) else backend
    dialogue = _Dialogue(program, writer, None if board is None else board.peek)
    asks = not request.device_chooses
    stop = next(iter(request.stops), NO_STOP) if request.device_chooses else NO_STOP
    memory = program.memory()
    set_prompt(program, memory, list(request.prompt), writer.total, stop, host_chooses=asks)

    window = Window(dialogue.first, dialogue.row_bytes, dialogue.answer) if asks else None
    on_mark = None if asks else dialogue.token
    writes = [program.region(memory, name) for name in ("control", "tokens")]
    counters: dict[str, int] = {}
    simulated, seconds, recorded, result = 0, 0.0, None, None
    timelines: dict[str, Timeline] = {}
    if backend == "machine":
        from systolith.sim.machine import GoldenMachine

        def mark(value: int) -> None:
            if asks:
                dialogue.in_memory(value, memory)
            else:
                dialogue.token(value)

        GoldenMachine(program.config, memory, mark).run()
    if board is not None:
        tokens = program.symbols["tokens"]
        job = Job(program, writes=writes, reads=[(tokens.address, tokens.size)])
        (result,) = board.run_all([job], on_mark=on_mark, window=window)
        demand_done(result)
        # Of the logits only those of the text: a serial line is slow.
        first = dialogue.first + (len(request.prompt) + 1) * dialogue.row_bytes
        size = (len(writer.text) - len(request.prompt)) * dialogue.row_bytes
        result.memory[first : first + size] = np.frombuffer(board.peek(first, size), np.uint8)
    elif backend == "rtl":
        from systolith.sim.machine_tb import MachineSim, size_for

        settings = {"latency": LATENCY, **memory_settings}
        if trace and not asks:  # what a host answers cannot be foretold
            timelines["predicted"] = predicted_run(
                program, memory, Memory.from_settings(settings)
            )
        machine = MachineSim(
            program.config,
            size_bytes=size_for(len(memory)),
            waves=waves is not None,
            **settings,
        )
        result = machine.run(
            program, writes=writes, on_mark=on_mark, window=window, waves=waves, trace=trace
        )
        if result.timeline is not None:
            measured = result.timeline
            for line in timelines.values():
                measured = measured.with_items(line)
            timelines["measured"] = measured.with_code(program.code())
        if waves is not None:
            recorded = waves.with_suffix(f".{machine.build.waves}")
    if result is not None:
        memory, counters = result.memory, result.counters
        simulated, seconds = result.simulated, result.seconds
    count = len(writer.text)
    text = program.read(memory, "tokens")[:count].tolist()
    rows = logits(program, memory)[len(request.prompt) - 1 : count - 1]
    end = request.end(text, context)
    return Generation(
        len(request.prompt),
        text,
        rows,
        end,
        counters,
        simulated,
        seconds,
        recorded,
        timelines,
        program.metadata["labels"],
    )


def generate(
    graph: Graph,
    config: Config,
    request: Request,
    backend: str | Machine,
    on_token: OnToken | None = None,
    waves: Path | None = None,
    trace: bool = False,
    **memory_settings: int,
) -> Generation:
    """Text on ``backend``; on the machine and the RTL, every logit is checked.

    Raises ``Mismatch`` with the first position that differs from the integer forward.
    """
    if backend == "golden":
        return integer_text(graph, request, on_token)
    request.total(graph.context)
    room = None if isinstance(backend, str) else backend.memory_bytes
    program = compile_for(graph, config, room)
    result = machine_text(
        program, request, backend, on_token, waves, trace, **memory_settings
    )
    compare(result, integer_text(graph, request, context=program.metadata["context"]))
    return result


def counted_per_token(
    program: Program,
    graph: Graph,
    prompt: Sequence[int],
    tokens: tuple[int, int],
    backend: str | Machine,
    **memory_settings: int,
) -> dict[str, float]:
    """What the counters count for a new token, by name: the difference of two texts, divided.

    ``tokens``: new ones of each text; every logit of both is compared with the integer forward.
    """
    counters = []
    for count in tokens:
        request = Request(prompt=list(prompt), tokens=count)
        made = machine_text(program, request, backend, **memory_settings)
        compare(made, integer_text(graph, request, context=program.metadata["context"]))
        counters.append(made.counters)
    few, many = counters
    return {name: (many[name] - few[name]) / (tokens[1] - tokens[0]) for name in many}


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
