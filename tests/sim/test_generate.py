"""Whole language models on the RTL: tokens and logits against the integer forward, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest

from systolith.config import PRESETS
from systolith.errors import UserError
from systolith.sim.generate import Generation, Mismatch, compare, generate, integer_text
from tests.compiler.test_decoder import random_graph
from tests.models import model_file


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_a_model_writes_on_the_rtl(kv_heads, seed):
    graph = random_graph(seed, kv_heads=kv_heads)
    shown: list[int] = []
    prompt = [1, 2, 3, 4, 5]
    result = generate(graph, PRESETS["tiny"], prompt, 4, "rtl", on_token=shown.append)
    assert result.tokens[5:] == shown
    assert result.logits.shape == (4, 37)
    assert result.counters["CYCLES"] > 0 and result.counters["INSTRUCTIONS"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["small", "bench"])
def test_the_bundled_model_on_the_rtl(preset):
    from systolith.quant.export import quantize_checkpoint
    from systolith.quant.tokenizer import Tokenizer

    artifact = quantize_checkpoint("bundled")
    prompt = Tokenizer.from_bytes(artifact.tokenizer, "bundled").encode("The import statement")
    result = generate(artifact.graph, PRESETS[preset], prompt, 12, "rtl", stall_r=40)
    assert result.new == 12


@pytest.mark.slow
def test_stories260k_on_the_rtl():
    from systolith.quant.export import quantize_checkpoint
    from systolith.quant.tokenizer import Tokenizer

    artifact = quantize_checkpoint(model_file("stories260K.bin"))
    prompt = Tokenizer.from_bytes(artifact.tokenizer, "stories").encode("Once upon a time")
    result = generate(artifact.graph, PRESETS["bench"], prompt, 60, "rtl")
    assert result.new == 60


def test_a_wrong_logit_or_token_is_named():
    reference = Generation(1, [1, 2, 3], np.array([[5, 6], [7, 8]]))
    compare(reference, reference)
    wrong = replace(reference, logits=np.array([[5, 6], [7, 9]]))
    with pytest.raises(Mismatch, match=r"Logit 1 of new token 1 is 9 and should be 8 \(1 logits"):
        compare(wrong, reference)
    with pytest.raises(Mismatch, match="The tokens are"):
        compare(replace(reference, tokens=[1, 2, 4]), reference)


def test_a_stop_token_and_the_context(seed):
    graph = random_graph(seed)
    free = integer_text(graph, [1, 2], 10)
    stop = free.tokens[5]
    stopped = integer_text(graph, [1, 2], 10, stop=stop)
    assert stopped.tokens == free.tokens[: free.tokens.index(stop, 2) + 1]
    with pytest.raises(UserError, match="beyond the context of 32"):
        integer_text(graph, [1] * 30, 4)
