"""The float network: what every front end produces and the quantizer reads.

A `Network` is an ordered list of operations over named tensors, each [B, T, channels] float32 (B
sequences of T tokens). It has the integer graph's vocabulary of operations (see `graph.py`), but
real numbers: a front end (`capture`) recognises what a model computes and writes it down here, with
the module path and the source line that each operation came from; calibration executes it;
transformations (smoothing, permuted rows) replace its weights; `posttraining` turns it into
integers. An operation and the tensor that it defines have the same name.

Padding is no part of a network: each sequence is computed as if it were alone. `run` takes the
length of each sequence of a padded batch and keeps attention from looking at the padding.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from systolith.errors import UserError

TOKENS = "tokens"
"""Conventional name of the index input of a language model."""
POSITIONS = "positions"
"""Index of an `Embed` that no input gives: token t of a sequence has the index t."""


class NetworkError(UserError):
    """A network that is not well formed, or an input that it cannot process."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where an operation stands in the user's program, for messages and reports."""

    module: str = ""
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.file else ""
        return ", ".join(part for part in (self.module, where) if part) or "unknown place"


@dataclass(frozen=True, kw_only=True, eq=False)
class Op:
    """One operation; ``name`` is also the name of the tensor [B, T, channels] that it defines."""

    name: str
    source: Source = Source()

    INPUTS = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that the operation reads."""
        return tuple(getattr(self, field) for field in self.INPUTS)


Kind = TypeVar("Kind", bound=Op)
Reader = Callable[[Op, str, Tensor], Tensor]
"""What an operation gets for its input of a name: see `Network.run`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Given(Op):
    """A float tensor [B, T, channels] that the caller supplies under the operation's name."""

    channels: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Embed(Op):
    """``table[index]``; table [V, C]; ``index``: name of an index input, or `POSITIONS`."""

    table: Tensor
    index: str = TOKENS


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear(Op):
    """``x @ weight.T + bias``; weight [N, K], bias [N] or None."""

    x: str
    weight: Tensor
    bias: Tensor | None = None

    INPUTS = ("x",)


@dataclass(frozen=True, kw_only=True, eq=False)
class Function(Op):
    """A scalar function of every element, by its name in `FUNCTIONS`, less ``offset``."""

    x: str
    function: str
    offset: float = 0.0

    INPUTS = ("x",)


@dataclass(frozen=True, kw_only=True, eq=False)
class Norm(Op):
    """LayerNorm (``center``) or RMSNorm over the channels; gain [C], bias [C] or None."""

    x: str
    gain: Tensor
    bias: Tensor | None = None
    eps: float
    center: bool

    INPUTS = ("x",)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rope(Op):
    """Rotates the pairs of every head of x by the angle of the token's position.

    cos, sin: [context, head_dim / 2]; ``pairs``: "adjacent" (2i, 2i + 1) or "halves" (i,
    i + head_dim / 2): (a, b) becomes (a cos - b sin, a sin + b cos).
    """

    x: str
    cos: Tensor
    sin: Tensor
    head_dim: int
    pairs: str

    INPUTS = ("x",)


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention(Op):
    """softmax(scale * q @ k.T) @ v for each head; head h reads key head h // (heads / kv_heads).

    q: heads * head_dim channels; k, v: kv_heads * head_dim. ``causal``: token t sees tokens 0..t.
    """

    q: str
    k: str
    v: str
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    causal: bool

    INPUTS = ("q", "k", "v")


@dataclass(frozen=True, kw_only=True, eq=False)
class Add(Op):
    """``a + b``."""

    a: str
    b: str

    INPUTS = ("a", "b")


@dataclass(frozen=True, kw_only=True, eq=False)
class Multiply(Op):
    """``a * b``, element by element."""

    a: str
    b: str

    INPUTS = ("a", "b")


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale(Op):
    """``x * factor`` with one positive factor; costs nothing in integers."""

    x: str
    factor: float

    INPUTS = ("x",)


@dataclass(frozen=True, kw_only=True, eq=False)
class Slice(Op):
    """Channels ``first .. first + count - 1`` of x."""

    x: str
    first: int
    count: int

    INPUTS = ("x",)


@dataclass(frozen=True, kw_only=True, eq=False)
class Concat(Op):
    """The channels of several tensors, one after the other."""

    xs: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.xs


@dataclass(frozen=True, kw_only=True)
class Output:
    """A result: tensor ``x``, then what the host does with it.

    ``pool``: "none" keeps all tokens [B, T, C]; "first", "last" (of the sequence's length) and
    "mean" leave [B, C]. ``normalize``: divided by its L2 norm over the channels.
    """

    x: str
    pool: str = "none"
    normalize: bool = False


