"""An ONNX graph as a torch module: its nodes, interpreted in their order.

What depends on constants alone is computed once, when the module is made. What depends on shapes
as well (`Shape`, `Range`, the sizes of a `Reshape`, a causal mask) is computed in each run by
onnx's own reference implementation, in numpy, so that torch sees its results as constants. All
other nodes are submodules, at the path that is the node's name, which calls a function of
`onnx_operators`.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from systolith.quant.onnx_library import OnnxError, library
from systolith.quant.onnx_operators import OPERATORS, Input, Operator, tensor

DEFAULT = ("", "ai.onnx")
"""Names of the operator set that every runtime knows."""
SIZES = ("Shape", "Size")
"""Operators whose results depend on the shape of their input alone."""
FROM_SIZES = ("ConstantOfShape", "Range")
"""Operators whose results have sizes that their inputs say."""


class OnnxModule(nn.Module):
    """The module that computes some outputs of a model from its inputs, which it takes by name.

    ``constants``: the arrays of all initializers, floats as float32. Raises `OnnxError` for a node
    that cannot be run, before anything is computed.
    """

    def __init__(self, model: Any, constants: dict[str, NDArray], outputs: Sequence[str]) -> None:
        super().__init__()
        self.outputs = list(outputs)
        self.constants = dict(constants)
        versions = {o.domain or "": o.version for o in model.opset_import}
        opset = versions.get("", versions.get("ai.onnx", 1))
        self.program: list[_Step | _Sizes] = []
        steps = list(self._steps(model.graph, opset))
        for step in steps:
            ready = all(name in self.constants for name in step.inputs if name)
            if isinstance(step, _Sizes) and ready:
                step.run(self.constants)
            else:
                self.program.append(step)
                if isinstance(step, _Step):
                    _place(self, step.path, step)
        # Integers stay arrays: they may be sizes.
        self.tensors = {name: tensor(self.constants[name]) for step in self.program
                        if isinstance(step, _Step) for name in step.inputs
                        if name in self.constants and self.constants[name].dtype.kind == "f"
                        and self.constants[name].size > 1}

    def _steps(self, graph: Any, opset: int) -> Iterator["_Step | _Sizes"]:
        """What the outputs need, checked."""
        needed, nodes = set(self.outputs), []
        for node in reversed(graph.node):
            if needed & set(node.output):
                needed |= set(node.input)
                nodes.append(node)
        known, names = set(self.constants), dict.fromkeys(self.constants)
        for number, node in enumerate(reversed(nodes)):
            kind = node.op_type if node.domain in DEFAULT else f"{node.domain}.{node.op_type}"
            name = node.name or f"{node.op_type}_{number}"
            where = f"the node {name!r}" if node.name else f"the node of {node.output[0]!r}"
            sizes = node.op_type in SIZES or all(i in known for i in node.input if i)
            if sizes and not any(a.g.node or a.graphs for a in node.attribute):
                yield _Sizes(node, kind, where, opset)
                known.update(node.output)
            elif kind in OPERATORS:
                yield _Step(node, OPERATORS[kind], where, _path(name, names), opset)
            elif kind in FROM_SIZES:
                raise OnnxError(f"the operator {kind} ({where}) depends on the values of the "
                                "inputs, which is not supported")
            else:
                raise OnnxError(f"the operator {kind} ({where}) is not supported")

    def forward(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        values: dict[str, Input] = {**self.constants, **inputs}
        for step in self.program:
            if isinstance(step, _Sizes):
                step.run(values)
                continue
            arguments = [None if not name else self.tensors.get(name, values.get(name))
                         if name in values else step.missing(name) for name in step.inputs]
            results = step(*arguments)
            values.update(zip(step.results, results, strict=False))
        return tuple(tensor(values[name]) for name in self.outputs)


class _Step(nn.Module):
    """A node that reads the values of inputs."""

    def __init__(self, node: Any, function: Operator, where: str, path: list[str], opset: int
                 ) -> None:
        super().__init__()
        self.kind, self.inputs, self.results = node.op_type, list(node.input), list(node.output)
        self.function, self.where, self.path, self.opset = function, where, path, opset
        self.attributes = _attributes(node) | {"outputs": len(node.output)}

    def missing(self, name: str) -> Any:
        raise OnnxError(f"the result {name!r}, which {self.where} reads, is not supported")

    def forward(self, *inputs: Input) -> tuple[Tensor, ...]:
        try:
            result = self.function(inputs, self.attributes, self.opset)
        except OnnxError as error:
            raise OnnxError(f"{self.where}: {error}") from None
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise OnnxError(f"{self.where}: {text}") from error
        return result if isinstance(result, tuple) else (result,)


class _Sizes:
    """A node that depends on constants and shapes alone; its results are arrays."""

    def __init__(self, node: Any, kind: str, where: str, opset: int) -> None:
        from onnx.reference import ReferenceEvaluator

        self.kind, self.where = kind, where
        self.inputs, self.results = list(node.input), list(node.output)
        self.attributes = _attributes(node)
        if kind in SIZES:
            return
        try:
            self.evaluator = ReferenceEvaluator(node, opsets={"": opset, node.domain: opset})
        except (NotImplementedError, RuntimeError, KeyError):
            raise OnnxError(f"the operator {kind} ({where}) is not supported") from None

    def run(self, values: dict[str, Input]) -> None:
        """Adds the results to the values."""
        if self.kind in SIZES:
            shape = np.array(values[self.inputs[0]].shape, dtype=np.int64)
            part = shape[self.attributes.get("start", 0):self.attributes.get("end")]
            results = [part if self.kind == "Shape" else shape.prod()]
        else:
            feeds = {name: values[name] for name in self.inputs if name}
            try:
                with np.errstate(all="ignore"):
                    results = self.evaluator.run(None, feeds)
            except Exception as error:
                text = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise OnnxError(f"{self.where} ({self.kind}): {text}") from error
        for name, result in zip(self.results, results, strict=False):
            values[name] = single(np.asarray(result))


def single(array: NDArray) -> NDArray:
    """Floats of any precision as float32, everything else as it is."""
    wide = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return array.astype(np.float32) if wide else array


def _attributes(node: Any) -> dict[str, Any]:
    """The attributes of a node as Python's values."""
    onnx = library()
    found = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        found[attribute.name] = value.decode() if isinstance(value, bytes) else value
    return found


def _path(name: str, taken: dict[str, None]) -> list[str]:
    """Where a node is put: the parts of its name, which exporters join by slashes or dots."""
    parts = [part for part in re.split(r"[/.]", name) if part] or ["node"]
    *parents, last = parts
    free, number = last, 1
    while ".".join([*parents, free]) in taken:
        free, number = f"{last}_{number}", number + 1
    taken[".".join([*parents, free])] = None
    return [*parents, free]


def _place(root: nn.Module, path: list[str], step: nn.Module) -> None:
    """Puts a module at a path. A name may be one that `nn.Module` has for itself ("type"), which
    `add_module` would refuse."""
    parent = root
    for part in path[:-1]:
        parent = parent._modules.setdefault(part, nn.Module())
    children = parent._modules.get(path[-1])
    parent._modules[path[-1]] = step
    if children is not None:
        step._modules.update(children._modules)
