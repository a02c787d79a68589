import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from systolith.artifact import FORMAT, VERSION, Artifact, ArtifactError
from systolith.errors import UserError
from systolith.forward import IntegerModel
from systolith.graph import GraphError
from tests.graphs import encoder, every_node, in_groups

TOKENIZER = bytes(range(256)) * 2
METADATA = {"checkpoint": "x.bin", "measured": {"ratio": 1.003}}


@pytest.fixture
def path(tmp_path, seed) -> Path:
    Artifact(every_node(seed), TOKENIZER, METADATA).save(tmp_path / "model.slq")
    return tmp_path / "model.slq"


def manifest_of(path: Path) -> dict:
    with safe_open(str(path), framework="numpy") as file:
        return json.loads(file.metadata()[FORMAT])


def rewrite(path: Path, text=None, arrays=None, **manifest) -> None:
    """Changes a file: its manifest's text, entries of its manifest, tensors (None removes)."""
    text = text if text is not None else json.dumps(manifest_of(path) | manifest)
    arrays = {k: v for k, v in (load_file(path) | (arrays or {})).items() if v is not None}
    save_file(arrays, path, metadata={FORMAT: text})


def refused(path: Path, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        Artifact.load(path)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text


def test_what_is_saved_is_loaded(path, seed):
    graph, loaded = every_node(seed), Artifact.load(path)
    assert loaded.tokenizer == TOKENIZER
    assert loaded.metadata == METADATA
    assert loaded.graph.nodes == graph.nodes
    assert loaded.graph.tensors == graph.tensors
    assert list(loaded.graph.tensors) == list(graph.tensors)
    assert (loaded.graph.context, loaded.graph.bos, loaded.graph.eos) == (12, 1, 2)
    assert set(loaded.graph.constants) == set(graph.constants)
    for name, value in graph.constants.items():
        assert loaded.graph.constants[name].dtype == value.dtype
        np.testing.assert_array_equal(loaded.graph.constants[name], value, err_msg=name)
    tokens = [3, 1, 4, 1, 5]
    np.testing.assert_array_equal(
        IntegerModel(loaded.graph).step(tokens), IntegerModel(graph).step(tokens))


def test_weights_of_four_bits_are_saved_in_four_bits(tmp_path, seed):
    graph, path = in_groups(every_node(seed), 32, seed), tmp_path / "model.slq"
    Artifact(graph, TOKENIZER).save(path)
    loaded = Artifact.load(path).graph
    assert loaded.nodes == graph.nodes
    for name, value in graph.constants.items():
        assert loaded.constants[name].dtype == value.dtype
        np.testing.assert_array_equal(loaded.constants[name], value, err_msg=name)
    tokens = [3, 1, 4, 1, 5]
    np.testing.assert_array_equal(
        IntegerModel(loaded).step(tokens), IntegerModel(graph).step(tokens))


def test_the_same_model_gives_the_same_bytes(path, tmp_path, seed):
    Artifact(every_node(seed), TOKENIZER, METADATA).save(tmp_path / "again.slq")
    assert (tmp_path / "again.slq").read_bytes() == path.read_bytes()


def test_saving_is_atomic(path, seed, monkeypatch):
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ArtifactError, match=r"Cannot write .*: No space left on device"):
        Artifact(every_node(seed + 1), TOKENIZER).save(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_an_overflowing_graph_becomes_no_artifact(seed):
    graph = every_node(seed)
    bias = np.full_like(graph.constants["up.bias"], (1 << 31) - 1)
    graph = replace(graph, constants=graph.constants | {"up.bias": bias})
    with pytest.raises(GraphError, match="accumulator can reach"):
        Artifact(graph, TOKENIZER)


def test_files_of_others_are_refused(path, tmp_path):
    refused(tmp_path / "none.slq", "There is no quantized model .*: quantize one first")
    refused(tmp_path, "There is no quantized model")
    for content in (b"", b"hello", b"\0" * 100, b"\xff" * 100):
        path.write_bytes(content)
        refused(path, "truncated or not a quantized model .*: quantize it again")
    save_file({"x": np.zeros(3)}, path)
    refused(path, "is not a quantized model of systolith")
    save_file({"x": np.zeros(3)}, path, metadata={"format": "systolith-program", "version": "1"})
    refused(path, "is not a quantized model of systolith")


def test_versions(path):
    # A later version may have another manifest: nothing else is looked at.
    rewrite(path, json.dumps({"version": VERSION + 1}))
    refused(path, f"{path} has version {VERSION + 1}, this release reads up to {VERSION}: install")
    for wrong in ("1", None, 1.0, True):
        rewrite(path, json.dumps({"version": wrong}))
        refused(path, "is damaged: version of its manifest must be int")


def test_every_truncation_is_refused(path, seed):
    data = path.read_bytes()
    rng = np.random.default_rng(seed)
    for size in {0, 7, 8, 9, len(data) - 1, *rng.integers(0, len(data), 30).tolist()}:
        path.write_bytes(data[:size])
        refused(path, "truncated")
    path.write_bytes(data + b"\0")
    refused(path, "truncated")


def test_a_damaged_file_never_loads(path, seed):
    """Wherever a byte is changed, the file is refused, or loads what was saved."""
    data, graph = path.read_bytes(), Artifact.load(path).graph
    rng = np.random.default_rng(seed)
    refusals = 0
    for at in rng.integers(0, len(data), 300).tolist():
        damaged = bytearray(data)
        damaged[at] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            loaded = Artifact.load(path).graph
        except UserError as error:
            assert "\n" not in str(error)
            refusals += 1
            continue
        # Numbers that only document a tensor, or names, may change without a contradiction.
        assert len(loaded.nodes) == len(graph.nodes), at
    assert refusals > 200


def test_tensors_must_have_the_checksum(path):
    weight = load_file(path)["graph.up.weight"]
    rewrite(path, arrays={"graph.up.weight": np.roll(weight, 1)})
    refused(path, "is damaged: its tensors do not have the checksum")
    rewrite(path, arrays={"graph.up.weight": None})
    refused(path, "do not have the checksum")


def resealed(path: Path, tensors: dict, **manifest) -> None:
    """Changes tensors and the checksum with them, as a wrong producer would."""
    from systolith.artifact import _checksum

    arrays = {k: v for k, v in (load_file(path) | tensors).items() if v is not None}
    rewrite(path, arrays=tensors, checksum=_checksum(arrays), **manifest)


def test_shapes_must_agree(path):
    weight = load_file(path)["graph.up.weight"]
    resealed(path, {"graph.up.weight": weight[:, :-1].copy()})
    refused(path, r"Linear 'up.node': constant 'up.weight' must have the shape \[10, 8\]")


def test_missing_parts(path):
    resealed(path, {"graph.up.weight": None})
    refused(path, "constant 'up.weight' is missing")
    resealed(path, {"tokenizer": None})
    refused(path, "is damaged: 'tokenizer'")


def test_the_proof_is_made_again(path):
    with safe_open(str(path), framework="numpy") as file:
        proof = file.get_tensor("proof.up.node")
    proof[3] -= 1
    resealed(path, {"proof.up.node": proof})
    refused(path, "is damaged: its overflow proof is not that of its weights")
    # A producer that lies consistently does not get through either.
    bias = np.full(10, (1 << 31) - 1, dtype=np.int32)
    resealed(path, {"graph.up.bias": bias})
    refused(path, "up.node: its accumulator can reach")


def test_an_older_file_is_not_guessed_at(path):
    rewrite(path, version=1)
    refused(path, "has version 1, this release reads version 2: quantize the model again")


def test_scales_must_be_numbers(path):
    tensors = manifest_of(path)["tensors"]
    for wrong in (float("nan"), float("inf"), 0.0, -1.0, None, "1", True):
        tensors[0]["scale"] = [wrong]
        rewrite(path, tensors=tensors)
        refused(path, "Tensor 'embedding': every scale must be a finite positive number")


@pytest.mark.parametrize("change, message", [
    ({"kind": "Convolution"}, "this release has no node of the kind 'Convolution'"),
    ({"kind": None}, "kind of its manifest must be str, not None"),
    ({"stride": 2}, "Embedding nodes have no parameter 'stride'"),
    ({"table": 5}, "the table of Embedding nodes cannot be 5"),
    ({"table": ["x"]}, r"the table of Embedding nodes cannot be \['x'\]"),
    ({"out": True}, "the out of Embedding nodes cannot be True"),
])
def test_wrong_nodes(path, change, message):
    nodes = manifest_of(path)["nodes"]
    nodes[0] |= change
    rewrite(path, nodes=nodes)
    refused(path, message)


def test_missing_parameters_of_nodes(path):
    nodes = manifest_of(path)["nodes"]
    for name in set(nodes[1]) - {"kind"}:
        spoilt = [nodes[0], {k: v for k, v in nodes[1].items() if k != name}, *nodes[2:]]
        rewrite(path, nodes=spoilt)
        refused(path, f"the {name} of Norm nodes cannot be absent")


def test_wrong_manifests(path):
    for text, message in (
        ("", "is damaged: Expecting value"),
        ("[]", "its manifest is not a JSON object"),
        ('{"version": 2}', "checksum of its manifest must be str, not None"),
    ):
        rewrite(path, text)
        refused(path, message)


def test_wrong_numbers(path):
    for wrong in ("12", 12.0, None, True):
        rewrite(path, context=wrong)
        refused(path, "context of its manifest must be int")


def test_an_encoder_comes_back(tmp_path, seed):
    graph, file = encoder(seed), tmp_path / "encoder.slq"
    Artifact(graph, b"").save(file)
    loaded = Artifact.load(file).graph
    assert loaded.nodes == graph.nodes and loaded.outputs == graph.outputs
    assert (loaded.bos, loaded.eos) == (None, None)
    nodes = manifest_of(file)["nodes"]
    nodes[-1]["xs"] = ["part", 3]
    rewrite(file, nodes=nodes)
    refused(file, r"the xs of Concat nodes cannot be \('part', 3\)")
