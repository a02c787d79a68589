"""Every operator that is written in torch, against onnx's reference implementation."""

from typing import Any

import numpy as np
import pytest
import torch

from systolith.quant.onnx_module import OnnxModule
from systolith.quant.onnx_operators import OPERATORS
from tests.quant.onnx_models import model, node, onnx

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2, 5, 4)).astype(np.float32)
Y = RANDOM.normal(size=(2, 5, 4)).astype(np.float32)
M = RANDOM.normal(size=(4, 3)).astype(np.float32)
ROW = RANDOM.normal(size=4).astype(np.float32)
FLAT = X.reshape(10, 4)
B = X > 0


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def index(value: int) -> np.ndarray:
    return np.array(value, dtype=np.int64)


def scalar(value: float) -> np.ndarray:
    return np.array(value, dtype=np.float32)


# Type, inputs (arrays in a tuple are the model's inputs, others its constants), attributes, opset.
# None: an optional input that is left out.
CASES: list[tuple[str, tuple, dict[str, Any], int]] = [
    *[(op, ((X,),), {}, 21) for op in (
        "Abs", "Cos", "Dropout", "Elu", "Erf", "Exp", "Gelu", "HardSwish", "Identity",
        "LeakyRelu", "Mish", "Neg", "Reciprocal", "Relu", "Sigmoid", "Sin", "Softmax",
        "Softplus", "Tanh", "IsNaN", "LpNormalization")],
    ("Gelu", ((X,),), {"approximate": "tanh"}, 21),
    ("LeakyRelu", ((X,),), {"alpha": 0.3}, 21),
    ("Swish", ((X,),), {"alpha": 1.7}, 24),
    ("Log", ((np.abs(X),),), {}, 21), ("Sqrt", ((np.abs(X),),), {}, 21),
    *[(op, inputs, {}, 21) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")
      for inputs in (((X,), (Y,)), ((X,), ROW), (ROW, (X,)), ((X,), scalar(0.7)),
                     (scalar(2), (X,)))],
    ("Add", ((ROW,), scalar(1).reshape(1, 1)), {}, 21),
    ("Div", ((ints(7, -7, 9),), ints(2, 2, -4)), {}, 21),
    ("Sum", ((X,), (Y,), ROW), {}, 21), ("Max", ((X,),), {}, 21),
    ("Pow", ((X,), scalar(2)), {}, 21), ("Pow", ((np.abs(X),), np.abs(ROW)), {}, 21),
    *[(op, ((B,), (Y > 0,)), {}, 21) for op in ("And", "Or", "Xor")], ("Not", ((B,),), {}, 21),
    *[(op, ((ints(1, 2, 3),), ints(2)), {}, 21) for op in (
        "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")],
    ("Where", ((B,), (X,), scalar(-1)), {}, 21), ("Where", ((B,), scalar(0), ROW), {}, 21),
    ("Where", ((B,), scalar(0), scalar(1)), {}, 21), ("Where", (B[0], (X,), (Y,)), {}, 21),
    ("Clip", ((X,), scalar(-0.5), scalar(1)), {}, 21), ("Clip", ((X,), None, scalar(1)), {}, 21),
    ("Clip", ((X,),), {"min": -0.5, "max": 0.5}, 6), ("Clip", ((X,),), {}, 21),
    ("Cast", ((X,),), {"to": 7}, 21), ("Cast", ((B,),), {"to": 1}, 21),
    ("CastLike", ((B,), X), {}, 21),
    # Matrices and norms
    ("MatMul", ((X,), M), {}, 21), ("MatMul", ((X,), (np.swapaxes(Y, 1, 2).copy(),)), {}, 21),
    ("Gemm", ((FLAT,), M), {}, 21), ("Gemm", ((FLAT,), M, M[0]), {}, 21),
    ("Gemm", ((FLAT,), M.T.copy(), M[:1]), {"transB": 1, "alpha": 0.5, "beta": 2.0}, 21),
    ("Gemm", ((FLAT.T.copy(),), M, M[0]), {"transA": 1}, 21),
    ("Einsum", ((X,), M), {"equation": "btk,kn->btn"}, 21),
    ("Softmax", ((X,),), {"axis": 1}, 21), ("Softmax", ((X,),), {"axis": 2}, 11),
    ("LayerNormalization", ((X,), ROW, ROW), {"epsilon": 0.1}, 21),
    ("LayerNormalization", ((X,), ROW), {"axis": 2}, 21),
    ("RMSNormalization", ((X,), ROW), {"epsilon": 0.1}, 23),
    ("LpNormalization", ((X,),), {"axis": 1}, 21),
    *[(op, inputs, attributes, 21)
      for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2",
                 "ReduceSumSquare")
      for inputs, attributes in ((((X,), ints(-1)), {}), (((X,), ints(1)), {"keepdims": 0}),
                                 (((X,),), {}))],
    ("ReduceMean", ((X,),), {"axes": [-1]}, 13),
    ("ReduceSum", ((X,),), {"noop_with_empty_axes": 1}, 21),
    # Layout
    ("Reshape", ((X,), ints(0, -1)), {}, 21), ("Reshape", ((X,), ints(2, 5, 2, 2)), {}, 21),
    ("Flatten", ((X,),), {}, 21), ("Flatten", ((X,),), {"axis": -1}, 21),
    ("Flatten", ((X,),), {"axis": 0}, 21),
    ("Transpose", ((X,),), {"perm": [0, 2, 1]}, 21), ("Transpose", ((X,),), {}, 21),
    ("Squeeze", ((X[:, :1],), ints(1)), {}, 21), ("Squeeze", ((X[:1],),), {}, 21),
    ("Squeeze", ((X[:, :, :1],),), {"axes": [-1]}, 11),
    ("Unsqueeze", ((X,), ints(0, -1)), {}, 21), ("Unsqueeze", ((X,),), {"axes": [1]}, 11),
    ("Expand", ((ROW,), ints(2, 5, 4)), {}, 21), ("Expand", ((X,), ints(1, 1)), {}, 21),
    ("Slice", ((X,), ints(1), ints(3), ints(1)), {}, 21),
    ("Slice", ((X,), ints(0, 1), ints(1 << 60, -1)), {}, 21),
    ("Slice", ((X,), ints(-1), ints(-(1 << 60)), ints(1), ints(-2)), {}, 21),
    ("Slice", ((X,), ints(3), ints(0), ints(-1), ints(-1)), {}, 21),
    ("Slice", ((X,),), {"starts": [1], "ends": [3], "axes": [2]}, 9),
    ("Split", ((X,), ints(1, 3)), {"axis": 2, "outputs": 2}, 21),
    ("Split", ((X,),), {"axis": 1, "num_outputs": 2, "outputs": 2}, 21),
    ("Split", ((X,),), {"axis": -1, "outputs": 2}, 13),
    ("Split", ((X,),), {"axis": -1, "split": [1, 3], "outputs": 2}, 11),
    ("Gather", ((X,), index(0)), {"axis": 1}, 21), ("Gather", ((X,), ints(-1)), {"axis": 1}, 21),
    ("Gather", ((X,), ints(3, 1, 2)), {"axis": -1}, 21),
    ("Gather", ((X,), ints(0, 1, 1, 0).reshape(2, 2)), {"axis": 2}, 21),
    ("Gather", (M, (ints(3, 0, 1).reshape(1, 3),)), {}, 21),
    ("Gather", (M, (ints(2, 0),)), {"axis": 1}, 21),
    ("GatherND", ((B,), ints(0, 1, 1, 4).reshape(2, 2)), {}, 21),
    ("Concat", ((X,), (Y,)), {"axis": -1}, 21), ("Tile", ((X,), ints(1, 2, 1)), {}, 21),
    ("Trilu", ((X,),), {}, 21), ("Trilu", ((X,), index(1)), {"upper": 0}, 21),
    ("CumSum", ((X,), index(1)), {}, 21),
]


