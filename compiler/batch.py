"""Programs that decode several sequences together: weights are read once for all of them.

All sequences begin at position 0 and go on in step, a token each a turn: one of the prompt, where
that is longer, or else the arg-max of the turn before. ``tokens`` has a row for each sequence, and
0xFFFFFFFF in it stands where the device is to write. The program ends when ``control[1]`` tokens
stand in every row; the mark counts turns.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systolith.compiler.allocate import DoesNotFit, first_that_fits
from systolith.compiler.control import alu, branch, times
from systolith.compiler.decoder import PENDING, Decoder, context_of, demand_decoder, residencies
from systolith.compiler.layout import from_planes
from systolith.compiler.lower import Lowering
from systolith.compiler.moves import without_moves
from systolith.compiler.schedule import Step, overlap, prefetch, synchronize
from systolith.compiler.tensors import Registers, Span, Unsupported
from systolith.config import Config
from systolith.fixed import Int
from systolith.graph import Graph, Node
from systolith.isa import AluOp, Condition, Format, StoreSpace
from systolith.program import Program

R = Registers
_MOST_BLOCKS = (1 << 12) - 1


def compile_batch(
    graph: Graph,
    config: Config,
    *,
    sequences: int,
    context: int | None = None,
    resident: bool | None = None,
) -> Program:
    """Compiles a language model for ``sequences`` sequences at a time, at least 2.

    ``context``, ``resident``: as for ``compile_decoder``. Raises ``DoesNotFit`` or ``Unsupported``
    where it cannot.
    """
    if sequences < 2:
        raise Unsupported(f"A batch has at least 2 sequences, not {sequences}")
    demand_decoder(graph)
    graph = without_moves(graph)
    context = context_of(graph, config, context)
    return first_that_fits(
        lambda keep, on_chip: _Batch(
            graph, config, context, sequences, keep, on_chip, sequences
        ).program(),
        residencies(resident),
    )


class _Batch(Decoder):
    """One attempt at a program."""

    def _describe(self) -> dict[str, Any]:
        return {"kind": "batch", "sequences": self.lowering.sequences}

    @property
    def _row_words(self) -> int:
        """Words of a row of ``tokens``."""
        return self.context + 1

    def _build(self) -> list[Step]:
        low = self.lowering
        start = self._segment(self._prologue)
        span = Span(0, low.sequences, dynamic=True)
        low.place(self.embedding.out, span)
        low.label = self.embedding.name
        head = self._segment(self._positions_of_turn)
        rows = self._segment(lambda: self._token_rows(span))
        first, turn = self._leading(self._segment(lambda: self._layers(span)))
        turn = prefetch([*turn, *first], self.config.queue_depth)
        choices = self._segment(lambda: self._arg_max_all(span))
        body = overlap(synchronize([*rows, *turn, *choices]))
        copies = [
            replace(step, instruction=replace(step.instruction, wait=0, signal=0)) for step in first
        ]
        fence = self._segment(lambda: low.emit("fence", {}))
        end = self._segment(lambda: self._end(head[0]))
        return [*synchronize([*low.preload, *start]), *copies, *fence, *head, *body, *end]

    def _prologue(self) -> None:
        self.lowering.emit("ldr", {"address": self.control + 4, "rd": int(R.TOTAL)})

    def _positions_of_turn(self) -> None:
        alu(self.lowering, AluOp.ADD, R.B, R.POSITION, 1)
        self._places(R.B)

    def _token_rows(self, span: Span) -> None:
        """The embeddings of the sequences' tokens."""
        low, x = self.lowering, self.lowering.at(self.embedding.out)
        row_bytes = x.stride * self.config.dim
        alu(low, AluOp.SHL, R.A, R.POSITION, 2)
        for index in range(low.sequences):
            address = self.tokens + 4 * index * self._row_words
            low.emit("ldr", {"address": address, "rd": int(R.B)}, {"address": R.A})
            times(low, R.LAST, R.B, row_bytes, R.C)
            row = replace(x, first=x.first + index * x.stride)
            self._load_row(row, {"address": R.LAST}, (row.region(Span(0, 1)),))

    def _log(self, low: Lowering, node: Node, span: Span) -> None:
        """Stores the logits of all sequences, side by side for each position."""
        if node.out != self.graph.logits:
            return
        logits = low.at(node.out)
        words = logits.stride * span.count
        shape = (self.context, span.count, logits.stride * self.config.dim)
        address = self.memory.buffer("logits", "uint8", shape)
        times(low, R.A, R.POSITION, words * self.config.dim, R.C)
        low.emit(
            "store",
            {
                "space": StoreSpace.ACTIVATION,
                "address": address,
                "words": words,
                "rows": 1,
                "local": logits.first,
            },
            {"address": R.A},
            reads=(logits.region(span),),
        )

    def _arg_max_all(self, span: Span) -> None:
        """Every sequence's next token, where its prompt has none."""
        low, logits = self.lowering, self.lowering.at(self.graph.logits)
        if logits.layout.blocks > _MOST_BLOCKS:
            raise DoesNotFit("The vocabulary is too large for an arg-max in one instruction")
        alu(low, AluOp.SHL, R.A, R.POSITION, 2)
        for index in range(span.count):
            row = Span(index, 1)
            low.emit(
                "vector",
                {
                    "a": logits.row(row),
                    "a_stride": logits.stride,
                    "a_format": Format.INT16,
                    "d": logits.row(row),
                    "d_stride": logits.stride,
                    "d_wide": 1,
                    "rows": 1,
                    "blocks": logits.layout.blocks,
                    "argmax": 1,
                    "restart": 1,
                    "count": self.graph.vocabulary,
                },
                reads=(logits.region(row, 0, logits.layout.blocks),),
                writes=(logits.region(row, 0, logits.layout.blocks),),
            )
            address = self.tokens + 4 * (index * self._row_words + 1)
            low.emit("argmax", {"rd": int(R.B)})
            low.emit("ldr", {"address": address, "rd": int(R.C)}, {"address": R.A})
            given = branch(low, Condition.NE, R.C, PENDING)
            low.emit("storew", {"address": address}, {"address": R.A, "value": R.B})
            given.target = alu(low, AluOp.ADD, R.B, R.B, 0)

    def _end(self, loop: Step) -> None:
        low = self.lowering
        alu(low, AluOp.ADD, R.POSITION, R.POSITION, 1)
        low.emit("mark", {}, {"x": R.POSITION})
        alu(low, AluOp.ADD, R.A, R.POSITION, 1)
        branch(low, Condition.LT, R.A, R.TOTAL, loop)
        low.emit("halt", {})


