"""Programs for whole sequences: every graph that is not a language model, encoders above all.

A program processes one sequence of up to ``tokens`` tokens from the first node to the last. The
host places index inputs and given tensors (`set_inputs`), the program stores the graph's outputs
(`outputs`). Tokens behind the sequence's end are computed, too, but no other token sees them.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from systolith.compiler.allocate import DoesNotFit, first_that_fits
from systolith.compiler.control import times
from systolith.compiler.layout import Layout, from_planes, planes
from systolith.compiler.lower import Lowering
from systolith.compiler.memory import Memory
from systolith.compiler.moves import without_moves
from systolith.compiler.nodes import lower
from systolith.compiler.passes import find_passes
from systolith.compiler.schedule import Region, Step, overlap, prefetch, synchronize
from systolith.compiler.tensors import Cached, Placed, Registers, Span, Stationary
from systolith.config import Config
from systolith.errors import UserError
from systolith.fixed import Int
from systolith.graph import POSITIONS, Attention, Embedding, Given, Graph, Node
from systolith.isa import LoadSpace, StoreSpace, assemble
from systolith.program import Program

R = Registers


def compile_sequence(
    graph: Graph,
    config: Config,
    *,
    tokens: int,
    block: int | None = None,
    spill: bool = False,
    without: Collection[str] = (),
) -> Program:
    """Compiles a graph for sequences of 1 to ``tokens`` tokens.

    ``block``: tokens that go through the layers between two attentions at a time, and ``spill``:
    whether tensors go to memory in between (default: the most tokens that fit). ``without``: names
    of instructions that are left out, to measure what they cost. Raises ``DoesNotFit`` or
    ``Unsupported`` where it cannot.
    """
    graph = without_moves(graph)
    if not 1 <= tokens <= graph.context:
        raise DoesNotFit(f"{tokens} tokens are asked for, and the model has 1 to {graph.context}")
    limit = config.max_length
    if tokens > limit and any(graph.of_kind(Attention)):
        raise DoesNotFit(
            f"{tokens} tokens are asked for, and the softmax unit of the configuration has {limit}"
        )
    sizes = list(_choices(tokens, config.dim)) if block is None else [(block, spill)]
    choices = [(*size, on_chip) for on_chip in (True, False) for size in sizes]
    return first_that_fits(
        lambda size, away, on_chip: _Sequence(
            graph, config, tokens, size, away, on_chip, without
        ).program(),
        choices,
    )


def _choices(tokens: int, dim: int) -> Iterator[tuple[int, bool]]:
    """Block sizes from large to small, and whether tensors between passes go to memory."""
    sizes = []
    parts = 1
    while True:
        size = -(-tokens // parts)
        size = min(tokens, -(-size // dim) * dim)
        if size not in sizes:
            sizes.append(size)
        if size <= dim:
            break
        parts += 1
    large = [size for size in sizes if size >= 2 * dim or size == tokens]
    for chosen in (large, [size for size in sizes if size not in large]):
        for spill in (False, True):
            yield from ((size, spill) for size in chosen)


class _Sequence:
    """One attempt at a program, with everything chosen."""

    def __init__(
        self,
        graph: Graph,
        config: Config,
        tokens: int,
        block: int,
        spill: bool,
        on_chip: bool,
        without: Collection[str],
    ) -> None:
        self.graph, self.config, self.tokens = graph, config, tokens
        self.block = block
        self.memory = Memory()
        self.control = self.memory.buffer("control", "<u4", (1,))
        for name in graph.indices:
            self.memory.buffer(f"index {name}", "<u4", (tokens,))
        sizes = Lowering(graph, config, Memory(), tokens=block, context=tokens)
        self.passes = find_passes(graph, sizes.row_bytes)
        self.low = Lowering(
            graph,
            config,
            self.memory,
            tokens=block,
            context=tokens,
            stationary=on_chip,
            level=lambda node: self.passes.level[node.name],
        )
        self.spilled = set(self.passes.crossing) if spill else set()
        self.steps = self._build(without)

    def program(self) -> Program:
        image, size, symbols = self.memory.link(assemble(step.instruction for step in self.steps))
        low = self.low
        lanes = {
            name: {
                "bits": self.graph.tensors[name].bits,
                "channels": list(low.layouts[name].channels),
                "stationary": name in low.keys,
            }
            for name in (*self._given(), *low.outputs)
        }
        return Program(
            self.config,
            image,
            len(self.steps),
            size,
            symbols,
            {
                "kind": "sequence",
                "tokens": self.tokens,
                "block": self.block,
                "spilled": sorted(self.spilled),
                "cached": sorted(low.caches),
                "on_chip": low.on_chip,
                "indices": list(self.graph.indices),
                "given": self._given(),
                "outputs": sorted(low.outputs),
                "tensors": lanes,
                "labels": [step.label for step in self.steps],
            },
        )

    def _given(self) -> list[str]:
        return [node.out for node in self.graph.of_kind(Given)]

    # Steps ---------------------------------------------------------------------------------------

    def _build(self, without: Collection[str]) -> list[Step]:
        low = self.low
        low.label = "control"
        low.emit("ldr", {"address": self.control, "rd": int(R.LENGTH)})
        spans = [
            Span(first, min(self.block, self.tokens - first))
            for first in range(0, self.tokens, self.block)
        ]
        for index in range(len(self.passes.nodes)):
            for span in spans:
                self._block(index, span)
            for name, (_, last) in self.passes.crossing.items():
                if last == index and name in low.placed:
                    low.release(name)
            for name in [n for n, place in low.placed.items() if isinstance(place, Stationary)]:
                # The pass behind the one that makes keys and values reads them.
                if index > self.passes.level[self.graph.producer(name).name]:
                    low.release(name)
        low.label = "control"
        low.emit("halt", {})
        body, end = low.steps[:-1], low.steps[-1]
        body = [step for step in body if step.instruction.op not in without]
        return [*overlap(synchronize(prefetch(body, self.config.queue_depth))), end]

    def _block(self, index: int, span: Span) -> None:
        """One pass over the tokens of a span."""
        low = self.low
        nodes = self.passes.nodes[index]
        mine = {node.out for node in nodes}
        for name, (first, last) in self.passes.crossing.items():
            if name in self.spilled:
                if first < index <= last and any(name in node.inputs for node in nodes):
                    self._fetch(name, span)
            elif name in mine:
                low.place(name, span, self.tokens)
        keep = {name for name in self.passes.crossing if name not in self.spilled}
        keep |= low.keys
        lower(low, nodes, span, keep, self._input, self._result)

    def _input(self, low: Lowering, node: Node, span: Span) -> None:
        if isinstance(node, Embedding):
            self._embedding(node, span)
        else:
            self._load_given(node, span)

    def _embedding(self, node: Embedding, span: Span) -> None:
        """Rows of a table: those of the positions at once, others one by one by their index."""
        low = self.low
        x = low.at(node.out)
        values = self.graph.constants[node.table]
        if node.index == POSITIONS:
            values = values[: self.tokens]
        address = low.constant(
            f"{node.name} table",
            lambda: planes(x.layout.spread(values), self.config.dim),
            rare=True,
        )
        row_bytes = x.stride * self.config.dim
        if node.index == POSITIONS:
            words = x.stride * span.count
            low.load(LoadSpace.ACTIVATION, address + span.first * row_bytes, words, x.row(span))
            return
        index = self.memory.symbols[f"index {node.index}"].address
        for token in range(span.first, span.first + span.count):
            low.emit("ldr", {"address": index + 4 * token, "rd": int(R.A)})
            times(low, R.B, R.A, row_bytes, R.C)
            low.load(
                LoadSpace.ACTIVATION,
                address,
                x.stride,
                x.row(Span(token, 1)),
                registers={"address": R.B},
            )

    def _load_given(self, node: Node, span: Span) -> None:
        low, d = self.low, self.config.dim
        place = low.placed[node.out]
        title = f"given {node.out}"
        if isinstance(place, Placed):
            address = self._buffer(title, place.stride * d)
            words = place.stride * span.count
            start = address + span.first * place.stride * d
            low.load(LoadSpace.ACTIVATION, start, words, place.row(span))
            return
        address = self._buffer(title, place.layout.blocks * d)
        for block in range(place.layout.blocks):
            start = address + (block * self.tokens + span.first) * d
            low.load(LoadSpace.WEIGHT, start, span.count, place.row(block, span))

    def _buffer(self, title: str, row_bytes: int) -> int:
        return self.memory.buffer(title, "uint8", (self.tokens, row_bytes))

    # Between memory and passes -------------------------------------------------------------------

    def _spill(self, name: str) -> str:
        return f"spilled {name}"

    def _result(self, low: Lowering, node: Node, span: Span) -> None:
        """Stores what a node has made, as an output or for a later pass."""
        if node.out in low.attended - low.keys:
            self._cache(node.out, span)
        if node.out in low.outputs:
            self._store(node.out, f"output {node.out}", span)
        if node.out in self.spilled:
            self._store(node.out, self._spill(node.out), span)

    def _store(self, name: str, title: str, span: Span) -> None:
        low, x = self.low, self.low.at(name)
        row_bytes = x.stride * self.config.dim
        address = self._buffer(title, row_bytes) + span.first * row_bytes
        low.emit(
            "store",
            {
                "space": StoreSpace.ACTIVATION,
                "address": address,
                "words": x.stride * span.count,
                "rows": 1,
                "local": x.row(span),
            },
            reads=(x.region(span),),
            writes=(Region(title, span.first, span.first + span.count),),
        )

    def _cache(self, name: str, span: Span) -> None:
        """Stores keys or values as attention will want them, block by block."""
        low, x, d = self.low, self.low.at(name), self.config.dim
        title = f"cached {name}"
        if name not in low.caches:
            blocks = x.layout.blocks
            address = self.memory.buffer(title, "uint8", (blocks, self.tokens, d))
            low.caches[name] = Cached(title, address, x.layout, self.tokens)
        for block in range(x.layout.blocks):
            words = low.caches[name].words(block, span)
            low.emit(
                "store",
                {
                    "space": StoreSpace.ACTIVATION,
                    "address": low.caches[name].address + words.start * d,
                    "stride": d,
                    "words": 1,
                    "rows": span.count,
                    "local": x.row(span) + block,
                    "local_stride": x.stride,
                },
                reads=(x.region(span),),
                writes=(words,),
            )

    def _fetch(self, name: str, span: Span) -> None:
        """Brings a span of a spilled tensor back."""
        low = self.low
        low.place(name, span)
        x, title = low.at(name), self._spill(name)
        low.label = f"{name} again"
        row_bytes = x.stride * self.config.dim
        low.emit(
            "load",
            {
                "space": LoadSpace.ACTIVATION,
                "address": self._buffer(title, row_bytes) + span.first * row_bytes,
                "words": x.stride * span.count,
                "rows": 1,
                "local": x.row(span),
            },
            reads=(Region(title, span.first, span.first + span.count),),
            writes=(x.region(span),),
        )


# The host's side -------------------------------------------------------------------------------


def set_inputs(
    program: Program,
    memory: NDArray[np.uint8],
    length: int,
    indices: Mapping[str, Sequence[int]],
    given: Mapping[str, ArrayLike] | None = None,
) -> None:
    """Writes the inputs of a sequence of ``length`` tokens into a program's memory.

    ``indices``: ``length`` integers for each index input; ``given``: (length, channels) integers
    for each given tensor. Raises ``UserError`` for inputs that are missing, and for sequences that
    are too long.
    """
    meta = program.metadata
    given = given or {}
    if not 1 <= length <= meta["tokens"]:
        raise UserError(
            f"The sequence has {length} tokens, and the program is for 1 to {meta['tokens']}: "
            "shorten it, or compile for more tokens"
        )
    for name in (*meta["indices"], *meta["given"]):
        values = indices.get(name) if name in meta["indices"] else given.get(name)
        if values is None or len(np.asarray(values)) != length:
            raise UserError(f"The input {name!r} must be there, with {length} tokens")
    program.write(memory, "control", np.array([length], dtype=np.uint32))
    for name in meta["indices"]:
        program.write(memory, f"index {name}", np.asarray(indices[name], dtype=np.uint32))
    for name in meta["given"]:
        lanes = _lanes(program, name)
        values = lanes.spread(np.asarray(given[name], dtype=np.int16))
        tensor = meta["tensors"][name]
        if tensor["stationary"]:
            blocks = values.reshape(length, lanes.blocks, lanes.dim).transpose(1, 0, 2)
            whole = np.zeros((lanes.blocks, meta["tokens"], lanes.dim), dtype=np.int8)
            whole[:, :length] = blocks
            raw = whole.view(np.uint8)
        elif tensor["bits"] == 16:
            raw = planes(values, lanes.dim)
        else:
            raw = values.astype(np.int8).view(np.uint8)
        program.write(memory, f"given {name}", raw)


def outputs(program: Program, memory: NDArray[np.uint8], length: int) -> dict[str, Int]:
    """The outputs of a sequence of ``length`` tokens by tensor, (length, channels) int64 each."""
    found = {}
    for name in program.metadata["outputs"]:
        lanes = _lanes(program, name)
        raw = program.read(memory, f"output {name}")[:length]
        if program.metadata["tensors"][name]["bits"] == 16:
            values = from_planes(raw, lanes.dim)
        else:
            values = raw.view(np.int8).astype(np.int64)
        found[name] = lanes.gather(values.reshape(length, -1))
    return found


def _lanes(program: Program, name: str) -> Layout:
    channels: list[Any] = program.metadata["tensors"][name]["channels"]
    return Layout(program.config.dim, tuple(channels))
