"""The integer graph: what quantizers write, and what the compiler and the integer forward read.

A `Graph` is an ordered list of nodes over named tensors, with integer constants. Every node is one
or a few calls of `core/golden.py` with every parameter explicit, so its result is defined to the
last bit and does not depend on tiling, fusion, or on how many tokens are processed at once.

A tensor is a matrix of T tokens by `channels` signed integers. T is not part of the graph: a causal
graph processes any block of new tokens that follow what its key/value caches hold, be it a whole
prompt or one token. `start` below is the number of tokens that the caches held before the block. A
graph that is not causal processes whole sequences, and its `start` is 0.

In the formulas, a name of a tensor or constant stands for its value, and `sat` is `fixed.saturate`
to the bits of the node's output tensor. The vector unit computes
``sat(combine(table(scale(acc))))`` in one instruction; since its intermediate values are int16, a
`Linear` with a 16-bit output and the `Add`, `Multiply` or `Rope` that reads it may be fused (as
operand `a`) without a change of any bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from systolith import weights
from systolith.errors import UserError

MAX_SHIFT = 62
"""Largest right shift of a rescale."""
MAX_EPS_SHIFT = 38
"""Largest left shift of a norm's epsilon."""
MAX_NORM_CHANNELS = 4095
"""Most channels that a norm can sum exactly."""
TOKENS = "tokens"
"""Conventional name of the index input of a language model."""
POSITIONS = "positions"
"""Index of an `Embedding` that no input gives: token t of a block has the index ``start + t``."""
POOLS = ("none", "first", "last", "mean")
"""What the host can make of the tokens of an output."""
LOW_BITS = 4
"""Bits by which `Attention.k_low` is finer than `Attention.k`."""


class GraphError(UserError):
    """A graph that is not well formed."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A named tensor between nodes, shape (T, channels).

    ``bits``: 8 or 16, signed; 32 for the indices that `ArgMax` returns. ``scale``: the real value
    of one LSB, one for all channels or one for each. It documents the tensor for reports and for
    reading results; no integer of the graph is computed from it.
    """

    name: str
    channels: int
    bits: int
    scale: tuple[float, ...] = (1.0,)


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operation; ``out`` names the tensor that it defines. Constants are named, too."""

    name: str
    out: str

    INPUTS = ()
    CONSTANTS = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that the node reads."""
        names = (getattr(self, field) for field in self.INPUTS)
        return tuple(name for name in names if name is not None)

    @property
    def constants(self) -> tuple[str, ...]:
        """Names of the constants that the node reads."""
        names = (getattr(self, field) for field in self.CONSTANTS)
        return tuple(name for name in names if name is not None)


Kind = TypeVar("Kind", bound=Node)


@dataclass(frozen=True, kw_only=True)
class Given(Node):
    """A tensor that the caller supplies under its name, as integers of the tensor's bits."""


@dataclass(frozen=True, kw_only=True)
class Embedding(Node):
    """``out[t] = table[index[t]]``.

    ``table``: int16 [rows, channels]. ``index`` names an index input of the graph, 0 to rows - 1,
    or is `POSITIONS`; then the table has a row for each position of the context.
    """

    table: str
    index: str = TOKENS

    CONSTANTS = ("table",)


@dataclass(frozen=True, kw_only=True)
class Linear(Node):
    """``out = sat(lookup(scale(matmul(x, weight.T), bias, mult, shift), table))``.

    N output channels, K input channels. ``weight``: int8 [N, K]; ``bias``: int32 [N]; ``mult``:
    uint16 [N]; ``shift``: uint8 [N], at most 62; ``table``: int16 [256, 2] for `golden.lookup`, or
    None for no lookup. x has 8 or 16 bits, out 8 or 16.

    With ``group`` (32, 64 or 128 input channels) the weights are stored in four bits: ``weight`` is
    uint8 [N, ceil(K / 2)], two values of -7 to 7 in a byte, that of even k in the low half, and
    ``group_scale`` uint8 [N, ceil(K / group)], 1 to 18. The weight of the formula is the int8
    ``value[n, k] * group_scale[n, k // group]``: see `int8_weight`.
    """

    x: str
    weight: str
    bias: str
    mult: str
    shift: str
    table: str | None = None
    group: int | None = None
    group_scale: str | None = None

    INPUTS = ("x",)
    CONSTANTS = ("weight", "bias", "mult", "shift", "table", "group_scale")

    @property
    def weight_bits(self) -> int:
        """Bits in which a weight is stored."""
        return 8 if self.group is None else 4

    @property
    def weight_format(self) -> str:
        """For reports: "int8", or "int4/64" for groups of 64."""
        return "int8" if self.group is None else f"int4/{self.group}"


