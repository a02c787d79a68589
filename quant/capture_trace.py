"""Interprets an exported graph with abstract values, operation by operation."""

import operator
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from systolith.quant.capture_attention import (
    AttentionRules,
    options,
    rearranged,
    scores_reshaped,
    uniform,
)
from systolith.quant.capture_builder import Builder
from systolith.quant.capture_labels import expanded
from systolith.quant.capture_recognize import REDUCING, SCALAR
from systolith.quant.capture_values import (
    Formula,
    Index,
    Mix,
    Place,
    Pooled,
    Scores,
    Term,
    Value,
    counted,
    leaves,
    mapped,
    of_user,
    operator_name,
)
from systolith.quant.network import Embed, Source

SAME = frozenset(("alias", "clone", "contiguous", "to", "_to_copy", "detach", "type_as", "float",
                  "lift_fresh_copy", "dropout", "feature_dropout", "native_dropout"))
"""Operators that change no element (dropout when it is not active)."""
MOVES = frozenset((
    "view", "reshape", "_unsafe_view", "transpose", "t", "permute", "unsqueeze", "squeeze",
    "expand", "expand_as", "flatten", "unflatten", "slice", "select", "split", "split_with_sizes",
    "chunk", "unbind", "index", "index_select", "repeat", "repeat_interleave", "narrow", "flip",
    "roll", "movedim", "swapaxes", "swapdims", "cat", "concat", "stack", "view_as", "reshape_as",
    "tensor_split", "numpy_T", "mT", "unfold", "tile", "broadcast_to", "adjoint", "getitem",
))  # fmt: skip
"""Operators that only move elements."""
IN_ORDER = frozenset(("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze",
                      "unsqueeze"))
"""Those of them that keep all elements in their order."""
RANDOM = frozenset(("rand", "randn", "rand_like", "randn_like", "bernoulli", "randint",
                    "multinomial", "normal"))
SKIPPED = frozenset(("_assert_tensor_metadata", "_assert_async", "_assert_scalar",
                     "_set_grad_enabled", "sym_constrain_range_for_size"))


