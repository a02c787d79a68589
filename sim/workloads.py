"""Integer graphs of the usual shapes with random weights: what the machine is measured with.

Cycles do not depend on values, so random ones do; scales are chosen so that they fill their range
and seldom saturate.
"""

import math

import numpy as np

from systolith.fixed import Int
from systolith.graph import (
    LOW_BITS,
    TOKENS,
    Add,
    Attention,
    Embedding,
    Given,
    Graph,
    Linear,
    Lookup,
    Multiply,
    Node,
    Norm,
    Output,
    Rope,
    Tensor,
)


class _Maker:
    """Nodes, tensors and constants under construction; ``bits`` of what products are made of."""

    def __init__(self, bits: int, seed: int) -> None:
        self.bits = bits
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Node] = []
        self.tensors: dict[str, Tensor] = {}
        self.constants: dict[str, np.ndarray] = {}
        grid = np.arange(-128, 128)
        high = np.stack([grid, np.zeros(256)], axis=1)
        low = np.stack([np.full(256, -8), np.full(256, 16)], axis=1)
        self.constants["high"] = high.astype(np.int16)
        self.constants["low"] = low.astype(np.int16)
        self.constants["values low"] = np.stack([np.full(256, -128), np.full(256, 256)], 1).astype(
            np.int16
        )

    def tensor(self, name: str, channels: int, bits: int) -> dict[str, str]:
        self.tensors[name] = Tensor(name=name, channels=channels, bits=bits)
        return {"name": name, "out": name}

    def constant(self, name: str, values: np.ndarray, dtype: str) -> str:
        self.constants[name] = values.astype(dtype)
        return name

    def rescale(self, name: str, channels: int, size: float, bits: int) -> dict[str, str]:
        """Parameters that bring numbers of standard deviation ``size`` to a fifth of the range."""
        ratio = (1 << (bits - 1)) / 5 / size
        shift = math.floor(math.log2((1 << 16) / ratio))
        shift = min(max(shift, 0), 62)
        mult = min(int(ratio * 2.0**shift), (1 << 16) - 1)
        return {
            "bias": self.constant(f"{name}.bias", np.zeros(channels), "int32"),
            "mult": self.constant(f"{name}.mult", np.full(channels, mult), "uint16"),
            "shift": self.constant(f"{name}.shift", np.full(channels, shift), "uint8"),
        }

    def linear(self, name: str, x: str, channels: int, bits: int, table: str | None = None) -> str:
        source = self.tensors[x]
        weight = self.rng.integers(-127, 128, (channels, source.channels))
        size = (1 << (source.bits - 1)) / 5 * 73 * math.sqrt(source.channels)
        self.nodes.append(
            Linear(
                **self.tensor(name, channels, bits),
                x=x,
                weight=self.constant(f"{name}.weight", weight, "int8"),
                table=table,
                **self.rescale(name, channels, size, bits),
            )
        )
        return name

    def add(self, name: str, a: str, b: str, bits: int = 16) -> str:
        half = {8: 1 << 15, 16: 1 << 15}
        a_bits, b_bits = self.tensors[a].bits, self.tensors[b].bits
        # Each addend comes to half of its share of 16 bits.
        shift = 16
        mult_a = half[a_bits] if a_bits == 16 else (1 << 16) - 1
        mult_b = half[b_bits] if b_bits == 16 else (1 << 16) - 1
        self.nodes.append(
            Add(
                **self.tensor(name, self.tensors[a].channels, bits),
                a=a, b=b, mult_a=mult_a, mult_b=mult_b, shift=shift,
            )
        )  # fmt: skip
        return name

    def norm(self, name: str, x: str, bits: int, *, center: bool) -> str:
        channels = self.tensors[x].channels
        gain = self.rng.integers(1 << 12, 1 << 14, channels)
        # A normalised value has 14 fraction bits, and the gain 14.
        self.nodes.append(
            Norm(
                **self.tensor(name, channels, bits),
                x=x,
                gain=self.constant(f"{name}.gain", gain, "int16"),
                bias=self.constant(f"{name}.bias", np.zeros(channels), "int32"),
                shift=self.constant(f"{name}.shift", np.full(channels, 30 - bits), "uint8"),
                eps=1,
                eps_shift=0,
                center=center,
            )
        )
        return name

    def lookup(self, name: str, x: str, table: str) -> str:
        self.nodes.append(
            Lookup(**self.tensor(name, self.tensors[x].channels, 8), x=x, table=table, exact=False)
        )
        return name

    def keys(self, name: str, x: str, low: str) -> tuple[str, str | None]:
        """x as keys or values: of 8 bits alone, or with the part that 8 bits lack."""
        if self.tensors[x].bits == 8:
            return x, None
        return self.lookup(f"{name}.high", x, "high"), self.lookup(f"{name}.low", x, low)

    def attention(
        self, name: str, q: str, k: str, v: str, heads: int, kv_heads: int, *, causal: bool
    ) -> str:
        """Attention with keys of 12 bits and values of 16 where these are given with 16 bits."""
        channels = self.tensors[q].channels
        wide = self.tensors[k].bits == 16
        key, key_low = self.keys(f"{name}.key", k, "low")
        value, value_low = self.keys(f"{name}.value", v, "values low")
        q_low = None
        if wide:
            q_low = f"{name}.query.low"
            mult = 1 << 15
            self.nodes.append(
                Add(
                    **self.tensor(q_low, channels, 16), a=q, b=q,
                    mult_a=mult, mult_b=mult, shift=16 + LOW_BITS,
                )
            )  # fmt: skip
        head_dim = channels // heads
        p_bits = 16 if wide else 8
        size = ((1 << p_bits) - 1) * 25 / 4
        q_size = (1 << (self.tensors[q].bits - 1)) / 5
        exponent = 2.0 / (q_size * 25 * math.sqrt(head_dim)) * 2**16
        shift = math.floor(math.log2((1 << 16) / exponent))
        self.nodes.append(
            Attention(
                **self.tensor(name, channels, self.bits),
                q=q, k=key, v=value, q_low=q_low, k_low=key_low, v_low=value_low,
                heads=heads, kv_heads=kv_heads, head_dim=head_dim,
                score_mult=int(exponent * 2.0**shift), score_shift=shift,
                probability_bits=p_bits, causal=causal,
                **self.rescale(name, channels, size, self.bits),
            )
        )  # fmt: skip
        return name

    def graph(self, output: str, context: int) -> Graph:
        read = {name for node in self.nodes for name in node.constants}
        return Graph(
            nodes=tuple(self.nodes),
            tensors=self.tensors,
            constants={name: self.constants[name] for name in read},
            outputs=(Output(tensor=output),),
            context=context,
        )

    def given(self, name: str, channels: int, bits: int) -> str:
        self.nodes.append(Given(**self.tensor(name, channels, bits)))
        return name

    def encoder_layer(self, name: str, x: str, heads: int, hidden: int) -> str:
        """A layer of BERT: attention, addition, LayerNorm; two layers with GELU, the same."""
        channels = self.tensors[x].channels
        q, k, v = (self.linear(f"{name}.{part}", x, channels, self.bits) for part in "qkv")
        context = self.attention(f"{name}.attention", q, k, v, heads, heads, causal=False)
        y = self.linear(f"{name}.out", context, channels, 16)
        y = self.norm(f"{name}.norm", self.add(f"{name}.add", y, x), self.bits, center=True)
        z = self.linear(f"{name}.up", y, hidden, self.bits, "gelu")
        z = self.linear(f"{name}.down", z, channels, 16)
        return self.norm(f"{name}.norm2", self.add(f"{name}.add2", z, y), self.bits, center=True)


