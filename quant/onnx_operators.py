"""The operators of ONNX, written in torch: what `onnx_module` runs.

An operator is a function of its inputs, its attributes and the version of the operator set. An
input is a torch tensor, an array (which depends on nothing but shapes: see `onnx_module`), or None
where an optional one is left out. Half and double precision are computed as float32.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from systolith.quant.onnx_library import OnnxError

Input = Any
"""Tensor | NDArray | None, which the type checker, for which torch is a blank, does not follow."""
Attributes = Mapping[str, Any]
Operator = Callable[[Sequence[Input], Attributes, int], Tensor | tuple[Tensor, ...]]

FLOATS = frozenset((1, 10, 11, 16))
"""TensorProto's float, float16, double and bfloat16."""
DTYPES = {2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64,
          9: torch.bool}
"""Those of its other types that torch computes with."""


def tensor(x: Input) -> Tensor:
    """A tensor as it is, an array as a constant."""
    if isinstance(x, Tensor):
        return x
    array = np.array(x, order="C")
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    return torch.from_numpy(array)


def operand(x: Input, other: Input) -> Any:
    """One side of a binary operator: a number, where that does not change the result's shape."""
    if isinstance(x, np.ndarray) and x.size == 1 and isinstance(other, Tensor) and (
            x.ndim <= other.dim()):
        return x.reshape(()).item()
    return tensor(x)


def integers(x: Input, what: str) -> list[int]:
    """Sizes, axes and the like, which may depend on shapes alone."""
    if not isinstance(x, np.ndarray):
        raise OnnxError(f"its {what} depends on the values of the inputs")
    return [int(n) for n in x.reshape(-1)]


def argument(inputs: Sequence[Input], i: int) -> Input:
    return inputs[i] if i < len(inputs) else None


def axes_of(inputs: Sequence[Input], at: Attributes) -> list[int] | None:
    """Axes, which were an attribute in older operator sets; None: all."""
    given = argument(inputs, 1)
    if given is not None:
        return integers(given, "axes") or None
    return list(at["axes"]) if "axes" in at else None


# Elements

def unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda x, at, opset: function(tensor(x[0]))


