"""Whole programs for decoder language models: a loop that prefills the prompt and writes text.

The host places the prompt in ``tokens`` and four words in ``control``: the length of the prompt,
the number of tokens to end with (prompt included), a token to stop at (or 0xFFFFFFFF), and who
chooses tokens (0 the device, 1 the host). Each turn of the loop processes a block of prompt tokens,
or the one token that was written last, and logs the logits of its last token; once the prompt is
consumed the device takes the arg-max, appends it to ``tokens`` and reports it by ``mark``: the
number of tokens there are << 16 | the new token.

Where the host chooses, the arg-max is reported only, and the device waits until the host has put
its choice in the place of the 0xFFFFFFFF that stands in ``tokens`` where the text is to go on. The
token to stop at is read after that: by setting it to its choice the host ends the text.
"""

from dataclasses import replace

import numpy as np

from systolith.compiler.allocate import DoesNotFit
from systolith.compiler.layout import planes
from systolith.compiler.lower import Lowering
from systolith.compiler.memory import Memory
from systolith.compiler.nodes import lower, rope_row_bytes
from systolith.compiler.schedule import Step, prefetch, synchronize
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
)
from systolith.program import Program

NO_STOP = 0xFFFF_FFFF
"""Stop token that never comes."""
PENDING = 0xFFFF_FFFF
"""In the place of a token that the host has not chosen yet."""
STOP_WORD = 8
"""Byte offset in ``control`` of the token to stop at."""

