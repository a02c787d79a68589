"""Whole programs for decoder language models: a loop that prefills the prompt and writes text.

The host places the prompt in ``tokens`` and four words in ``control``: the length of the prompt,
the number of tokens to end with (prompt included), a token to stop at (or 0xFFFFFFFF), and who
chooses tokens (0 the device, 1 the host). One loop processes blocks of the prompt, another one the
token that was written last, and both log the logits of the last token; then the device takes the
arg-max, appends it to ``tokens`` and reports it by ``mark``: the number of tokens there are << 16 |
the new token.

Where the host chooses, the arg-max is reported only, and the device waits until the host has put
its choice in the place of the 0xFFFFFFFF that stands in ``tokens`` where the text is to go on. The
token to stop at is read after that: by setting it to its choice the host ends the text.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systolith.compiler.allocate import DoesNotFit, first_that_fits
from systolith.compiler.control import alu, branch, times
from systolith.compiler.layout import from_planes, planes
from systolith.compiler.lower import Lowering
from systolith.compiler.memory import Memory
from systolith.compiler.moves import without_moves
from systolith.compiler.nodes import lower, rope_row_bytes
from systolith.compiler.residency import Residency
from systolith.compiler.schedule import Region, Step, overlap, prefetch, synchronize
from systolith.compiler.tensors import Placed, Registers, Span, Unsupported
from systolith.config import Config
from systolith.fixed import Int
from systolith.graph import TOKENS, Attention, Embedding, Graph, Node, Rope
from systolith.isa import (
    AluOp,
    Condition,
    LoadSpace,
    StoreSpace,
    Unit,
    assemble,
)
from systolith.program import Program

NO_STOP = 0xFFFF_FFFF
"""Stop token that never comes."""
LOG_PARTS = 4
"""Stores that write the logits of a token to memory."""
PENDING = 0xFFFF_FFFF
"""In the place of a token that the host has not chosen yet."""
STOP_WORD = 8
"""Byte offset in ``control`` of the token to stop at."""

R = Registers
_SHORTEST_CONTEXT = 16
"""Of a program that is cut to the memory there is."""


def compile_decoder(
    graph: Graph,
    config: Config,
    *,
    context: int | None = None,
    tokens: int | None = None,
    resident: bool | None = None,
) -> Program:
    """Compiles a decoder language model.

    ``context``: rows of the key/value caches, at most the graph's (default: as many as the graph
    and the longest softmax row of the configuration allow). ``tokens``: prompt tokens processed at
    once (default: the most that fit, up to D). ``resident``: keep all weights on chip, or none
    (default: all if they fit, or most of them). Raises ``DoesNotFit`` or ``Unsupported`` where it
    cannot.
    """
    demand_decoder(graph)
    graph = without_moves(graph)
    context = context_of(graph, config, context)
    powers = [1 << i for i in range(config.dim.bit_length() - 1, -1, -1)]
    return first_that_fits(
        lambda *choice: Decoder(graph, config, context, *choice).program(),
        [
            (block, *choice)
            for block in ([n for n in powers if n <= context] if tokens is None else [tokens])
            for choice in residencies(resident)
        ],
    )


def compile_for(graph: Graph, config: Config, room: int | None) -> Program:
    """The program with the longest context whose memory is at most ``room`` bytes.

    Contexts are halved down to 16. Raises ``DoesNotFit`` if none fits.
    """
    context = context_of(graph, config, None)
    while True:
        try:
            program = compile_decoder(graph, config, context=context)
            if room is None or program.memory_bytes <= room:
                return program
            raise DoesNotFit(
                f"The program needs {program.memory_bytes:,} bytes of memory with a context of "
                f"{context}, and there are {room:,}: choose a smaller model, or a board with more"
            )
        except DoesNotFit:
            context //= 2
            if context < _SHORTEST_CONTEXT:
                raise


def residencies(resident: bool | None) -> list[tuple[Residency, bool]]:
    """What may stay in the weight memory, best first: weights, and whether keys and values do.

    ``resident``: of ``compile_decoder``.
    """
    # A row of weights is read for each token, one of keys and values is only once it was written.
    choices = [
        (Residency.ALL, True),
        (Residency.ALL, False),
        (Residency.SOME, False),
        (Residency.NONE, True),
        (Residency.NONE, False),
    ]
    if resident is None:
        return choices
    wanted = Residency.ALL if resident else Residency.NONE
    return [choice for choice in choices if choice[0] is wanted]


def context_of(graph: Graph, config: Config, context: int | None) -> int:
    """The context asked for, or the longest; raises ``DoesNotFit`` for one that cannot be."""
    limit = min(graph.context, config.max_length)
    context = limit if context is None else context
    if not 1 <= context <= limit:
        raise DoesNotFit(
            f"A context of {context} tokens is not possible: the model has {graph.context}, and the"
            f" softmax unit of the configuration {config.max_length}"
        )
    return context


def demand_decoder(graph: Graph) -> None:
    """Raises ``Unsupported`` for what no program can be made of yet."""
    if not graph.generative:
        raise Unsupported(
            "A program that writes text needs a language model (causal; tokens in, scores of "
            "tokens out), and this graph is none: compile it for whole sequences"
        )
    heads = {(node.heads, node.kv_heads, node.head_dim) for node in graph.of_kind(Attention)}
    if len(heads) > 1:
        raise Unsupported("Programs for attention layers with different heads are not supported")


class Decoder:
    """One attempt at a program, with everything chosen.

    ``tokens``: of a block of the prompt. ``on_chip``: keys and values stay in the weight memory.
    """

    def __init__(
        self,
        graph: Graph,
        config: Config,
        context: int,
        tokens: int,
        resident: Residency,
        on_chip: bool,
        sequences: int = 1,
    ) -> None:
        self.graph, self.config, self.context = graph, config, context
        self.memory = Memory()
        self.control = self.memory.buffer("control", "<u4", (4,))
        self.tokens = self.memory.buffer("tokens", "<u4", (sequences * (context + 1),))
        self.lowering = Lowering(
            graph,
            config,
            self.memory,
            tokens=tokens,
            context=context,
            stationary=on_chip,
            looping=True,
            resident=resident,
            sequences=sequences,
        )
        passing = self.lowering.weights.rows
        if on_chip and resident is Residency.NONE and passing < config.weight_rows // 4:
            raise DoesNotFit("Keys and values leave too little of the weight memory")
        self.residency, self.on_chip = resident, on_chip
        self.embedding = next(n for n in graph.of_kind(Embedding) if n.index == TOKENS)
        self.table = self.memory.constant(
            "embedding",
            planes(
                self.lowering.layouts[self.embedding.out].spread(
                    graph.constants[self.embedding.table]
                ),
                config.dim,
            ),
            rare=True,
        )
        self.steps = self._build()

    def program(self) -> Program:
        index = {id(step): i for i, step in enumerate(self.steps)}
        code = []
        for step in self.steps:
            item = step.instruction
            if step.target is not None:
                item = replace(item, fields={**item.fields, "target": index[id(step.target)]})
            code.append(item)
        image, size, symbols = self.memory.link(assemble(code))
        layout = self.lowering.layouts[self.graph.logits]
        return Program(
            self.config,
            image,
            len(code),
            size,
            symbols,
            {
                **self._describe(),
                "context": self.context,
                "block": self.lowering.tokens,
                "resident": self.residency is Residency.ALL,
                "caches": "on chip" if self.on_chip else "in memory",
                "on_chip": self.lowering.on_chip,
                "vocabulary": self.graph.vocabulary,
                "logits_blocks": layout.blocks,
                "logits_scale": self.graph.tensors[self.graph.logits].scale[0],
                "labels": [step.label for step in self.steps],
            },
        )

    def _describe(self) -> dict[str, Any]:
        return {"kind": "decoder"}

    # The parts of the program --------------------------------------------------------------------

    def _build(self) -> list[Step]:
        """Prologue; blocks of the prompt; then tail and token in turns."""
        low = self.lowering
        start = self._segment(self._prologue)
        span = Span(0, low.tokens, dynamic=True, open=True)
        low.place(self.embedding.out, span)
        x = low.at(self.embedding.out)
        head = self._segment(lambda: self._prompt_head(x.stride))
        gather = self._segment(lambda: self._gather(x))
        body = self._segment(lambda: self._prompt_body(x, span))
        # The first weights come in while the embedding is gathered.
        body = prefetch(body, self.config.queue_depth)
        ahead = next(i for i, step in enumerate(body) if not step.constant)
        prompt = [*head, *overlap(synchronize([*body[:ahead], *gather, *body[ahead:]]))]
        prompt += self._segment(lambda: self._prompt_end(head[0]))

        low.begin()
        one = Span(0, 1, dynamic=True)
        low.place(self.embedding.out, one)
        row = self._segment(lambda: self._token_row(one))
        first, token = self._leading(self._segment(lambda: self._layers(one)))
        token = prefetch([*token, *first], self.config.queue_depth)
        token = overlap(synchronize([*row, *token]))
        token += self._segment(lambda: alu(low, AluOp.ADD, R.POSITION, R.POSITION, 1))
        # The loads that a token makes for the next one, for the first of all.
        copies = [
            replace(step, instruction=replace(step.instruction, wait=0, signal=0)) for step in first
        ]
        tail = self._segment(lambda: self._tail(token[0]))
        over = self._segment(lambda: branch(low, Condition.ALWAYS, 0, 0, tail[0]))
        return [*synchronize([*low.preload, *start]), *prompt, *copies, *over, *token, *tail]

    def _segment(self, emit: Callable[[], object]) -> list[Step]:
        self.lowering.label = "control"
        self.lowering.steps = []
        emit()
        return self.lowering.steps

    def _leading(self, steps: list[Step]) -> tuple[list[Step], list[Step]]:
        """Splits off the loads that the turn of the loop before can make."""
        ring = self.lowering.leading
        room = Region("weight", ring.start, ring.stop)
        first = [s for s in steps if s.constant and any(room.overlaps(r) for r in s.writes)]
        chosen = {id(step) for step in first}
        return first, [step for step in steps if id(step) not in chosen]

    def _prologue(self) -> None:
        low = self.lowering
        low.emit("ldr", {"address": self.control, "rd": int(R.PROMPT)})
        # TOTAL << 16, less one where the host chooses: bit 0 tells, and comparisons stay right.
        low.emit("ldr", {"address": self.control + 4, "rd": int(R.TOTAL)})
        low.emit("ldr", {"address": self.control + 12, "rd": int(R.A)})
        alu(low, AluOp.SHL, R.TOTAL, R.TOTAL, 16)
        alu(low, AluOp.SUB, R.TOTAL, R.TOTAL, R.A)
        low.emit("fence", {})

    def _prompt_head(self, x_stride: int) -> None:
        """M = min(block, prompt tokens left)."""
        low = self.lowering
        alu(low, AluOp.SUB, R.TOKENS, R.PROMPT, R.POSITION)
        alu(low, AluOp.MIN, R.TOKENS, R.TOKENS, low.tokens)
        alu(low, AluOp.SUB, R.A, R.TOKENS, 1)
        times(low, R.LAST, R.A, x_stride, R.B)

    def _gather(self, x: Placed) -> None:
        """Rows of the embedding for all tokens of the block but the last."""
        low = self.lowering
        alu(low, AluOp.SHL, R.A, R.POSITION, 2)
        alu(low, AluOp.ADD, R.C, 0, 0)
        loop = low.emit("ldr", {"address": self.tokens, "rd": int(R.SOFTMAX)}, {"address": R.A})
        times(low, R.B, R.SOFTMAX, x.stride * self.config.dim, R.OLD)
        leave = branch(low, Condition.EQ, R.C, R.LAST)
        self._load_row(x, {"local": R.C})
        alu(low, AluOp.ADD, R.A, R.A, 4)
        alu(low, AluOp.ADD, R.C, R.C, x.stride)
        branch(low, Condition.ALWAYS, 0, 0, loop)
        leave.target = alu(low, AluOp.SHL, R.TOKENS_16, R.TOKENS, 16)

    def _load_row(
        self, x: Placed, registers: dict[str, R], writes: tuple[Region, ...] = ()
    ) -> None:
        """The row of the embedding at byte offset B, or another register, of its table."""
        self.lowering.emit(
            "load",
            {
                "space": LoadSpace.ACTIVATION,
                "address": self.table,
                "words": x.stride,
                "rows": 1,
                "local": x.first,
            },
            {"address": R.B, **registers},
            writes=writes,
        )

    def _prompt_body(self, x: Placed, span: Span) -> None:
        """The last token's embedding, the derived registers, and all the layers."""
        low = self.lowering
        # Loads are executed in order: when this one is done, all of the gathered rows are there.
        self._load_row(x, {"local": R.C}, (x.region(span),))
        heads = next(iter(low.heads.values()), None)
        times(low, R.A, R.TOKENS, heads.group if heads else 1, R.B)
        alu(low, AluOp.SHL, R.GROUP_ROWS_16, R.A, 16)
        alu(low, AluOp.ADD, R.B, R.POSITION, R.TOKENS)
        self._places(R.B)
        alu(low, AluOp.ADD, R.SOFTMAX, R.SOFTMAX, R.A)
        self._layers(span)

    def _token_row(self, span: Span) -> None:
        """The embedding of the token in register B."""
        x = self.lowering.at(self.embedding.out)
        times(self.lowering, R.A, R.B, x.stride * self.config.dim, R.C)
        self._load_row(x, {"address": R.A}, (x.region(span),))

    def _places(self, tokens: R) -> None:
        """What follows from the position, with ``tokens`` tokens up to the end of the block."""
        low, d = self.lowering, self.config.dim
        alu(low, AluOp.ADD, R.C, tokens, d - 1)
        alu(low, AluOp.SHR, R.C, R.C, d.bit_length() - 1)
        alu(low, AluOp.SHL, R.TILES_20, R.C, 20)
        alu(low, AluOp.SHL, R.SOFTMAX, R.C, 12)
        alu(low, AluOp.MAX, R.OLD, R.POSITION, 1)
        alu(low, AluOp.SHL, R.POSITION_ROW, R.POSITION, d.bit_length() - 1)
        rope = next(self.graph.of_kind(Rope), None)
        if rope is not None:
            times(low, R.ROPE_ROW, R.POSITION, rope_row_bytes(low, rope), R.C)

    def _layers(self, span: Span) -> None:
        low = self.lowering
        nodes = [node for node in self.graph.nodes if node.out != self.embedding.out]
        lower(low, nodes, span, {self.graph.logits} | low.keys, self._positions, self._log)

    def _positions(self, low: Lowering, node: Embedding, span: Span) -> None:
        """The rows of an embedding of positions, from the first token's on."""
        x = low.at(node.out)
        values = self.graph.constants[node.table]

        def make() -> NDArray[np.uint8]:
            # A block may read beyond the context: the table is longer than the caches.
            pad = np.zeros((low.tokens, values.shape[1]), values.dtype)
            return planes(x.layout.spread(np.concatenate([values, pad])), self.config.dim)

        address = low.constant(node.name, make, rare=True)
        times(low, R.A, R.POSITION, x.stride * self.config.dim, R.C)
        words = x.stride * (span.count if low.sequences == 1 else 1)
        for sequence in range(low.sequences):
            row = x.first + sequence * x.stride
            low.load(LoadSpace.ACTIVATION, address, words, row, registers={"address": R.A})

    def _log(self, low: Lowering, node: Node, span: Span) -> None:
        """Stores the logits of the block's last token."""
        if node.out != self.graph.logits:
            return
        logits = low.at(node.out)
        row_bytes = logits.stride * self.config.dim
        address = self.memory.buffer("logits", "uint8", (self.context, row_bytes))
        alu(low, AluOp.ADD, R.B, R.POSITION, R.TOKENS if span.open else 1)
        alu(low, AluOp.SUB, R.B, R.B, 1)
        times(low, R.A, R.B, row_bytes, R.C)
        # In parts, so that the first ones go while the last logits are computed.
        blocks = logits.layout.blocks
        part = -(-blocks // LOG_PARTS)
        for block in range(0, blocks, part):
            count = min(part, blocks - block)
            low.emit(
                "store",
                {
                    "space": StoreSpace.ACTIVATION,
                    "address": address + block * logits.planes * self.config.dim,
                    "words": count * logits.planes,
                    "rows": 1,
                    "local": logits.first + block * logits.planes,
                },
                {"address": R.A},
                reads=(logits.region(Span(0, 1), block, count),),
            )

    def _prompt_end(self, loop: Step) -> None:
        low = self.lowering
        alu(low, AluOp.ADD, R.POSITION, R.POSITION, R.TOKENS)
        low.emit("fence", {})
        branch(low, Condition.LT, R.POSITION, R.PROMPT, loop)
        # Where the device chooses, the token to stop at is known from here on.
        low.emit("ldr", {"address": self.control + STOP_WORD, "rd": int(R.PROMPT)})

    def _tail(self, again: Step) -> None:
        """The next token: the arg-max, into ``tokens`` and register B; then it is processed.

        All that does not depend on the token is done while the units are still at work. Behind the
        mark they are idle.
        """
        low = self.lowering
        alu(low, AluOp.ADD, R.B, R.POSITION, 1)
        self._places(R.B)
        alu(low, AluOp.SHL, R.A, R.POSITION, 2)
        alu(low, AluOp.SHL, R.C, R.B, 16)
        alu(low, AluOp.AND, R.TOKENS, R.TOTAL, 1)
        low.emit("argmax", {"rd": int(R.B)})
        ask = branch(low, Condition.NE, R.TOKENS, 0)
        low.emit("storew", {"address": self.tokens}, {"address": R.A, "value": R.B})
        alu(low, AluOp.ADD, R.A, R.B, R.C)
        low.emit("mark", {}, {"x": R.A})
        go_on = branch(low, Condition.EQ, R.PROMPT, R.B)
        branch(low, Condition.LT, R.C, R.TOTAL, again)
        go_on.target = low.emit("halt", {})
        ask.target = alu(low, AluOp.ADD, R.B, R.B, R.C)
        low.emit("mark", {}, {"x": R.B})
        poll = low.emit("ldr", {"address": self.tokens, "rd": int(R.B)}, {"address": R.A})
        branch(low, Condition.EQ, R.B, PENDING, poll)
        low.emit("ldr", {"address": self.control + STOP_WORD, "rd": int(R.PROMPT)})
        branch(low, Condition.ALWAYS, 0, 0, go_on)


def set_prompt(
    program: Program,
    memory: np.ndarray,
    prompt: list[int],
    total: int,
    stop: int = NO_STOP,
    *,
    host_chooses: bool = False,
) -> None:
    """Writes a prompt into a program's memory; the device ends with ``total`` tokens at most.

    ``host_chooses``: the device asks for each new token. Raises ``Unsupported`` for an empty prompt
    and ``DoesNotFit`` beyond the context.
    """
    context = program.metadata["context"]
    if not prompt:
        raise Unsupported("The prompt is empty: give at least one token")
    if len(prompt) > context:
        raise DoesNotFit(
            f"The prompt has {len(prompt)} tokens and the context {context}: shorten the prompt"
        )
    if not len(prompt) < total <= context + 1:
        raise DoesNotFit(
            f"{total} tokens are asked for, and a prompt of {len(prompt)} tokens in a context of "
            f"{context} allows {len(prompt) + 1} to {context + 1}"
        )
    control = [len(prompt), total, stop, host_chooses]
    program.write(memory, "control", np.array(control, dtype=np.uint32))
    tokens = np.full(context + 1, PENDING if host_chooses else 0, dtype=np.uint32)
    tokens[: len(prompt)] = prompt
    program.write(memory, "tokens", tokens)


def logits(program: Program, memory: np.ndarray) -> Int:
    """The log of logits, (context, vocabulary) int64; rows that were never written hold 0."""
    return logit_rows(program, program.read(memory, "logits"))


def logit_rows(program: Program, raw: np.ndarray) -> Int:
    """Logits (N, vocabulary) int64 of N rows of the log as they lie in memory, uint8."""
    row_bytes = program.metadata["logits_blocks"] * 2 * program.config.dim
    values = from_planes(raw.reshape(-1, row_bytes), program.config.dim)
    return values[:, : program.metadata["vocabulary"]]


def units(program: Program) -> dict[Unit, int]:
    """Instructions for each unit."""
    counts = dict.fromkeys(Unit, 0)
    for item in program.code():
        counts[item.unit] += 1
    return counts
