"""Attention in instructions: scores, softmax, context; nothing leaves the chip on the way.

The work is cut into units, the scores of some query rows with one key head. The scores of a unit
are `AHEAD` units ahead of its context, so that its softmax runs while the array works on others.

Keys and values are tiles in the weight memory. Either all of a sequence lie there
(`tensors.Stationary`); or they come from memory, for each key block set (see `layout.Heads`). A
whole sequence is in memory before (`tensors.Cached`); in a loop over tokens the new rows are
appended to the caches and written behind the old ones.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from systolith.compiler.allocate import DoesNotFit
from systolith.compiler.layout import Heads, parameter_rows
from systolith.compiler.lower import Lowering
from systolith.compiler.schedule import Region
from systolith.compiler.tensors import Cached, Placed, Registers, Span, Stationary
from systolith.compiler.vector import Source, elementwise
from systolith.graph import Attention
from systolith.isa import Format, LoadSpace, StoreSpace

AHEAD = 2
"""Most units whose scores come before the context of a unit."""
_ROWS = 64
"""Most query rows of a unit, so that the last softmax, which nothing hides, is short."""

AHEAD_OF_ONE = 6
"""The same for one token, where the latency of a softmax is as long as many products."""


@dataclass(frozen=True)
class _Queries:
    """Query rows of a unit: row m at ``first + m * stride``."""

    first: int
    stride: int
    wide: bool
    region: Region


@dataclass
class _Unit:
    """Scores, probabilities and context of some query rows with one key head.

    ``member``: which of the heads that share a block. ``results``: accumulator rows of the context,
    ``column`` the first block in them. ``drain``: what follows when the context is complete.
    """

    span: Span
    member: int
    queries: list[_Queries]
    keys: list[Region]
    values: list[Region]
    results: Region
    column: int
    probabilities: int = 0
    drain: "_Drain | None" = None


@dataclass(frozen=True)
class _Drain:
    """The context of a key block set for some tokens, requantized to the result's blocks."""

    span: Span
    block: int
    results: Region
    release: tuple = ()


