"""The integer graph as an ONNX model of standard operators, for comparison with other stacks.

The model is of the QDQ kind (opset 21): each tensor of the graph is an integer value between a
QuantizeLinear and a DequantizeLinear with the tensor's scale, what computes is float, and weights
are int8 with a DequantizeLinear for each output channel. Every parameter is derived from the
graph's integers (a weight's scale is ``mult * 2**-shift * out_scale / x_scale``), so that the file
is what the machine computes, and not what it was made from. An operator, given the integers of its
inputs, gives the machine's integers within one LSB: ONNX rounds halves to even, and the machine's
softmax and norm are tables. Embeddings, function tables, `Slice`, `Concat` and `ArgMax` work on the
integers, and are exact.

Inputs: for each index input of the graph int64 [batch, length], for each `Given` tensor its real
values, float [batch, length, channels]; both axes are dynamic, ``length`` at most the graph's
context. Each sequence is computed whole, from its first token and without padding. Outputs: the
graph's outputs in their order, float, pooled and normalized where the graph says so (the first has
its tensor's name); then the results of every `ArgMax`, int64 [batch, length].

The integers of the tensor ``x`` are the value ``x/int`` of shape [batch, length, channels]:
`onnx.utils.extract_model` cuts the model at any of them. A `Linear` with a table has another value,
``x/between``: the int16 numbers that the table is looked up with.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from systolith.graph import (
    POSITIONS,
    Add,
    ArgMax,
    Attention,
    Concat,
    Embedding,
    Given,
    Graph,
    Linear,
    Lookup,
    Multiply,
    Norm,
    Output,
    Rope,
    Slice,
)
from systolith.quant.onnx_values import BATCH, CHANNELS, LENGTH, Float, Values, uniform
from systolith.quant.onnx_writer import DTYPES


def export_onnx(graph: Graph, path: str | Path) -> None:
    """Writes a graph as an ONNX QDQ model; see the module's documentation for what is in it.

    Raises `OnnxError` where onnx is not installed, the file cannot be written, or a scale of the
    graph is out of the range of float32.
    """
    _Exporter(graph).save(path)


class _Exporter(Values):
    """One method for each kind of node, which defines the integers of the node's tensor."""

    def save(self, path: str | Path) -> None:
        graph, writer = self.graph, self.writer
        inputs = [writer.describe(writer.unique(n), "int64", BATCH, LENGTH) for n in graph.indices]
        for node in graph.of_kind(Given):
            name = writer.unique(node.out)
            inputs.append(writer.describe(name, "float32", BATCH, LENGTH,
                                          graph.tensors[node.out].channels))
        # Before the tensors, so that outputs have the names that users look for.
        names = [writer.unique(_output_name(output)) for output in graph.outputs]
        self.tokens = {node.out: writer.unique(node.out) for node in graph.of_kind(ArgMax)}
        self.number_tokens(inputs[0].name)
        for node in graph.nodes:
            writer.scope = node.name
            getattr(self, "_" + type(node).__name__.lower())(node)
            if not isinstance(node, ArgMax):
                self.note(f"{node.out}/int", node.out, DTYPES[graph.tensors[node.out].bits])
        outputs = []
        for output, name in zip(graph.outputs, names, strict=True):
            writer.scope = f"output {name}"
            self._output(output, name)
            shape = (BATCH, LENGTH) if output.pool == "none" else (BATCH,)
            outputs.append(writer.describe(name, "float32", *shape,
                                           graph.tensors[output.tensor].channels))
        outputs += [writer.describe(name, "int64", BATCH, LENGTH) for name in self.tokens.values()]
        about = {"context": str(graph.context)}
        about |= {name: str(value) for name, value in (("bos", graph.bos), ("eos", graph.eos))
                  if value is not None}
        writer.save(path, inputs, outputs, about)

    def _ratio(self, node: Linear | Attention) -> Float:
        """What the requantization multiplies accumulators by, [N]."""
        constants = self.graph.constants
        return constants[node.mult] * 2.0 ** -constants[node.shift].astype(float)

    # Nodes -------------------------------------------------------------------------------------

    def _given(self, node: Given) -> None:
        self.define(node.out, node.out)

    def _embedding(self, node: Embedding) -> None:
        index = node.index
        if index == POSITIONS:
            shape = self.call("Shape", self.first, start=0, end=2)
            index = self.call("Expand", self.positions, shape)
        table = self.constant("table", self.graph.constants[node.table])
        self.call("Gather", table, index, axis=0, out=f"{node.out}/int")

    def _weight(self, node: Linear) -> NDArray[np.int8]:
        """The int8 weight of a Linear [N, K]: the only place that knows how it is stored."""
        return self.graph.constants[node.weight]

    def _linear(self, node: Linear) -> None:
        x, x_scale = self.token_rows(node.x)
        # Between a product and its table there is a tensor that the graph gives no scale.
        between = self.scales[node.out] if node.table is None else np.ones(1)
        real = self._ratio(node) * between
        # Not MatMul: onnxruntime (1.32) replaces a MatMul of a float x and an int8 weight by one
        # that rounds x to 8 bits on the way, which costs hundreds of LSBs of a 16-bit result.
        operands = [x, self.writer.dequantize(self.constant("weight", self._weight(node)),
                                              real / x_scale, "int8", 0)]
        bias = self.graph.constants[node.bias]
        if bias.any():
            operands.append(self.writer.dequantize(self.constant("bias", bias), real, "int32", 0))
        y, shape = self.call("Gemm", *operands, transB=1), self.shape_of(node.out)
        bits = self.graph.tensors[node.out].bits if node.table is None else 16
        out = f"{node.out}/{'int' if node.table is None else 'between'}"
        if uniform(between):
            y = self.writer.quantize(y, between[:1], DTYPES[bits], 1)
            self.call("Reshape", y, shape, out=out)
        else:
            # Between a Gemm and a scale for each channel, for which onnxruntime (1.20) has no Gemm.
            self.writer.quantize(self.call("Reshape", y, shape), between, DTYPES[bits], CHANNELS,
                                 out=out)
        if node.table is not None:
            self.note(out, node.out, DTYPES[16])
            self._table(node, out, exact=False)

    def _lookup(self, node: Lookup) -> None:
        self._table(node, f"{node.x}/int", node.exact)

    def _table(self, node: Linear | Lookup, x: str, exact: bool) -> None:
        """The run-time table in integers, as `golden.lookup` and `lookup8` do it."""
        table, bits = self.graph.constants[node.table], self.graph.tensors[node.out].bits
        number, call = (lambda value: self.constant("number", np.int32(value))), self.call
        base, slope = (self.constant(n, table[:, i], "int32") for i, n in enumerate(
            ("base", "slope")))
        x = call("Cast", x, to=self.writer.onnx.TensorProto.INT32)
        if exact:
            inside = call("Clip", x, number(-128), number(127))
            y = call("Gather", base, call("Add", inside, number(128)))
        else:
            # Division and remainder of numbers that are not negative are shifts and masks.
            positive = call("Add", x, number(1 << 15))
            segment = call("Div", positive, number(256))
            fraction = call("Mod", positive, number(256))
            step = call("Mul", call("Gather", slope, segment), fraction)
            step = call("Div", call("Add", step, number((1 << 23) + 128)), number(256))
            y = call("Add", call("Gather", base, segment), call("Sub", step, number(1 << 15)))
        half = 1 << (bits - 1)
        y = call("Clip", y, number(-half), number(half - 1))
        code = self.writer.onnx.helper.np_dtype_to_tensor_dtype(DTYPES[bits])
        call("Cast", y, to=code, out=f"{node.out}/int")

    def _norm(self, node: Norm) -> None:
        x, x_scale = self.even(node.x)
        constants, call = self.graph.constants, self.call
        channels = self.graph.tensors[node.x].channels
        unit = 2.0 ** -constants[node.shift].astype(float) * self.scales[node.out]
        gain = self.constant("gain", constants[node.gain] * unit * 2**15, "float32")
        bias = constants[node.bias] * unit
        # The machine's sum of squares is at least 1.
        eps = max(node.eps << node.eps_shift, 1) * (x_scale / channels) ** 2
        if node.center:
            # The operator subtracts the mean, too, but some runtimes (onnxruntime 1.20) take the
            # variance as the small difference of large numbers, where it is one.
            x = call("Sub", x, call("ReduceMean", x, self.ints(-1), keepdims=1))
            bias = self.constant("bias", bias, "float32")
            y = call("LayerNormalization", x, gain, bias, axis=-1, epsilon=eps)
        else:
            mean = call("ReduceMean", call("Mul", x, x), self.ints(-1), keepdims=1)
            root = call("Sqrt", call("Add", mean, self.constant("eps", np.float32(eps))))
            y = call("Mul", call("Div", x, root), gain)
            if bias.any():
                y = call("Add", y, self.constant("bias", bias, "float32"))
        self.define(node.out, y)

    def _rope(self, node: Rope) -> None:
        channels, p = self.graph.tensors[node.out].channels, node.head_dim
        scale = np.broadcast_to(self.scales[node.x], channels)
        if uniform(scale.reshape(-1, 2)):
            x = self.real(node.x)
        else:
            x, scale = self.dequantized(node.x, np.ones(1), True), np.ones(channels)
        heads = self.call("Reshape", x, self.ints(0, 0, -1, p))
        partner = self.call("Gather", heads, self.constant("partner", np.arange(p) ^ 1), axis=3)
        cos, sin = (self.call("Unsqueeze", self.table_rows(name), self.ints(1))
                    for name in (node.cos, node.sin))                           # [length, 1, P]
        y = self.call("Add", self.call("Mul", heads, cos), self.call("Mul", partner, sin))
        y = self.call("Reshape", y, self.ints(0, 0, channels))
        self.define(node.out, self.times(y, self.scales[node.out] / scale * 2.0 ** (
            15 - node.shift)))

    def _attention(self, node: Attention) -> None:
        call, lead = self.call, (node.kv_heads, node.group)
        parts, unit = self._score_parts(node)
        scores = ""
        for q, k in parts:
            q = self._heads(q, unit, node.heads, node, (0, 2, 3, 1, 4))       # [B, G, H / G, T, P]
            k = self._heads(k, unit, node.kv_heads, node, (0, 2, 3, 4, 1))    # [B, G, 1, P, T]
            product = call("MatMul", q, k)
            scores = call("Add", scores, product) if scores else product
        # From the exponent of a power of two with 16 fraction bits to that of e.
        scale = node.score_mult * 2.0**-node.score_shift * np.log(2) / 65536
        scores = self.times(scores, scale / (unit or 1.0))
        if node.causal:
            scores = call("Where", self.visible(), scores,
                          self.constant("hidden", np.float32(-np.inf)))
        dtype = np.dtype(f"uint{node.probability_bits}")
        p_scale = np.array([np.float32(1 / np.iinfo(dtype).max)], dtype=float)
        p_int = self.writer.quantize(call("Softmax", scores, axis=-1), p_scale, dtype, -1)
        p = self.writer.dequantize(p_int, p_scale, dtype, -1)
        order = (0, 2, 3, 1, 4)
        v_unit = 1.0 if node.v_low is None else None
        v = self._heads(node.v, v_unit, node.kv_heads, node, order)
        y = call("MatMul", p, v)                                          # [B, G, H / G, T, P]
        if node.v_low is not None:
            # The upper byte of p, as the machine has it: what is cut off adds up over many keys.
            upper = call("Cast", p_int, to=self.writer.onnx.TensorProto.FLOAT)
            upper = call("Floor", self.times(upper, 1 / 256))
            low = self._heads(node.v_low, None, node.kv_heads, node, order)
            y = call("Add", y, self.times(call("MatMul", upper, low), p_scale))
        y = call("Transpose", y, perm=[0, 3, 1, 2, 4])
        y = call("Reshape", y, self.ints(0, 0, node.heads * node.head_dim))
        v_scale = np.broadcast_to(self.scales[node.v], node.kv_heads * node.head_dim)
        v_scale = np.repeat(v_scale.reshape(lead[0], 1, -1), lead[1], axis=1).reshape(-1)
        real = self._ratio(node) * self.scales[node.out]
        y = self.times(y, real / (v_scale if v_unit else 1.0) / p_scale)
        bias = self.graph.constants[node.bias]
        if bias.any():
            y = call("Add", y, self.writer.dequantize(
                self.constant("bias", bias), real, "int32", 0))
        self.define(node.out, y)

    def _score_parts(self, node: Attention) -> tuple[list[tuple[str, str]], float | None]:
        """Pairs of queries and keys, and the real value of their products' LSB.

        The products of a quantizer's scales are all equal. Where they are not, as in a graph that
        is not meant to be real, there is none, and the numbers of LSBs are to be multiplied.
        """
        names = [(node.q, node.k)]
        if node.q_low is not None:
            names.append((node.q_low, node.k_low))
        products = []
        for q, k in names:
            q_scale = np.broadcast_to(self.scales[q], node.heads * node.head_dim)
            k_scale = np.broadcast_to(self.scales[k], node.kv_heads * node.head_dim)
            products.append(q_scale.reshape(node.kv_heads, node.group, -1)
                            * k_scale.reshape(node.kv_heads, 1, -1))
        every = np.stack(products)
        return names, float(every.flat[0]) if uniform(every) else None

    def _heads(self, tensor: str, unit: float | None, heads: int, node: Attention,
               order: tuple[int, ...]) -> str:
        """A tensor as [B, T, key heads, heads for each of them, P], in an order; without a unit the
        numbers of its LSBs."""
        shape = self.ints(0, 0, node.kv_heads, heads // node.kv_heads, node.head_dim)
        def moved(x: str) -> str:
            return self.call("Transpose", self.call("Reshape", x, shape), perm=list(order))
        scale = np.ones(1) if unit is None else self.scales[tensor]
        if not uniform(scale):
            return moved(self.real(tensor))
        # Moved before it is dequantized: see `token_rows`.
        return self.writer.dequantize(moved(f"{tensor}/int"), scale[:1],
                                      DTYPES[self.graph.tensors[tensor].bits], -1)

    def _add(self, node: Add) -> None:
        out, terms = self.scales[node.out] * 2.0**-node.shift, []
        for name, mult in ((node.a, node.mult_a), (node.b, node.mult_b)):
            if mult or not terms:
                terms.append(self.times(self.real(name), mult * out / self.scales[name]))
        self.define(node.out, self.call("Add", *terms) if len(terms) > 1 else terms[0])

    def _multiply(self, node: Multiply) -> None:
        a, b = (self.real(name) for name in (node.a, node.b))
        factor = node.mult * 2.0**-node.shift * self.scales[node.out]
        self.define(node.out, self.times(
            self.call("Mul", a, b), factor / self.scales[node.a] / self.scales[node.b]))

    def _slice(self, node: Slice) -> None:
        self.call("Slice", f"{node.x}/int", self.ints(node.first),
                  self.ints(node.first + node.count), self.ints(CHANNELS), out=f"{node.out}/int")

    def _concat(self, node: Concat) -> None:
        self.call("Concat", *(f"{x}/int" for x in node.xs), axis=CHANNELS, out=f"{node.out}/int")

    def _argmax(self, node: ArgMax) -> None:
        x = self.call("Cast", f"{node.x}/int", to=self.writer.onnx.TensorProto.INT32)
        self.call("ArgMax", x, axis=CHANNELS, keepdims=0, out=self.tokens[node.out])

    # Outputs -----------------------------------------------------------------------------------

    def _output(self, output: Output, name: str) -> None:
        """What the host makes of a tensor's real values."""
        call = self.call
        if output.pool in ("first", "last"):
            at = self.constant("token", np.int64(0 if output.pool == "first" else -1))
            x = call("Gather", f"{output.tensor}/int", at, axis=1)
            x = self.writer.dequantize(x, self.scales[output.tensor],
                                       DTYPES[self.graph.tensors[output.tensor].bits], 1)
        else:
            x = self.real(output.tensor)
        if output.pool == "mean":
            x = call("ReduceMean", x, self.ints(1), keepdims=0)
        if output.normalize:
            size = call("ReduceL2", x, self.ints(-1), keepdims=1)
            x = call("Div", x, call("Max", size, self.constant("least", np.float32(1e-12))))
        call("Identity", x, out=name)


def _output_name(output: Output) -> str:
    pool = [] if output.pool == "none" else [output.pool]
    return ".".join([output.tensor, *pool, *(["normalized"] if output.normalize else [])])
