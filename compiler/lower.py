"""The memories of a program under construction, and the steps that fill and read them.

`Lowering` knows where tensors and constants are and emits instructions; what each kind of node
becomes stands in `nodes`, `linear` and `attention`. Steps process a *span* of tokens: known ones of
a whole sequence, or as many as stand in registers at run time (`tensors.Registers`), so that one
body of code serves prefill and decode at every position.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from systolith.compiler.allocate import Pool, Ring
from systolith.compiler.estimate import cycles
from systolith.compiler.memory import Memory
from systolith.compiler.needs import find_fusions, find_keys, find_layouts, staying_tables
from systolith.compiler.residency import Residency, divide_weights
from systolith.compiler.schedule import Region, Step
from systolith.compiler.tensors import (
    Cached,
    Placed,
    Registers,
    Span,
    Stationary,
)
from systolith.config import Config
from systolith.graph import (
    Attention,
    Graph,
    Linear,
    Node,
    Norm,
)
from systolith.isa import BY_NAME, Instruction, LoadSpace

Place = Placed | Stationary
MAX_WORDS = (1 << 16) - 1
"""Words of a row that one load can copy."""


class Lowering:
    """Emits the steps of a graph's nodes, and the constants that they need.

    ``tokens``: most tokens of a span. ``context``: rows of the caches that the program keeps, or
    the longest sequence. ``stationary``: keys and values stay in the weight memory for as long as
    they are used; else they are in memory, in caches that grow. ``looping``: the steps are the body
    of a loop; then parameters and tables are loaded once (``preload``) as far as they fit, keys and
    values of all layers stay, and as many weights as ``resident`` says do, too; the others come and
    go, the first of a loop's body loaded by the turn before it.
    ``sequences``: if more than one, token s of a span is one of sequence s, and all of them have
    the same position.
    """

    def __init__(
        self,
        graph: Graph,
        config: Config,
        memory: Memory,
        *,
        tokens: int,
        context: int,
        stationary: bool = False,
        looping: bool = False,
        resident: Residency = Residency.NONE,
        sequences: int = 1,
        level: Callable[[Node], int] = lambda node: 0,
    ) -> None:
        self.graph, self.config, self.memory = graph, config, memory
        self.tokens, self.context = tokens, context
        self.sequences = sequences
        self.steps: list[Step] = []
        self.preload: list[Step] = []
        self.placed: dict[str, Place] = {}
        self.label = ""
        self.pool = Pool("activation", config.activation_rows)
        half = config.accumulator_rows // 2
        self.halves = (Ring("accumulator", 0, half), Ring("accumulator", half, 2 * half))
        self._half = 0
        self.outputs = {output.tensor for output in graph.outputs}
        self.layouts, self.heads = find_layouts(graph, config.dim)
        self.fused = find_fusions(graph, level)
        self.attended = find_keys(graph)
        self.keys = self.attended if stationary else set()
        held = self._key_rows(looping)
        self._key_pool = Pool("weight", held)
        self._first_key = config.weight_rows - held
        weights = {
            node.name: (self.layouts[node.x].blocks * config.dim, self.layouts[node.out].blocks)
            for node in graph.of_kind(Linear)
        }
        rooms = divide_weights(weights, config.weight_rows, held, resident, looping=looping)
        self.resident = rooms.resident
        self.resident_weights = Ring("weight", 0, rooms.staying)
        self.leading = Ring("weight", rooms.staying, rooms.staying + rooms.leading)
        self._led: int | None = 0
        self.weights = Ring("weight", self.leading.stop, self._first_key)
        parameters = self._parameter_rows()
        self.parameters_stay = looping and parameters <= config.parameter_rows
        self._parameters = Ring("parameter", 0, config.parameter_rows)
        self._staying = staying_tables(graph, config.table_slots) if looping else []
        self._tables = Ring("table", len(self._staying), config.table_slots)
        self._loaded: set[str] = set()
        self.caches: dict[str, Cached] = {}
        self.rope_tables: dict[tuple[str, str], Placed] = {}

    @property
    def on_chip(self) -> dict[str, int]:
        """Rows of the local memories by use, once everything was emitted."""
        return {
            "activations, at most": self.pool.peak,
            "weights that stay": self.resident_weights.rows,
            "weights loaded ahead": self.leading.rows,
            "weights that pass through": self.weights.rows,
            "keys and values": self.config.weight_rows - self._first_key,
        }

    # What the graph needs ------------------------------------------------------------------------

    def _key_rows(self, looping: bool) -> int:
        """Weight rows for keys and values.

        In a loop of all layers; else those of a layer are made while one before is used.
        """
        rows = [
            sum(
                self.layouts[name].blocks * self._tile_rows() * self.sequences
                for name in {node.k, node.v, node.k_low, node.v_low} & self.keys
            )
            for node in self.graph.of_kind(Attention)
        ]
        if looping:
            return sum(rows)
        return max((a + b for a, b in zip(rows, [*rows[1:], 0], strict=True)), default=0)

    def _tile_rows(self) -> int:
        """Tokens of the context, in whole tiles."""
        return -(-self.context // self.config.dim) * self.config.dim

    def last_uses(self, nodes: Iterable[Node]) -> dict[str, str]:
        """Tensor → name of the last of ``nodes`` that reads it, or that emits its fused reader."""
        last: dict[str, str] = {}
        for node in nodes:
            if isinstance(node, Linear) and node.out in self.fused:
                continue
            last[node.out] = node.name
            for name in node.inputs:
                last[name] = node.name
                if name in self.fused:
                    last |= dict.fromkeys(self.graph.producer(name).inputs, node.name)
        return last

    def row_bytes(self, name: str) -> int:
        """Bytes of a token of a tensor as it is stored."""
        bits = self.graph.tensors[name].bits
        return self.layouts[name].blocks * bits // 8 * self.config.dim

    def _parameter_rows(self) -> int:
        """Parameter rows of all nodes that have parameters."""
        return sum(
            self.layouts[node.out].blocks
            for kind in (Linear, Norm, Attention)
            for node in self.graph.of_kind(kind)
        )

    # Emission ------------------------------------------------------------------------------------

    def emit(
        self,
        op: str,
        fields: dict[str, int],
        registers: dict[str, Registers] | None = None,
        *,
        reads: Sequence[Region] = (),
        writes: Sequence[Region] = (),
        constant: bool = False,
        into: list[Step] | None = None,
    ) -> Step:
        """Appends one step. ``registers``: field → register added to the word of that field."""
        opcode = BY_NAME[op]
        words = {opcode.field(name).word: int(r) for name, r in (registers or {}).items()}
        if len(words) != len(registers or {}):
            raise ValueError(f"{op}: two registers for one word")
        item = Instruction(op, fields, words)
        work = cycles(item, self.config, self.context)
        step = Step(item, tuple(reads), tuple(writes), constant, self.label, work)
        (self.steps if into is None else into).append(step)
        return step

    def constant(self, name: str, make: Callable[[], NDArray], *, rare: bool = False) -> int:
        """Byte address of a constant, which is made and placed when it is first asked for."""
        if name not in self.memory.symbols:
            self.memory.constant(name, make(), rare=rare)
        return self.memory.symbols[name].address

    def load(
        self,
        space: LoadSpace,
        address: int,
        words: int,
        local: int,
        *,
        rows: tuple[str, int] | None = None,
        registers: dict[str, Registers] | None = None,
        into: list[Step] | None = None,
    ) -> None:
        """Loads consecutive words, in as many instructions as it takes.

        ``rows``: what is written, a memory and its rows for each 8 words of parameters; by default
        the words themselves. Without registers the words are constants.
        """
        name, per = rows or (space.name.lower(), 1)
        for start in range(0, words, MAX_WORDS // 64 * 64):
            part = min(words - start, MAX_WORDS // 64 * 64)
            first = (local + start) // per
            region = Region(name, first, first + -(-part // per))
            self.emit(
                "load",
                {
                    "space": space,
                    "address": address + start * self.config.dim,
                    "words": part,
                    "rows": 1,
                    "local": local + start,
                },
                registers,
                writes=(region,),
                constant=registers is None,
                into=into,
            )

    def parameters(
        self, name: str, make: Callable[[], NDArray[np.uint8]], rows: int, skip: int = 0
    ) -> tuple[int, Region]:
        """Brings parameter rows (blocks, D, 8) into the parameter memory.

        ``rows`` of them from row ``skip`` on. Returns where row 0 is, or would be, and the region.
        """
        address = self.constant(f"{name} parameters", make) + skip * 8 * self.config.dim
        first, there = self._parameters.keep(f"{name} {skip}", rows)
        if not there:
            into = self.preload if self.parameters_stay else None
            self.load(
                LoadSpace.PARAMETER, address, 8 * rows, 8 * first, rows=("parameter", 8), into=into
            )
        return first - skip, Region("parameter", first, first + rows)

    def table(self, name: str) -> tuple[int, Region]:
        """Brings a function table into a slot; slot, region."""
        address = self.constant(f"table {name}", lambda: self.graph.constants[name].astype("<i2"))
        words = 1024 // self.config.dim
        into = None
        if name in self._staying:
            slot, there, into = self._staying.index(name), name in self._loaded, self.preload
            self._loaded.add(name)
        else:
            slot, there = self._tables.keep(name, 1)
        if not there:
            self.load(
                LoadSpace.TABLE, address, words, slot * words, rows=("table", words), into=into
            )
        return slot, Region("table", slot, slot + 1)

    def stream(self, name: str, rows: int) -> tuple[int, bool]:
        """First row of a region for weights that come and go, and whether they are there."""
        if self._led is not None and self._led + rows <= self.leading.rows:
            self._led += rows
            return self.leading.take(rows), False
        self._led = None
        return self.weights.keep(name, rows)

    def begin(self) -> None:
        """Begins another body of steps, behind a fence: nothing but what stays is there."""
        self.steps = []
        for name in [name for name in self.placed if name not in self.keys]:
            self.release(name)
        for table in self.rope_tables.values():
            self.pool.release(table.first)
        self.rope_tables = {}
        self._tables.forget()
        self.weights.forget()
        if not self.parameters_stay:
            self._parameters.forget()
        self._led = 0

    # Places --------------------------------------------------------------------------------------

    def accumulator(self) -> Ring:
        """The halves of the accumulator in turns: one drains while the other fills."""
        self._half ^= 1
        return self.halves[self._half]

    def place(self, name: str, span: Span, tokens: int | None = None) -> Place:
        """Room for ``tokens`` tokens of a tensor (default: those of the span)."""
        if name in self.placed:
            return self.placed[name]
        layout, bits = self.layouts[name], self.graph.tensors[name].bits
        place: Place
        if name in self.keys:
            rows = self._tile_rows()
            count = rows * layout.blocks * self.sequences
            first = self._first_key + self._key_pool.take(count)
            place = Stationary(first, layout, rows)
        else:
            count = span.count if tokens is None else tokens
            first = self.pool.take(layout.blocks * bits // 8 * count)
            place = Placed(first, layout, bits, count, span.first if tokens is None else 0)
        self.placed[name] = place
        return place

    def at(self, name: str) -> Placed:
        """A tensor that is in the activation memory."""
        place = self.placed[name]
        assert isinstance(place, Placed), name
        return place

    def release(self, name: str) -> None:
        """Gives the room of a tensor back."""
        place = self.placed.pop(name)
        if isinstance(place, Stationary):
            self._key_pool.release(place.first - self._first_key)
        else:
            self.pool.release(place.first)
