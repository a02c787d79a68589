"""Attention in instructions: cache, scores, softmax, context; nothing leaves the chip on the way.

For each key block set (see `layout.Heads`) the cached keys and values come into the weight memory,
the new rows are appended to the caches and written behind the old ones, and the query rows of all
heads that share a key head go through the array as one matmul.
"""

from typing import TYPE_CHECKING

from systolith.compiler.layout import Heads, parameter_rows
from systolith.compiler.schedule import Region
from systolith.compiler.tensors import Placed, Registers
from systolith.graph import Attention
from systolith.isa import Format, LoadSpace, StoreSpace

if TYPE_CHECKING:
    from systolith.compiler.lower import Lowering


class AttentionLowering:
    """Emits the attention nodes of a graph through the `Lowering` that owns memories and steps."""

    def __init__(self, low: "Lowering", heads: Heads) -> None:
        self.low = low
        self.heads = heads
        self.config, self.tokens, self.context = low.config, low.tokens, low.context

    def run(self, node: Attention) -> None:
        """Emits one attention; its inputs are placed, its result gets a place."""
        heads = self.heads
        d, g, hb = self.config.dim, heads.group, heads.head_blocks
        tiles = -(-self.context // d)
        placed = self.low.placed
        # Keys of 12 bits are two tensors, each with a query: their products add up to the scores.
        pairs = [("key", placed[node.q], placed[node.k])]
        if node.q_low is not None and node.k_low is not None:
            pairs.append(("low key", placed[node.q_low], placed[node.k_low]))
        # Values of 16 bits are two tensors, and the lower one meets the upper bytes of p.
        values = [("value", placed[node.v])]
        if node.v_low is not None:
            values.append(("low value", placed[node.v_low]))
        out = self.low.place(node.out)
        constants = self.low.graph.constants
        param, param_region = self.low.load_parameters(
            f"{node.name} parameters",
            parameter_rows(
                out.layout, constants[node.bias], constants[node.mult], constants[node.shift]
            ),
        )
        caches = {
            name: self.low.memory.buffer(
                f"{node.name} {name} cache", "uint8", (heads.sets * hb, self.context, d)
            )
            for name in (*(name for name, _, _ in pairs), *(name for name, _ in values))
        }
        # Query rows of one key block set lie as [token][head of the group][head block]: the rows of
        # all heads of a group form one matmul.
        wide = node.probability_bits == 16
        p_stride = tiles * (2 if wide else 1)
        group_rows = self.tokens * g
        queries = [
            Placed(self.low.pool.take(group_rows * hb * q.planes), q.layout, q.bits)
            for _, q, _ in pairs
        ]
        probabilities = [self.low.pool.take(group_rows * p_stride) for _ in range(2)]
        turn = 0
        for block in range(heads.sets):
            cache_rows = self.cache_rows() * hb
            parts = len(pairs) + len(values)
            cache = self.low.weights.take(parts * cache_rows, hold=True)
            operands = []
            for part, (name, q, k) in enumerate(pairs):
                key = self._cache(k, caches[name], block, name, cache + part * cache_rows)
                query = self._gather_queries(q, queries[part], block)
                operands.append((query, q.bits, key))
            stored = [
                self._cache(v, caches[name], block, name, cache + part * cache_rows)
                for part, (name, v) in enumerate(values, start=len(pairs))
            ]
            ring, context = self.low.hold_accumulator(group_rows * hb)
            results = Region("accumulator", context, context + group_rows * hb)
            for member in range(min(heads.per_block, heads.kv_heads - block * heads.per_block)):
                turn ^= 1
                self._scores(node, operands, probabilities[turn], member)
                p = probabilities[turn]
                for part, value in enumerate(stored):
                    self.low.emit(
                        "matmul",
                        {
                            "act": p + part,
                            "act_stride": p_stride,
                            "weight": value.start,
                            "n_tiles": hb,
                            "acc": context,
                            "acc_stride": hb,
                            "w_stride_n": self.cache_rows(),
                            "w_stride_k": d,
                            "wide": int(wide and part == 0),
                            "apart": part,
                            "accumulate": part,
                            **self._lane_group(member, "mask_out"),
                        },
                        {"k_tiles": Registers.TILES_20, "rows": Registers.GROUP_ROWS_16},
                        reads=(Region("activation", p, p + group_rows * p_stride), value),
                        writes=(results,),
                    )
            self.low.emit(
                "vector",
                {
                    "a": context,
                    "a_stride": g * hb,
                    "a_format": Format.ACC32,
                    "d": out.first + block * g * hb * out.planes,
                    "d_stride": out.stride,
                    "blocks": g * hb,
                    "scale": 1,
                    "param": param + block * g * hb,
                    "d_wide": int(out.bits == 16),
                },
                {"rows": Registers.TOKENS},
                reads=(results, param_region),
                writes=(out.region(self.tokens),),
            )
            ring.release(context)
            self.low.weights.release(cache)
        for query_rows in queries:
            self.low.pool.release(query_rows.first)
        for first in probabilities:
            self.low.pool.release(first)

    def cache_rows(self) -> int:
        """Weight rows of one cached block of keys or values: whole tiles."""
        return -(-self.context // self.config.dim) * self.config.dim

    def _cache(self, new: Placed, address: int, block: int, name: str, first: int) -> Region:
        """Appends the block's rows of k or v to the cache; brings all of it to weight row first."""
        heads = self.heads
        d, hb, rows = self.config.dim, heads.head_blocks, self.cache_rows()
        for part in range(hb):
            index = block * hb + part
            start = address + index * self.context * d
            weight = Region("weight", first + part * rows, first + (part + 1) * rows)
            source = Region("activation", new.first, new.first + self.tokens * new.stride)
            old = Region(f"{self.low.label} {name} old", index, index + 1)
            self.low.emit(
                "load",
                {
                    "space": LoadSpace.WEIGHT,
                    "address": start,
                    "rows": 1,
                    "local": weight.start,
                },
                {"words": Registers.OLD},
                reads=(old,),
                writes=(weight,),
            )
            self.low.emit(
                "store",
                {
                    "space": StoreSpace.ACTIVATION,
                    "address": start,
                    "stride": d,
                    "words": 1,
                    "local": new.first + index,
                    "local_stride": new.stride,
                },
                {"address": Registers.POSITION_ROW, "rows": Registers.TOKENS_16},
                reads=(source,),
                writes=(Region(f"{self.low.label} {name} new", index, index + 1),),
            )
            self.low.emit(
                "vector",
                {
                    "a": new.first + index,
                    "a_stride": new.stride,
                    "a_format": Format.INT8,
                    "d": weight.start,
                    "d_stride": 1,
                    "d_weight": 1,
                    "blocks": 1,
                },
                {"rows": Registers.TOKENS, "d": Registers.POSITION},
                reads=(source,),
                writes=(weight,),
            )
        return Region("weight", first, first + rows * hb)

    def _gather_queries(self, q: Placed, target: Placed, block: int) -> Region:
        """Brings the query rows of a key block set into [token][head of the group] order."""
        heads = self.heads
        blocks = heads.group * heads.head_blocks
        rows = blocks * q.planes
        region = Region("activation", target.first, target.first + self.tokens * rows)
        self.low.emit(
            "vector",
            {
                "a": q.first + block * rows,
                "a_stride": q.stride,
                "a_format": q.format,
                "d": target.first,
                "d_stride": rows,
                "blocks": blocks,
                "d_wide": int(q.bits == 16),
            },
            {"rows": Registers.TOKENS},
            reads=(q.region(self.tokens),),
            writes=(region,),
        )
        return region

    def _lane_group(self, member: int, mask: str) -> dict[str, int]:
        """Fields that select the lanes of one of several heads in a block."""
        heads = self.heads
        if heads.per_block == 1:
            return {}
        return {mask: 1, "group_log2": heads.padded_dim.bit_length() - 1, "group": member}

    def _scores(
        self, node: Attention, operands: list[tuple[Region, int, Region]], p: int, member: int
    ) -> None:
        """Scores of one key head with all its query heads, then their softmax.

        ``operands``: query rows, their bits, and keys; the products of all of them add up.
        """
        heads = self.heads
        d, g, hb = self.config.dim, heads.group, heads.head_blocks
        tiles = -(-self.context // d)
        wide = node.probability_bits == 16
        p_stride = tiles * (2 if wide else 1)
        rows = self.tokens * g
        acc = self.low.accumulator(rows * tiles)
        scores = Region("accumulator", acc, acc + rows * tiles)
        for part, (query, bits, key) in enumerate(operands):
            self.low.emit(
                "matmul",
                {
                    "act": query.start,
                    "act_stride": hb * bits // 8,
                    "k_tiles": hb,
                    "weight": key.start,
                    "acc": acc,
                    "acc_stride": tiles,
                    "w_stride_n": d,
                    "w_stride_k": self.cache_rows(),
                    "wide": int(bits == 16),
                    "signed": 1,
                    "columns": 1,
                    "accumulate": int(part > 0),
                    **self._lane_group(member, "mask_in"),
                },
                {"n_tiles": Registers.TILES_20, "rows": Registers.GROUP_ROWS_16},
                reads=(query, key),
                writes=(scores,),
            )
        self.low.emit(
            "softmax",
            {
                "a": acc,
                "a_stride": tiles,
                "d": p,
                "d_stride": p_stride,
                "d_wide": int(wide),
                "limit": 1,
                "limit_step": 1,
                "limit_rows": g,
                "shift": node.score_shift,
                "mult": node.score_mult,
            },
            {"rows": Registers.SOFTMAX, "limit": Registers.POSITION},
            reads=(scores,),
            writes=(Region("activation", p, p + rows * p_stride),),
        )
