"""The exported QDQ model in onnxruntime against the integer forward, by operator and whole."""

import builtins
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from systolith import golden
from systolith.errors import UserError
from systolith.forward import IntegerModel
from systolith.graph import ArgMax, Given, Graph, Linear, Output
from systolith.graph import Tensor as GraphTensor
from systolith.quant import onnx_writer
from systolith.quant.capture import capture
from systolith.quant.llama_network import llama_network
from systolith.quant.onnx_export import export_onnx
from systolith.quant.posttraining import quantize_network
from systolith.quant.recipe import Recipe
from tests.graphs import CHANNELS, CONTEXT, VOCABULARY, Maker, encoder, every_node
from tests.quant.onnx_sessions import session
from tests.quant.small import small_llama

onnx = pytest.importorskip("onnx")


def exported(graph: Graph, folder: Path) -> "onnx.ModelProto":
    """The model, which the format's own checker accepts, its types and shapes included."""
    path = folder / "model.onnx"
    export_onnx(graph, path)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    return model


def inputs_of(graph: Graph, rng: np.random.Generator, length: int) -> dict[str, np.ndarray]:
    """Random inputs of one sequence for `IntegerModel`."""
    inputs = {name: rng.integers(0, rows, length) for name, rows in graph.indices.items()}
    for node in graph.of_kind(Given):
        tensor = graph.tensors[node.out]
        half = 1 << (tensor.bits - 1)
        inputs[node.out] = rng.integers(-half, half, (length, tensor.channels))
    return inputs


