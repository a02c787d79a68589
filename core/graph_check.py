"""What a graph must be: every node, tensor and constant against its documentation in `graph.py`."""

import numpy as np
from numpy.typing import NDArray

from systolith import weights
from systolith.graph import (
    MAX_EPS_SHIFT,
    MAX_NORM_CHANNELS,
    MAX_SHIFT,
    POOLS,
    POSITIONS,
    Add,
    ArgMax,
    Attention,
    Concat,
    Embedding,
    Given,
    Graph,
    GraphError,
    Linear,
    Lookup,
    Multiply,
    Norm,
    Rope,
    Slice,
    Tensor,
)


class Check:
    """Raises `GraphError` on the first thing in a graph that its documentation forbids."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.where = "The graph"

    def demand(self, good: bool, message: str) -> None:
        if not good:
            raise GraphError(f"{self.where}: {message}")

    def number(self, name: str, value: object, low: int, high: int) -> None:
        good = type(value) is int and low <= value <= high
        self.demand(good, f"{name} must be an integer from {low} to {high}, not {value!r}")

    def tensor(self, name: str, bits: tuple[int, ...], channels: int | None = None) -> Tensor:
        tensor = self.graph.tensors.get(name)
        self.demand(tensor is not None, f"tensor {name!r} is not described")
        allowed = " or ".join(map(str, bits))
        self.demand(
            tensor.bits in bits, f"tensor {name!r} must have {allowed} bits, not {tensor.bits}"
        )
        self.demand(
            channels in (None, tensor.channels),
            f"tensor {name!r} must have {channels} channels, not {tensor.channels}",
        )
        return tensor

    def constant(self, name: str, dtype: str, *shape: int) -> NDArray:
        value = self.graph.constants.get(name)
        self.demand(value is not None, f"constant {name!r} is missing")
        self.demand(
            value.dtype == np.dtype(dtype),
            f"constant {name!r} must be {dtype}, not {value.dtype}",
        )
        self.demand(
            value.shape == shape,
            f"constant {name!r} must have the shape {list(shape)}, not {list(value.shape)}",
        )
        return value

    def scale(self, node: Linear | Attention, channels: int) -> None:
        self.constant(node.bias, "int32", channels)
        self.constant(node.mult, "uint16", channels)
        self.shifts(node.shift, channels)

    def shifts(self, name: str, channels: int) -> None:
        largest = int(self.constant(name, "uint8", channels).max())
        self.demand(
            largest <= MAX_SHIFT, f"constant {name!r} must be at most {MAX_SHIFT}, not {largest}"
        )

    def run(self) -> None:
        graph = self.graph
        self.number("context", graph.context, 1, 1 << 20)
        for name, tensor in graph.tensors.items():
            self.where = f"Tensor {name!r}"
            self.demand(tensor.name == name, f"its own name is {tensor.name!r}")
            self.number("channels", tensor.channels, 1, 1 << 20)
            self.demand(len(tensor.scale) in (1, tensor.channels), "one scale, or one per channel")
            good = all(type(s) is float and 0 < s < float("inf") for s in tensor.scale)
            self.demand(good, "every scale must be a finite positive number")
        defined: set[str] = set()
        names: set[str] = set()
        for node in graph.nodes:
            kind = type(node).__name__
            self.where = f"{kind} {node.name!r}"
            self.demand(node.name not in names, "another node has the same name")
            self.demand(node.out not in defined, f"tensor {node.out!r} is defined twice")
            for name in node.inputs:
                self.demand(name in defined, f"input {name!r} is not defined by an earlier node")
            getattr(self, kind.lower())(node)
            names.add(node.name)
            defined.add(node.out)
        self.where = "The graph"
        self.demand(bool(graph.outputs), "it has no output")
        for output in graph.outputs:
            name = output.tensor
            self.demand(name in defined, f"no node defines the output {name!r}")
            self.tensor(name, (8, 16))
            allowed = ", ".join(POOLS)
            self.demand(output.pool in POOLS, f"pool must be {allowed}, not {output.pool!r}")
        for field in ("bos", "eos"):
            if getattr(graph, field) is not None:
                self.number(field, getattr(graph, field), 0, graph.vocabulary - 1)
        self.demand(defined == set(graph.tensors), "a tensor is described but never defined")
        used = {name for node in graph.nodes for name in node.constants}
        unused = sorted(set(graph.constants) - used)
        self.demand(not unused, f"constant {unused[0] if unused else None!r} is never read")

    def given(self, node: Given) -> None:
        self.tensor(node.out, (8, 16))

    def embedding(self, node: Embedding) -> None:
        out = self.tensor(node.out, (16,))
        table = self.graph.constants.get(node.table)
        rows = self.graph.context if node.index == POSITIONS or table is None else len(table)
        self.demand(rows > 0, f"constant {node.table!r} is empty")
        self.constant(node.table, "int16", rows, out.channels)

    def linear(self, node: Linear) -> None:
        x, out = self.tensor(node.x, (8, 16)), self.tensor(node.out, (8, 16))
        both = (node.group is None) == (node.group_scale is None)
        self.demand(both, "group and group_scale must be given together")
        if node.group is None:
            weight = self.constant(node.weight, "int8", out.channels, x.channels)
            self.demand(int(weight.min()) >= -127, f"constant {node.weight!r} must not hold -128")
        else:
            self.groups(node, out.channels, x.channels)
        self.scale(node, out.channels)
        if node.table is not None:
            self.constant(node.table, "int16", 256, 2)

    def groups(self, node: Linear, n: int, k: int) -> None:
        allowed = ", ".join(map(str, weights.GROUPS))
        good = type(node.group) is int and node.group in weights.GROUPS
        self.demand(good, f"group must be one of {allowed}, not {node.group!r}")
        packed = self.constant(node.weight, "uint8", *weights.packed_shape(n, k))
        values = weights.unpack(packed, k + k % 2)
        good = int(values.min()) >= -weights.LARGEST_VALUE
        self.demand(good, f"constant {node.weight!r} must not hold a value of -8")
        good = not values[:, k:].any()
        self.demand(good, f"constant {node.weight!r} must be 0 beyond the last channel")
        scale = self.constant(node.group_scale, "uint8", *weights.scale_shape(n, k, node.group))
        for value in (int(scale.min()), int(scale.max())):
            self.demand(
                1 <= value <= weights.LARGEST_SCALE,
                f"constant {node.group_scale!r} must be 1 to {weights.LARGEST_SCALE}, not {value}",
            )

    def norm(self, node: Norm) -> None:
        x = self.tensor(node.x, (16,))
        self.tensor(node.out, (8, 16), x.channels)
        self.number("channels", x.channels, 1, MAX_NORM_CHANNELS)
        self.constant(node.gain, "int16", x.channels)
        self.constant(node.bias, "int32", x.channels)
        self.shifts(node.shift, x.channels)
        self.number("eps", node.eps, 0, (1 << 16) - 1)
        self.number("eps_shift", node.eps_shift, 0, MAX_EPS_SHIFT)
        self.demand(type(node.center) is bool, f"center must be true or false, not {node.center!r}")

    def rope(self, node: Rope) -> None:
        x = self.tensor(node.x, (16,))
        self.tensor(node.out, (8, 16), x.channels)
        self.number("head_dim", node.head_dim, 2, x.channels)
        self.demand(
            node.head_dim % 2 == 0 and x.channels % node.head_dim == 0,
            f"head_dim must be even and divide {x.channels}, not {node.head_dim}",
        )
        for name in (node.cos, node.sin):
            self.constant(name, "int16", self.graph.context, node.head_dim)
        self.number("shift", node.shift, 15, MAX_SHIFT)

    def attention(self, node: Attention) -> None:
        for field in ("heads", "kv_heads", "head_dim"):
            self.number(field, getattr(node, field), 1, 1 << 16)
        self.demand(
            node.heads % node.kv_heads == 0,
            f"kv_heads must divide {node.heads} heads, not {node.kv_heads}",
        )
        channels = node.heads * node.head_dim
        self.tensor(node.q, (8, 16), channels)
        for name in (node.k, node.v):
            self.tensor(name, (8,), node.kv_heads * node.head_dim)
        self.tensor(node.out, (8, 16), channels)
        both = (node.q_low is None) == (node.k_low is None)
        self.demand(both, "q_low and k_low must be given together")
        if node.q_low is not None:
            self.tensor(node.q_low, (8, 16), channels)
            self.tensor(node.k_low, (8,), node.kv_heads * node.head_dim)
        if node.v_low is not None:
            self.tensor(node.v_low, (8,), node.kv_heads * node.head_dim)
            good = node.probability_bits == 16
            self.demand(good, "values with v_low need probabilities of 16 bits")
        self.scale(node, channels)
        good = type(node.causal) is bool
        self.demand(good, f"causal must be true or false, not {node.causal!r}")
        self.number("score_mult", node.score_mult, 0, (1 << 16) - 1)
        self.number("score_shift", node.score_shift, 0, MAX_SHIFT)
        self.demand(
            node.probability_bits in (8, 16),
            f"probability_bits must be 8 or 16, not {node.probability_bits!r}",
        )

    def add(self, node: Add) -> None:
        out = self.tensor(node.out, (8, 16))
        for name in (node.a, node.b):
            self.tensor(name, (8, 16), out.channels)
        self.number("mult_a", node.mult_a, 0, (1 << 16) - 1)
        self.number("mult_b", node.mult_b, 0, (1 << 16) - 1)
        self.number("shift", node.shift, 0, MAX_SHIFT)

    def multiply(self, node: Multiply) -> None:
        out = self.tensor(node.out, (8, 16))
        for name in (node.a, node.b):
            self.tensor(name, (8, 16), out.channels)
        self.number("mult", node.mult, 0, (1 << 16) - 1)
        self.number("shift", node.shift, 0, MAX_SHIFT)

    def lookup(self, node: Lookup) -> None:
        x = self.tensor(node.x, (8, 16))
        self.tensor(node.out, (8, 16), x.channels)
        self.constant(node.table, "int16", 256, 2)
        self.demand(type(node.exact) is bool, f"exact must be true or false, not {node.exact!r}")

    def slice(self, node: Slice) -> None:
        x = self.tensor(node.x, (8, 16))
        self.number("first", node.first, 0, x.channels - 1)
        self.number("count", node.count, 1, x.channels - node.first)
        self.tensor(node.out, (x.bits,), node.count)

    def concat(self, node: Concat) -> None:
        self.demand(bool(node.xs), "it needs at least one input")
        bits = self.tensor(node.xs[0], (8, 16)).bits
        channels = sum(self.tensor(x, (bits,)).channels for x in node.xs)
        self.tensor(node.out, (bits,), channels)

    def argmax(self, node: ArgMax) -> None:
        self.tensor(node.x, (8, 16))
        self.tensor(node.out, (32,), 1)