R = Registers


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
    once (default: the most that fit, up to D). ``resident``: keep all weights on chip (default: if
    they fit). Raises ``DoesNotFit`` or ``Unsupported`` where it cannot.
    """
    _demand_decoder(graph)
    limit = min(graph.context, config.max_length)
    context = limit if context is None else context
    if not 1 <= context <= limit:
        raise DoesNotFit(
            f"A context of {context} tokens is not possible: the model has {graph.context}, and the"
            f" softmax unit of the configuration {config.max_length}"
        )
    choices = [1 << i for i in range(config.dim.bit_length() - 1, -1, -1)]
    attempts = [
        (block, keep)
        for block in ([tokens] if tokens else [n for n in choices if n <= context])
        for keep in ([True, False] if resident is None else [resident])
    ]
    for index, (block, keep) in enumerate(attempts):
        try:
            return _Decoder(graph, config, context, block, keep).program()
        except DoesNotFit:
            if index == len(attempts) - 1:
                raise
    raise AssertionError("there is at least one attempt")


def _demand_decoder(graph: Graph) -> None:
    """Raises ``Unsupported`` for what no program can be made of yet."""
    if not graph.generative:
        raise Unsupported(
            "Programs are made for language models (causal; tokens in, scores of tokens out), and "
            "this graph is none: run it on the integer forward (golden, as_torch)"
        )
    heads = {(node.heads, node.kv_heads, node.head_dim) for node in graph.of_kind(Attention)}
    if len(heads) > 1:
        raise Unsupported("Programs for attention layers with different heads are not supported")


class _Decoder:
    """One attempt at a program, with everything chosen."""

    def __init__(
        self,
        graph: Graph,
        config: Config,
        context: int,
        tokens: int,
        resident: bool,
    ) -> None:
        self.graph, self.config, self.context = graph, config, context
        self.memory = Memory()
        self.control = self.memory.buffer("control", "<u4", (4,))
        self.tokens = self.memory.buffer("tokens", "<u4", (context + 1,))
        self.lowering = Lowering(
            graph, config, self.memory, tokens=tokens, context=context, resident=resident
        )
        self.span = Span(0, tokens, dynamic=True)
        self.embedding = next(n for n in graph.of_kind(Embedding) if n.index == TOKENS)
        self.steps = self._build()

    def program(self) -> Program:
        index = {id(step): i for i, step in enumerate(self.steps)}
        code = []
        for step in self.steps:
            item = step.instruction
            if step.target is not None:
                item = replace(item, fields={**item.fields, "target": index[id(step.target)]})
            code.append(item)
        image, size, symbols = self.memory.link(code)
        layout = self.lowering.layouts[self.graph.logits]
        return Program(
            self.config,
            image,
            len(code),
            size,
            symbols,
            {
                "kind": "decoder",
                "context": self.context,
                "block": self.lowering.tokens,
                "resident": self.lowering.resident,
                "vocabulary": self.graph.vocabulary,
                "logits_blocks": layout.blocks,
                "logits_scale": self.graph.tensors[self.graph.logits].scale[0],
                "labels": [step.label for step in self.steps],
            },
        )

    # The parts of the program --------------------------------------------------------------------

    def _build(self) -> list[Step]:
        low = self.lowering
        embedding = self.embedding
        low.place(embedding.out, self.span)
        x = low.at(embedding.out)
        rows = planes(x.layout.spread(self.graph.constants[embedding.table]), self.config.dim)
        table = self.memory.constant("embedding", rows)

        start = self._segment("control", self._prologue)
        head = self._segment("control", lambda: self._head(x.stride))
        gather = self._segment(embedding.name, lambda: self._gather(table, x.stride, x.first))
        body = self._segment("", lambda: self._body(table, x))
        tail = self._segment("control", lambda: self._tail(head[0]))

        body = prefetch(body, self.config.queue_depth)
        ahead = 0
        while body[ahead].constant:
            ahead += 1
        # The first weights come in while the embedding is gathered.
        first, body = body[:ahead], body[ahead:]
        body = synchronize([*first, *gather, *body])
        return [*synchronize([*low.preload, *start]), *head, *body, *tail]

    def _segment(self, label: str, emit) -> list[Step]:
        self.lowering.label = label
        self.lowering.steps = []
        emit()
        return self.lowering.steps

    def _alu(self, op: AluOp, rd: R, x: R | int, y: R | int) -> Step:
        fields = {"op": op, "rd": int(rd)}
        registers = {}
        for name, value in (("x", x), ("y", y)):
            if isinstance(value, R):
                registers[name] = value
            else:
                fields[name] = value
        return self.lowering.emit("alu", fields, registers)

    def _times(self, rd: R, x: R, factor: int, scratch: R) -> None:
        """rd = x * factor, by shifts and additions; rd and scratch differ from x."""
        bits = [i for i in range(factor.bit_length()) if factor >> i & 1]
        self._alu(AluOp.SHL, rd, x, bits[0])
        for bit in bits[1:]:
            self._alu(AluOp.SHL, scratch, x, bit)
            self._alu(AluOp.ADD, rd, rd, scratch)

    def _branch(self, condition: Condition, x: R | int, y: R | int, target: Step | None) -> Step:
        fields, registers = {"condition": condition}, {}
        for name, value in (("x", x), ("y", y)):
            if isinstance(value, R):
                registers[name] = value
            else:
                fields[name] = value
        step = self.lowering.emit("branch", fields, registers)
        step.target = target
        return step

    def _prologue(self) -> None:
        low = self.lowering
        low.emit("ldr", {"address": self.control, "rd": int(R.PROMPT)})
        # TOTAL << 16, less one where the host chooses: bit 0 tells, and comparisons stay right.
        low.emit("ldr", {"address": self.control + 4, "rd": int(R.TOTAL)})
        low.emit("ldr", {"address": self.control + 12, "rd": int(R.A)})
        self._alu(AluOp.SHL, R.TOTAL, R.TOTAL, 16)
        self._alu(AluOp.SUB, R.TOTAL, R.TOTAL, R.A)
        low.emit("fence", {})

    def _head(self, x_stride: int) -> None:
        """M = min(block, prompt tokens left), or 1 when the prompt is consumed."""
        low = self.lowering
        self._alu(AluOp.MAX, R.A, R.POSITION, R.PROMPT)
        self._alu(AluOp.SUB, R.TOKENS, R.A, R.POSITION)
        self._alu(AluOp.MIN, R.TOKENS, R.TOKENS, low.tokens)
        self._alu(AluOp.MAX, R.TOKENS, R.TOKENS, 1)
        self._alu(AluOp.SUB, R.A, R.TOKENS, 1)
        self._times(R.LAST, R.A, x_stride, R.B)

    def _gather(self, table: int, x_stride: int, x: int) -> None:
        """Rows of the embedding for all tokens of the block but the last."""
        low = self.lowering
        self._alu(AluOp.SHL, R.A, R.POSITION, 2)
        self._alu(AluOp.ADD, R.C, 0, 0)
        loop = low.emit("ldr", {"address": self.tokens, "rd": int(R.SOFTMAX)}, {"address": R.A})
        row_bytes = x_stride * self.config.dim
        self._times(R.B, R.SOFTMAX, row_bytes, R.OLD)
        leave = self._branch(Condition.EQ, R.C, R.LAST, None)
        low.emit(
            "load",
            {"space": LoadSpace.ACTIVATION, "address": table, "words": x_stride, "rows": 1}
            | {"local": x},
            {"address": R.B, "local": R.C},
        )
        self._alu(AluOp.ADD, R.A, R.A, 4)
        self._alu(AluOp.ADD, R.C, R.C, x_stride)
        self._branch(Condition.ALWAYS, 0, 0, loop)
        leave.target = self._alu(AluOp.SHL, R.TOKENS_16, R.TOKENS, 16)

    def _body(self, table: int, x: Placed) -> None:
        """The last token's embedding, the derived registers, and all the layers."""
        low = self.lowering
        d = self.config.dim
        # Loads are executed in order: when this one is done, all of the gathered rows are there.
        low.emit(
            "load",
            {"space": LoadSpace.ACTIVATION, "address": table, "words": x.stride, "rows": 1}
            | {"local": x.first},
            {"address": R.B, "local": R.C},
            writes=(x.region(self.span),),
        )
        heads = next(iter(low.heads.values()), None)
        self._times(R.A, R.TOKENS, heads.group if heads else 1, R.B)
        self._alu(AluOp.SHL, R.GROUP_ROWS_16, R.A, 16)
        self._alu(AluOp.ADD, R.B, R.POSITION, R.TOKENS)
        self._alu(AluOp.ADD, R.C, R.B, d - 1)
        self._alu(AluOp.SHR, R.C, R.C, d.bit_length() - 1)
        self._alu(AluOp.SHL, R.TILES_20, R.C, 20)
        self._alu(AluOp.SHL, R.C, R.C, 12)
        self._alu(AluOp.ADD, R.SOFTMAX, R.A, R.C)
        self._alu(AluOp.SHL, R.POSITION_ROW, R.POSITION, d.bit_length() - 1)
        self._alu(AluOp.MAX, R.OLD, R.POSITION, 1)
        rope = next(self.graph.of_kind(Rope), None)
        if rope is not None:
            self._times(R.ROPE_ROW, R.POSITION, rope_row_bytes(low, rope), R.A)
        nodes = [node for node in self.graph.nodes if node.out != self.embedding.out]
        lower(low, nodes, self.span, {self.graph.logits}, self._positions, self._log)

    def _positions(self, low: Lowering, node: Embedding, span: Span) -> None:
        """The rows of an embedding of positions, from the first token's on."""
        x = low.at(node.out)
        values = self.graph.constants[node.table]
        # A block may read beyond the context: the table is longer than the caches.
        values = np.concatenate([values, np.zeros((span.count, values.shape[1]), values.dtype)])
        address = self.memory.constant(node.name, planes(x.layout.spread(values), self.config.dim))
        row_bytes = x.stride * self.config.dim
        self._times(R.A, R.POSITION, row_bytes, R.C)
        words = x.stride * span.count
        low.load(LoadSpace.ACTIVATION, address, words, x.first, registers={"address": R.A})

    def _log(self, low: Lowering, node: Node, span: Span) -> None:
        """Stores the logits of the block's last token."""
        if node.out != self.graph.logits:
            return
        logits = low.at(node.out)
        row_bytes = logits.stride * self.config.dim
        address = self.memory.buffer("logits", "uint8", (self.context, row_bytes))
        self._alu(AluOp.ADD, R.B, R.POSITION, R.TOKENS)
        self._alu(AluOp.SUB, R.B, R.B, 1)
        self._times(R.A, R.B, row_bytes, R.C)
        low.emit(
            "store",
            {
                "space": StoreSpace.ACTIVATION,
                "address": address,
                "words": logits.stride,
                "rows": 1,
                "local": logits.first,
            },
            {"address": R.A},
            reads=(logits.region(Span(0, 1)),),
        )

    def _tail(self, loop: Step) -> None:
        low = self.lowering
        self._alu(AluOp.ADD, R.POSITION, R.POSITION, R.TOKENS)
        low.emit("fence", {})
        self._branch(Condition.LT, R.POSITION, R.PROMPT, loop)
        low.emit("argmax", {"rd": int(R.B)})
        self._alu(AluOp.SHL, R.A, R.POSITION, 2)
        self._alu(AluOp.ADD, R.C, R.POSITION, 1)
        self._alu(AluOp.SHL, R.C, R.C, 16)
        self._alu(AluOp.AND, R.SOFTMAX, R.TOTAL, 1)
        ask = self._branch(Condition.NE, R.SOFTMAX, 0, None)
        low.emit("storew", {"address": self.tokens}, {"address": R.A, "value": R.B})
        self._alu(AluOp.ADD, R.A, R.B, R.C)
        low.emit("mark", {}, {"x": R.A})
        go_on = low.emit("ldr", {"address": self.control + STOP_WORD, "rd": int(R.A)})
        stop = self._branch(Condition.EQ, R.A, R.B, None)
        self._branch(Condition.LT, R.C, R.TOTAL, loop)
        stop.target = low.emit("halt", {})
        ask.target = self._alu(AluOp.ADD, R.B, R.B, R.C)
        low.emit("mark", {}, {"x": R.B})
        poll = low.emit("ldr", {"address": self.tokens, "rd": int(R.B)}, {"address": R.A})
        self._branch(Condition.EQ, R.B, PENDING, poll)
        self._branch(Condition.ALWAYS, 0, 0, go_on)


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
    rows = raw.reshape(-1, program.metadata["logits_blocks"], 2, program.config.dim)
    values = rows[:, :, 0].astype(np.int64) | (rows[:, :, 1].view(np.int8).astype(np.int64) << 8)
    return values.reshape(len(rows), -1)[:, : program.metadata["vocabulary"]]


def units(program: Program) -> dict[Unit, int]:
    """Instructions for each unit."""
    counts = dict.fromkeys(Unit, 0)
    for item in program.code():
        counts[item.unit] += 1
    return counts