@dataclass(frozen=True, kw_only=True)
class Norm(Node):
    """``out = norm(x, gain, bias, shift, eps << eps_shift, center=center, bits=bits of out)``.

    N channels, at most 4095. ``gain``: int16 [N]; ``bias``: int32 [N]; ``shift``: uint8 [N], at
    most 62. ``eps`` is below 2**16, ``eps_shift`` at most 38. ``center``: LayerNorm, else RMSNorm.
    x has 16 bits, out 8 or 16.
    """

    x: str
    gain: str
    bias: str
    shift: str
    eps: int
    eps_shift: int
    center: bool

    INPUTS = ("x",)
    CONSTANTS = ("gain", "bias", "shift")


@dataclass(frozen=True, kw_only=True)
class Rope(Node):
    """Rotates adjacent pairs of every head: ``out = rope(x, cos[p], sin[p], shift)``.

    Token t of the block has the position ``p = start + t``. ``cos``, ``sin``: Q1.15, int16
    [context, head_dim]; the same row serves all heads, channel c uses column c % head_dim. The sign
    of the rotation is in ``sin``: column 2i holds -sin, column 2i + 1 holds +sin. ``shift`` is at
    least 15; what is beyond 15 drops fraction bits, so that a 16-bit x of scale s / 256 becomes an
    8-bit out of scale s with shift 23. x has 16 bits, out 8 or 16.
    """

    x: str
    cos: str
    sin: str
    head_dim: int
    shift: int

    INPUTS = ("x",)
    CONSTANTS = ("cos", "sin")


