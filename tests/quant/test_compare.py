"""What the figures of a comparison mean."""

import math

import numpy as np

from systolith.forward import IntegerModel
from systolith.quant.compare import compare, cosines, integer_logits, network_logits
from systolith.quant.evaluate import perplexity
from systolith.quant.llama_network import llama_network
from systolith.quant.posttraining import quantize_network
from tests.quant.small import CONTEXT, VOCABULARY, small_llama


def test_comparison_with_the_model_itself(seed):
    """Floats in place of the integers show what the figures mean."""
    floats = network_logits(llama_network(small_llama(seed)))
    tokens = list(np.random.default_rng(seed).integers(0, VOCABULARY, (11, CONTEXT)))

    def alone(factor):
        return lambda row: floats(row[None])[0] * factor

    same = compare(floats, floats, tokens)
    assert same.ratio == 1 and same.divergence == 0 and same.agreement == 1
    assert same.tokens == 11 * (CONTEXT - 1)
    expected = perplexity(alone(1), np.array(tokens))
    assert math.isclose(same.float_perplexity, expected, rel_tol=1e-6)
    sharper = compare(floats, lambda t: floats(t) * 1.5, tokens)
    assert sharper.agreement == 1 and sharper.divergence > 0.01
    expected = perplexity(alone(1.5), np.array(tokens))
    assert math.isclose(sharper.perplexity, expected, rel_tol=1e-6)
    assert "ratio" in str(sharper) and "100.0 %" in str(sharper)
    assert compare(floats, lambda t: -floats(t), tokens).agreement < 0.1


def test_sequences_of_any_length(seed):
    floats = network_logits(llama_network(small_llama(seed)))
    rows = [np.arange(n) for n in (5, 5, 7, 5)]
    assert compare(floats, floats, rows).tokens == 4 + 4 + 6 + 4


def test_integers_are_those_of_the_forward(seed):
    network = llama_network(small_llama(seed))
    tokens = np.random.default_rng(seed).integers(0, VOCABULARY, (6, CONTEXT))
    made = quantize_network(network, tokens)
    found = integer_logits(made.graph)(tokens)
    for row, logits in zip(tokens, found, strict=True):
        np.testing.assert_array_equal(logits, IntegerModel(made.graph).logits(row))
    close = cosines(network, made.graph, list(tokens))
    assert close.shape == (6,) if close.ndim == 1 else close.shape[0] == 6
    assert close.min() > 0.99
