"""An ONNX graph under construction: nodes, constants, and integers with their real values."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from systolith.quant.onnx_library import OnnxError, library

OPSET = 21
"""The first one whose QuantizeLinear and DequantizeLinear know 16 bits."""
IR_VERSION = 10
"""What `OPSET` came with: later ones are refused by older runtimes for nothing."""
LARGEST_FILE = 1 << 30
"""Bytes of constants beyond which they go to a file of their own (protobuf ends at 2 GiB)."""
DTYPES = {8: np.dtype("int8"), 16: np.dtype("int16")}


class Writer:
    """Appends nodes; a value is known by its name. ``scope`` begins the names of what follows."""

    def __init__(self) -> None:
        self.onnx = library()
        self.scope = ""
        self.nodes: list[Any] = []
        self.constants: dict[str, NDArray] = {}
        self.types: list[Any] = []
        self.taken: set[str] = set()

    def unique(self, name: str) -> str:
        """The name, or where it is taken the name with a number."""
        free, number = name, 1
        while free in self.taken:
            free, number = f"{name}_{number}", number + 1
        self.taken.add(free)
        return free

    def constant(self, name: str, value: ArrayLike, dtype: Any = None) -> str:
        """An initializer within the scope; equal ones of a name are one."""
        array = np.array(value, dtype=dtype, order="C")
        name = f"{self.scope}/{name}" if self.scope else name
        known = self.constants.get(name)
        if known is None or known.dtype != array.dtype or not np.array_equal(known, array):
            name = self.unique(name)
        self.constants[name] = array
        return name

    def ints(self, *values: int) -> str:
        """An int64 vector, for shapes and axes; one initializer for all that are equal."""
        name = "ints/" + "_".join(map(str, values))
        self.taken.add(name)
        self.constants[name] = np.array(values, dtype=np.int64)
        return name

    def call(self, op: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """The result of an operator."""
        name = self.unique("/".join(filter(None, (self.scope, op))))
        out = out or name
        self.nodes.append(self.onnx.helper.make_node(op, list(inputs), [out], name=name,
                                                     **attributes))
        return out

    def quantize(self, x: str, scale: NDArray, dtype: Any, axis: int, out: str | None = None
                 ) -> str:
        """Integers of a real value; scale [1], or [channels] along an axis."""
        return self._quantized("QuantizeLinear", x, scale, dtype, axis, out)

    def dequantize(self, x: str, scale: NDArray, dtype: Any, axis: int, out: str | None = None
                   ) -> str:
        """The real value of integers; scale [1], or [channels] along an axis."""
        return self._quantized("DequantizeLinear", x, scale, dtype, axis, out)

    def _quantized(self, op: str, x: str, scale: NDArray, dtype: Any, axis: int, out: str | None
                   ) -> str:
        single = scale.size == 1
        shape = () if single else scale.shape
        factor = self.constant("scale", scale.reshape(shape), "float32")
        # Runtimes ask for a zero point of 0 that says the type, but of 32 bits there is none.
        zero = ()
        if np.dtype(dtype).itemsize < 4:
            zero = (self.constant("zero", np.zeros(shape), dtype),)
        # An axis without channels along it would be checked for nothing.
        attributes: dict[str, Any] = {} if single else {"axis": axis}
        return self.call(op, x, factor, *zero, out=out, **attributes)

    def describe(self, name: str, dtype: Any, *shape: int | str) -> Any:
        """The type of a value: an input, an output, or one to be noted."""
        helper = self.onnx.helper
        code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return helper.make_tensor_value_info(name, code, list(shape))

    def save(self, path: str | Path, inputs: list[Any], outputs: list[Any],
             about: Mapping[str, str]) -> None:
        """Writes the model; raises `OnnxError` where the file cannot be written."""
        onnx = self.onnx
        from onnx import numpy_helper

        values = [numpy_helper.from_array(v, name) for name, v in self.constants.items()]
        graph = onnx.helper.make_graph(self.nodes, "systolith", inputs, outputs, values,
                                       value_info=self.types)
        model = onnx.helper.make_model(graph, producer_name="systolith", ir_version=IR_VERSION,
                                       opset_imports=[onnx.helper.make_opsetid("", OPSET)])
        onnx.helper.set_model_props(model, dict(about))
        path = Path(path)
        try:
            if sum(v.nbytes for v in self.constants.values()) > LARGEST_FILE:
                data = path.name + ".data"
                (path.parent / data).unlink(missing_ok=True)  # or it would be appended to
                onnx.save_model(model, path, save_as_external_data=True, location=data)
            else:
                onnx.save_model(model, path)
        except OSError as error:
            raise OnnxError(f"{path} cannot be written: {error.strerror or error}") from None
