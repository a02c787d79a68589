"""`run` and `embed`: files in, files out, every backend compared with the integer forward."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from systolith import cli
from systolith.artifact import Artifact
from systolith.forward import IntegerModel
from systolith.graph import Output
from systolith.program import Program
from tests.compiler.test_decoder import random_graph
from tests.core.test_cli import one_sentence
from tests.graphs import encoder


@pytest.fixture
def run():
    def call(*arguments):
        return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])

    return call


def whole(seed, *, pool="mean"):
    """An encoder that programs can be made of: three kinds of input, two outputs."""
    graph = encoder(seed)
    nodes = tuple(node for node in graph.nodes if type(node).__name__ not in ("Slice", "Concat"))
    return replace(
        graph,
        nodes=nodes,
        tensors={name: x for name, x in graph.tensors.items() if name not in ("part", "both")},
        outputs=(Output(tensor="context", pool=pool, normalize=True), Output(tensor="context")),
    )


@pytest.fixture
def graph(seed):
    return whole(seed)


@pytest.fixture
def files(graph, seed, tmp_path):
    """A model, a program and the inputs of two sequences of seven and four tokens."""
    from systolith.compiler.describe import described
    from systolith.compiler.sequence import compile_sequence
    from systolith.config import PRESETS

    Artifact(graph, b"").save(tmp_path / "m.slq")
    program = compile_sequence(graph, PRESETS["tiny"], tokens=graph.context)
    described(program, graph).save(tmp_path / "m.slp")
    rng = np.random.default_rng(seed)
    arrays = {
        "tokens": rng.integers(0, 11, (2, 7)),
        "types": rng.integers(0, 2, (2, 7)),
        "given": rng.normal(size=(2, 7, 8)) * 4000,
        "attention_mask": np.array([[1] * 7, [1] * 4 + [0] * 3]),
    }
    np.savez(tmp_path / "in.npz", **arrays)
    return tmp_path, arrays


def expected(graph, arrays, length, index):
    inputs = {name: arrays[name][index][:length] for name in ("tokens", "types")}
    given = np.round(arrays["given"][index][:length] / 0.5)
    inputs["given"] = np.clip(given, -32768, 32767).astype(np.int64)
    return IntegerModel(graph).run(inputs)


@pytest.mark.parametrize(
    "model, backend",
    [("m.slq", "golden"), ("m.slq", "machine"), ("m.slp", "machine"), ("m.slp", "rtl")],
)
def test_run_writes_the_outputs_of_each_sequence(run, graph, files, model, backend):
    folder, arrays = files
    result = run(
        "run", folder / model, "--input", folder / "in.npz", "--backend", backend,
        "--config", "tiny", "-o", folder / "out.npz",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{folder / 'out.npz'}\n"
    with np.load(folder / "out.npz") as out:
        assert sorted(out) == ["context.0", "context.1", "context.mean"]
        for index, length in enumerate((7, 4)):
            pooled, tokens = expected(graph, arrays, length, index)
            np.testing.assert_allclose(out["context.mean"][index], pooled, rtol=1e-12)
            np.testing.assert_array_equal(out[f"context.{index}"], tokens)
    said = {
        ("m.slq", "machine"): "all outputs equal the integer forward's, every bit",
        ("m.slp", "rtl"): "all outputs equal the golden machine's, every bit",
    }
    assert said.get((model, backend), "2 sequences on") in result.stderr
    assert ("cycles per sequence" in result.stderr) == (backend == "rtl")


def test_one_sequence_and_no_file(run, files):
    folder, arrays = files
    np.savez(folder / "one.npz", **{name: x[0] for name, x in arrays.items()})
    for model in ("m.slq", "m.slp"):
        result = run("run", folder / model, "--input", folder / "one.npz", "--backend", "machine",
                     "--config", "tiny")
        assert result.exit_code == 0, result.output
        assert "context.mean [1, 8]" in result.stdout and "context [1, 7, 8]" in result.stdout


def test_compile_makes_such_programs(run, files):
    folder, _ = files
    made = run("compile", folder / "m.slq", "--config", "tiny", "-o", folder / "c.slp")
    assert made.exit_code == 0, made.output
    assert Program.load(folder / "c.slp") == Program.load(folder / "m.slp")
    short = run("compile", folder / "m.slq", "--config", "tiny", "--tokens", "3",
                "-o", folder / "c.slp")
    assert short.exit_code == 0, short.output
    assert Program.load(folder / "c.slp").metadata["tokens"] == 3
    long = run("run", folder / "c.slp", "--input", folder / "in.npz", "--backend", "machine")
    assert "The sequence has 7 tokens, and the program is for 1 to 3" in one_sentence(long)


def test_a_language_model_runs_on_tokens(run, tmp_path, seed):
    graph = random_graph(seed)
    Artifact(graph, b"").save(tmp_path / "m.slq")
    tokens = np.random.default_rng(seed).integers(0, 37, 6)
    np.save(tmp_path / "in.npy", tokens)
    made = run("run", tmp_path / "m.slq", "--input", tmp_path / "in.npy", "--backend", "machine",
               "--config", "tiny", "-o", tmp_path / "out.npz")
    assert made.exit_code == 0, made.output
    with np.load(tmp_path / "out.npz") as out:
        np.testing.assert_array_equal(out["logits"][0], IntegerModel(graph).logits(tokens))
    assert run("compile", tmp_path / "m.slq", "--config", "tiny", "--tokens", "16",
               "-o", tmp_path / "m.slp").exit_code == 0
    wrong = run("run", tmp_path / "m.slp", "--input", tmp_path / "in.npy", "--backend", "machine")
    assert "a language model writes text by `generate`" in one_sentence(wrong)


def spoiled(arrays, **changes):
    return {n: x for n, x in {**arrays, **changes}.items() if x is not None}


@pytest.mark.parametrize("model", ["m.slq", "m.slp"])
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"types": None}, "The input 'types' is missing"),
        ({"colour": np.zeros((2, 7), int)}, "The model has no input 'colour'"),
        ({"tokens": np.full((2, 7), 11)}, "Values of 'tokens' must be 0 to 10, not 11 to 11"),
        ({"tokens": np.full((2, 7), -1)}, "Values of 'tokens' must be 0 to 10, not -1 to -1"),
        ({"given": np.zeros((2, 7, 9))}, "given' must"),
        ({"types": np.zeros((2, 6), int)}, "must have the same number of sequences and"),
        ({"attention_mask": np.eye(7, dtype=int)[:2]}, "the right"),
        ({"attention_mask": np.zeros((2, 7), int)}, "token"),
    ],
)
def test_wrong_arrays_get_one_sentence(run, files, model, changes, message):
    folder, arrays = files
    np.savez(folder / "in.npz", **spoiled(arrays, **changes))
    result = run("run", folder / model, "--input", folder / "in.npz", "--backend", "machine",
                 "--config", "tiny")
    assert message in one_sentence(result)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("m.slq", "--input", "no.npz"), "Cannot read no.npz: there is no such file"),
        (("m.slp", "--input", "no.npz", "--backend", "rtl"), "Cannot read no.npz"),
        (("no.slq", "--input", "in.npz"), "There is no quantized model no.slq"),
        (("no.slp", "--input", "in.npz", "--backend", "rtl"), "There is no program no.slp"),
        (("m.slp", "--input", "in.npz"), "choose the backend machine, rtl or board"),
        (("m.slp", "--input", "t.txt", "--backend", "rtl"), "A program has no vocabulary"),
        (("m.slq", "--input", "t.txt"), "m.slq has no vocabulary"),
        (("m.slq", "--input", "in.npy"), "inputs tokens, types, given: give them by name"),
        (("m.slq", "--input", "cut.npz"), "cut.npz is damaged"),
        (("m.slq", "--input", "empty.txt"), "empty.txt holds no text"),
        (("m.slq", "--input", "bytes.txt"), "bytes.txt is not text in UTF-8"),
        (("m.slq", "--input", "in.npz", "-o", "x.npy"), "The output must end with .npz"),
        (("m.slq", "--input", "in.npz", "-o", "no/x.npz"), "There is no folder no"),
    ],
)
def test_wrong_files_get_one_sentence(run, files, arguments, message, monkeypatch):
    folder, arrays = files
    monkeypatch.chdir(folder)
    (folder / "t.txt").write_text("some text\n")
    (folder / "empty.txt").write_text(" \n")
    (folder / "bytes.txt").write_bytes(b"\xff\xfe")
    np.save(folder / "in.npy", arrays["tokens"])
    (folder / "cut.npz").write_bytes((folder / "in.npz").read_bytes()[:-40])
    before = sorted(folder.iterdir())
    assert message in one_sentence(run("run", *arguments))
    assert sorted(folder.iterdir()) == before


@pytest.fixture
def sentences(seed, tmp_path):
    """A sentence model of random numbers, with a vocabulary of eleven words."""
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "red", "green", "blue", "and", "or", "no", "sky"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    graph = whole(seed)
    drop = {"types", "given", "typed", "x"}
    nodes = []
    for node in graph.nodes:
        if node.out in drop:
            continue
        nodes.append(replace(node, x="placed") if getattr(node, "x", None) == "x" else node)
    gone = {"types.table"}
    graph = replace(
        graph,
        nodes=tuple(nodes),
        tensors={name: x for name, x in graph.tensors.items() if name not in drop},
        constants={name: x for name, x in graph.constants.items() if name not in gone},
        outputs=graph.outputs[:1],
    )
    Artifact(graph, tokenizer.to_str().encode()).save(tmp_path / "s.slq")
    return tmp_path / "s.slq", graph


@pytest.mark.parametrize("backend", ["golden", "machine", "rtl"])
def test_embed(run, sentences, backend, tmp_path):
    model, graph = sentences
    (tmp_path / "more.txt").write_text("blue sky\n\nno\n")
    result = run(
        "embed", "--model", model, "--text", "red and green", "--file", tmp_path / "more.txt",
        "--backend", backend, "--config", "tiny", "--json", "-o", tmp_path / "v.npy",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["texts"] == ["red and green", "blue sky", "no"]
    tokens = ([4, 7, 5], [6, 10], [9])
    vectors = np.array([IntegerModel(graph).run(row)[0] for row in tokens])
    np.testing.assert_allclose(found["vectors"], vectors, rtol=1e-12)
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), found["vectors"])
    np.testing.assert_allclose(found["cosines"], vectors @ vectors.T, rtol=1e-9)
    assert ("every bit" in result.stderr) == (backend != "golden")
    table = run("embed", "--model", model, "--text", "red", "--text", "sky", "--config", "tiny")
    assert table.stdout.splitlines()[0].startswith("  1.000") and "  red" in table.stdout


def test_text_of_a_file_runs(run, sentences, tmp_path):
    model, graph = sentences
    (tmp_path / "t.txt").write_text("red and green\nblue\n")
    made = run("run", model, "--input", tmp_path / "t.txt", "-o", tmp_path / "o.npz")
    assert made.exit_code == 0, made.output
    with np.load(tmp_path / "o.npz") as out:
        np.testing.assert_allclose(
            out["context.mean"][1], IntegerModel(graph).run([6])[0], rtol=1e-12
        )


def test_embed_needs_text_and_a_sentence_model(run, files, sentences):
    folder, _ = files
    assert "give --text or --file" in one_sentence(run("embed", "--model", folder / "m.slq"))
    wrong = run("embed", "--model", folder / "m.slq", "--text", "a")
    assert "The model has no vocabulary" in one_sentence(wrong)
    _, graph = sentences
    tokens = replace(graph, outputs=(Output(tensor="context"),))
    vocabulary = Artifact.load(folder / "s.slq").tokenizer
    Artifact(tokens, vocabulary).save(folder / "t.slq")
    each = run("embed", "--model", folder / "t.slq", "--text", "red")
    assert "it does not give one vector a text" in one_sentence(each)
    target = run("embed", "--model", folder / "m.slq", "--text", "a", "-o", "v.npz")
    assert "The output must end with .npy" in one_sentence(target)
