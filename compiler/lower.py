"""Graph nodes to instructions.

`Lowering` walks a graph and emits steps that process a block of up to ``tokens`` tokens. How many
tokens there are, and at which position they start, stands in registers at run time (`Registers`),
so one body of code serves prefill and decode at every position.
"""

import numpy as np

from systolith.compiler.allocate import DoesNotFit, Pool, Ring
from systolith.compiler.attention import AttentionLowering
from systolith.compiler.layout import (
    Heads,
    Layout,
    parameter_rows,
    plain,
    planes,
    weight_rows,
)
from systolith.compiler.memory import Memory
from systolith.compiler.schedule import Region, Step
from systolith.compiler.tensors import Placed, Registers, Unsupported
from systolith.config import Config
from systolith.graph import (
    Add,
    ArgMax,
    Attention,
    Embedding,
    Graph,
    Linear,
    Lookup,
    Multiply,
    Node,
    Norm,
    Rope,
    int8_weight,
)
from systolith.isa import (
    BY_NAME,
    Combine,
    Format,
    Instruction,
    LoadSpace,
    TableMode,
)


class Lowering:
    """Emits the steps of one block of tokens, and the constants that they need, for one graph.

    ``tokens``: most tokens of a block. ``context``: rows of the caches that the program keeps.
    ``resident``: weights and parameters are loaded once (``preload``) and stay.
    """

    def __init__(
        self,
        graph: Graph,
        config: Config,
        memory: Memory,
        *,
        tokens: int,
        context: int,
        resident: bool,
    ) -> None:
        self.graph, self.config, self.memory = graph, config, memory
        self.tokens, self.context, self.resident = tokens, context, resident
        self.steps: list[Step] = []
        self.preload: list[Step] = []
        self.placed: dict[str, Placed] = {}
        self.heads: Heads | None = None
        self.label = ""
        self.pool = Pool("activation", config.activation_rows)
        half = config.accumulator_rows // 2
        self._accumulators = (Ring("accumulator", 0, half), Ring("accumulator", half, 2 * half))
        self._half = 0
        self._layouts = self._find_layouts()
        self._fused = self._find_fusions()
        self._last_use = self._find_last_uses()
        weights = self._weight_chunks() if resident else 0
        self._resident_weights = Ring("weight", 0, weights)
        self.weights = Ring("weight", weights, config.weight_rows)
        parameters = self._parameter_rows() if resident else 0
        self._resident_parameters = Ring("parameter", 0, parameters)
        self._parameters = Ring("parameter", parameters, config.parameter_rows)
        self._tables = Ring("table", 0, config.table_slots)
        self._rope_tables: dict[tuple[str, str], Placed] = {}

    # What the graph needs ------------------------------------------------------------------------

    def _find_layouts(self) -> dict[str, Layout]:
        dim = self.config.dim
        layouts = {name: plain(t.channels, dim) for name, t in self.graph.tensors.items()}
        for node in self.graph.of_kind(Attention):
            assert isinstance(node, Attention)
            heads = Heads.of(node, dim)
            if self.heads not in (None, heads):
                raise Unsupported(
                    f"{node.name}: attention layers with different heads are not supported"
                )
            self.heads = heads
            for name, layout in (
                (node.q, heads.queries()),
                (node.k, heads.keys()),
                (node.v, heads.keys()),
                (node.q_low, heads.queries()),
                (node.k_low, heads.keys()),
                (node.v_low, heads.keys()),
            ):
                if name is not None:
                    self._demand_layout(layouts, name, layout)
            layouts[node.out] = heads.queries()
        return layouts

    def _demand_layout(self, layouts: dict[str, Layout], name: str, layout: Layout) -> None:
        """Sets the layout of a tensor around attention, back to the weights that produce it."""
        layouts[name] = layout
        producer = self.graph.producer(name)
        if isinstance(producer, (Rope, Lookup)):
            self._demand_layout(layouts, producer.x, layout)
        elif isinstance(producer, Add) and producer.a == producer.b:
            self._demand_layout(layouts, producer.a, layout)
        elif not isinstance(producer, Linear):
            raise Unsupported(
                f"{producer.name}: a {type(producer).__name__} in front of attention is not "
                "supported, only linear layers and RoPE are"
            )

    def _find_fusions(self) -> dict[str, str]:
        """Linear layers whose result goes through the vector unit only: tensor → reading node."""
        fused: dict[str, str] = {}
        taken: set[str] = set()
        for node in self.graph.nodes:
            if not isinstance(node, Linear) or self.graph.tensors[node.out].bits != 16:
                continue
            readers = self.graph.consumers(node.out)
            if len(readers) != 1 or node.out == self.graph.logits:
                continue
            reader = readers[0]
            good = isinstance(reader, (Rope, Add, Multiply)) and reader.name not in taken
            if good and reader.inputs.count(node.out) == 1:
                fused[node.out] = reader.name
                taken.add(reader.name)
        return fused

    def _find_last_uses(self) -> dict[str, str]:
        """Tensor → name of the node after which it is not needed."""
        last: dict[str, str] = {}
        for node in self.graph.nodes:
            names = list(node.inputs)
            for name in node.inputs:
                if name in self._fused:
                    producer = self.graph.producer(name)
                    names += producer.inputs
            for name in names:
                if not (node.out in self._fused and isinstance(node, Linear)):
                    last[name] = node.name
        return last

    def _tensor_rows(self, name: str) -> int:
        return self._layouts[name].blocks * self.graph.tensors[name].bits // 8 * self.tokens

    def _weight_chunks(self) -> int:
        """Weight rows of all linear layers."""
        return sum(
            self._layouts[node.x].blocks * self._layouts[node.out].blocks * self.config.dim
            for node in self.graph.of_kind(Linear)
            if isinstance(node, Linear)
        )

    def _parameter_rows(self) -> int:
        """Parameter rows of all nodes that have parameters."""
        return sum(
            self._layouts[node.out].blocks
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
        reads: tuple[Region, ...] = (),
        writes: tuple[Region, ...] = (),
        constant: bool = False,
        into: list[Step] | None = None,
    ) -> Step:
        """Appends one step. ``registers``: field → register added to the word of that field."""
        opcode = BY_NAME[op]
        words = {opcode.field(name).word: int(r) for name, r in (registers or {}).items()}
        if len(words) != len(registers or {}):
            raise ValueError(f"{op}: two registers for one word")
        step = Step(Instruction(op, fields, words), reads, writes, constant, self.label)
        (self.steps if into is None else into).append(step)
        return step

    def _load(
        self,
        space: LoadSpace,
        address: int,
        words: int,
        local: int,
        region: Region,
        *,
        into: list[Step] | None = None,
    ) -> None:
        """Loads constants: ``words`` consecutive words."""
        if words >= 1 << 16:
            raise DoesNotFit(f"{self.label}: a load of {words} words is longer than 65535")
        fields = {"space": space, "address": address, "words": words, "rows": 1, "local": local}
        self.emit("load", fields, writes=(region,), constant=True, into=into)

    def load_parameters(self, name: str, rows: np.ndarray) -> tuple[int, Region]:
        """Brings parameter rows (blocks, D, 8) into the parameter memory; first row, region."""
        address = self.memory.constant(name, rows)
        ring = self._resident_parameters if self.resident else self._parameters
        first = ring.take(len(rows))
        region = Region("parameter", first, first + len(rows))
        into = self.preload if self.resident else None
        self._load(LoadSpace.PARAMETER, address, 8 * len(rows), 8 * first, region, into=into)
        return first, region

    def _load_table(self, name: str) -> tuple[int, Region]:
        """Brings a function table into a slot; slot, region."""
        if f"table {name}" in self.memory.symbols:
            address = self.memory.symbols[f"table {name}"].address
        else:
            values = self.graph.constants[name].astype("<i2")
            address = self.memory.constant(f"table {name}", values)
        slot = self._tables.take(1)
        region = Region("table", slot, slot + 1)
        words = 1024 // self.config.dim
        self._load(LoadSpace.TABLE, address, words, slot * words, region)
        return slot, region

    def accumulator(self, rows: int) -> int:
        """Accumulator rows in alternating halves: one half drains while the other fills."""
        self._half ^= 1
        return self._accumulators[self._half].take(rows)

    def hold_accumulator(self, rows: int) -> tuple[Ring, int]:
        """Like ``_accumulator``, for results that collect over several instructions."""
        self._half ^= 1
        ring = self._accumulators[self._half]
        return ring, ring.take(rows, hold=True)

    def place(self, name: str) -> Placed:
        placed = Placed(
            self.pool.take(self._tensor_rows(name)),
            self._layouts[name],
            self.graph.tensors[name].bits,
        )
        self.placed[name] = placed
        return placed

    def _release(self, node: Node) -> None:
        for name, last in self._last_use.items():
            if last == node.name and name in self.placed:
                self.pool.release(self.placed.pop(name).first)

    # Nodes ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """Emits all nodes but the embedding, which the caller has placed (``place_input``)."""
        for node in self.graph.nodes:
            if isinstance(node, (Embedding, ArgMax)):
                continue
            if isinstance(node, Linear) and node.out in self._fused:
                continue  # emitted by the node that reads it
            self.label = node.name
            getattr(self, f"_{type(node).__name__.lower()}")(node)
            self._release(node)

    def place_input(self, node: Embedding) -> Placed:
        """Activation rows of the embedding's result."""
        return self.place(node.out)

    def _norm(self, node: Norm) -> None:
        tensor = self.graph.tensors[node.x]
        if tensor.channels > min(self.config.max_features, 4095):
            raise DoesNotFit(
                f"{node.name}: {tensor.channels} features are more than max_features "
                f"{self.config.max_features} of the configuration"
            )
        x, out = self.placed[node.x], self.place(node.out)
        constants = self.graph.constants
        rows = parameter_rows(
            x.layout,
            constants[node.bias],
            constants[node.gain].view(np.uint16),
            constants[node.shift],
        )
        param, region = self.load_parameters(f"{node.name} parameters", rows)
        last = self._only_last_token(node)
        count = 1 if last else self.tokens
        offset = {"a": Registers.LAST} if last else {"rows": Registers.TOKENS}
        self.emit(
            "norm",
            {
                "a": x.first,
                "a_stride": x.stride,
                "d": out.first,
                "d_stride": out.stride,
                "rows": int(last),
                "blocks": x.layout.blocks,
                "d_wide": int(out.bits == 16),
                "length": tensor.channels,
                "param": param,
                "center": int(node.center),
                "eps": node.eps,
                "eps_shift": node.eps_shift,
            },
            offset,
            reads=(x.region(self.tokens), region),
            writes=(out.region(count),),
        )

    def _only_last_token(self, node: Node) -> bool:
        """Whether only the logits of the block's last token depend on this node."""
        readers = self.graph.consumers(node.out)
        return (
            isinstance(node, Norm)
            and len(readers) == 1
            and isinstance(readers[0], Linear)
            and readers[0].out == self.graph.logits
        )

    def _linear(self, node: Linear) -> None:
        out = self.place(node.out)
        fields = {"d_wide": int(out.bits == 16)}
        if node.out == self.graph.logits:
            fields |= {"argmax": 1}
        self._matmul_drain(node, out, fields)

    def _rope(self, node: Rope) -> None:
        out = self.place(node.out)
        table = self.rope_table(node)
        assert self.heads is not None
        fields = {
            "combine": Combine.ROPE,
            "shift": node.shift,
            "b": table.first,
            "b_stride": self.heads.head_blocks * 4,
            "b_period": self.heads.head_blocks,
            "d_wide": int(out.bits == 16),
        }
        reads = (Region("activation", table.first, table.first + self._rope_rows()),)
        self._binary(node, node.x, out, fields, reads)

    def _add(self, node: Add) -> None:
        out = self.place(node.out)
        a, b, mult_a, mult_b = node.a, node.b, node.mult_a, node.mult_b
        if self._fused.get(b) == node.name:
            a, b, mult_a, mult_b = b, a, mult_b, mult_a
        other = self.placed[b]
        fields = {
            "combine": Combine.ADD,
            "shift": node.shift,
            "mult_a": mult_a,
            "mult_b": mult_b,
            "b": other.first,
            "b_stride": other.stride,
            "b_wide": int(other.bits == 16),
            "d_wide": int(out.bits == 16),
        }
        self._binary(node, a, out, fields, (other.region(self.tokens),))

    def _multiply(self, node: Multiply) -> None:
        out = self.place(node.out)
        a, b = node.a, node.b
        if self._fused.get(b) == node.name:
            a, b = b, a
        other = self.placed[b]
        fields = {
            "combine": Combine.MULTIPLY,
            "shift": node.shift,
            "mult_a": node.mult,
            "b": other.first,
            "b_stride": other.stride,
            "b_wide": int(other.bits == 16),
            "d_wide": int(out.bits == 16),
        }
        self._binary(node, a, out, fields, (other.region(self.tokens),))

    def _lookup(self, node: Lookup) -> None:
        out = self.place(node.out)
        slot, region = self._load_table(node.table)
        mode = TableMode.EXACT if node.exact else TableMode.INTERPOLATE
        fields = {"table": mode, "slot": slot, "d_wide": int(out.bits == 16)}
        self._vector(self.placed[node.x], out, fields, (region,))

    def _binary(
        self, node: Node, a: str, out: Placed, fields: dict[str, int], reads: tuple[Region, ...]
    ) -> None:
        """A vector instruction whose source A is a tensor, or a linear layer fused into it."""
        if self._fused.get(a) == node.name:
            linear = self.graph.producer(a)
            assert isinstance(linear, Linear)
            self._matmul_drain(linear, out, fields, reads)
        else:
            self._vector(self.placed[a], out, fields, reads)

    def _vector(
        self, a: Placed, out: Placed, fields: dict[str, int], reads: tuple[Region, ...]
    ) -> None:
        self.emit(
            "vector",
            {
                "a": a.first,
                "a_stride": a.stride,
                "a_format": a.format,
                "d": out.first,
                "d_stride": out.stride,
                "blocks": out.layout.blocks,
                **fields,
            },
            {"rows": Registers.TOKENS},
            reads=(a.region(self.tokens), *reads),
            writes=(out.region(self.tokens),),
        )

    def _matmul_drain(
        self,
        node: Linear,
        out: Placed,
        fields: dict[str, int],
        reads: tuple[Region, ...] = (),
    ) -> None:
        """A linear layer: weights in chunks of output tiles, each multiplied, then drained."""
        d = self.config.dim
        x = self.placed[node.x]
        layout = self._layouts[node.out]
        constants = self.graph.constants
        # Groups of four bits are expanded here: the machine has no load that does.
        tiles = weight_rows(int8_weight(self.graph, node), x.layout, layout)
        address = self.memory.constant(f"{node.name} weights", tiles)
        param, param_region = self.load_parameters(
            f"{node.name} parameters",
            parameter_rows(
                layout, constants[node.bias], constants[node.mult], constants[node.shift]
            ),
        )
        table: tuple[Region, ...] = ()
        if node.table is not None:
            slot, region = self._load_table(node.table)
            fields = fields | {"table": TableMode.INTERPOLATE, "slot": slot}
            table = (region,)
        last = node.out == self.graph.logits
        count = 1 if last else self.tokens
        rows = {} if last else {"rows": Registers.TOKENS}
        k_tiles, chunk = x.layout.blocks, self._chunk(x.layout.blocks, layout.blocks, count)
        for n in range(0, layout.blocks, chunk):
            n_tiles = min(chunk, layout.blocks - n)
            weight, weights = self._load_weights(
                address + n * k_tiles * d * d, n_tiles * k_tiles * d
            )
            acc = self.accumulator(count * n_tiles)
            accumulator = Region("accumulator", acc, acc + count * n_tiles)
            self.emit(
                "matmul",
                {
                    "act": x.first,
                    "act_stride": x.stride,
                    "k_tiles": k_tiles,
                    "weight": weight,
                    "n_tiles": n_tiles,
                    "acc": acc,
                    "acc_stride": n_tiles,
                    "rows": int(last),
                    "w_stride_n": k_tiles * d,
                    "w_stride_k": d,
                    "wide": int(x.bits == 16),
                    "signed": 1,
                },
                {} if last else {"rows": Registers.TOKENS_16},
                reads=(x.region(count), weights),
                writes=(accumulator,),
            )
            more = dict(fields)
            if "b" in fields and fields["combine"] != Combine.ROPE:
                more["b"] += n * (1 + fields["b_wide"])
            elif "b" in fields and n % fields["b_period"]:
                raise Unsupported(f"{node.name}: RoPE on a head that is cut in chunks")
            if "argmax" in fields:
                channels = self.graph.tensors[node.out].channels
                more |= {
                    "restart": int(n == 0),
                    "count": min(channels - n * d, n_tiles * d),
                    "first": n * d,
                }
            self.emit(
                "vector",
                {
                    "a": acc,
                    "a_stride": n_tiles,
                    "a_format": Format.ACC32,
                    "d": out.first + n * out.planes,
                    "d_stride": out.stride,
                    "rows": int(last),
                    "blocks": n_tiles,
                    "scale": 1,
                    "param": param + n,
                    **more,
                },
                rows,
                reads=(accumulator, param_region, *table, *reads),
                writes=(out.region(count),),
            )

    def _chunk(self, k_tiles: int, n_tiles: int, tokens: int) -> int:
        """Output tiles that are worked on at once: weights and accumulators are double-buffered."""
        if self.resident:
            weights = n_tiles
        else:
            free = (self.weights.stop - self.weights.start) // 3
            weights = max(1, free // (k_tiles * self.config.dim))
        accumulators = max(1, self.config.accumulator_rows // 4 // tokens)
        chunk = min(weights, accumulators, n_tiles, 1023)
        if self.heads is not None and chunk < n_tiles:
            chunk = max(1, chunk // self.heads.head_blocks) * self.heads.head_blocks
        return chunk

    def _load_weights(self, address: int, rows: int) -> tuple[int, Region]:
        ring = self._resident_weights if self.resident else self.weights
        first = ring.take(rows)
        region = Region("weight", first, first + rows)
        into = self.preload if self.resident else None
        for start in range(0, rows, 1 << 15):
            part = min(rows - start, 1 << 15)
            self._load(
                LoadSpace.WEIGHT,
                address + start * self.config.dim,
                part,
                first + start,
                Region("weight", first + start, first + start + part),
                into=into,
            )
        return first, region

    # Attention -----------------------------------------------------------------------------------

    def _rope_rows(self) -> int:
        assert self.heads is not None
        return self.tokens * self.heads.head_blocks * 4

    def rope_row_bytes(self) -> int:
        """Bytes of one position in a RoPE table."""
        assert self.heads is not None
        return self.heads.head_blocks * 4 * self.config.dim

    def rope_table(self, node: Rope) -> Placed:
        """The RoPE rows of the block's positions in the activation memory, loaded once a block."""
        key = (node.cos, node.sin)
        if key in self._rope_tables:
            return self._rope_tables[key]
        assert self.heads is not None
        d, blocks = self.config.dim, self.heads.head_blocks
        cos, sin = (
            planes(self.heads.rotation(self.graph.constants[name][: self.context]), d).reshape(
                self.context, blocks, 2, d
            )
            for name in key
        )
        # A block of tokens may read beyond the context: the table is longer than the caches.
        rows = np.concatenate([cos, sin], axis=2)
        pad = np.zeros((self.tokens, *rows.shape[1:]), dtype=rows.dtype)
        address = self.memory.constant(f"rope {node.cos}", np.concatenate([rows, pad]))
        words = self._rope_rows()
        first = self.pool.take(words)
        self.emit(
            "load",
            {
                "space": LoadSpace.ACTIVATION,
                "address": address,
                "words": words,
                "rows": 1,
                "local": first,
            },
            {"address": Registers.ROPE_ROW},
            writes=(Region("activation", first, first + words),),
        )
        placed = Placed(first, Layout(d, (0,) * (d * blocks)), 16)
        self._rope_tables[key] = placed
        return placed

    def _attention(self, node: Attention) -> None:
        assert self.heads is not None
        AttentionLowering(self, self.heads).run(node)