@dataclass(frozen=True, kw_only=True)
class Attention(Node):
    """Attention over the node's own key and value caches; ``causal``: no token sees later ones.

    q: 8 or 16 bits, ``heads * head_dim`` channels (head h at ``h * head_dim``). k, v: 8 bits,
    ``kv_heads * head_dim`` channels; key head ``g = h // (heads // kv_heads)`` serves head h. First
    the T new rows of k and v go to rows ``start .. start + T - 1`` of the caches, int8
    [context, kv_heads * head_dim]. Then, for each head::

        scores      = matmul(q[:, head h], key_cache[: start + T, head g].T)        int32 (T, S)
        p[t]        = softmax(scores, score_mult, score_shift, limit, probability_bits)
                      with limit = start + t + 1 for token t of the block, T if not causal
        acc         = matmul(p, value_cache[: start + T, head g])                    int32 (T, P)
        out[head h] = sat(scale(acc, bias, mult, shift))    with the parameters of head h's channels

    ``bias``: int32, ``mult``: uint16, ``shift``: uint8 (at most 62), each [heads * head_dim]. p is
    unsigned with ``probability_bits`` 8 or 16. out has 8 or 16 bits.

    With ``q_low`` and ``k_low``, keys have `LOW_BITS` more bits: ``k_low``, 8 bits and a cache of
    its own, is what k lacks, its LSB that many bits finer, and ``q_low``, 8 or 16 bits, is q
    shifted right by as many, so that both products have one scale::

        scores      = matmul(q, k.T) + matmul(q_low, k_low.T)

    With ``v_low``, values have 16 bits: ``v_low``, 8 bits and a cache of its own, is what v lacks,
    its LSB 256 times as fine, and meets the upper bytes of p, which must have 16 bits::

        acc         = matmul(p, v) + matmul(p >> 8, v_low)
    """

    q: str
    k: str
    v: str
    bias: str
    mult: str
    shift: str
    heads: int
    kv_heads: int
    head_dim: int
    score_mult: int
    score_shift: int
    probability_bits: int
    causal: bool = True
    q_low: str | None = None
    k_low: str | None = None
    v_low: str | None = None

    INPUTS = ("q", "k", "v", "q_low", "k_low", "v_low")
    CONSTANTS = ("bias", "mult", "shift")

    @property
    def group(self) -> int:
        """Query heads that share one key and value head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True, kw_only=True)
class Add(Node):
    """``out = add(a, b, mult_a, mult_b, shift, bits of out)``; mantissas are below 2**16."""

    a: str
    b: str
    mult_a: int
    mult_b: int
    shift: int

    INPUTS = ("a", "b")


@dataclass(frozen=True, kw_only=True)
class Multiply(Node):
    """``out = multiply(a, b, mult, shift, bits of out)``, element by element."""

    a: str
    b: str
    mult: int
    shift: int

    INPUTS = ("a", "b")


@dataclass(frozen=True, kw_only=True)
class Lookup(Node):
    """``out = sat(lookup(x, table))``, or `lookup8` where ``exact``; ``table``: int16 [256, 2]."""

    x: str
    table: str
    exact: bool

    INPUTS = ("x",)
    CONSTANTS = ("table",)


@dataclass(frozen=True, kw_only=True)
class Slice(Node):
    """Channels ``first .. first + count - 1`` of x; out has the bits of x."""

    x: str
    first: int
    count: int

    INPUTS = ("x",)


@dataclass(frozen=True, kw_only=True)
class Concat(Node):
    """The channels of several tensors of the same bits, one after the other."""

    xs: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.xs


@dataclass(frozen=True, kw_only=True)
class ArgMax(Node):
    """``out[t] = argmax(x[t])``, one channel of 32 bits: the next token, if x holds the logits."""

    x: str

    INPUTS = ("x",)


KINDS: dict[str, type[Node]] = {
    kind.__name__: kind
    for kind in (
        Given,
        Embedding,
        Linear,
        Norm,
        Rope,
        Attention,
        Add,
        Multiply,
        Lookup,
        Slice,
        Concat,
        ArgMax,
    )
}
"""Every kind of node by its name."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """A result: a tensor, then what the host does with its real values.

    ``pool``: "none" keeps all tokens (T, channels); "first", "last" and "mean" leave (channels,).
    ``normalize``: divided by its L2 norm.
    """

    tensor: str
    pool: str = "none"
    normalize: bool = False


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Nodes in an order in which they can be executed; validated on construction.

    ``tensors`` maps every name that a node defines to its `Tensor`, ``constants`` every name that
    a node reads to an array of the documented type. ``context``: rows of the caches, the longest
    sequence; ``bos``, ``eos``: tokens that begin and end a text, None where there are none.
    """

    nodes: tuple[Node, ...]
    tensors: dict[str, Tensor]
    constants: dict[str, NDArray]
    outputs: tuple[Output, ...]
    context: int
    bos: int | None = None
    eos: int | None = None

    def __post_init__(self) -> None:
        from systolith.graph_check import Check  # it needs every kind of node

        Check(self).run()

    @property
    def logits(self) -> str:
        """The tensor of the first output: in a language model the scores of the next token."""
        return self.outputs[0].tensor

    @property
    def indices(self) -> dict[str, int]:
        """The index inputs, in the order of their first use, and how many values each can have."""
        rows: dict[str, int] = {}
        for node in self.of_kind(Embedding):
            if node.index != POSITIONS:
                count = len(self.constants[node.table])
                rows[node.index] = min(rows.get(node.index, count), count)
        return rows

    @property
    def vocabulary(self) -> int:
        """How many different tokens there are; 0 for a graph that reads none."""
        return self.indices.get(TOKENS, 0)

    @property
    def causal(self) -> bool:
        """Whether no token depends on later ones, so that a sequence may come in blocks."""
        return all(node.causal for node in self.of_kind(Attention))

    @property
    def generative(self) -> bool:
        """Whether it is a language model: causal, tokens in, a score for each of them out."""
        return (
            self.causal
            and list(self.indices) == [TOKENS]
            and self.outputs == (Output(tensor=self.logits),)
            and self.tensors[self.logits].channels == self.vocabulary
        )

    def of_kind(self, kind: type[Kind]) -> Iterator[Kind]:
        """The nodes of one kind, in order."""
        return (node for node in self.nodes if isinstance(node, kind))

    def producer(self, tensor: str) -> Node:
        """The node that defines a tensor."""
        return next(node for node in self.nodes if node.out == tensor)

    def consumers(self, tensor: str) -> list[Node]:
        """The nodes that read a tensor, in order."""
        return [node for node in self.nodes if tensor in node.inputs]

    def bytes(self) -> int:
        """Bytes of all constants."""
        return sum(value.nbytes for value in self.constants.values())

    def weight_formats(self) -> dict[str, str]:
        """`Linear.weight_format` of the tensors that linear nodes define, by their names."""
        return {node.out: node.weight_format for node in self.of_kind(Linear)}

    def weight_bytes(self) -> int:
        """Bytes of the stored weights of linear nodes, with the scales of their groups."""
        names = {n for node in self.of_kind(Linear) for n in (node.weight, node.group_scale)}
        return sum(self.constants[name].nbytes for name in names if name is not None)


def int8_weight(graph: Graph, node: Linear) -> NDArray[np.int8]:
    """The weights that a linear node multiplies with, int8 [N, K], however they are stored."""
    stored = graph.constants[node.weight]
    if node.group is None or node.group_scale is None:
        return stored
    values = weights.unpack(stored, graph.tensors[node.x].channels)
    return weights.expand(values, graph.constants[node.group_scale], node.group)