def real_inputs(graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same for the ONNX model, [1, T] or [1, T, C]."""
    return {name: x[None] if name in graph.indices
            else (x * np.array(graph.tensors[name].scale))[None].astype(np.float32)
            for name, x in inputs.items()}


def differences(graph: Graph, model: "onnx.ModelProto", inputs: dict[str, np.ndarray]
                ) -> dict[str, int]:
    """The largest difference in LSB, by the kind of node.

    Every node gets the integers that the integer forward has for its inputs. A `Linear` with a
    table is two operators: the table gets the integers that its product should have.
    """
    values = {f"{name}/int": (x, f"int{graph.tensors[name].bits}")
              for name, x in IntegerModel(graph).trace(inputs).items()}
    for node in graph.of_kind(Linear):
        if node.table is not None:
            weight, *scale = (graph.constants[c] for c in (
                node.weight, node.bias, node.mult, node.shift))
            acc = golden.matmul(values[f"{node.x}/int"][0], weight.T)
            values[f"{node.out}/between"] = golden.scale(acc, *scale), "int16"
    cutter = onnx.utils.Extractor(model)
    first = real_inputs(graph, inputs)
    found: dict[str, int] = defaultdict(int)
    for node in graph.nodes:
        steps = [([f"{x}/int" for x in node.inputs], f"{node.out}/int")]
        if getattr(node, "table", None) and isinstance(node, Linear):
            between = f"{node.out}/between"
            steps = [(steps[0][0], between), ([between], f"{node.out}/int")]
        for reads, out in steps:
            result = node.out if isinstance(node, ArgMax) else out
            part = cutter.extract_model([*dict.fromkeys(reads), *first], [result])
            run = session(part)
            feed = first | {n: values[n][0][None].astype(values[n][1]) for n in reads}
            (y,) = run.run(None, {i.name: feed[i.name] for i in run.get_inputs()})
            wanted, dtype = values[out]
            if not isinstance(node, ArgMax):
                assert y.dtype == np.dtype(dtype)
            difference = int(np.abs(y.reshape(wanted.shape).astype(np.int64) - wanted).max())
            kind = type(node).__name__
            found[kind] = max(found[kind], difference)
            assert difference <= 1, f"{node.name} ({kind}) differs by {difference} LSB"
    return found


def whole(graph: Graph, model: "onnx.ModelProto", batch: list[dict[str, np.ndarray]]) -> float:
    """The largest difference between the outputs of a batch, in parts of the largest result."""
    rows = [real_inputs(graph, inputs) for inputs in batch]
    feed = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    run = session(model)
    results = run.run([o.name for o in run.get_outputs()][:len(graph.outputs)], feed)
    worst = 0.0
    for i, inputs in enumerate(batch):
        for ours, theirs in zip(IntegerModel(graph).run(inputs), results, strict=True):
            assert ours.shape == theirs[i].shape
            worst = max(worst, float(np.abs(ours - theirs[i]).max() / np.abs(ours).max()))
    print(f"largest difference of the whole model: {worst:.1e} of the largest result")
    return worst


# Every kind of node

@pytest.mark.parametrize("make", [every_node, encoder])
def test_every_operator_is_within_one_lsb(make, seed: int, tmp_path: Path) -> None:
    graph = make(seed)
    rng = np.random.default_rng(seed)
    found = differences(graph, exported(graph, tmp_path), inputs_of(graph, rng, CONTEXT))
    print(dict(found))
    assert set(found) == {type(node).__name__ for node in graph.nodes}
    exact = ("Given", "Embedding", "Lookup", "Slice", "Concat", "ArgMax")
    assert all(found[kind] == 0 for kind in exact if kind in found)


def alone(made: Maker, *nodes) -> Graph:
    """A graph whose result is the last node's."""
    return Graph(nodes=nodes, tensors=made.tensors, constants=made.constants,
                 outputs=(Output(tensor=nodes[-1].out),), context=64)


@pytest.mark.parametrize(("bits", "shift"), [(8, 23), (16, 31)])
def test_a_wide_product_needs_no_more_than_float32(bits: int, shift: int, seed: int,
                                                   tmp_path: Path) -> None:
    """1536 products in a row, of the largest magnitudes."""
    k, made, half = 1536, Maker(seed), 1 << (bits - 1)
    rng = np.random.default_rng(seed)
    given = Given(**made.tensor("x", bits, k))
    made.tensors["x"] = replace(made.tensors["x"], scale=(0.25,))
    graph = alone(made, given, made.linear("y", "x", CHANNELS, 16, shift))
    weight = made.constants["y.weight"]
    x = rng.integers(-half, half, (64, k))
    # Half of the rows follow the weights, so that sums are as large as they can be.
    x[:32] = np.abs(x[:32]) * np.sign(weight[rng.integers(0, CHANNELS, 32)])
    inputs = {"x": np.clip(x, -half, half - 1)}
    assert differences(graph, exported(graph, tmp_path), inputs)["Linear"] <= 1


@pytest.mark.parametrize("center", [True, False])
def test_norms_of_rows_far_from_zero(center: bool, seed: int, tmp_path: Path) -> None:
    """Where a variance is the small difference of large sums: means up to 300 deviations. (Beyond
    a few thousand, float32 has too few bits for the real values, and more LSBs may be lost.)"""
    made, rng = Maker(seed), np.random.default_rng(seed)
    graph = alone(made, Given(**made.tensor("x", 16)), made.norm("y", "x", 16, center))
    made.tensors["x"] = replace(made.tensors["x"], scale=(0.37,))
    x = 30000 + rng.integers(-9, 10, (64, CHANNELS)) * np.geomspace(20, 200, 64)[:, None]
    assert differences(graph, exported(graph, tmp_path), {"x": np.rint(x)})["Norm"] <= 1


# What a quantizer makes

def llama(bits: int) -> Graph:
    rng = np.random.default_rng(0)
    seen = list(rng.integers(0, 40, (4, 20)))
    recipe = Recipe(bits=(("*", bits),))
    return quantize_network(llama_network(small_llama(1)), seen, recipe, bos=1, eos=2).graph


class Encoder(nn.Module):
    """Words, segments and positions, two layers, and the mean of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.segments = nn.Embedding(30, 16), nn.Embedding(2, 16)
        self.places, self.norm = nn.Embedding(CONTEXT, 16), nn.LayerNorm(16)
        layer = nn.TransformerEncoderLayer(16, 4, 24, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
        x = self.words(ids) + self.segments(segments) + self.places(torch.arange(ids.shape[1]))
        x = self.layers(self.norm(x))
        return x[:, 0], nn.functional.normalize(x.mean(1), dim=-1)


def bert(recipe: Recipe) -> Graph:
    torch.manual_seed(0)
    module = Encoder().eval().requires_grad_(False)
    batch = {"ids": torch.randint(30, (4, CONTEXT)), "segments": torch.randint(2, (4, CONTEXT))}
    network = capture(module, batch)
    seen = [{"tokens": batch["ids"], "segments": batch["segments"]}]
    return quantize_network(network, seen, recipe).graph


# Where an operator is one LSB off, a later rounding to 8 bits (keys and values have no more) may
# fall the other way, and is then off by a hundredth; so few channels do not average that.
@pytest.mark.parametrize(("bits", "bound"), [(8, 0.1), (16, 0.03)])
def test_language_model(bits: int, bound: float, tmp_path: Path) -> None:
    graph = llama(bits)
    model = exported(graph, tmp_path)
    rng = np.random.default_rng(1)
    print(dict(differences(graph, model, inputs_of(graph, rng, 17))))
    assert whole(graph, model, [inputs_of(graph, rng, 24) for _ in range(3)]) < bound
    run = session(model)
    assert [o.name for o in run.get_outputs()] == ["logits", "token"]
    one = inputs_of(graph, rng, 1)
    logits, token = run.run(None, real_inputs(graph, one))
    assert token.tolist() == [[int(logits[0, 0].argmax())]]


@pytest.mark.parametrize("recipe", [
    Recipe(), Recipe(bits=(("*", 8),), keys=(("*", 12),)), Recipe(keys=(("*", 12),)),
], ids=["16", "8, keys of 12", "16, keys of 12"])
def test_encoder(recipe: Recipe, tmp_path: Path) -> None:
    graph = bert(recipe)
    model = exported(graph, tmp_path)
    rng = np.random.default_rng(2)
    print(dict(differences(graph, model, inputs_of(graph, rng, 7))))
    assert whole(graph, model, [inputs_of(graph, rng, CONTEXT) for _ in range(3)]) < 0.01
    assert [i.name for i in model.graph.input] == ["tokens", "segments"]
    first, mean = (o.name for o in model.graph.output)
    assert first.endswith(".first") and mean.endswith(".mean.normalized")


def test_the_file_describes_itself(tmp_path: Path) -> None:
    graph = llama(16)
    model = exported(graph, tmp_path)
    assert model.opset_import[0].version == onnx_writer.OPSET
    assert {p.key: p.value for p in model.metadata_props} == {
        "context": "24", "bos": "1", "eos": "2"}
    weights = {i.name: i for i in model.graph.initializer}
    linear = next(graph.of_kind(Linear))
    weight = weights[f"{linear.name}/weight"]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(weight),
                                  graph.constants[linear.weight])
    assert not {n.domain for n in model.graph.node} - {"", "ai.onnx"}
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    assert types[f"{linear.out}/int"] == onnx.TensorProto.INT16


def test_pools_and_names(tmp_path: Path) -> None:
    """Several outputs of one tensor, among them an input."""
    made = Maker(0)
    graph = Graph(
        nodes=(Given(**made.tensor("x", 16)),), tensors=made.tensors, constants=made.constants,
        outputs=tuple(Output(tensor="x", pool=p, normalize=n)
                      for p in ("none", "first", "last", "mean") for n in (False, True)),
        context=9)
    model = exported(graph, tmp_path)
    rng = np.random.default_rng(0)
    assert whole(graph, model, [inputs_of(graph, rng, 9) for _ in range(2)]) < 1e-6
    assert [o.name for o in model.graph.output][:4] == [
        "x_1", "x.normalized", "x.first", "x.first.normalized"]


def test_many_weights_go_to_a_file_beside_the_model(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(onnx_writer, "LARGEST_FILE", 10)
    for _ in range(2):  # over the first one, too
        graph = every_node(0)
        export_onnx(graph, tmp_path / "model.onnx")
    (tmp_path / "model.onnx.data").stat()
    run = session(tmp_path / "model.onnx")
    tokens = np.arange(CONTEXT) % VOCABULARY
    assert run.run(None, {"tokens": tokens[None]})[0].shape == (1, CONTEXT, VOCABULARY)


# Errors

def test_without_the_library(tmp_path: Path, monkeypatch) -> None:
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "onnx":
            raise ImportError(name)
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'systolith\[onnx\]'"):
        export_onnx(every_node(0), tmp_path / "model.onnx")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.onnx cannot be written: No such file"):
        export_onnx(every_node(0), tmp_path / "nowhere" / "model.onnx")


@pytest.mark.parametrize("scale", [1e-45, 1e39])
def test_scales_that_float32_cannot_hold(scale: float, tmp_path: Path) -> None:
    graph = every_node(0)
    tensor = GraphTensor(name="q", channels=CHANNELS, bits=16, scale=(scale,))
    graph = replace(graph, tensors=graph.tensors | {"q": tensor})
    with pytest.raises(UserError, match="scale of the tensor 'q' is out of the range"):
        export_onnx(graph, tmp_path / "model.onnx")
