"""Quantized models are kept when they took long, and found by what they were made from."""

import shutil

import pytest

from systolith.artifact import Artifact
from systolith.errors import UserError
from systolith.quant import kept
from systolith.quant.checkpoint import BUNDLED, MINILM, files_of


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SYSTOLITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def small(seed):
    from tests.compiler.test_decoder import random_graph

    return Artifact(random_graph(seed), b"")


@pytest.fixture
def quantizer(small, monkeypatch):
    """Counts how often a model is quantized; that itself is tested elsewhere."""
    calls = []

    class Made:
        def artifact(self):
            return small

    def quantize(model, tokenizer, *, progress):
        calls.append(model)
        return Made()

    monkeypatch.setattr(kept, "quantize_checkpoint", quantize)
    return calls


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(BUNDLED, folder)
    return folder


def test_what_took_long_is_kept_until_something_changes(
    cache, quantizer, small, model, monkeypatch
):
    monkeypatch.setattr(kept, "WORTH_S", 0.0)
    said = []
    for _ in range(2):
        made = kept.quantize_or_find(model, progress=lambda text, _: said.append(text))
        assert made.graph.nodes == small.graph.nodes
    (file,) = cache.iterdir()
    assert quantizer == [model]
    assert said[0].endswith(f"kept for the next time: {file}")
    assert said[1] == f"quantized before: {file}"
    config = model / "config.json"
    config.write_text(config.read_text() + " ")
    kept.quantize_or_find(model)
    kept.quantize_or_find(model, model / "tokenizer.bin")
    assert len(quantizer) == 3 and len(list(cache.iterdir())) == 3


def test_what_took_no_time_is_not_kept(cache, quantizer, model):
    for _ in range(2):
        kept.quantize_or_find(model)
    assert len(quantizer) == 2 and not cache.exists()


def test_a_missing_model_gets_a_sentence(cache):
    with pytest.raises(UserError, match="nowhere does not exist"):
        kept.quantize_or_find("nowhere")


def test_files_of_a_checkpoint(minilm):
    names = {path.name for path in files_of(minilm)}
    assert {"model.safetensors", "config.json", "tokenizer.json", "modules.json"} <= names
    assert len([path for path in files_of(minilm) if path.name == "config.json"]) == 2
    assert MINILM in str(files_of(minilm)[0])