class AttentionLowering:
    """Emits one attention node for one span; its inputs are placed, its result gets a place."""

    def __init__(self, low: Lowering, node: Attention, span: Span) -> None:
        self.low, self.node, self.span = low, node, span
        self.heads: Heads = low.heads[node.name]
        self.config, self.context = low.config, low.context
        self.wide = node.probability_bits == 16
        d = self.config.dim
        self.tiles = -(-self.context // d)
        self.tile_rows = self.tiles * d
        self.p_stride = self.tiles * (2 if self.wide else 1)
        # The query heads of a key head form one product where there are few tokens: then their
        # rows must lie side by side, as those of one token do anyway.
        several = self.heads.group > 1 and (span.dynamic or span.count < d)
        self.gather = several and (span.count > 1 or span.open)
        self.members = self.heads.group if several else 1
        self.units = 0
        placed: dict[str, object] = {**low.placed, **low.caches}
        self.suffix = ""
        if low.sequences > 1:  # the span is the token of one of them
            self.suffix = f" {span.first}"
            placed |= {
                name: place.of(span.first)
                for name, place in low.placed.items()
                if isinstance(place, Stationary)
            }
        # Keys of 12 bits are two tensors, each with a query: their products add up to the scores.
        self.pairs = [("key", low.at(node.q), placed[node.k])]
        if node.q_low is not None and node.k_low is not None:
            self.pairs.append(("low key", low.at(node.q_low), placed[node.k_low]))
        # Values of 16 bits are two tensors, and the lower one meets the upper bytes of p.
        self.values = [("value", placed[node.v])]
        if node.v_low is not None:
            self.values.append(("low value", placed[node.v_low]))
        out = low.place(node.out, span)
        assert isinstance(out, Placed)
        self.out = out

    def run(self, values: Callable[[], None]) -> None:
        """Emits all units; ``values`` what the first scores can do without."""
        low, node = self.low, self.node
        constants = low.graph.constants
        self.param = low.parameters(
            node.name,
            lambda: parameter_rows(
                self.out.layout, constants[node.bias], constants[node.mult], constants[node.shift]
            ),
            self.out.layout.blocks,
        )
        ahead = self._ahead()
        rows = self._unit_rows(ahead)
        size = rows * self.members
        buffers = [low.pool.take(size * self.p_stride) for _ in range(ahead + 1)]
        self.gathered = [
            low.pool.take(self.span.count * self.heads.group * self.heads.head_blocks * q.planes)
            for _, q, _ in self.pairs
            if self.gather
        ]
        waiting: deque[_Unit] = deque()
        for unit in self._units(rows):
            unit.probabilities = buffers[self.units % len(buffers)]
            scores = self._scores(unit)
            if not self.units:
                values()
            self._softmax(unit, scores)
            self.units += 1
            waiting.append(unit)
            if len(waiting) > ahead:
                self._context(waiting.popleft())
        while waiting:
            self._context(waiting.popleft())
        for first in (*buffers, *self.gathered):
            low.pool.release(first)

    def _ahead(self) -> int:
        """Units ahead, as many as the weight memory has room for their keys and values."""
        if isinstance(self.pairs[0][2], Stationary):
            return AHEAD if self.span.count > 1 else AHEAD_OF_ONE
        parts = (len(self.pairs) + len(self.values)) * self.heads.head_blocks
        room = self.low.weights.free // 2 // (parts * self.tile_rows)
        return min(AHEAD, max(0, room - 1) * self.heads.per_block)

    def _unit_rows(self, ahead: int) -> int:
        """Tokens of a unit: the scores of ``ahead + 1`` units share a half of the accumulator."""
        columns = self.members * (self.tiles + 2 * self.heads.head_blocks)
        room = self.config.accumulator_rows // 2 // (ahead + 1) // columns
        if self.span.open or self.span.dynamic:
            if room < self.span.count:
                raise DoesNotFit(
                    f"The accumulator has {self.config.accumulator_rows} rows, too few for the "
                    f"scores of {self.span.count} tokens in a context of {self.context}: choose "
                    "a configuration with a larger one, or a smaller context"
                )
            return self.span.count
        most = min(_ROWS, self.span.count)
        while most > 1 and most > room:
            most = (most + 1) // 2
        return most

    def _units(self, rows: int) -> Iterator[_Unit]:
        heads, span = self.heads, self.span
        for block in range(heads.sets):
            held = None
            if not isinstance(self.pairs[0][2], Stationary):
                held = self._cached(block)
            keys, values = held or self._stationary(block)
            queries = [
                self._gather_queries(q, first, block)
                for (_, q, _), first in zip(self.pairs, self.gathered, strict=False)
            ]
            for start in range(0, span.count, rows):
                part = replace(span, first=span.first + start, count=min(rows, span.count - start))
                yield from self._block_units(block, part, keys, values, queries, held is not None)

    def _block_units(
        self,
        block: int,
        part: Span,
        keys: list[Region],
        values: list[Region],
        gathered: list[_Queries],
        held: bool,
    ) -> Iterator[_Unit]:
        """The units of one key block set and some tokens; the last one drains their context."""
        heads = self.heads
        columns = heads.group * heads.head_blocks
        ring = self.low.halves[(self.units + 1) & 1]
        first = ring.take(part.count * columns, hold=True)
        results = Region("accumulator", first, first + part.count * columns)
        members = min(heads.per_block, heads.kv_heads - block * heads.per_block)
        for member in range(members):
            for head in range(heads.group // self.members):
                queries = [
                    self._later(gathered[index], part)
                    if gathered
                    else self._queries(q, part, block, head)
                    for index, (_, q, _) in enumerate(self.pairs)
                ]
                unit = _Unit(part, member, queries, keys, values, results, head * heads.head_blocks)
                if member == members - 1 and head == heads.group // self.members - 1:
                    release = [(ring, first)]
                    if held and part.first + part.count == self.span.first + self.span.count:
                        release.append((self.low.weights, keys[0].start))
                    unit.drain = _Drain(part, block, results, tuple(release))
                yield unit

    # Keys, values, queries -----------------------------------------------------------------------

    def _stationary(self, block: int) -> tuple[list[Region], list[Region]]:
        """Keys and values of a block set where they were written, a region of tiles each."""

        def tiles(place: object) -> Region:
            assert isinstance(place, Stationary)
            return place.block(block * self.heads.head_blocks, self.heads.head_blocks)

        return [tiles(k) for _, _, k in self.pairs], [tiles(v) for _, v in self.values]

    def _cached(self, block: int) -> tuple[list[Region], list[Region]]:
        """Keys and values of a block set from memory."""
        rows = self.tile_rows * self.heads.head_blocks
        parts = [*((name, k) for name, _, k in self.pairs), *self.values]
        first = self.low.weights.take(len(parts) * rows, hold=True)
        regions = [
            self._fetch(place, block, first + index * rows)
            if isinstance(place, Cached)
            else self._append(place, block, name, first + index * rows)
            for index, (name, place) in enumerate(parts)
        ]
        return regions[: len(self.pairs)], regions[len(self.pairs) :]

    def _fetch(self, cache: Cached, block: int, first: int) -> Region:
        """Brings a whole sequence of k or v to weight row first."""
        hb, rows = self.heads.head_blocks, self.tile_rows
        whole = Span(0, cache.tokens)
        for part in range(hb):
            words = cache.words(block * hb + part, whole)
            start = first + part * rows
            self.low.emit(
                "load",
                {
                    "space": LoadSpace.WEIGHT,
                    "address": cache.address + words.start * self.config.dim,
                    "rows": 1,
                    "words": cache.tokens,
                    "local": start,
                },
                reads=(words,),
                writes=(Region("weight", start, start + rows),),
            )
        return Region("weight", first, first + rows * hb)

    def _append(self, new: object, block: int, name: str, first: int) -> Region:
        """Appends the span's rows of k or v to a cache; brings all of it to weight row first."""
        assert isinstance(new, Placed)
        low, span = self.low, self.span
        d, hb, rows = self.config.dim, self.heads.head_blocks, self.tile_rows
        shape = (self.heads.sets * hb, self.context, d)
        title = f"{self.node.name} {name} cache{self.suffix}"
        address = low.memory.buffer(title, "uint8", shape)
        stored, copied = span.rows_16(), span.rows()
        for part in range(hb):
            index = block * hb + part
            start = address + index * self.context * d
            weight = Region("weight", first + part * rows, first + (part + 1) * rows)
            source = new.region(span)
            old = Region(f"{title} old", index, index + 1)
            low.emit(
                "load",
                {"space": LoadSpace.WEIGHT, "address": start, "rows": 1, "local": weight.start},
                {"words": Registers.OLD},
                reads=(old,),
                writes=(weight,),
            )
            low.emit(
                "store",
                {
                    "space": StoreSpace.ACTIVATION,
                    "address": start,
                    "stride": d,
                    "words": 1,
                    "local": new.row(span) + index,
                    "local_stride": new.stride,
                    **stored[0],
                },
                {"address": Registers.POSITION_ROW, **stored[1]},
                reads=(source,),
                writes=(Region(f"{title} new", index, index + 1),),
            )
            low.emit(
                "vector",
                {
                    "a": new.row(span) + index,
                    "a_stride": new.stride,
                    "a_format": Format.INT8,
                    "d": weight.start,
                    "d_stride": 1,
                    "d_weight": 1,
                    "blocks": 1,
                    **copied[0],
                },
                {"d": Registers.POSITION, **copied[1]},
                reads=(source,),
                writes=(weight,),
            )
        return Region("weight", first, first + rows * hb)

    def _queries(self, q: Placed, part: Span, block: int, head: int) -> _Queries:
        """The rows of one query head where they are; those of one token, of a whole group."""
        rows = self.heads.head_blocks * q.planes
        first = (block * self.heads.group + head) * rows
        stride = q.stride if self.members == 1 else rows
        return _Queries(q.row(part) + first, stride, q.bits == 16, q.region(part))

    def _later(self, gathered: _Queries, part: Span) -> _Queries:
        """The rows of some tokens among gathered ones."""
        rows = (part.first - self.span.first) * self.heads.group * gathered.stride
        return replace(gathered, first=gathered.first + rows)

    def _gather_queries(self, q: Placed, target: int, block: int) -> _Queries:
        """Brings the query rows of a key block set into [token][head of the group] order."""
        heads, span = self.heads, self.span
        blocks = heads.group * heads.head_blocks
        rows = blocks * q.planes
        region = Region("activation", target, target + span.count * rows)
        fields, registers = span.rows()
        self.low.emit(
            "vector",
            {
                "a": q.row(span) + block * rows,
                "a_stride": q.stride,
                "a_format": q.format,
                "d": target,
                "d_stride": rows,
                "blocks": blocks,
                "d_wide": int(q.bits == 16),
                **fields,
            },
            registers,
            reads=(q.region(span),),
            writes=(region,),
        )
        return _Queries(target, heads.head_blocks * q.planes, q.bits == 16, region)

    # Products and softmax ------------------------------------------------------------------------

    def _lane_group(self, member: int, mask: str) -> dict[str, int]:
        """Fields that select the lanes of one of several heads in a block."""
        heads = self.heads
        if heads.per_block == 1:
            return {}
        return {mask: 1, "group_log2": heads.padded_dim.bit_length() - 1, "group": member}

    def _matmul_rows(self, unit: _Unit) -> tuple[dict[str, int], dict[str, Registers]]:
        """Rows of a unit's products."""
        if unit.span.open:
            return {}, {"rows": Registers.GROUP_ROWS_16}
        return {"rows": unit.span.count * self.members}, {}

    def _scores(self, unit: _Unit) -> Region:
        """Scores of a unit."""
        low, heads = self.low, self.heads
        dynamic = unit.span.dynamic
        rows = unit.span.count * self.members
        # While the softmax reads one half, scores and contexts of others fill the other one.
        acc = low.halves[self.units & 1].take(rows * self.tiles)
        scores = Region("accumulator", acc, acc + rows * self.tiles)
        fields, registers = self._matmul_rows(unit)
        if dynamic:
            registers = registers | {"n_tiles": Registers.TILES_20}
        else:
            fields = fields | {"n_tiles": self.tiles}
        for part, (query, key) in enumerate(zip(unit.queries, unit.keys, strict=True)):
            low.emit(
                "matmul",
                {
                    "act": query.first,
                    "act_stride": query.stride,
                    "k_tiles": heads.head_blocks,
                    "weight": key.start,
                    "acc": acc,
                    "acc_stride": self.tiles,
                    "w_stride_n": self.config.dim,
                    "w_stride_k": self.tile_rows,
                    "wide": int(query.wide),
                    "signed": 1,
                    "columns": 1,
                    "accumulate": int(part > 0),
                    **fields,
                    **self._lane_group(unit.member, "mask_in"),
                },
                registers,
                reads=(query.region, key),
                writes=(scores,),
            )
        return scores

    def _softmax(self, unit: _Unit, scores: Region) -> None:
        low, node, p = self.low, self.node, unit.probabilities
        rows = unit.span.count * self.members
        low.emit(
            "softmax",
            {
                "a": scores.start,
                "a_stride": self.tiles,
                "d": p,
                "d_stride": self.p_stride,
                "d_wide": int(self.wide),
                "limit_rows": self.members,
                "shift": node.score_shift,
                "mult": node.score_mult,
                **self._limits(unit.span, rows),
            },
            self._limit_registers(unit.span.dynamic),
            reads=(scores,),
            writes=(Region("activation", p, p + rows * self.p_stride),),
        )

    def _limits(self, span: Span, rows: int) -> dict[str, int]:
        """How many scores of each row take part."""
        if span.dynamic:
            return {"limit": 1, "limit_step": 1} | ({} if span.open else {"rows": rows})
        fields = {"rows": rows, "blocks": self.tiles}
        if self.node.causal:
            return fields | {"limit": span.first + 1, "limit_step": 1}
        return fields

    def _limit_registers(self, dynamic: bool) -> dict[str, Registers]:
        if dynamic:
            return {"rows": Registers.SOFTMAX, "limit": Registers.POSITION}
        return {} if self.node.causal else {"limit": Registers.LENGTH}

    def _context(self, unit: _Unit) -> None:
        """Probabilities times values; behind the last head of a block the requantized result."""
        low, heads = self.low, self.heads
        p = unit.probabilities
        rows = unit.span.count * self.members
        columns = heads.head_blocks * heads.group // self.members
        fields, registers = self._matmul_rows(unit)
        if unit.span.dynamic:
            registers = registers | {"k_tiles": Registers.TILES_20}
        else:
            fields = fields | {"k_tiles": self.tiles}
        for part, value in enumerate(unit.values):
            low.emit(
                "matmul",
                {
                    "act": p + part,
                    "act_stride": self.p_stride,
                    "weight": value.start,
                    "n_tiles": heads.head_blocks,
                    "acc": unit.results.start + unit.column,
                    "acc_stride": columns,
                    "w_stride_n": self.tile_rows,
                    "w_stride_k": self.config.dim,
                    "wide": int(self.wide and part == 0),
                    "apart": part,
                    "accumulate": part,
                    **fields,
                    **self._lane_group(unit.member, "mask_out"),
                },
                registers,
                reads=(Region("activation", p, p + rows * self.p_stride), value),
                writes=(unit.results,),
            )
        if unit.drain is not None:
            self._requantize(unit.drain)

    def _requantize(self, drain: _Drain) -> None:
        blocks = self.heads.group * self.heads.head_blocks
        elementwise(
            self.low,
            {},
            Source(drain.results.start, blocks, 1, drain.results, Format.ACC32),
            self.out,
            drain.span,
            param=self.param,
            first=drain.block * blocks,
            blocks=blocks,
        )
        for ring, first in drain.release:
            ring.release(first)