# The host's side -------------------------------------------------------------------------------


def set_prompts(
    program: Program, memory: NDArray[np.uint8], prompts: Sequence[Sequence[int]], total: int
) -> None:
    """Writes a prompt for each sequence; the device ends with ``total`` tokens in every row.

    Raises ``Unsupported`` for another number of prompts, or an empty one, and ``DoesNotFit`` beyond
    the context.
    """
    count, context = program.metadata["sequences"], program.metadata["context"]
    if len(prompts) != count:
        raise Unsupported(f"The program is for {count} sequences, and there are {len(prompts)}")
    if not all(len(prompt) for prompt in prompts):
        raise Unsupported("A prompt is empty: give at least one token")
    longest = max(len(prompt) for prompt in prompts)
    if not longest < total <= context + 1:
        raise DoesNotFit(
            f"{total} tokens are asked for, and the longest prompt of {longest} in a context of "
            f"{context} allows {longest + 1} to {context + 1}"
        )
    rows = np.full((count, context + 1), PENDING, dtype=np.uint32)
    for row, prompt in zip(rows, prompts, strict=True):
        row[: len(prompt)] = prompt
    program.write(memory, "control", np.array([longest, total], dtype=np.uint32))
    program.write(memory, "tokens", rows.ravel())


def read_texts(program: Program, memory: NDArray[np.uint8], total: int) -> list[list[int]]:
    """The first ``total`` tokens of every sequence."""
    rows = program.read(memory, "tokens").reshape(program.metadata["sequences"], -1)
    return rows[:, :total].astype(int).tolist()


def batch_logits(program: Program, memory: NDArray[np.uint8]) -> Int:
    """Logits by sequence and position, (sequences, context, vocabulary) int64."""
    raw = program.read(memory, "logits")
    values = from_planes(raw, program.config.dim)[..., : program.metadata["vocabulary"]]
    return np.ascontiguousarray(values.transpose(1, 0, 2))
