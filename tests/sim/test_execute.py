"""Programs for whole sequences on the golden machine and on the RTL."""

import numpy as np
import pytest

from systolith.compiler.sequence import compile_sequence
from systolith.config import PRESETS
from systolith.errors import UserError
from systolith.forward import IntegerModel
from systolith.sim.execute import (
    Inputs,
    compare_outputs,
    integer_sequence,
    run_sequence,
    run_sequences,
)
from systolith.sim.generate import Mismatch
from systolith.sim.machine_tb import MEMORY_BYTES, size_for
from tests.compiler.test_decoder import random_graph

TINY = PRESETS["tiny"]


def sequence(seed, length):
    tokens = np.random.default_rng((seed, length)).integers(0, 37, length)
    return Inputs(length=length, indices={"tokens": tokens.tolist()})


@pytest.mark.parametrize("backend", ["machine", "rtl"])
def test_several_sequences_one_after_another(backend, seed):
    graph = random_graph(seed)
    program = compile_sequence(graph, TINY, tokens=9)
    inputs = [sequence(seed, length) for length in (9, 1, 4)]
    runs = run_sequences(program, inputs, backend, latency=20)
    model = IntegerModel(graph)
    for item, run in zip(inputs, runs, strict=True):
        compare_outputs(run.outputs, integer_sequence(model, item))
        assert run.outputs["logits"].shape == (item.length, 37)
        assert (run.simulated > 0) == ("CYCLES" in run.counters) == (backend == "rtl")
        assert run.seconds > 0
    first = inputs[0]
    again = run_sequence(program, first.length, first.indices, {}, "machine")
    compare_outputs(again.outputs, runs[0].outputs)


def test_a_wrong_value_is_named(seed):
    graph = random_graph(seed)
    right = integer_sequence(IntegerModel(graph), sequence(seed, 3))
    wrong = {"logits": right["logits"].copy()}
    wrong["logits"][1, 5] += 1
    with pytest.raises(Mismatch, match=r"logits: channel 5 of token 1 is .* \(1 values differ\)"):
        compare_outputs(wrong, right)


def test_no_other_backend(seed):
    program = compile_sequence(random_graph(seed), TINY, tokens=4)
    with pytest.raises(UserError, match="on machine, rtl or a board, not on golden"):
        run_sequences(program, [sequence(seed, 2)], "golden")


def test_memories_come_in_few_sizes():
    assert size_for(1) == size_for(MEMORY_BYTES) == MEMORY_BYTES
    assert size_for(MEMORY_BYTES + 1) == size_for(2 * MEMORY_BYTES) == 2 * MEMORY_BYTES


@pytest.mark.slow
def test_a_sentence_model_on_the_rtl():
    """all-MiniLM-L6-v2 on the 16 × 16 machine, every bit of every vector."""
    import importlib.util

    from systolith import Session
    from systolith.quant.checkpoint import MINILM
    from systolith.quant.kept import quantize_or_find

    if importlib.util.find_spec(MINILM) is None:
        pytest.skip("all-MiniLM-L6-v2 is not installed")
    session = Session(quantize_or_find("minilm"), "bench", "rtl")
    vectors = session.embed(["A man is eating food.", "Someone has a meal.", "ok"])
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > 0.6 > 0.3 > cosines[0, 2]
    assert 1e6 < session.counters["CYCLES"] / 3 < 2e6
