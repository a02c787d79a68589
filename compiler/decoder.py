"""Whole programs for decoder language models: a loop that prefills the prompt and writes text.

The host places the prompt in ``tokens`` and three words in ``control``: the length of the prompt,
the number of tokens to end with (prompt included), and a token to stop at (or 0xFFFFFFFF). Each
turn of the loop processes a block of prompt tokens, or the one token that was written last, and
logs the logits of its last token; once the prompt is consumed the device takes the arg-max, appends
it to ``tokens`` and reports it by ``mark``: the number of tokens there are << 16 | the new token.
"""

from dataclasses import replace

import numpy as np

from systolith.compiler.allocate import DoesNotFit
from systolith.compiler.layout import planes
from systolith.compiler.lower import Lowering
from systolith.compiler.memory import Memory
from systolith.compiler.schedule import Region, Step, overlap, prefetch, synchronize
from systolith.compiler.tensors import Registers, Unsupported
from systolith.config import Config
from systolith.fixed import Int
from systolith.graph import TOKENS, Concat, Embedding, Graph, Rope, Slice
from systolith.isa import (
    INSTRUCTION_BYTES,
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
PREFETCH = 48
"""Steps by which a load of constants may be moved ahead."""

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
            size = _Decoder(graph, config, context, block, keep, code_bytes=0).instructions()
            return _Decoder(
                graph, config, context, block, keep, code_bytes=size * INSTRUCTION_BYTES
            ).program()
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
    for node in graph.nodes:
        positions = isinstance(node, Embedding) and node.index != TOKENS
        if positions or isinstance(node, (Slice, Concat)):
            what = "embeddings of positions" if positions else f"{type(node).__name__} nodes"
            raise Unsupported(
                f"{node.name}: there are no programs with {what} yet: run the model on the integer "
                f"forward (golden, as_torch)"
            )


class _Decoder:
    """One attempt at a program, with everything chosen."""

    def __init__(
        self,
        graph: Graph,
        config: Config,
        context: int,
        tokens: int,
        resident: bool,
        *,
        code_bytes: int,
    ) -> None:
        self.graph, self.config, self.context = graph, config, context
        self.memory = Memory(code_bytes)
        self.control = self.memory.buffer("control", "<u4", (4,))
        self.tokens = self.memory.buffer("tokens", "<u4", (context + 1,))
        self.lowering = Lowering(
            graph, config, self.memory, tokens=tokens, context=context, resident=resident
        )
        self.steps = self._build()

    def instructions(self) -> int:
        return len(self.steps)

    def program(self) -> Program:
        index = {id(step): i for i, step in enumerate(self.steps)}
        code = []
        for step in self.steps:
            item = step.instruction
            if step.target is not None:
                item = replace(item, fields={**item.fields, "target": index[id(step.target)]})
            code.append(item)
        image, size = self.memory.image(assemble(code))
        layout = self.lowering.placed[self.graph.logits].layout
        return Program(
            self.config,
            image,
            len(code),
            size,
            self.memory.symbols,
            {
                "kind": "decoder",
                "context": self.context,
                "block": self.lowering.tokens,
                "resident": self.lowering.resident,
                "vocabulary": self.graph.vocabulary,
                "logits_blocks": layout.blocks,
                "labels": [step.label for step in self.steps],
            },
        )

    # The parts of the program --------------------------------------------------------------------

    def _build(self) -> list[Step]:
        low = self.lowering
        embedding = next(self.graph.of_kind(Embedding), None)
        if not isinstance(embedding, Embedding):
            raise Unsupported("A decoder must start with an embedding")
        x = low.place_input(embedding)
        rows = planes(x.layout.spread(self.graph.constants[embedding.table]), self.config.dim)
        table = self.memory.constant("embedding", rows)

        start = self._segment("control", self._prologue)
        head = self._segment("control", lambda: self._head(x.stride))
        gather = self._segment(embedding.name, lambda: self._gather(table, x.stride, x.first))
        body = self._segment("", lambda: self._body(table, x.stride, x.first, x.region(low.tokens)))
        tail = self._segment("control", lambda: self._tail(head[0]))

        body = prefetch(body, PREFETCH)
        ahead = 0
        while body[ahead].constant:
            ahead += 1
        # The first weights come in while the embedding is gathered.
        first, body = body[:ahead], body[ahead:]
        body = overlap(synchronize([*first, *gather, *body]))
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
        low.emit("ldr", {"address": self.control + 4, "rd": int(R.TOTAL)})
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

    def _body(self, table: int, x_stride: int, x: int, region: Region) -> None:
        """The last token's embedding, the derived registers, and all the layers."""
        low = self.lowering
        d = self.config.dim
        # Loads are executed in order: when this one is done, all of the gathered rows are there.
        low.emit(
            "load",
            {"space": LoadSpace.ACTIVATION, "address": table, "words": x_stride, "rows": 1}
            | {"local": x},
            {"address": R.B, "local": R.C},
            writes=(region,),
        )
        group = low.heads.group if low.heads else 1
        self._times(R.A, R.TOKENS, group, R.B)
        self._alu(AluOp.SHL, R.GROUP_ROWS_16, R.A, 16)
        self._alu(AluOp.ADD, R.B, R.POSITION, R.TOKENS)
        self._alu(AluOp.ADD, R.C, R.B, d - 1)
        self._alu(AluOp.SHR, R.C, R.C, d.bit_length() - 1)
        self._alu(AluOp.SHL, R.TILES_20, R.C, 20)
        self._alu(AluOp.SHL, R.C, R.C, 12)
        self._alu(AluOp.ADD, R.SOFTMAX, R.A, R.C)
        self._alu(AluOp.SHL, R.POSITION_ROW, R.POSITION, d.bit_length() - 1)
        self._alu(AluOp.MAX, R.OLD, R.POSITION, 1)
        ropes = {(n.cos, n.sin): n for n in self.graph.of_kind(Rope) if isinstance(n, Rope)}
        if ropes:
            self._times(R.ROPE_ROW, R.POSITION, low.rope_row_bytes(), R.A)
            for node in ropes.values():
                low.rope_table(node)
        low.run()
        logits = low.placed[self.graph.logits]
        row_bytes = logits.stride * d
        address = self.memory.buffer("logits", "uint8", (self.context, row_bytes))
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
            reads=(logits.region(1),),
        )

    def _tail(self, loop: Step) -> None:
        low = self.lowering
        self._alu(AluOp.ADD, R.POSITION, R.POSITION, R.TOKENS)
        low.emit("fence", {})
        self._branch(Condition.LT, R.POSITION, R.PROMPT, loop)
        low.emit("argmax", {"rd": int(R.B)})
        self._alu(AluOp.SHL, R.A, R.POSITION, 2)
        low.emit("storew", {"address": self.tokens}, {"address": R.A, "value": R.B})
        self._alu(AluOp.ADD, R.C, R.POSITION, 1)
        self._alu(AluOp.SHL, R.A, R.C, 16)
        self._alu(AluOp.ADD, R.A, R.A, R.B)
        low.emit("mark", {}, {"x": R.A})
        low.emit("ldr", {"address": self.control + 8, "rd": int(R.A)})
        stop = self._branch(Condition.EQ, R.A, R.B, None)
        self._branch(Condition.LT, R.C, R.TOTAL, loop)
        stop.target = low.emit("halt", {})


def set_prompt(
    program: Program, memory: np.ndarray, prompt: list[int], total: int, stop: int = NO_STOP
) -> None:
    """Writes a prompt into a program's memory; the device ends with ``total`` tokens at most.

    Raises ``Unsupported`` for an empty prompt and ``DoesNotFit`` beyond the context.
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
    program.write(memory, "control", np.array([len(prompt), total, stop], dtype=np.uint32))
    program.write(memory, "tokens", np.array(prompt, dtype=np.uint32))


def logits(program: Program, memory: np.ndarray) -> Int:
    """The log of logits, (context, vocabulary) int64; rows that were never written hold 0."""
    raw = program.read(memory, "logits")
    blocks, d = program.metadata["logits_blocks"], program.config.dim
    rows = raw.reshape(len(raw), blocks, 2, d)
    values = rows[:, :, 0].astype(np.int64) | (rows[:, :, 1].view(np.int8).astype(np.int64) << 8)
    return values.reshape(len(raw), -1)[:, : program.metadata["vocabulary"]]


def units(program: Program) -> dict[Unit, int]:
    """Instructions for each unit."""
    counts = dict.fromkeys(Unit, 0)
    for item in program.code():
        counts[item.unit] += 1
    return counts
