"""What `capture` knows about the values of an exported graph.

A value that is not constant says where its elements come from. `Mix` does it by labels: for each
element the number (b * T + t) * C + c of the element of a network's tensor [B, T, C] that it is.
Operations that only move data (view, transpose, chunk, expand, cat ...) are executed on the labels,
whatever they are; nothing about layouts has to be known. What computes is kept as a `Formula`
until somebody asks which known function it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from systolith.errors import UserError
from systolith.quant.network import Source


class CaptureError(UserError):
    """A module that cannot be written as a `Network`, or a batch that does not fit it."""


HERE = str(Path(__file__).parent)
OURS = (f"{HERE}/capture", f"{HERE}/posttraining", f"{HERE}/calling")
TORCH = str(Path(torch.__file__).parent)


def of_user(file: str) -> bool:
    """Whether a source file belongs neither to torch nor to capturing."""
    return not file.startswith((*OURS, TORCH))


@dataclass(frozen=True)
class Place:
    """Where an operation stands: the path of its module, and its source."""

    path: str
    source: Source

    def error(self, text: str) -> CaptureError:
        """A user's error that ends with the place."""
        return CaptureError(f"{text} ({self.source})")


LABEL = torch.int32
"""Of labels, which are most of what a capture holds in memory."""
MOST = 2**31 - 1
"""Elements of a tensor that labels can tell apart."""


def counted(n: int) -> Tensor:
    """The labels 0 .. n - 1."""
    return torch.arange(n, dtype=LABEL)


@dataclass(eq=False)
class Term:
    """``factor * x[labels]``, element by element.

    x: name of a tensor [B, T, channels]; labels: `LABEL` of the value's shape, None where the value
    is all of x in its order, in whatever shape; factor: a number, or a tensor of the value's shape.
    """

    x: str
    labels: Tensor | None
    factor: float | Tensor = 1.0


@dataclass(eq=False)
class Mix:
    """A value whose every element is a sum of terms; more than one term: rotary embeddings."""

    shape: tuple[int, ...]
    terms: list[Term]
    found: "Mix | None" = field(default=None)       # the same elements, each as it is

    @property
    def x(self) -> str:
        return self.terms[0].x

    @property
    def plain(self) -> bool:
        """Whether it is one term with a factor that is a number."""
        return len(self.terms) == 1 and isinstance(self.terms[0].factor, float)

    @property
    def factor(self) -> float | Tensor:
        return self.terms[0].factor

    @property
    def labels(self) -> Tensor:
        return labels_of(self.terms[0], self.shape)

    def same_elements(self, other: "Mix") -> bool:
        """Whether both show the same elements of the same tensor, up to their factors."""
        a, b = self.terms[0], other.terms[0]
        return (len(self.terms) == len(other.terms) == 1 and a.x == b.x
                and self.shape == other.shape and equal_labels(a, b, self.shape))


def labels_of(term: Term, shape: tuple[int, ...]) -> Tensor:
    """The labels of a term, also where it is the whole tensor."""
    if term.labels is None:
        return counted(torch.Size(shape).numel()).view(shape)
    return term.labels


def equal_labels(a: Term, b: Term, shape: tuple[int, ...]) -> bool:
    if a.labels is None and b.labels is None:
        return True
    return torch.equal(labels_of(a, shape), labels_of(b, shape))


@dataclass(eq=False)
class Index:
    """An integer input [B, T]; labels b * T + t."""

    name: str
    labels: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.labels.shape)


@dataclass(eq=False)
class Pooled:
    """``factor`` times the sum over all tokens; ``first`` shows the elements of token 0."""

    first: Mix
    factor: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.first.shape


@dataclass(eq=False)
class Scores:
    """factor * q @ k^T [..., T, T], with what of it is visible, before or after the softmax."""

    shape: tuple[int, ...]
    q: Mix
    k: Mix
    factor: float
    visible: Tensor | None = None
    softmax: bool = False


@dataclass(eq=False)
class Formula:
    """An operator of torch applied to values that all come from one value, the ``base``."""

    base: "Mix | Pooled"
    target: Callable[..., Any]
    args: tuple
    kwargs: Mapping[str, Any]
    shape: tuple[int, ...]
    place: Place
    found: "Mix | None" = field(default=None)

    @property
    def kind(self) -> str:
        return operator_name(self.target)

    def evaluate(self, x: Tensor) -> Tensor:
        """The formula of other elements in place of the base's."""
        return self._evaluate(x, {})

    def _evaluate(self, x: Tensor, known: dict[int, Tensor]) -> Tensor:
        if id(self) not in known:
            def argument(a: Any) -> Any:
                if isinstance(a, Formula):
                    return a._evaluate(x, known)
                if isinstance(a, Mix):
                    return x if a.factor == 1 else x * a.factor
                if isinstance(a, Pooled):
                    return x
                if isinstance(a, Tensor):
                    return a.double()
                return [argument(e) for e in a] if isinstance(a, list | tuple) else a
            known[id(self)] = self.target(
                *(argument(a) for a in self.args),
                **{k: argument(v) for k, v in self.kwargs.items()})
        return known[id(self)]

    def formulas(self) -> list["Formula"]:
        """This one and all that it is made of."""
        found: dict[int, Formula] = {}
        todo = [self]
        while todo:
            formula = todo.pop()
            if id(formula) not in found:
                found[id(formula)] = formula
                todo.extend(a for a in formula.args if isinstance(a, Formula))
        return list(found.values())

    def tables(self) -> bool:
        """Whether the operator has a constant operand that is more than a number."""
        return any(isinstance(a, Tensor) and a.numel() > 1 for a in self.args)

    def numbers(self) -> list[float]:
        """The constants in it."""
        return [float(a) for f in self.formulas() for a in f.args
                if isinstance(a, int | float) or (isinstance(a, Tensor) and a.numel() == 1)]


Value = Mix | Index | Pooled | Scores | Formula


def operator_name(target: Any) -> str:
    """The name of an operator of torch without its name space and overload: "layer_norm"."""
    packet = getattr(target, "overloadpacket", target)
    name = getattr(packet, "__name__", str(packet)).rpartition(".")[2]
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def leaves(arguments: Any) -> list[Any]:
    """Everything in nested lists, tuples and dictionaries."""
    if isinstance(arguments, list | tuple):
        return [leaf for a in arguments for leaf in leaves(a)]
    if isinstance(arguments, dict):
        return [leaf for a in arguments.values() for leaf in leaves(a)]
    return [arguments]


def mapped(arguments: Any, change: Callable[[Any], Any]) -> Any:
    """Nested lists, tuples and dictionaries with every leaf changed."""
    if isinstance(arguments, list | tuple):
        return type(arguments)(mapped(a, change) for a in arguments)
    if isinstance(arguments, dict):
        return {k: mapped(a, change) for k, a in arguments.items()}
    return change(arguments)
