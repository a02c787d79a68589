"""Integer graphs for tests, made of random numbers."""

from dataclasses import replace

import numpy as np

from systolith import weights
from systolith.graph import (
    Add,
    ArgMax,
    Attention,
    Concat,
    Embedding,
    Given,
    Graph,
    Linear,
    Lookup,
    Multiply,
    Norm,
    Output,
    Rope,
    Slice,
    Tensor,
)

CONTEXT, VOCABULARY, CHANNELS, HEADS, KV_HEADS, HEAD_DIM = 12, 11, 8, 4, 2, 2


class Maker:
    """Tensors and constants under construction, and nodes with random parameters."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.constants: dict[str, np.ndarray] = {}
        self.tensors: dict[str, Tensor] = {}

    def ints(self, name: str, dtype: str, low: int, high: int, *shape: int) -> str:
        self.constants[name] = self.rng.integers(low, high, shape, dtype=dtype, endpoint=True)
        return name

    def tensor(self, name: str, bits: int, channels: int = CHANNELS) -> dict:
        scale = (0.5,) if bits != 8 else tuple(self.rng.uniform(0.1, 2, channels).tolist())
        self.tensors[name] = Tensor(name=name, channels=channels, bits=bits, scale=scale)
        return {"name": f"{name}.node", "out": name}

    def scale(self, name: str, n: int, shift: int) -> dict:
        return {
            "bias": self.ints(f"{name}.bias", "int32", -1000, 1000, n),
            "mult": self.ints(f"{name}.mult", "uint16", 1 << 15, (1 << 16) - 1, n),
            "shift": self.ints(f"{name}.shift", "uint8", shift, shift + 2, n),
        }

    def linear(self, name: str, x: str, n: int, bits: int, shift: int, table: str | None = None):
        k = self.tensors[x].channels
        weight = self.ints(f"{name}.weight", "int8", -127, 127, n, k)
        parameters = self.scale(name, n, shift)
        return Linear(
            **self.tensor(name, bits, n), x=x, weight=weight, **parameters, table=table
        )

    def norm(self, name: str, x: str, bits: int, center: bool):
        return Norm(
            **self.tensor(name, bits),
            x=x,
            gain=self.ints(f"{name}.gain", "int16", -32767, 32767, CHANNELS),
            bias=self.ints(f"{name}.bias", "int32", -(1 << 20), 1 << 20, CHANNELS),
            shift=self.ints(f"{name}.shift", "uint8", 31 - bits, 33 - bits, CHANNELS),
            eps=77,
            eps_shift=3,
            center=center,
        )


def every_node(seed: int) -> Graph:
    """A small decoder that contains each kind of node that a decoder can have, with 8- and 16-bit
    tensors, biases, tables and a centred norm."""
    made = Maker(seed)
    ints, tensor, scale = made.ints, made.tensor, made.scale
    linear, norm = made.linear, made.norm
    ints("cos", "int16", -32767, 32767, CONTEXT, HEAD_DIM)
    ints("sin", "int16", -32767, 32767, CONTEXT, HEAD_DIM)
    rope = {"cos": "cos", "sin": "sin", "head_dim": HEAD_DIM}
    kv = KV_HEADS * HEAD_DIM
    table = ints("embedding.table", "int16", -32768, 32767, VOCABULARY, CHANNELS)
    nodes = (
        Embedding(**tensor("embedding", 16), table=table),
        norm("norm", "embedding", 16, False),
        linear("q_proj", "norm", CHANNELS, 16, 22),
        linear("k_proj", "norm", kv, 16, 22),
        linear("v", "norm", kv, 8, 30),
        Rope(**tensor("q", 16), x="q_proj", shift=15, **rope),
        Rope(**tensor("k", 8, kv), x="k_proj", shift=22, **rope),
        Attention(
            **tensor("context", 8),
            q="q",
            k="k",
            v="v",
            **scale("context", CHANNELS, 32),
            heads=HEADS,
            kv_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            score_mult=40000,
            score_shift=18,
            probability_bits=16,
        ),
        linear("o_proj", "context", CHANNELS, 16, 18),
        Add(**tensor("residual", 16), a="o_proj", b="embedding", mult_a=40000, mult_b=65535,
            shift=17),
        norm("second", "residual", 8, True),
        linear("gate", "second", 10, 16, 17,
               ints("function", "int16", -20000, 20000, 256, 2)),
        linear("up", "second", 10, 16, 17),
        Multiply(**tensor("product", 16, 10), a="gate", b="up", mult=50000, shift=26),
        linear("down", "product", CHANNELS, 8, 31),
        Lookup(**tensor("exact", 16), x="down", exact=True,
               table=ints("exact.table", "int16", -32768, 32767, 256, 2)),
        Lookup(**tensor("smooth", 8), x="exact", exact=False,
               table=ints("smooth.table", "int16", -100, 100, 256, 2)),
        linear("logits", "smooth", VOCABULARY, 16, 16),
        ArgMax(**tensor("token", 32, 1), x="logits"),
    )
    return Graph(
        nodes=nodes, tensors=made.tensors, constants=made.constants,
        outputs=(Output(tensor="logits"),), context=CONTEXT, bos=1, eos=2,
    )


def encoder(seed: int) -> Graph:
    """What `every_node` lacks: no causality, several inputs, split keys, moved channels."""
    made = Maker(seed)
    ints, tensor, linear = made.ints, made.tensor, made.linear

    def embedding(name: str, rows: int, index: str) -> Embedding:
        table = ints(f"{name}.table", "int16", -9000, 9000, rows, CHANNELS)
        return Embedding(**tensor(name, 16), table=table, index=index)

    def add(name: str, a: str, b: str) -> Add:
        return Add(**tensor(name, 16), a=a, b=b, mult_a=1, mult_b=1, shift=0)

    kv = KV_HEADS * HEAD_DIM
    nodes = (
        embedding("words", VOCABULARY, "tokens"),
        embedding("positions", CONTEXT, "positions"),
        embedding("types", 2, "types"),
        Given(**tensor("given", 16)),
        add("placed", "words", "positions"),
        add("typed", "placed", "types"),
        add("x", "typed", "given"),
        linear("q", "x", CHANNELS, 16, 22),
        Add(**tensor("q_low", 16), a="q", b="q", mult_a=1, mult_b=0, shift=4),
        linear("k", "x", kv, 8, 30),
        linear("k_low", "x", kv, 8, 30),
        linear("v", "x", kv, 8, 30),
        linear("v_low", "x", kv, 8, 30),
        Attention(
            **tensor("context", 16),
            q="q",
            k="k",
            v="v",
            q_low="q_low",
            k_low="k_low",
            v_low="v_low",
            **made.scale("context", CHANNELS, 24),
            heads=HEADS,
            kv_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            score_mult=40000,
            score_shift=18,
            probability_bits=16,
            causal=False,
        ),
        Slice(**tensor("part", 16, 3), x="context", first=3, count=3),
        Concat(**tensor("both", 16, 3 + CHANNELS), xs=("part", "x")),
    )
    outputs = (Output(tensor="both", pool="mean", normalize=True), Output(tensor="context"))
    return Graph(
        nodes=nodes, tensors=made.tensors, constants=made.constants, outputs=outputs,
        context=CONTEXT,
    )


def in_groups(graph: Graph, group: int, seed: int) -> Graph:
    """The graph with random weights of four bits in all linear nodes."""
    rng = np.random.default_rng((seed, group))
    constants, nodes = dict(graph.constants), list(graph.nodes)
    for i, node in enumerate(nodes):
        if isinstance(node, Linear):
            n, k = constants[node.weight].shape
            values = rng.integers(-7, 7, (n, k), dtype=np.int8, endpoint=True)
            constants[node.weight] = weights.pack(values)
            scale = rng.integers(1, 18, weights.scale_shape(n, k, group), endpoint=True)
            constants[f"{node.out}.group_scale"] = scale.astype(np.uint8)
            nodes[i] = replace(node, group=group, group_scale=f"{node.out}.group_scale")
    return replace(graph, nodes=tuple(nodes), constants=constants)
