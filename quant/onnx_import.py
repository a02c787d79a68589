"""From a float ONNX model to a `Network`.

The model becomes a torch module (`onnx_module`), and `capture` finds out what that computes, as it
does for any module: by value, whatever nodes an exporter has written for an attention or a norm.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from systolith.quant.capture import BATCH, capture
from systolith.quant.capture_values import CaptureError
from systolith.quant.network import Network, Source
from systolith.quant.onnx_library import OnnxError, library
from systolith.quant.onnx_module import OnnxModule, single
from systolith.quant.onnx_operators import FLOATS

MOVES = frozenset(("Cast", "Clip", "Expand", "Flatten", "Identity", "Max", "Min", "Reshape",
                   "Slice", "Squeeze", "Transpose", "Unsqueeze"))
"""Operators after which an index is still one."""


def load_onnx(path: str | Path, *, context: int | None = None,
              outputs: Sequence[str] | None = None) -> Network:
    """The network that a float ONNX model computes.

    ``context``: longest sequence; needed where the file leaves the length of sequences open, and
    else the file's own. ``outputs``: names of the results wanted; all of the model's otherwise.

    Inputs are integers [batch, length] or floats [batch, length, channels]. As in `capture`, those
    that embeddings read become index inputs (the first, or ``input_ids``, is called "tokens"),
    floats become `Given`, a name with "mask" is the mask of the padding, one with "position" counts
    from 0. An operation has the name of the node that it comes from. Half and double precision are
    read as float32. Raises `OnnxError`, which names file and node.
    """
    path = Path(path)
    try:
        return _load(path, context, outputs)
    except (CaptureError, OnnxError) as error:
        text = _without_our_lines(str(error))
        raise OnnxError(f"{path}: {text}") from error


def _load(path: Path, context: int | None, outputs: Sequence[str] | None) -> Network:
    model = _read(path)
    constants = _constants(model, path)
    known = [o.name for o in model.graph.output]
    wanted = known if outputs is None else list(outputs)
    for name in wanted:
        if name not in known:
            raise OnnxError(f"it has no output {name!r}; it has {', '.join(known)}")
    module = OnnxModule(model, constants, wanted)
    _check(model)
    inputs = {i.name: i for i in model.graph.input if i.name not in constants}
    example, fixed = _example(module, inputs, context)
    network = capture(module, example, context=len(next(iter(example.values()))[0]), fixed=fixed)
    # Where an operation stands is a node, not a line of ours.
    return network.with_ops({op.name: replace(op, source=Source(module=op.source.module))
                             for op in network.ops})


# The file

def _read(path: Path) -> Any:
    """The model, its functions inlined, the data of its tensors not yet read."""
    onnx = library()
    from google.protobuf.message import DecodeError
    from onnx.inliner import inline_local_functions

    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise OnnxError(f"it cannot be read: {error.strerror or error}") from None
    except DecodeError:
        raise OnnxError("this is no ONNX model, or a part of one") from None
    if not model.ir_version or not model.graph.node:
        raise OnnxError("this is no ONNX model, or one without any node")
    return inline_local_functions(model) if model.functions else model


def _check(model: Any) -> None:
    """What onnx says of the attributes and operands of the nodes.

    It could check the whole model, but asks for more than any runtime needs.
    """
    onnx = library()
    context = onnx.checker.C.CheckerContext()
    context.ir_version = model.ir_version
    context.opset_imports = {o.domain: o.version for o in model.opset_import}
    for node in model.graph.node:
        try:
            onnx.checker.check_node(node, context)
        except onnx.checker.ValidationError as error:
            text = str(error).strip().splitlines()[0]
            raise OnnxError(f"the node {node.name or node.output[0]!r} is not valid: {text}"
                            ) from None


def _constants(model: Any, path: Path) -> dict[str, NDArray]:
    """The initializers as arrays, floats as float32."""
    onnx = library()
    from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor

    arrays = {}
    for value in model.graph.initializer:
        if value.data_location == onnx.TensorProto.EXTERNAL:
            location = ExternalDataInfo(value).location
            if not (path.parent / location).is_file():
                raise OnnxError(f"the data of the tensor {value.name!r} are in the file "
                                f"{location}, which is not beside the model; put it there")
            try:
                load_external_data_for_tensor(value, str(path.parent))
                value.data_location = onnx.TensorProto.DEFAULT
                del value.external_data[:]
            except (OSError, ValueError, onnx.checker.ValidationError) as error:
                reason = str(error).strip().splitlines()[0]
                raise OnnxError(f"the data of the tensor {value.name!r} cannot be read from "
                                f"{location}: {reason}") from None
        try:
            array = single(onnx.numpy_helper.to_array(value))
        except (ValueError, TypeError):
            raise OnnxError(f"the tensor {value.name!r} has not as much data as its shape "
                            f"{list(value.dims)} says; the file is damaged") from None
        if array.dtype.kind == "f":
            _finite(value.name, array)
        arrays[value.name] = array
    if model.graph.sparse_initializer:
        name = model.graph.sparse_initializer[0].values.name
        raise OnnxError(f"the tensor {name!r} is sparse, which is not supported")
    return arrays


def _finite(name: str, array: NDArray) -> None:
    """Refuses numbers that are none; infinities are allowed where nothing else is (masks)."""
    if np.isnan(array).any():
        raise OnnxError(f"the tensor {name!r} holds a NaN")
    infinite = np.isinf(array)
    if infinite.any() and array[~infinite].any():
        raise OnnxError(f"the tensor {name!r} holds an infinity")


# The example

def _example(module: OnnxModule, inputs: dict[str, Any], context: int | None
             ) -> tuple[dict[str, Tensor], bool]:
    """A batch for the declared inputs, and whether the model takes no other size."""
    read = {name for step in module.program for name in step.inputs}
    shapes = {}
    for name, value in inputs.items():
        if name not in read:
            continue
        kind = value.type.tensor_type
        shape = [d.dim_value or None for d in kind.shape.dim]
        rank = 3 if kind.elem_type in FLOATS and "mask" not in name else 2
        if len(shape) != rank:
            raise OnnxError(f"the input {name!r} has {len(shape)} axes; a network reads integers "
                            "[batch, length] and floats [batch, length, channels], and no caches "
                            "of keys")
        if rank == 3 and shape[2] is None:
            raise OnnxError(f"the input {name!r} has no fixed number of channels")
        shapes[name] = shape
    if not shapes:
        raise OnnxError("none of its inputs is read")
    batches, lengths = ({s[i] for s in shapes.values()} - {None} for i in (0, 1))
    for sizes, what in ((batches, "batches"), (lengths, "lengths")):
        if len(sizes) > 1:
            raise OnnxError(f"its inputs have different {what}: {sorted(sizes)}")
    if not lengths and context is None:
        raise OnnxError("the file leaves the length of sequences open; give context, the longest "
                        "one in tokens")
    length = next(iter(lengths), context)
    if context not in (None, length):
        raise OnnxError(f"the file is for sequences of {length} tokens, not for {context}")
    batch = next(iter(batches), BATCH)
    random = torch.Generator().manual_seed(0)
    example = {}
    for name, shape in shapes.items():
        if len(shape) == 3:
            example[name] = torch.randn(batch, length, shape[2], generator=random)
            continue
        rows = _rows(module, name)
        kind = inputs[name].type.tensor_type.elem_type
        if "position" in name:
            example[name] = torch.arange(length).expand(batch, -1).contiguous()
        elif rows is None:
            dtype = torch.float32 if kind in FLOATS else torch.int64
            example[name] = torch.ones(batch, length, dtype=dtype)
        else:
            example[name] = torch.randint(rows, (batch, length), generator=random)
    return example, bool(batches or lengths)


def _rows(module: OnnxModule, name: str) -> int | None:
    """How many values an index input can have: rows of the smallest table that it goes to."""
    reached, rows = {name}, []
    for step in module.program:
        kind = getattr(step, "kind", "")
        if not reached & set(step.inputs) or kind in ("Shape", "Size"):
            continue
        if kind == "Gather" and step.inputs[1] in reached and step.inputs[0] in module.constants:
            rows.append(module.constants[step.inputs[0]].shape[0])
        elif kind in MOVES:
            reached.update(step.results)
    return min(rows, default=None)


OURS = re.compile(r"(, | )?\(?[^ (]*(onnx_\w+|capture\w*)\.py:\d+\)?")


def _without_our_lines(text: str) -> str:
    """A message of `capture` without the lines of this package, where it looks for the user's."""
    def shorter(match: re.Match) -> str:
        whole = match.group()
        return "" if whole.count("(") == whole.count(")") else ")"
    text = text.removeprefix("The module cannot be run on the batch: ")
    return OURS.sub(shorter, text).replace(" (unknown place)", "")
