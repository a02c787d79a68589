"""Integer graphs for tests, made of random numbers."""

import numpy as np

from systolith.graph import (
    Add,
    ArgMax,
    Attention,
    Embedding,
    Graph,
    Linear,
    Lookup,
    Multiply,
    Norm,
    Rope,
    Tensor,
)

CONTEXT, VOCABULARY, CHANNELS, HEADS, KV_HEADS, HEAD_DIM = 12, 11, 8, 4, 2, 2


def every_node(seed: int) -> Graph:
    """A small decoder that contains each kind of node, with 8- and 16-bit tensors, biases, tables
    and a centred norm: more than the quantizer of today writes."""
    rng = np.random.default_rng(seed)
    constants: dict[str, np.ndarray] = {}
    tensors: dict[str, Tensor] = {}

    def ints(name: str, dtype: str, low: int, high: int, *shape: int) -> str:
        constants[name] = rng.integers(low, high, shape, dtype=dtype, endpoint=True)
        return name

    def tensor(name: str, bits: int, channels: int = CHANNELS) -> dict:
        scale = (0.5,) if bits != 8 else tuple(rng.uniform(0.1, 2, channels).tolist())
        tensors[name] = Tensor(name=name, channels=channels, bits=bits, scale=scale)
        return {"name": f"{name}.node", "out": name}

    def scale(name: str, n: int, shift: int) -> dict:
        return {
            "bias": ints(f"{name}.bias", "int32", -1000, 1000, n),
            "mult": ints(f"{name}.mult", "uint16", 1 << 15, (1 << 16) - 1, n),
            "shift": ints(f"{name}.shift", "uint8", shift, shift + 2, n),
        }

    def linear(name: str, x: str, n: int, bits: int, shift: int, table: str | None = None):
        k = tensors[x].channels
        weight = ints(f"{name}.weight", "int8", -127, 127, n, k)
        parameters = scale(name, n, shift)
        return Linear(
            **tensor(name, bits, n), x=x, weight=weight, **parameters, table=table
        )

    def norm(name: str, x: str, bits: int, center: bool):
        return Norm(
            **tensor(name, bits),
            x=x,
            gain=ints(f"{name}.gain", "int16", -32767, 32767, CHANNELS),
            bias=ints(f"{name}.bias", "int32", -(1 << 20), 1 << 20, CHANNELS),
            shift=ints(f"{name}.shift", "uint8", 31 - bits, 33 - bits, CHANNELS),
            eps=77,
            eps_shift=3,
            center=center,
        )

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
        nodes=nodes, tensors=tensors, constants=constants, logits="logits", context=CONTEXT,
        vocabulary=VOCABULARY, bos=1, eos=2,
    )
