"""`load_onnx` against the torch modules that were exported, and against onnxruntime."""

import math
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from systolith.errors import UserError
from systolith.forward import IntegerModel
from systolith.quant.network import Attention, Given, Network, Norm, Output, Rope
from systolith.quant.onnx_export import export_onnx
from systolith.quant.onnx_import import load_onnx
from systolith.quant.posttraining import quantize_network
from tests.quant.onnx_models import export, model, node, onnx, small
from tests.quant.onnx_sessions import session

B, T, C, VOCABULARY = 2, 9, 16, 50


def close(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-4 of the largest result."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def results(network: Network, **inputs: Tensor) -> tuple[Tensor, ...]:
    return network.results(network.run(inputs))


def randomized(module: nn.Module) -> nn.Module:
    """Norms and biases that matter."""
    torch.manual_seed(0)
    for name, p in module.named_parameters():
        gain = p.dim() == 1 and name.endswith("weight")
        nn.init.normal_(p, 1.0 if gain else 0.0, 0.3)
    return module.eval().requires_grad_(False)


def saved(made, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save_model(made, path)
    return path


def kinds(network: Network) -> list[str]:
    return [type(op).__name__ for op in network.ops]


# Models of torch

class Written(nn.Module):
    """Causal self-attention by hand, between a norm and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(C), nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (z.view(b, t, 2, c // 2).transpose(1, 2)
                   for z in self.qkv(self.norm(x)).chunk(3, dim=-1))
        scores = q @ k.transpose(-1, -2) / math.sqrt(c // 2)
        seen = torch.ones(t, t, dtype=torch.bool).tril()
        weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
        return x + self.out((weights @ v).transpose(1, 2).reshape(b, t, c))


@pytest.mark.parametrize("dynamic", [True, False])
def test_written_attention(dynamic: bool, tmp_path: Path) -> None:
    module = randomized(Written())
    # With a batch and a length of its own the file takes no others.
    example = torch.randn(B if dynamic else 1, T, C)
    export(module, {"x": example}, tmp_path / "model.onnx", dynamic=dynamic)
    network = load_onnx(tmp_path / "model.onnx", context=T if dynamic else None)
    assert kinds(network) == ["Given", "Norm", *["Linear"] * 3, "Attention", "Linear", "Add"]
    assert next(network.of_kind(Attention)).causal and network.context == T
    assert network.ops[1].name == "norm.LayerNormalization"
    assert network.ops[1].source.module == "norm.LayerNormalization"
    for length in (2, T):
        x = torch.randn(3, length, C)
        close(results(network, x=x)[0], module(x))


def test_transformer_encoder_from_the_new_exporter(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    layer = nn.TransformerEncoderLayer(C, 4, 24, batch_first=True, activation="gelu")
    module = randomized(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    export(module, {"src": torch.randn(B, T, C)}, tmp_path / "model.onnx", dynamo=True)
    network = load_onnx(tmp_path / "model.onnx")
    assert sum(isinstance(op, Attention) for op in network.ops) == 2
    x = torch.randn(3, 5, C)
    close(results(network, src=x)[0], module(x))


# Other people's models

SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1,
         "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 12,
         "attn_implementation": "eager"}


class Called(nn.Module):
    """A model of the library, called by position; its results as a tuple."""

    def __init__(self, inner: nn.Module, *names: str) -> None:
        super().__init__()
        self.inner, self.names = inner, names

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        options = {} if "pooler_output" in self.names else {"use_cache": False}
        made = self.inner(input_ids=input_ids, attention_mask=attention_mask, **options)
        return tuple(made[name] for name in self.names)


@pytest.fixture(scope="module")
def hf():
    """The library; what it and torch warn of each other on import is not ours."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        return pytest.importorskip("transformers")


def loaded(module: nn.Module, path: Path) -> Network:
    ids, mask = torch.randint(VOCABULARY, (B, T)), torch.ones(B, T, dtype=torch.int64)
    export(module, {"input_ids": ids, "attention_mask": mask}, path)
    return load_onnx(path, context=12)


def check(network: Network, module: nn.Module) -> None:
    for length in (2, 12):
        ids = torch.randint(VOCABULARY, (3, length))
        theirs = module(ids, torch.ones_like(ids))
        for ours, wanted in zip(results(network, tokens=ids), theirs, strict=True):
            close(ours, wanted)


def test_bert(hf, tmp_path: Path) -> None:
    module = randomized(Called(hf.BertModel(hf.BertConfig(**SIZES)), "last_hidden_state",
                               "pooler_output"))
    network = loaded(module, tmp_path / "model.onnx")
    assert network.indices == ("tokens",) and network.context == 12
    assert [o.pool for o in network.outputs] == ["none", "first"]
    assert not any(a.causal for a in network.of_kind(Attention))
    assert "inner.encoder.layer.0.attention.self.query.MatMul" in [op.name for op in network.ops]
    check(network, module)


def test_llama(hf, tmp_path: Path) -> None:
    config = hf.LlamaConfig(**SIZES, num_key_value_heads=2)
    module = randomized(Called(hf.LlamaForCausalLM(config), "logits"))
    network = loaded(module, tmp_path / "model.onnx")
    assert network.generative and network.vocabulary == VOCABULARY
    assert [op.pairs for op in network.of_kind(Rope)] == ["halves"] * 2
    check(network, module)


def test_gpt2(hf, tmp_path: Path) -> None:
    config = hf.GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=4, n_positions=12,
                           attn_implementation="eager")
    module = randomized(Called(hf.GPT2LMHeadModel(config), "logits"))
    network = loaded(module, tmp_path / "model.onnx")
    assert network.generative and len(list(network.of_kind(Norm))) == 3
    check(network, module)


# There and back

class Sentence(nn.Module):
    """Two encoder layers over words and positions; all tokens, and the unit mean of them."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, C), nn.Embedding(T, C)
        self.layer, self.norm = Written(), nn.LayerNorm(C)
        self.up, self.down = nn.Linear(C, 32), nn.Linear(32, C)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        x = self.layer(x)
        x = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return x, nn.functional.normalize(x.mean(1), dim=-1)


def test_round_trip(tmp_path: Path) -> None:
    """Float ONNX to a network, to integers, and to QDQ ONNX: near the float file."""
    path, quantized = tmp_path / "model.onnx", tmp_path / "quantized.onnx"
    module = randomized(Sentence())
    export(module, {"ids": torch.randint(VOCABULARY, (B, T))}, path)
    network = load_onnx(path, context=T)
    assert network.outputs[1] == Output(x=network.outputs[0].x, pool="mean", normalize=True)
    random = np.random.default_rng(0)
    made = quantize_network(network, list(random.integers(0, VOCABULARY, (8, T))))
    export_onnx(made.graph, quantized)
    ids = random.integers(0, VOCABULARY, (4, T))
    floats = session(path).run(None, {"ids": ids})
    ours = session(quantized).run(None, {"tokens": ids})
    integers = [IntegerModel(made.graph).run(row) for row in ids]
    for i, (y, wanted) in enumerate(zip(ours, floats, strict=True)):
        exact = np.stack([row[i] for row in integers])
        assert y.shape == wanted.shape == exact.shape
        size = np.linalg.norm(wanted)
        lost, off = np.linalg.norm(exact - wanted) / size, np.linalg.norm(y - exact) / size
        print(f"{lost:.1e} lost by integers, {off:.1e} between them and the file")
        assert lost < 0.1 and off < 0.01


# Files by hand

def test_names_and_embedding(tmp_path: Path) -> None:
    network = load_onnx(saved(small(), tmp_path), context=5)
    assert [(op.name, type(op).__name__) for op in network.ops] == [
        ("words.Gather", "Embed"), ("layers.0.type.MatMul", "Linear"),
        ("layers.0.act.Relu", "Function")]
    assert network.op("words.Gather").source.module == "words.Gather"
    assert network.op("words.Gather").source.file == ""


def test_half_precision(tmp_path: Path) -> None:
    half = small()
    for value in half.graph.initializer:
        array = onnx.numpy_helper.to_array(value).astype(np.float16)
        value.CopyFrom(onnx.numpy_helper.from_array(array, value.name))
    half.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    network = load_onnx(saved(half, tmp_path), context=5)
    assert network.op("words.Gather").table.dtype == torch.float32
    ids = torch.arange(10).view(2, 5)
    (ours,) = results(network, tokens=ids)
    (exact,) = results(load_onnx(saved(small(), tmp_path), context=5), tokens=ids)
    assert 0 < (ours - exact).abs().max() < 1e-3 * exact.abs().max()


def test_chosen_outputs_and_inputs_that_nobody_reads(tmp_path: Path) -> None:
    made = small()
    made.graph.output.append(onnx.helper.make_tensor_value_info("caches", 1, None))
    made.graph.node.append(node("Nonsense", "cache", "caches", domain="com.example"))
    made.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    made.graph.input.append(onnx.helper.make_tensor_value_info("cache", 1, (1, 2, 3, 4)))
    path = saved(made, tmp_path)
    assert len(load_onnx(path, context=5, outputs=["out"]).ops) == 3
    with pytest.raises(UserError, match=r"com\.example\.Nonsense"):
        load_onnx(path, context=5)
    with pytest.raises(UserError, match=r"no output 'z'; it has out, caches"):
        load_onnx(path, context=5, outputs=["z"])


def test_several_inputs(tmp_path: Path) -> None:
    """Segments, whose table is small, a float input and positions by number."""
    random = np.random.default_rng(0)
    tables = {n: random.normal(size=(rows, 4)).astype(np.float32)
              for n, rows in (("words", 9), ("segments", 2), ("places", 6))}
    made = model(
        [node("Gather", "words ids", "a"), node("Cast", "types", "t", to=7),
         node("Gather", "segments t", "b"), node("Gather", "places position_ids", "c"),
         node("Add", "a b", "ab"), node("Add", "ab c", "abc"), node("Add", "abc x", "out")],
        tables, {"ids": (None, 6), "types": (None, 6), "position_ids": (None, 6),
                 "x": (None, 6, 4)}, ["out"], integers=("ids", "types", "position_ids"))
    network = load_onnx(saved(made, tmp_path))
    assert network.indices == ("tokens", "types") and network.context == 6
    assert [op.name for op in network.of_kind(Given)] == ["x"]
    ids, types, x = torch.tensor([[8, 1, 0]]), torch.tensor([[0, 1, 1]]), torch.randn(1, 3, 4)
    words, segments, places = (torch.from_numpy(tables[n]) for n in tables)
    close(results(network, tokens=ids, types=types, x=x)[0],
          words[ids] + segments[types] + places[:3] + x)


# Errors: one sentence, which names the file and what in it

def fails(path: Path, message: str, **options) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_onnx(path, **({"context": 5} | options))
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    assert ".py" not in str(error.value)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    fails(tmp_path / "model.onnx", "cannot be read: No such file")
    path = saved(small(), tmp_path)
    data = path.read_bytes()
    for part in (data[:-1], data[:len(data) // 2], data[:40], b"", b"# a text", bytes(64)):
        path.write_bytes(part)
        fails(path, "this is no ONNX model, or (a part of one|one without any node)")


def test_external_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(small(), path, save_as_external_data=True, location="model.data",
                    size_threshold=0)
    assert len(load_onnx(path, context=5).ops) == 3
    data = (tmp_path / "model.data").read_bytes()
    (tmp_path / "model.data").write_bytes(data[:100])
    fails(path, r"the (data of the )?tensor '\w+' ")
    (tmp_path / "model.data").unlink()
    fails(path, "the data of the tensor 'table' are in the file model.data, which is not beside")


def test_damaged_tensor(tmp_path: Path) -> None:
    made = small()
    made.graph.initializer[0].raw_data = made.graph.initializer[0].raw_data[:-4]
    fails(saved(made, tmp_path), r"tensor 'table' has not as much data as its shape \[11, 8\]")


@pytest.mark.parametrize(("value", "what"), [(math.nan, "a NaN"), (math.inf, "an infinity")])
def test_numbers_that_are_none(value: float, what: str, tmp_path: Path) -> None:
    bias = np.array([1, 2, 3, value, 5, 6], dtype=np.float32)
    fails(saved(small(bias=bias), tmp_path), f"the tensor 'bias' holds {what}")


def test_unsupported_operators(tmp_path: Path) -> None:
    made = small()
    made.graph.node[3].op_type = "Det"
    fails(saved(made, tmp_path), r"the operator Det \(the node '/layers.0/act/Relu'\) is not supp")
    made.graph.node[3].domain = "com.microsoft"
    fails(saved(made, tmp_path), r"the operator com\.microsoft\.Det \(the node '/layers")


def test_what_the_machine_has_no_operation_for(tmp_path: Path) -> None:
    made = small()
    made.graph.node[3].op_type = "Softplus"
    fails(saved(made, tmp_path), r"no operation for softplus .* \(layers\.0\.act\.Relu\)$")


def test_nodes_that_cannot_be_run(tmp_path: Path) -> None:
    wrong = small(weight=np.ones((7, 6), dtype=np.float32))
    fails(saved(wrong, tmp_path), r"the node '/layers\.0/type/MatMul': ")
    made = model([node("Range", "a n a", "steps", name="steps"), node("Add", "steps x", "out")],
                 {"a": np.array(1)}, {"x": (1, 5, 4), "n": (1, 5)}, ["out"], integers=("n",))
    fails(saved(made, tmp_path), r"the operator Range \(the node 'steps'\) depends on the values")
    made = model([node("Reshape", "x n", "out", name="move")], {},
                 {"x": (1, 5, 4), "n": (1, 5)}, ["out"], integers=("n",))
    fails(saved(made, tmp_path), r"the node 'move': its shape depends on the values of the inputs")


@pytest.mark.parametrize(("inputs", "message"), [
    ({"x": (1, 2, None, 4)}, "the input 'x' has 4 axes"),
    ({"x": (None, None, None)}, "the input 'x' has no fixed number of channels"),
    ({"x": (None, 7, 4)}, "for sequences of 7 tokens, not for 5"),
    ({"x": (None, 5, 4), "y": (None, 6, 4)}, r"its inputs have different lengths: \[5, 6\]"),
])
def test_inputs_that_are_no_sequences(inputs: dict, message: str, tmp_path: Path) -> None:
    other = "y" if "y" in inputs else "x"
    made = model([node("Add", f"x {other}", "out")], {}, inputs, ["out"])
    fails(saved(made, tmp_path), message)


def test_open_lengths_need_a_context(tmp_path: Path) -> None:
    fails(saved(small(), tmp_path), "give context, the longest one", context=None)


def test_invalid_models(tmp_path: Path) -> None:
    made = small()
    made.graph.node[3].attribute.append(onnx.helper.make_attribute("colour", "red"))
    fails(saved(made, tmp_path), r"the node '/layers\.0/act/Relu' is not valid: .*colour")