def binary(function: Callable[[Any, Any], Tensor]) -> Operator:
    def run(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
        return function(operand(x[0], x[1]), operand(x[1], x[0]))
    return run


def variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def run(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
        result = tensor(x[0])
        for other in x[1:]:
            result = function(result, tensor(other))
        return result
    return run


def divided(a: Any, b: Any) -> Tensor:
    whole = all(not v.is_floating_point() if isinstance(v, Tensor) else isinstance(v, int)
                for v in (a, b))
    return torch.div(a, b, rounding_mode="trunc") if whole else a / b


def compared(function: Callable[[Any, Any], Tensor]) -> Operator:
    """Comparisons and logic, whose operands stay tensors of their types."""
    return lambda x, at, opset: function(tensor(x[0]), tensor(x[1]))


def where(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
    a, b = operand(x[1], x[2]), operand(x[2], x[1])
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        a = tensor(x[1])
    return torch.where(tensor(x[0]).bool(), a, b)


def clip(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
    low, high = (at.get(n) if argument(x, i) is None else operand(argument(x, i), x[0])
                 for i, n in ((1, "min"), (2, "max")))
    return tensor(x[0]) if low is None and high is None else torch.clamp(tensor(x[0]), low, high)


def cast(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
    if at["to"] in FLOATS:
        return tensor(x[0]).to(torch.float32)
    if at["to"] not in DTYPES:
        raise OnnxError(f"it casts to the type {at['to']}, which is not supported")
    return tensor(x[0]).to(DTYPES[at["to"]])


def is_nan(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
    """Never: it guards rows of attention that see no key, and there are none without padding."""
    return torch.zeros(tensor(x[0]).shape, dtype=torch.bool)


# Matrices and norms

def gemm(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
    a, b, c = tensor(x[0]), tensor(x[1]), argument(x, 2)
    a = a.t() if at.get("transA") else a
    weight = b if at.get("transB") else b.t()
    alpha, beta = at.get("alpha", 1.0), at.get("beta", 1.0)
    weight = weight if alpha == 1 else weight * alpha
    bias = None if c is None else tensor(c) if beta == 1 else tensor(c) * beta
    if bias is not None and bias.dim() != 1:
        return F.linear(a, weight) + bias
    return F.linear(a, weight, bias)


def softmax(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
    value = tensor(x[0])
    axis = at.get("axis", -1 if opset >= 13 else 1) % value.dim()
    if opset < 13 and axis != value.dim() - 1:
        raise OnnxError("it is over several axes at once, which is not supported")
    return torch.softmax(value, axis)


def layer_norm(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
    value, bias = tensor(x[0]), argument(x, 2)
    size = value.shape[at.get("axis", -1):]
    return F.layer_norm(value, size, tensor(x[1]), None if bias is None else tensor(bias),
                        at.get("epsilon", 1e-5))


def rms_norm(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
    value = tensor(x[0])
    return F.rms_norm(value, value.shape[at.get("axis", -1):], tensor(x[1]),
                      at.get("epsilon", 1e-5))


def lp_normalization(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
    value = tensor(x[0])
    return value / torch.linalg.vector_norm(value, at.get("p", 2), dim=at.get("axis", -1),
                                            keepdim=True)


def reduced(function: Callable[..., Tensor]) -> Operator:
    def run(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
        value, axes = tensor(x[0]), axes_of(x, at)
        if axes is None and at.get("noop_with_empty_axes"):
            return value
        axes = axes or list(range(value.dim()))
        return function(value, dim=axes, keepdim=bool(at.get("keepdims", 1)))
    return run


# Layout

def reshape(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
    value, size = tensor(x[0]), integers(x[1], "shape")
    if not at.get("allowzero"):
        size = [value.shape[i] if n == 0 else n for i, n in enumerate(size)]
    return value.reshape(size)


def flatten(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
    value, axis = tensor(x[0]), at.get("axis", 1)
    axis = axis % value.dim() if axis < 0 else axis
    return value.reshape(int(np.prod(value.shape[:axis], dtype=int)), -1)


def transpose(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
    value = tensor(x[0])
    return value.permute(at.get("perm") or list(range(value.dim()))[::-1])


def squeeze(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
    value, axes = tensor(x[0]), axes_of(x, at)
    if axes is None:
        axes = [i for i, n in enumerate(value.shape) if n == 1]
    return value.squeeze([a % value.dim() for a in axes]) if axes else value


def unsqueeze(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
    value, axes = tensor(x[0]), axes_of(x, at) or []
    rank = value.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        value = value.unsqueeze(axis)
    return value


def expand(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
    value = tensor(x[0])
    return value.expand(np.broadcast_shapes(tuple(value.shape), tuple(integers(x[1], "shape"))))


def taken(value: Tensor, axis: int, steps: range) -> Tensor:
    """Some of the elements along an axis."""
    if steps.step == 1:
        return value.narrow(axis, steps.start, len(steps))
    return value.index_select(axis, torch.tensor(list(steps), dtype=torch.int64))


def sliced(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
    value = tensor(x[0])
    def given(i: int, name: str) -> list[int] | None:
        if argument(x, i) is not None:
            return integers(argument(x, i), name)
        return at.get(name)
    starts, ends = given(1, "starts"), given(2, "ends")
    axes = given(3, "axes") or range(len(starts))
    steps = given(4, "steps") or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = value.shape[axis]
        # An end before the first element is -size - 1 or less, which Python would count from the
        # back again.
        stop: int | None = None if step < 0 and end < -size else end
        chosen = range(*slice(start, stop, step).indices(size))
        value = value if chosen == range(size) else taken(value, axis % value.dim(), chosen)
    return value


def split(x: Sequence[Input], at: Attributes, opset: int) -> tuple[Tensor, ...]:
    value, axis = tensor(x[0]), at.get("axis", 0)
    sizes = at.get("split") if argument(x, 1) is None else integers(x[1], "sizes")
    if not sizes:
        sizes = -(-value.shape[axis] // at["outputs"])
    return torch.split(value, sizes, axis)


def gather(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
    data, axis = x[0], at.get("axis", 0)
    if isinstance(x[1], Tensor):
        table = tensor(data)
        if axis == 0 and table.dim() == 2 and table.is_floating_point():
            return F.embedding(x[1].long(), table)
        return table.index_select(axis, x[1].long().flatten()).reshape(
            *table.shape[:axis], *x[1].shape, *table.shape[axis + 1:])
    value, index = tensor(data), x[1]
    axis = axis % value.dim()
    rows = [int(n) % value.shape[axis] for n in index.reshape(-1)]
    if index.ndim == 0:
        return value.select(axis, rows[0])
    span = range(rows[0], rows[0] + len(rows)) if rows else range(0)
    if rows == list(span):
        value = taken(value, axis, span)
    else:
        value = value.index_select(axis, torch.tensor(rows, dtype=torch.int64))
    if index.ndim == 1:
        return value
    return value.reshape(*value.shape[:axis], *index.shape, *value.shape[axis + 1:])


def gather_nd(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
    if at.get("batch_dims"):
        raise OnnxError("it has batch dimensions, which are not supported")
    return tensor(x[0])[tensor(x[1]).long().unbind(-1)]


def concat(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
    return torch.cat([tensor(v) for v in x], at["axis"])


def tile(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
    return tensor(x[0]).repeat(integers(x[1], "repeats"))


def trilu(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
    k = 0 if argument(x, 1) is None else integers(x[1], "diagonal")[0]
    return torch.triu(tensor(x[0]), k) if at.get("upper", 1) else torch.tril(tensor(x[0]), k)


def cumulative_sum(x: Sequence[Input], at: Attributes, opset: int) -> Tensor:
    if at.get("exclusive") or at.get("reverse"):
        raise OnnxError("it is exclusive or reversed, which is not supported")
    return torch.cumsum(tensor(x[0]), integers(x[1], "axis")[0])


OPERATORS: dict[str, Operator] = {
    "Abs": unary(torch.abs),
    "Add": binary(operator.add),
    "And": compared(torch.logical_and),
    "Cast": cast,
    "CastLike": lambda x, at, opset: tensor(x[0]).to(tensor(x[1]).dtype),
    "Clip": clip,
    "Concat": concat,
    "Cos": unary(torch.cos),
    "CumSum": cumulative_sum,
    "Div": binary(divided),
    "Dropout": lambda x, at, opset: tensor(x[0]),
    "Einsum": lambda x, at, opset: torch.einsum(at["equation"], *(tensor(v) for v in x)),
    "Elu": lambda x, at, opset: F.elu(tensor(x[0]), at.get("alpha", 1.0)),
    "Equal": compared(torch.eq),
    "Erf": unary(torch.erf),
    "Exp": unary(torch.exp),
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "GatherND": gather_nd,
    "Gelu": lambda x, at, opset: F.gelu(tensor(x[0]), approximate=at.get("approximate", "none")),
    "Gemm": gemm,
    "Greater": compared(torch.gt),
    "GreaterOrEqual": compared(torch.ge),
    "HardSwish": unary(F.hardswish),
    "Identity": lambda x, at, opset: tensor(x[0]),
    "IsNaN": is_nan,
    "LayerNormalization": layer_norm,
    "LeakyRelu": lambda x, at, opset: F.leaky_relu(tensor(x[0]), at.get("alpha", 0.01)),
    "Less": compared(torch.lt),
    "LessOrEqual": compared(torch.le),
    "Log": unary(torch.log),
    "LpNormalization": lp_normalization,
    "MatMul": lambda x, at, opset: torch.matmul(tensor(x[0]), tensor(x[1])),
    "Max": variadic(torch.maximum),
    "Min": variadic(torch.minimum),
    "Mish": unary(F.mish),
    "Mul": binary(operator.mul),
    "Neg": unary(torch.neg),
    "Not": unary(torch.logical_not),
    "Or": compared(torch.logical_or),
    "Pow": binary(operator.pow),
    "RMSNormalization": rms_norm,
    "Reciprocal": unary(torch.reciprocal),
    "ReduceL2": reduced(torch.linalg.vector_norm),
    "ReduceMax": reduced(torch.amax),
    "ReduceMean": reduced(torch.mean),
    "ReduceMin": reduced(torch.amin),
    "ReduceSum": reduced(torch.sum),
    "ReduceSumSquare": reduced(lambda x, dim, keepdim: (x * x).sum(dim, keepdim=keepdim)),
    "Relu": unary(torch.relu),
    "Reshape": reshape,
    "Sigmoid": unary(torch.sigmoid),
    "Sin": unary(torch.sin),
    "Slice": sliced,
    "Softmax": softmax,
    "Softplus": unary(F.softplus),
    "Split": split,
    "Sqrt": unary(torch.sqrt),
    "Squeeze": squeeze,
    "Sub": binary(operator.sub),
    "Sum": variadic(torch.add),
    "Swish": lambda x, at, opset: (lambda v: v * torch.sigmoid(at.get("alpha", 1.0) * v))(
        tensor(x[0])),
    "Tanh": unary(torch.tanh),
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": trilu,
    "Unsqueeze": unsqueeze,
    "Where": where,
    "Xor": compared(torch.logical_xor),
}
"""By the name of the type. `Constant`, `ConstantOfShape`, `Range`, `Shape` and whatever else is a
function of shapes alone need no entry."""