def encoder(
    bits: int, *, hidden: int = 384, heads: int = 12, ffn: int = 1536, layers: int = 1,
    context: int = 512, seed: int = 1,
) -> Graph:  # fmt: skip
    """Encoder layers between a given tensor and the output; the defaults are all-MiniLM-L6-v2's.

    ``bits``: 8, everything that enters a product has 8 bits; 16, activations have 16, keys 12.
    """
    make = _Maker(bits, seed)
    make.constant("gelu", _gelu(), "int16")
    x = make.given("x", hidden, bits)
    for index in range(layers):
        x = make.encoder_layer(f"layer {index}", x, heads, ffn)
    return make.graph(x, context)


def attention(
    bits: int, *, hidden: int = 384, heads: int = 12, kv_heads: int | None = None,
    context: int = 4096, causal: bool = False, seed: int = 1,
) -> Graph:  # fmt: skip
    """Attention alone, between given queries, keys and values.

    ``bits``: of the queries and the probabilities; keys and values have 8.
    """
    make = _Maker(bits, seed)
    kv_heads = heads if kv_heads is None else kv_heads
    q = make.given("q", hidden, bits)
    k, v = (make.given(name, hidden // heads * kv_heads, 8) for name in "kv")
    return make.graph(make.attention("attention", q, k, v, heads, kv_heads, causal=causal), context)


def llama(
    bits: int, *, hidden: int = 384, heads: int = 6, kv_heads: int = 6, ffn: int = 1024,
    layers: int = 5, vocabulary: int = 2048, context: int = 256, seed: int = 1,
) -> Graph:  # fmt: skip
    """A Llama; the defaults have 10.4 M parameters."""
    make = _Maker(bits, seed)
    head_dim = hidden // heads
    make.constant("silu", _silu(), "int16")
    angles = np.arange(context)[:, None] / 10000 ** (np.arange(head_dim // 2) * 2 / head_dim)
    cos, sin = (np.round(f(angles) * 32767) for f in (np.cos, np.sin))
    make.constant("cos", np.repeat(cos, 2, axis=1), "int16")
    make.constant("sin", np.stack([-sin, sin], axis=2).reshape(context, head_dim), "int16")
    table = make.rng.normal(0, 6000, (vocabulary, hidden)).clip(-32000, 32000)
    make.constant("table", table, "int16")
    x = "embedding"
    make.nodes.append(Embedding(**make.tensor(x, hidden, 16), table="table", index=TOKENS))
    for index in range(layers):
        x = _llama_layer(make, f"layer {index}", x, heads, kv_heads, ffn)
    x = make.norm("norm", x, bits, center=False)
    make.linear("logits", x, vocabulary, 16)
    return make.graph("logits", context)


def _llama_layer(make: _Maker, name: str, x: str, heads: int, kv_heads: int, ffn: int) -> str:
    hidden = make.tensors[x].channels
    head_dim = hidden // heads
    y = make.norm(f"{name}.norm", x, make.bits, center=False)
    parts: list[str] = []
    for part, count in (("q", heads), ("k", kv_heads)):
        product = make.linear(f"{name}.{part}.product", y, count * head_dim, 16)
        out = make.tensor(f"{name}.{part}", count * head_dim, make.bits)
        make.nodes.append(
            Rope(**out, x=product, cos="cos", sin="sin", head_dim=head_dim, shift=31 - make.bits)
        )
        parts.append(out["out"])
    v = make.linear(f"{name}.v", y, kv_heads * head_dim, make.bits)
    context = make.attention(
        f"{name}.attention", parts[0], parts[1], v, heads, kv_heads, causal=True
    )
    x = make.add(f"{name}.add", make.linear(f"{name}.out", context, hidden, 16), x)
    y = make.norm(f"{name}.norm2", x, make.bits, center=False)
    gate = make.linear(f"{name}.gate", y, ffn, 16, "silu")
    up = make.linear(f"{name}.up", y, ffn, 16)
    out = make.tensor(f"{name}.product", ffn, make.bits)
    make.nodes.append(Multiply(**out, a=gate, b=up, mult=1 << 15, shift=43 - make.bits))
    return make.add(f"{name}.add2", make.linear(f"{name}.down", out["out"], hidden, 16), x)


def _table(function, scale: float) -> np.ndarray:
    """256 segments of a function of int16 / scale."""
    grid = np.arange(-(1 << 15), (1 << 15) + 1, 256)
    values = np.round(function(grid / scale) * scale).clip(-32768, 32767)
    slopes = np.diff(values).clip(-32768, 32767)
    return np.stack([values[:-1], slopes], axis=1)


def _gelu() -> np.ndarray:
    return _table(lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))), 6000.0)


def _silu() -> np.ndarray:
    return _table(lambda x: x / (1 + np.exp(-x)), 6000.0)


def random_inputs(
    graph: Graph, tokens: int, rng: np.random.Generator
) -> tuple[dict[str, Int], dict[str, Int]]:
    """Indices, and given tensors that fill their range, for a sequence of ``tokens``."""
    indices = {name: rng.integers(0, rows, tokens) for name, rows in graph.indices.items()}
    given = {}
    for node in graph.of_kind(Given):
        tensor = graph.tensors[node.out]
        half = 1 << (tensor.bits - 1)
        values = rng.normal(0, half / 5, (tokens, tensor.channels))
        given[node.out] = np.clip(np.round(values), -half, half - 1).astype(np.int64)
    return indices, given
