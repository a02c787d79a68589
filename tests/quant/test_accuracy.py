"""The accuracy that the documents state, measured by the command that they name."""

import pytest

from systolith.quant.accuracy import measure_accuracy
from tests.models import model_file


def test_the_bundled_model_on_its_held_out_text():
    result = measure_accuracy("bundled")
    assert result["tokens"] == 71 * 255
    assert result["float_perplexity"] < 9.6
    assert abs(result["loss"] / result["float_loss"] - 1) < 0.005
    assert result["agreement"] > 0.98


def test_a_story_teller_on_its_own_text():
    result = measure_accuracy(model_file("stories260K.bin"), sequences=80)
    assert result["tokens"] == 80 * 255 > 20_000
    assert 0.99 < result["ratio"] < 1.005
    assert result["agreement"] >= 0.98


@pytest.mark.slow
def test_sentences_within_a_budget(minilm):
    result = measure_accuracy(minilm, budgets=("ppl=1.01", "cosine=0.9992"))
    assert result["budget"] == "cosine=0.9992"
    assert result["sentences"] == 240
    assert result["mean_cosine"] >= 0.999
    assert result["worst_cosine"] >= 0.998
    assert 4 * result["eight_bit_inputs"] >= result["linears"]


@pytest.mark.slow
def test_sentences_with_a_third_of_the_inputs_at_eight_bits(minilm):
    eight = ("*.attention.self", "embeddings.LayerNorm", "encoder.layer.0.output.LayerNorm")
    result = measure_accuracy(minilm, bits=tuple((name, 8) for name in eight))
    assert result["mean_cosine"] >= 0.999
    assert result["worst_cosine"] >= 0.998
    assert 3 * result["eight_bit_inputs"] >= result["linears"] == 36
