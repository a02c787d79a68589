"""The accuracy that the documents state, measured by the command that they name."""

from systolith.quant.accuracy import measure_accuracy


def test_the_bundled_model_on_its_held_out_text():
    result = measure_accuracy("bundled")
    assert result["tokens"] == 71 * 255
    assert result["float_perplexity"] < 9.6
    assert 0.99 < result["ratio"] < 1.005
    assert result["agreement"] > 0.98