def name_of(case: tuple) -> str:
    op, inputs, attributes, opset = case
    kinds = ["-" if x is None else "x" if isinstance(x, tuple) else "c" for x in inputs]
    return f"{op}{opset}-{''.join(kinds)}-{','.join(map(str, attributes))}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_operator(case: tuple) -> None:
    from onnx.reference import ReferenceEvaluator

    op, inputs, attributes, opset = case
    attributes = dict(attributes)
    outputs = [f"out{i}" for i in range(attributes.pop("outputs", 1))]
    names = " ".join("-" if x is None else f"in{i}" for i, x in enumerate(inputs))
    values = {f"in{i}": x[0] for i, x in enumerate(inputs) if isinstance(x, tuple)}
    constants = {f"in{i}": x for i, x in enumerate(inputs) if isinstance(x, np.ndarray)}
    made = model([node(op, names, " ".join(outputs), **attributes)], constants,
                 {n: v.shape for n, v in values.items()}, outputs, opset=opset)
    for value in made.graph.input:
        value.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(
            values[value.name].dtype)
    expected = ReferenceEvaluator(made).run(None, values)
    module = OnnxModule(made, constants, outputs)
    results = module(**{n: torch.from_numpy(v) for n, v in values.items()})
    for ours, theirs in zip(results, expected, strict=True):
        assert ours.shape == theirs.shape and ours.numpy().dtype == theirs.dtype
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5, atol=1e-6)


def test_every_operator_is_tried() -> None:
    assert {op for op, *_ in CASES} == set(OPERATORS)


def test_sizes_are_computed_in_numpy() -> None:
    """A causal mask of the input's length, from operators that have no entry of their own."""
    nodes = [
        node("Shape", "x", "length", start=1, end=2), node("Squeeze", "length", "n"),
        node("Constant", "", "zero", value_int=0), node("Constant", "", "one", value_int=1),
        node("Range", "zero n one", "steps"), node("Unsqueeze", "steps ax", "column"),
        node("Concat", "length length", "square", axis=0),
        node("ConstantOfShape", "square", "ones"), node("Expand", "steps square", "grid"),
        node("LessOrEqual", "grid column", "seen"), node("Cast", "seen", "mask", to=1),
        node("Add", "mask ones", "part"), node("Identity", "part", "out"),
    ]  # fmt: skip
    module = OnnxModule(model(nodes, {}, {"x": (1, None, 4)}, ["out"]), {"ax": ints(1)}, ["out"])
    for length in (3, 5):
        (result,) = module(x=torch.zeros(1, length, 4))
        assert torch.equal(result, torch.ones(length, length).tril())
