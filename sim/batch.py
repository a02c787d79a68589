"""Several texts at once: a batch of prompts, decoded together, the most likely token each time."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from systolith.compiler.batch import batch_logits, compile_batch, read_texts, set_prompts
from systolith.config import Config
from systolith.graph import Graph
from systolith.sim.generate import LATENCY, Mismatch, integer_text
from systolith.sim.jobs import Job, Machine, demand_done
from systolith.sim.writer import Request


@dataclass(frozen=True)
class BatchResult:
    """``texts``: prompt and new tokens of each sequence. The rest as in ``Generation``.

    ``steps``: tokens that each sequence went through, those that a shorter text does not need
    included.
    """

    texts: list[list[int]]
    steps: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    simulated: int = 0
    seconds: float = 0.0


def generate_batch(
    graph: Graph,
    config: Config,
    requests: Sequence[Request],
    backend: str | Machine,
    **settings: int,
) -> BatchResult:
    """Texts of several requests, at least two, on ``backend``; every logit is checked.

    Of a request only the number of tokens and those to stop at count: a batch is greedy. Raises
    ``Mismatch`` where the machine differs from the integer forward.
    """
    plain = [replace(request, ends=None) for request in requests]
    references = [integer_text(graph, request) for request in plain]
    texts = [reference.tokens for reference in references]
    if backend == "golden":
        return BatchResult(texts)
    program = compile_batch(graph, config, sequences=len(plain))
    longest = max(len(request.prompt) for request in plain)
    total = max(longest + 1, *(len(text) for text in texts))
    memory = program.memory()
    set_prompts(program, memory, [list(request.prompt) for request in plain], total)
    counters: dict[str, int] = {}
    simulated, seconds = 0, 0.0
    if backend == "machine":
        from systolith.sim.machine import GoldenMachine

        GoldenMachine(config, memory).run()
    else:
        if isinstance(backend, str):
            from systolith.sim.machine_tb import MachineSim, size_for

            size = size_for(len(memory))
            settings = {"latency": LATENCY, **settings}
            machine: Machine = MachineSim(config, size_bytes=size, **settings)
        else:
            machine = backend
        writes = [program.region(memory, name) for name in ("control", "tokens")]
        (result,) = machine.run_all([Job(program, writes=writes)])
        demand_done(result)
        memory, counters = result.memory, result.counters
        simulated, seconds = result.simulated, result.seconds
    found, logits = read_texts(program, memory, total), batch_logits(program, memory)
    for index, reference in enumerate(references):
        count = len(reference.tokens)
        if found[index][:count] != reference.tokens:
            raise Mismatch(f"The tokens of prompt {index} differ from the integer forward")
        rows = logits[index, reference.prompt - 1 : count - 1]
        if not np.array_equal(rows, reference.logits):
            raise Mismatch(f"Logits of prompt {index} differ from the integer forward")
    return BatchResult(texts, total - 1, counters, simulated, seconds)