class Tracer(AttentionRules):
    """Runs the nodes of a graph; its values are constants (tensors) and abstract ones."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder

    def run(self, graph: fx.GraphModule, inputs: Iterable[Any]) -> tuple[Any, ...]:
        """The results of a graph for the values of its placeholders."""
        known: dict[fx.Node, Any] = {}
        given = iter(inputs)
        last = {used: node for node in graph.graph.nodes for used in node.all_input_nodes}
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                known[node] = next(given)
            elif node.op == "get_attr":
                known[node] = operator.attrgetter(node.target)(graph)
            elif node.op == "output":
                return tuple(leaves(fx.node.map_arg(node.args[0], known.__getitem__)))
            else:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
                place = self.place(node)
                known[node] = self.call(node, args, dict(kwargs), place)
                if is_in_place(node.target):
                    known[node.args[0]] = known[node]
                for used in node.all_input_nodes:
                    if last[used] is node:
                        del known[used]
        raise AssertionError("a graph without an output")

    def place(self, node: fx.Node) -> Place:
        """Module and line of user code that a node comes from."""
        stack = node.meta.get("nn_module_stack") or {}
        path = list(stack.values())[-1][0] if stack else ""
        path = "" if path == "module" else path.removeprefix("module.")
        file, line = user_line(node.meta.get("stack_trace") or "")
        return Place(path, Source(module=path, file=file, line=line))

    # One operation

    def call(self, node: fx.Node, args: tuple, kwargs: dict[str, Any], place: Place) -> Any:
        name = operator_name(node.target)
        if name in SKIPPED:
            return None
        if name in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
            at = next(i for i, a in enumerate(args) if isinstance(a, fx.GraphModule))
            return self.run(args[at], args[at + 1:])
        if node.target is operator.getitem and isinstance(args[0], list | tuple):
            return args[0][args[1]]
        if name in RANDOM or (name.endswith("dropout") and args[2] and args[1]):
            raise place.error(f"{name} makes the results random")
        if not any(isinstance(a, Value) for a in leaves((args, kwargs))):
            if isinstance(node.target, torch._ops.OpOverload) and is_in_place(node.target):
                args = (args[0].clone(), *args[1:])
            return node.target(*args, **kwargs)
        shape = shape_of(node)
        if shape is UNKNOWN:
            raise place.error(f"The shape of {name}'s result depends on the values of tensors")
        if name in SAME:
            return args[0]
        special = getattr(self, f"_{name}", None)
        if special is not None:
            done = special(args, kwargs, shape, place, node)
            if done is not None:
                return done
        if name in MOVES:
            return self._move(name, args, kwargs, shape, place, node)
        if name in SCALAR or name in REDUCING:
            return self._formula(node.target, args, kwargs, shape, place)
        raise place.error(f"The operator {name} is not supported")

    # Moving elements

    def _move(self, name: str, args: tuple, kwargs: dict[str, Any], shape: Any, place: Place,
              node: fx.Node) -> Any:
        if name in ("cat", "concat"):  # an empty cache of keys is joined to the keys
            args = ([a for a in args[0] if isinstance(a, Value) or a.numel()], *args[1:])
        values = [a for a in leaves((args, kwargs)) if isinstance(a, Value)]
        first = values[0]
        if name in ("expand_as", "view_as", "reshape_as"):
            first = args[0]
            if not isinstance(first, Value):
                return first.expand(shape) if name == "expand_as" else first.reshape(shape)
            args, values = (args[0], list(shape)), [first]
            name = "expand" if name == "expand_as" else "reshape"
            node_target: Any = torch.ops.aten.expand.default
        else:
            node_target = node.target
        if name in ("view", "reshape", "_unsafe_view"):
            args, kwargs, node_target = (args[0], shape), {}, torch.reshape
        if len(values) == 1 and isinstance(shape, tuple) and shape == first.shape and name in (
                "slice", "reshape", "view", "expand", "squeeze", "unsqueeze", "flatten",
                "_unsafe_view"):
            return first
        if isinstance(first, Scores):
            # Only leading dimensions may change: queries and keys follow.
            if len(values) > 1 or not isinstance(shape, tuple) or shape[-2:] != first.shape[-2:]:
                raise place.error("Attention scores may not be rearranged")
            return scores_reshaped(first, shape)
        if isinstance(first, Formula) and len(values) == 1:
            partial = first.shape != first.base.shape
            if partial:
                return self._formula(node_target, args, kwargs, shape, place)
        if isinstance(first, Pooled):
            moved = self._move(name, mapped(args, lambda a: a.first if isinstance(a, Pooled)
                                            else a), kwargs, shape, place, node)
            return Pooled(moved, first.factor)
        if isinstance(first, Index):
            return Index(first.name, node_target(*mapped(args, lambda a: a.labels if isinstance(
                a, Index) else a), **kwargs))
        if any(isinstance(a, Tensor) for a in leaves(args)) and name in ("cat", "stack", "concat"):
            raise place.error("A constant is joined to the tokens; no operation describes that")
        builder = self.builder
        args = mapped(args, lambda a: builder.tensor(a, place) if isinstance(a, Value) and
                      not isinstance(a, Mix) else a)
        mixes = [a for a in leaves(args) if isinstance(a, Mix)]
        if len({t.x for m in mixes for t in m.terms}) > 1:
            dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
            if name in ("cat", "concat") and dim in (-1, len(shape) - 1):
                return builder.concat(args[0], place)
            raise place.error(f"The operator {name} joins different tensors other than by their "
                              "channels")
        if name in IN_ORDER and mixes[0].plain and mixes[0].terms[0].labels is None:
            return Mix(shape, mixes[0].terms)
        return rearranged(node_target, args, kwargs, mixes)

    # Sums and products

    def _formula(self, target: Any, args: tuple, kwargs: dict[str, Any], shape: Any,
                 place: Place) -> Any:
        """An operator that is recognized later, together with what is around it."""
        values = [a for a in leaves((args, kwargs)) if isinstance(a, Value)]
        bases = [a.base if isinstance(a, Formula) else a for a in values]
        base = bases[0]
        simple = all(isinstance(b, Pooled) or (isinstance(b, Mix) and b.plain) for b in bases)
        if isinstance(base, Mix) and not simple:
            changed = {id(v): self.builder.tensor(v, place) for v in values
                       if not (isinstance(v, Mix) and v.plain)}
            args, kwargs = mapped((args, kwargs), lambda a: changed.get(id(a), a))
            return self._formula(target, args, kwargs, shape, place)
        if not simple or not all(same_base(base, b) for b in bases):
            raise place.error(f"The operator {operator_name(target)} is not supported for these "
                              "operands")
        if isinstance(base, Mix) and base.factor != 1:
            base = Mix(base.shape, [Term(base.x, base.terms[0].labels)])
        return Formula(base, target, args, kwargs, shape, place)

    def _binary(self, kind: str, args: tuple, kwargs: dict[str, Any], shape: Any, place: Place,
                node: fx.Node) -> Any:
        a, b = args[:2]
        alpha = kwargs.get("alpha", 1)
        constant = b if not isinstance(b, Value) else a if not isinstance(a, Value) else None
        value = a if isinstance(a, Value) else b
        scores = isinstance(a, Scores) or isinstance(b, Scores)
        if scores:
            if kind == "sub" and isinstance(b, Tensor):
                kind, constant = "add", -b
            return self._scores(kind, value, constant, place)
        if constant is None:
            return self._of_two(kind, a, b, alpha, args, kwargs, shape, place, node)
        number = uniform(constant)
        if isinstance(value, Pooled) and kind in ("mul", "div") and number is not None:
            factor = number if kind == "mul" else 1 / number
            return Pooled(value.first, value.factor * factor)
        if kind == "div" and value is b:
            return None
        if kind in ("mul", "div"):
            whole = isinstance(constant, Tensor) and constant.dim() > 0
            if isinstance(value, Formula) and not (whole and self.builder.known(value)):
                return None
            if isinstance(value, Formula | Pooled):
                value = self.builder.tensor(value, place)
            if not isinstance(value, Mix):
                return None
            value = expanded(value, shape)
            by = constant.detach().float().expand(shape) if number is None else number
            by = 1 / by if kind == "div" else by
            return Mix(shape, [Term(t.x, t.labels, t.factor * by) for t in value.terms])
        if not isinstance(constant, Tensor) or constant.dim() == 0:
            return value if number == 0 and value is a else None
        if kind == "sub" and value is b:
            value = self._binary("mul", (b, -1.0), {}, shape, place, node)
        sign = -1 if kind == "sub" and value is a else 1
        if isinstance(value, Scores | Index | Pooled):
            return None
        return self.builder.add_constant(value, constant * (sign * (alpha if value is a else 1)),
                                         place)

    def _of_two(self, kind: str, a: Any, b: Any, alpha: float, args: tuple,
                kwargs: dict[str, Any], shape: Any, place: Place, node: fx.Node) -> Any:
        """A binary operator of two values that are not constant."""
        bases = [v.base if isinstance(v, Formula) else v for v in (a, b)]
        if all(isinstance(v, Mix) for v in (a, b)) and kind in ("add", "sub"):
            turned = (not a.plain or not b.plain) and a.x == b.x and a.shape == b.shape
            if turned and len(a.terms) == len(b.terms) == 1:
                sign = -alpha if kind == "sub" else alpha
                other = b.terms[0]
                return Mix(shape, [a.terms[0], Term(other.x, other.labels, other.factor * sign)])
        plain = all(isinstance(v, Pooled) or (isinstance(v, Mix) and v.plain) for v in bases)
        if plain and same_base(*bases):
            return self._formula(node.target, args, kwargs, shape, place)
        if kind == "div":
            raise place.error("A quotient of two tensors has no operation on the machine")
        return self.builder.combined(kind, a, b, place, alpha)

    def _add(self, args: tuple, kwargs: dict, shape: Any, place: Place, node: fx.Node) -> Any:
        return self._binary("add", args, kwargs, shape, place, node)

    def _sub(self, args: tuple, kwargs: dict, shape: Any, place: Place, node: fx.Node) -> Any:
        return self._binary("sub", args, kwargs, shape, place, node)

    def _mul(self, args: tuple, kwargs: dict, shape: Any, place: Place, node: fx.Node) -> Any:
        return self._binary("mul", args, kwargs, shape, place, node)

    def _div(self, args: tuple, kwargs: dict, shape: Any, place: Place, node: fx.Node) -> Any:
        return self._binary("div", args, kwargs, shape, place, node)

    def _neg(self, args: tuple, kwargs: dict, shape: Any, place: Place, node: fx.Node) -> Any:
        return self._binary("mul", (args[0], -1.0), {}, shape, place, node)

    def _reduce(self, kind: str, args: tuple, kwargs: dict, shape: Any, place: Place) -> Any:
        """A sum or mean over the tokens; over the channels it is part of a formula."""
        value = args[0]
        dims = args[1] if len(args) > 1 else kwargs.get("dim")
        dims = [dims] if isinstance(dims, int) else dims
        if not dims or len(dims) != 1 or isinstance(value, Pooled | Scores | Index):
            return None
        dim = dims[0] % len(value.shape)
        if dim == len(value.shape) - 1:
            return None
        value = self.builder.tensor(value, place)
        channels, length = self.builder.channels[value.x], self.builder.length
        labels = value.labels
        steps = counted(length).view([-1 if i == dim else 1 for i in range(labels.dim())])
        first = labels.narrow(dim, 0, 1)
        if value.shape[dim] != length or not torch.equal(labels, first + steps * channels) or (
                first.div(channels, rounding_mode="floor") % length).any():
            raise place.error(f"The {kind} must be over all tokens of a sequence")
        pooled = Mix(shape, [Term(value.x, first.reshape(shape))])
        return Pooled(pooled, 1 / length if kind == "mean" else 1.0)

    def _mean(self, args: tuple, kwargs: dict, shape: Any, place: Place, node: fx.Node) -> Any:
        return self._reduce("mean", args, kwargs, shape, place)

    def _sum(self, args: tuple, kwargs: dict, shape: Any, place: Place, node: fx.Node) -> Any:
        return self._reduce("sum", args, kwargs, shape, place)

    # Layers

    def _embedding(self, args: tuple, kwargs: dict, shape: Any, place: Place,
                   node: fx.Node) -> Any:
        table, index = args[:2]
        if not isinstance(table, Tensor) or not isinstance(index, Index):
            raise place.error("An embedding must have a constant table and an integer input")
        channels = table.shape[1]
        name = self.builder.emit(Embed, place, channels, "embedding", table=table.detach().float(),
                                 index=index.name)
        canonical = index.shape == (self.builder.batch, self.builder.length) and torch.equal(
            index.labels.flatten(), counted(index.labels.numel()))
        labels = index.labels[..., None] * channels + counted(channels)
        return Mix(shape, [Term(name, None if canonical else labels)])

    def _linear(self, args: tuple, kwargs: dict, shape: Any, place: Place, node: fx.Node) -> Any:
        weight = args[1]
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        if not isinstance(weight, Tensor):
            raise place.error("The weight of a linear layer must be constant")
        return self.builder.linear(args[0], weight, bias, place)

    def _addmm(self, args: tuple, kwargs: dict, shape: Any, place: Place, node: fx.Node) -> Any:
        bias, x, weight = args[:3]
        if not isinstance(weight, Tensor) or not isinstance(bias, Tensor) or kwargs:
            raise place.error("The weight and bias of a linear layer must be constant")
        return self.builder.linear(x, weight.t(), bias, place)

    def _layer_norm(self, args: tuple, kwargs: dict, shape: Any, place: Place,
                    node: fx.Node) -> Any:
        x, size = args[:2]
        gain, bias, eps = options(args[2:], kwargs, weight=None, bias=None, eps=1e-5)
        return self.builder.norm(x, gain, bias, eps, True, size[-1] if len(size) == 1 else 0,
                                 place)

    def _rms_norm(self, args: tuple, kwargs: dict, shape: Any, place: Place, node: fx.Node) -> Any:
        x, size = args[:2]
        gain, eps = options(args[2:], kwargs, weight=None, eps=None)
        eps = torch.finfo(torch.float32).eps if eps is None else eps
        return self.builder.norm(x, gain, None, eps, False, size[-1] if len(size) == 1 else 0,
                                 place)


def is_in_place(target: Any) -> bool:
    name = getattr(getattr(target, "overloadpacket", None), "__name__", "")
    return name.endswith("_") and not name.endswith("__")


def same_base(a: Any, b: Any) -> bool:
    """Whether two values show the same elements."""
    if isinstance(a, Pooled) and isinstance(b, Pooled):
        return a.factor == b.factor and a.first.same_elements(b.first)
    return isinstance(a, Mix) and isinstance(b, Mix) and a.same_elements(b)


UNKNOWN = "unknown"


def shape_of(node: fx.Node) -> Any:
    """The shape of a node's result; None where it has several results, `UNKNOWN` where only data
    could tell."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    if any(isinstance(n, torch.SymInt) and not n.node.has_hint() for n in value.shape):
        return UNKNOWN
    return tuple(int(n) for n in value.shape)


FRAME = re.compile(r'File "(.+?)", line (\d+)')


def user_line(trace: str) -> tuple[str, int]:
    """File and line of the innermost frame that is not torch's own."""
    frames = [(file, int(line)) for file, line in FRAME.findall(trace)]
    outside = [f for f in frames if of_user(f[0])]
    return (outside or frames or [("", 0)])[-1]
