"""ONNX files for tests: written by hand, and exported by torch."""

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

onnx = pytest.importorskip("onnx")


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    """A node; names are separated by spaces, and "-" is an optional input that is left out."""
    def names(text: str) -> list[str]:
        return ["" if name == "-" else name for name in text.split()]
    attributes.setdefault("name", f"{op}_of_{outputs.split()[0]}")
    return onnx.helper.make_node(op, names(inputs), names(outputs), **attributes)


def model(nodes: list[Any], constants: dict[str, np.ndarray], inputs: dict[str, tuple],
          outputs: list[str], *, opset: int = 21, integers: tuple[str, ...] = ()) -> Any:
    """A model; inputs by name and shape, those of ``integers`` are int64."""
    helper, types = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        nodes, "test",
        [helper.make_tensor_value_info(n, types.INT64 if n in integers else types.FLOAT, s)
         for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, types.FLOAT, None) for n in outputs],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()])
    return helper.make_model(graph, ir_version=10,
                             opset_imports=[helper.make_opsetid("", opset)])


def small(**changes: Any) -> Any:
    """tokens → embedding → linear → relu, any length."""
    random = np.random.default_rng(0)
    constants = {"table": random.normal(size=(11, 8)), "weight": random.normal(size=(8, 6)),
                 "bias": random.normal(size=6)}
    constants = {n: v.astype(np.float32) for n, v in constants.items()} | changes
    return model([node("Gather", "table ids", "x", name="/words/Gather"),
                  node("MatMul", "x weight", "y", name="/layers.0/type/MatMul"),
                  node("Add", "bias y", "z", name="/layers.0/type/Add"),
                  node("Relu", "z", "out", name="/layers.0/act/Relu")],
                 constants, {"ids": ("batch", "length")}, ["out"], integers=("ids",))


def export(module: nn.Module, inputs: dict[str, Tensor], path: Path, *, dynamo: bool = False,
           dynamic: bool = True) -> None:
    """torch's own export; dynamic: any batch and length. What torch warns of itself is not ours."""
    axes = {name: {0: "batch", 1: "length"} for name in inputs} if dynamic else None
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        for category in (DeprecationWarning, FutureWarning, torch.jit.TracerWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category)
        options: dict[str, Any] = {"dynamic_axes": axes, "opset_version": 17}
        if dynamo:
            options = {"verbose": False}
        torch.onnx.export(module.eval(), tuple(inputs.values()), path, dynamo=dynamo,
                          input_names=list(inputs), **options)