@dataclass(frozen=True)
class ScalarFunction:
    """The same function for torch tensors and for float64 arrays."""

    torch: Callable[[Tensor], Tensor]
    numpy: Callable[[NDArray[np.float64]], NDArray[np.float64]]


def _numpy(function: Callable[[Tensor], Tensor]) -> ScalarFunction:
    def in_float64(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return function(torch.from_numpy(np.asarray(x, dtype=np.float64))).numpy()
    return ScalarFunction(function, in_float64)


FUNCTIONS: dict[str, ScalarFunction] = {
    "relu": _numpy(F.relu),
    "gelu": _numpy(F.gelu),
    "gelu_tanh": _numpy(lambda x: F.gelu(x, approximate="tanh")),
    "silu": _numpy(F.silu),
    "sigmoid": _numpy(torch.sigmoid),
    "tanh": _numpy(torch.tanh),
}
"""Scalar functions by name. On the machine each is a table: adding one here is all it takes."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """Operations in an order in which they can be executed; validated on construction.

    ``context``: longest sequence, in tokens. ``arguments``: for each input of the network the name
    that the user's module has for it, where that is another one.
    """

    ops: tuple[Op, ...]
    outputs: tuple[Output, ...]
    context: int
    arguments: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        defined: set[str] = set()
        for op in self.ops:
            for name in op.inputs:
                if name not in defined:
                    raise NetworkError(f"{op.name}: its input {name!r} is not defined before it")
            if op.name in defined:
                raise NetworkError(f"{op.name!r} is defined twice")
            defined.add(op.name)
        for output in self.outputs:
            if output.x not in defined:
                raise NetworkError(f"no operation defines the output {output.x!r}")
        if not self.outputs:
            raise NetworkError("A network needs at least one output")

    @property
    def indices(self) -> tuple[str, ...]:
        """Names of the index inputs, in the order of their first use."""
        names = (op.index for op in self.ops if isinstance(op, Embed) and op.index != POSITIONS)
        return tuple(dict.fromkeys(names))

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the float inputs."""
        return tuple(op.name for op in self.ops if isinstance(op, Given))

    @property
    def vocabulary(self) -> int:
        """Rows of the `TOKENS` embedding; 0 without one."""
        return next((len(op.table) for op in self.ops
                     if isinstance(op, Embed) and op.index == TOKENS), 0)

    @property
    def generative(self) -> bool:
        """Whether it is a language model: causal, tokens in, their scores out."""
        attention = list(self.of_kind(Attention))
        single = len(self.outputs) == 1 and self.outputs[0] == Output(x=self.outputs[0].x)
        return (self.vocabulary > 0 and single and all(a.causal for a in attention)
                and self.channels()[self.outputs[0].x] == self.vocabulary)

    def of_kind(self, kind: type[Kind]) -> Iterator[Kind]:
        """The operations of one kind, in order."""
        return (op for op in self.ops if isinstance(op, kind))

    def op(self, name: str) -> Op:
        """The operation of a name."""
        return next(op for op in self.ops if op.name == name)

    def consumers(self, name: str) -> list[Op]:
        """The operations that read a tensor, in order."""
        return [op for op in self.ops if name in op.inputs]

    def with_ops(self, changed: Mapping[str, Op]) -> "Network":
        """A copy with some operations replaced, by name."""
        return replace(self, ops=tuple(changed.get(op.name, op) for op in self.ops))

    def channels(self) -> dict[str, int]:
        """The number of channels of every tensor."""
        count: dict[str, int] = {}
        for op in self.ops:
            match op:
                case Given():
                    count[op.name] = op.channels
                case Embed():
                    count[op.name] = op.table.shape[1]
                case Linear():
                    count[op.name] = op.weight.shape[0]
                case Slice():
                    count[op.name] = op.count
                case Concat():
                    count[op.name] = sum(count[x] for x in op.xs)
                case _:
                    count[op.name] = count[op.inputs[0]]
        return count

    @torch.no_grad()
    def run(
        self, inputs: Mapping[str, Tensor], lengths: Tensor | None = None,
        read: Reader | None = None,
    ) -> dict[str, Tensor]:
        """Every tensor by name, each [B, T, channels].

        ``inputs``: int64 [B, T] for index inputs, float [B, T, C] for given ones. ``lengths``:
        int64 [B], tokens of each sequence, the rest is padding on the right, whose results mean
        nothing; None where all have T. ``read(op, name, x)``: what an operation gets for its input
        x of that name, to try roundings; None for x itself. Attention reads its probabilities,
        too, under the name that `probabilities` gives them.
        """
        values: dict[str, Tensor] = {}
        for op in self.ops:
            seen = values
            if read is not None:
                seen = values | {name: read(op, name, values[name]) for name in op.inputs}
            values[op.name] = self._execute(op, seen, inputs, lengths, read)
        return values

    def results(
        self, values: Mapping[str, Tensor], lengths: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The outputs, from what `run` returned: [B, T, C], or [B, C] where pooled."""
        return tuple(pooled(values[o.x], o, lengths) for o in self.outputs)

    def _execute(self, op: Op, values: Mapping[str, Tensor], inputs: Mapping[str, Tensor],
                 lengths: Tensor | None, read: Reader | None) -> Tensor:
        match op:
            case Given():
                return inputs[op.name].float()
            case Embed(index="positions"):
                first = next(iter(inputs.values()))
                return op.table[:first.shape[1]].expand(len(first), -1, -1)
            case Embed():
                return F.embedding(inputs[op.index], op.table)
            case Linear():
                return F.linear(values[op.x], op.weight, op.bias)
            case Function():
                return FUNCTIONS[op.function].torch(values[op.x]) - op.offset
            case Norm(center=True):
                x = values[op.x]
                return F.layer_norm(x, x.shape[-1:], op.gain, op.bias, op.eps)
            case Norm():
                x = values[op.x]
                y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + op.eps) * op.gain
                return y if op.bias is None else y + op.bias
            case Rope():
                return rotated(op, values[op.x])
            case Attention():
                return attention(op, values[op.q], values[op.k], values[op.v], lengths, read)
            case Add():
                return values[op.a] + values[op.b]
            case Multiply():
                return values[op.a] * values[op.b]
            case Scale():
                return values[op.x] * op.factor
            case Slice():
                return values[op.x][..., op.first:op.first + op.count]
            case Concat():
                return torch.cat([values[x] for x in op.xs], dim=-1)
        raise TypeError(f"No execution of {type(op).__name__}")


def rotated(op: Rope, x: Tensor, start: int = 0) -> Tensor:
    """x [B, T, C] rotated; its first token has the position ``start``."""
    heads = x.unflatten(-1, (-1, op.head_dim))                               # [B, T, H, P]
    cos, sin = (t[start:start + x.shape[1], None] for t in (op.cos, op.sin))  # [T, 1, P / 2]
    if op.pairs == "adjacent":
        a, b = heads[..., 0::2], heads[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-3)
    a, b = heads.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)


def probabilities(op: Attention) -> str:
    """The name of attention's probabilities, which are no tensor of the network."""
    return f"{op.name}.probabilities"


def attention(op: Attention, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None,
              read: Reader | None = None) -> Tensor:
    """q [B, T, H * P], k and v [B, T, G * P] to [B, T, H * P]."""
    length = q.shape[1]
    q, k, v = (x.unflatten(-1, (-1, op.head_dim)).transpose(1, 2) for x in (q, k, v))
    mask = torch.ones(length, length, dtype=torch.bool)
    mask = (mask.tril() if op.causal else mask)[None]                        # [1, T, S]
    if lengths is not None:
        # Column 0 stays, so that no row of the padding is empty.
        mask = mask & (torch.arange(length) < lengths[:, None].clamp(min=1))[:, None]
    if read is None:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None], scale=op.scale,
                                             enable_gqa=op.heads != op.kv_heads)  # [B, H, T, P]
    else:
        k, v = (x.repeat_interleave(op.heads // op.kv_heads, dim=1) for x in (k, v))
        scores = (q @ k.transpose(2, 3)) * op.scale                              # [B, H, T, S]
        p = scores.masked_fill(~mask[:, None], -torch.inf).softmax(dim=-1)
        out = read(op, probabilities(op), p) @ v
    return out.transpose(1, 2).flatten(-2)


def pooled(x: Tensor, output: Output, lengths: Tensor | None) -> Tensor:
    """What the host does with an output's tensor [B, T, C]."""
    if lengths is None:
        lengths = torch.full((len(x),), x.shape[1])
    match output.pool:
        case "none":
            pass
        case "first":
            x = x[:, 0]
        case "last":
            x = x[torch.arange(len(x)), lengths - 1]
        case "mean":
            inside = (torch.arange(x.shape[1]) < lengths[:, None])[..., None]
            x = (x * inside).sum(dim=1) / lengths[:, None]
        case other:
            raise NetworkError(f"pool must be none, first, last or mean, not {other!r}")
    return F.normalize(x, dim=-1) if output.normalize else x
