import math

import numpy as np
import pytest
from safetensors.torch import save_file

from systolith.artifact import Artifact
from systolith.forward import IntegerModel
from systolith.quant import export
from systolith.quant.checkpoint import BUNDLED, load_model
from systolith.quant.evaluate import float_logits, perplexity, sample
from systolith.quant.export import (
    compare,
    given_text,
    model_hash,
    quantize_checkpoint,
    report,
    sampled_text,
    tensor_errors,
)
from systolith.quant.quantize import QuantizeError, Recipe, quantize
from systolith.quant.tokenizer import BOS, Tokenizer
from tests.quant.small import CONTEXT, VOCABULARY, small_llama

# The bundled model's checkpoint is small: a few seconds for calibration on little text.
TEXT = "The import statement combines two operations; it searches for the named module.\n" * 4


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return quantize_checkpoint("bundled", text=TEXT)


def test_an_artifact_is_a_whole_model(artifact, tmp_path):
    artifact.save(tmp_path / "model.slq")
    loaded = Artifact.load(tmp_path / "model.slq")
    model, tokenizer = load_model("bundled")
    mine = Tokenizer.from_bytes(loaded.tokenizer, "model.slq", loaded.graph.vocabulary)
    assert mine.pieces == tokenizer.pieces and mine.scores == tokenizer.scores
    prompt = mine.encode("The import statement")
    new = IntegerModel(loaded.graph).generate(prompt, 12)
    floats = list(prompt)
    while len(floats) < len(prompt) + 3:
        floats.append(int(float_logits(model)(np.array(floats))[-1].argmax()))
    assert new[:3] == floats[-3:], mine.decode(prompt + new)


def test_metadata_names_the_source(artifact):
    model, tokenizer = load_model("bundled")
    facts = artifact.metadata
    assert facts["source_sha256"] == model_hash(model)
    assert facts["checkpoint"] == "bundled"
    assert facts["calibration"] == "given text"
    tokens = len(tokenizer.encode(TEXT, bos=False))
    assert facts["calibration_tokens"] == tokens + math.ceil(tokens / 255)
    assert facts["recipe"]["headroom"] == Recipe().headroom


def test_quantization_is_reproducible(artifact, tmp_path):
    artifact.save(tmp_path / "one.slq")
    quantize_checkpoint("bundled", text=TEXT).save(tmp_path / "two.slq")
    assert (tmp_path / "one.slq").read_bytes() == (tmp_path / "two.slq").read_bytes()


def test_a_checkpoint_file_and_a_recipe(tmp_path):
    model, tokenizer = load_model("bundled")
    (tmp_path / "config.json").write_bytes((BUNDLED / "config.json").read_bytes())
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    steps: list[str] = []
    made = quantize_checkpoint(tmp_path / "model.safetensors", tokenizer, text=TEXT,
                               recipe=Recipe(context=32, bits=(("*", 8),)), progress=steps.append)
    assert steps == ["loading", "calibrating", "quantizing"]
    assert made.metadata["checkpoint"] == "model.safetensors"
    assert made.graph.context == 32
    assert made.graph.tensors["norm"].bits == 8


def test_the_hash_depends_on_weights_and_configuration(seed):
    hashes = {model_hash(small_llama(s, **c)) for s, c in (
        (seed, {}), (seed + 1, {}), (seed, {"norm_eps": 1e-6}))}
    assert len(hashes) == 3
    assert model_hash(small_llama(seed)) in hashes


def test_sampled_text_is_the_models_own(monkeypatch, seed):
    model = small_llama(seed)
    first, again = sampled_text(model), sampled_text(model)
    np.testing.assert_array_equal(first, again)
    assert np.shape(first) == (export.CALIBRATION_SEQUENCES, CONTEXT)
    assert all(tokens[0] == BOS for tokens in first)
    assert len({tuple(tokens) for tokens in first}) == export.CALIBRATION_SEQUENCES
    # As likely as what evaluate.sample draws, and far likelier than random tokens.
    drawn = np.array([sample(model, CONTEXT, s) for s in range(100, 108)])
    random = np.random.default_rng(seed).integers(0, VOCABULARY, drawn.shape)
    own, others, chance = (perplexity(float_logits(model), np.array(t))
                           for t in (first, drawn, random))
    assert abs(math.log(own / others)) < 0.25 * math.log(chance / others)


def test_given_text_is_cut_into_sequences(seed):
    model, tokenizer = load_model("bundled")
    text = TEXT * 10
    parts = given_text(model, tokenizer, text)
    assert all(len(part) == 256 for part in parts[:-1]) and 1 < len(parts[-1]) <= 256
    assert all(part[0] == BOS for part in parts)
    joined = [token for part in parts for token in part[1:].tolist()]
    assert joined == tokenizer.encode(text, bos=False)
    with pytest.raises(QuantizeError, match="The calibration text is empty"):
        given_text(model, tokenizer, "")


def test_threads_are_restored(monkeypatch):
    import torch

    before = torch.get_num_threads()
    with export._few_threads(small_llama(1)):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_errors_of_every_tensor(seed):
    model = small_llama(seed)
    tokens = list(np.random.default_rng(seed).integers(0, VOCABULARY, (3, CONTEXT)))
    quantized = quantize(model, tokens)
    errors = tensor_errors(quantized, tokens)
    assert [e.name for e in errors] == [n.out for n in quantized.graph.nodes[:-1]]
    by_name = {e.name: e for e in errors}
    # The calibration's own tokens: 16-bit ranges are used to a half, 8-bit ones wholly.
    assert 0.45 < by_name["layers.0.ffn.up"].peak < 0.55
    assert by_name["layers.0.attention.v"].peak > 0.98
    assert by_name["layers.0.attention.v"].saturated < 0.05
    assert by_name["layers.0.ffn.up"].saturated == 0
    text = report(errors).splitlines()
    assert len(text) == len(errors) + 1
    assert text[1].split()[:2] == ["embedding", "16"]
    assert f"{by_name['logits'].sqnr:.1f}" in text[-1]


def test_comparison_with_the_model_itself(seed):
    """Floats in place of the integers show what the figures mean."""
    model = small_llama(seed)
    tokens = list(np.random.default_rng(seed).integers(0, VOCABULARY, (3, CONTEXT)))

    class Twin:
        def __init__(self, factor):
            self.factor = factor

        def logits(self, tokens):
            return float_logits(model)(tokens) * self.factor

    same = compare(model, Twin(1), tokens)
    assert same.ratio == 1 and same.divergence == 0 and same.agreement == 1
    assert same.tokens == 3 * (CONTEXT - 1)
    expected = perplexity(float_logits(model), np.array(tokens))
    assert math.isclose(same.float_perplexity, expected, rel_tol=1e-9)
    sharper = compare(model, Twin(1.5), tokens)
    assert sharper.agreement == 1 and sharper.divergence > 0.01
    expected = perplexity(Twin(1.5).logits, np.array(tokens))
    assert math.isclose(sharper.perplexity, expected, rel_tol=1e-9)
    assert "ratio" in str(sharper) and "100.0 %" in str(sharper)
    assert compare(model, Twin(-1), tokens).agreement < 0.1
