"""Whole language models on the RTL: tokens and logits against the integer forward, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest

from systolith.compiler.decoder import compile_decoder, set_prompt
from systolith.config import PRESETS
from systolith.errors import UserError
from systolith.sampling import GREEDY, Sampler
from systolith.sim.generate import Generation, Mismatch, compare, generate, integer_text
from systolith.sim.machine_tb import MachineSim
from systolith.sim.runner import BenchFailure
from systolith.sim.writer import Request
from tests.compiler.test_decoder import random_graph
from tests.models import model_file


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_a_model_writes_on_the_rtl(kv_heads, seed):
    graph = random_graph(seed, kv_heads=kv_heads)
    shown: list[int] = []
    prompt = [1, 2, 3, 4, 5]
    request = Request(prompt=prompt, tokens=4)
    result = generate(graph, PRESETS["tiny"], request, "rtl", on_token=shown.append)
    assert result.tokens[5:] == shown
    assert result.logits.shape == (4, 37)
    assert result.counters["CYCLES"] > 0 and result.counters["INSTRUCTIONS"] > 0


def test_a_traced_text_says_what_was_done_when(seed):
    """With what was predicted beside it, where no host has a say."""
    graph = random_graph(seed)
    request = Request(prompt=[1, 2, 3, 4, 5], tokens=3)
    made = generate(graph, PRESETS["tiny"], request, "rtl", trace=True)
    measured, predicted = made.timelines["measured"], made.timelines["predicted"]
    assert [e.pc for e in measured.executed] == [e.pc for e in predicted.executed]
    assert measured.cycles == made.counters["CYCLES"]
    assert predicted.cycles == pytest.approx(measured.cycles, rel=0.01)
    assert measured.items == predicted.items and len(made.labels) > measured.executed[-1].pc
    asked = generate(graph, PRESETS["tiny"], replace(request, sampler=HOT), "rtl", trace=True)
    (line,) = asked.timelines.values()
    assert len(line.items) == len(line.executed) > 0
    assert generate(graph, PRESETS["tiny"], request, "rtl").timelines == {}


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["small", "bench"])
def test_the_bundled_model_on_the_rtl(preset):
    from systolith.quant.export import quantize_checkpoint
    from systolith.quant.tokenizer import Tokenizer

    artifact = quantize_checkpoint("bundled")
    prompt = Tokenizer.from_bytes(artifact.tokenizer, "bundled").encode("The import statement")
    request = Request(prompt=prompt, tokens=12)
    result = generate(artifact.graph, PRESETS[preset], request, "rtl", stall_r=40)
    assert result.new == 12


@pytest.mark.slow
def test_stories260k_on_the_rtl():
    from systolith.quant.export import quantize_checkpoint
    from systolith.quant.tokenizer import Tokenizer

    artifact = quantize_checkpoint(model_file("stories260K.bin"))
    prompt = Tokenizer.from_bytes(artifact.tokenizer, "stories").encode("Once upon a time")
    request = Request(prompt=prompt, tokens=60)
    result = generate(artifact.graph, PRESETS["bench"], request, "rtl")
    assert result.new == 60


def test_a_wrong_logit_or_token_is_named():
    reference = Generation(1, [1, 2, 3], np.array([[5, 6], [7, 8]]))
    compare(reference, reference)
    wrong = replace(reference, logits=np.array([[5, 6], [7, 9]]))
    with pytest.raises(Mismatch, match=r"Logit 1 of new token 1 is 9 and should be 8 \(1 logits"):
        compare(wrong, reference)
    with pytest.raises(Mismatch, match="The tokens are"):
        compare(replace(reference, tokens=[1, 2, 4]), reference)


HOT = Sampler(temperature=40.0, top_k=30, top_p=0.97, seed=5)


def test_sampled_text_is_the_same_on_all_backends(seed):
    graph = random_graph(seed)
    request = Request(prompt=[1, 2, 3, 4, 5], tokens=6, sampler=HOT)
    texts, shown = [], []
    for backend in ("golden", "machine", "rtl"):
        shown.append([])
        made = generate(graph, PRESETS["tiny"], request, backend, shown[-1].append)
        texts.append(made.tokens)
        assert made.tokens[5:] == shown[-1] and made.logits.shape == (6, 37)
        assert made.end == "tokens"
    assert texts[0] == texts[1] == texts[2]
    greedy = integer_text(graph, replace(request, sampler=GREEDY))
    assert greedy.tokens != texts[0]


def test_a_device_that_waits_for_the_host_is_not_stopped(seed):
    """Twenty times as long as the watchdog allows a machine that does not move."""
    program = compile_decoder(random_graph(seed), PRESETS["tiny"])
    memory = program.memory()
    set_prompt(program, memory, [1, 2], 4, host_chooses=True)
    marks: list[int] = []
    with pytest.raises(BenchFailure, match="has not ended after 60000 cycles"):
        MachineSim(PRESETS["tiny"], latency=40).run(
            memory, on_mark=marks.append, watchdog=2_000, max_cycles=60_000
        )
    assert [mark >> 16 for mark in marks] == [3]


def test_who_has_another_seed_gets_another_text(seed):
    graph = random_graph(seed)
    requests = [
        Request(prompt=[1, 2], tokens=12, sampler=replace(HOT, seed=n)) for n in (1, 1, 2)
    ]
    first, again, other = (integer_text(graph, request).tokens for request in requests)
    assert first == again != other


@pytest.mark.parametrize("backend", ["machine", "rtl"])
def test_the_host_ends_a_text(backend, seed):
    graph = random_graph(seed)
    prompt = [1, 2, 3]
    free = integer_text(graph, Request(prompt=prompt, tokens=8, sampler=HOT))
    wanted = tuple(free.tokens[5:7])
    request = Request(
        prompt=prompt, tokens=8, sampler=HOT, ends=lambda new: tuple(new[-2:]) == wanted
    )
    made = generate(graph, PRESETS["tiny"], request, backend)
    assert made.tokens == free.tokens[:7] and made.end == "stop"


@pytest.mark.parametrize("sampler", [GREEDY, HOT])
@pytest.mark.parametrize("count", [1, 2])
def test_tokens_to_stop_at(sampler, count, seed):
    """One is the device's business, of several the host takes care."""
    graph = random_graph(seed)
    free = integer_text(graph, Request(prompt=[1, 2], tokens=10, sampler=sampler)).tokens
    stops = {free[5], 36} if count == 2 else {free[5]}
    end = next(i for i, token in enumerate(free) if i > 1 and token in stops)
    request = Request(prompt=[1, 2], tokens=10, sampler=sampler, stops=stops)
    assert request.device_chooses == (sampler.greedy and len(stops) == 1)
    made = generate(graph, PRESETS["tiny"], request, "machine")
    assert made.tokens == free[: end + 1] and made.end == "stop"


@pytest.mark.parametrize("sampler", [GREEDY, HOT])
@pytest.mark.parametrize("backend", ["golden", "machine"])
def test_the_context_ends_a_text(backend, sampler, seed):
    graph = random_graph(seed)
    request = Request(prompt=[1] * 28, tokens=40, sampler=sampler)
    made = generate(graph, PRESETS["tiny"], request, backend)
    assert len(made.tokens) == 33 and made.end == "context"  # the last token needs no context
    exactly = generate(graph, PRESETS["tiny"], replace(request, tokens=5), backend)
    assert exactly.tokens == made.tokens and exactly.end == "tokens"


def test_requests_that_cannot_be(seed):
    graph = random_graph(seed)
    with pytest.raises(UserError, match="beyond the context of 32"):
        integer_text(graph, Request(prompt=[1] * 33, tokens=4))
    with pytest.raises(UserError, match="The prompt is empty"):
        Request(prompt=[], tokens=4)
    with pytest.raises(UserError, match="at least 1, not 0"):
        Request(prompt=[1], tokens=0)
