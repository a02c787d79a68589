import numpy as np
import pytest

from systolith.compiler.allocate import DoesNotFit
from systolith.compiler.batch import batch_logits, compile_batch, read_texts, set_prompts
from systolith.compiler.tensors import Unsupported
from systolith.config import PRESETS, Config
from systolith.forward import IntegerModel
from systolith.sim import workloads
from systolith.sim.batch import generate_batch
from systolith.sim.machine import GoldenMachine
from systolith.sim.machine_tb import MachineSim
from systolith.sim.writer import Request
from tests.interleaved import InterleavedMachine

TINY = Config(
    dim=4,
    lanes=2,
    bus_bytes=4,
    weight_rows=4096,
    activation_rows=2048,
    accumulator_rows=1024,
    parameter_rows=64,
    max_length=32,
)
CONFIGS = {"tiny": TINY, "small": PRESETS["small"], "bench": PRESETS["bench"]}


def model(seed, *, bits=16, kv_heads=2):
    return workloads.llama(bits, hidden=16, heads=4, kv_heads=kv_heads, ffn=24, layers=2,
                           vocabulary=30, context=24, seed=seed)  # fmt: skip


def reference(graph, prompt, total):
    """Tokens, and the logits of every position that was processed."""
    integer, tokens = IntegerModel(graph), list(prompt)
    rows = list(integer.step(prompt))
    while len(tokens) < total:
        tokens.append(int(np.argmax(rows[-1])))
        if len(tokens) < total:
            rows += list(integer.step(tokens[-1:]))
    return tokens, np.array(rows)


def check(graph, program, prompts, total, run):
    memory = program.memory()
    set_prompts(program, memory, prompts, total)
    memory = run(memory)
    logits = batch_logits(program, memory)
    for index, (prompt, text) in enumerate(
        zip(prompts, read_texts(program, memory, total), strict=True)
    ):
        tokens, rows = reference(graph, prompt, total)
        assert text == tokens
        wrong = np.argwhere(logits[index, : total - 1] != rows[: total - 1])
        assert not len(wrong), f"sequence {index}: first wrong logit at {wrong[0]}"


def golden(config):
    def run(memory):
        GoldenMachine(config, memory).run(100_000)
        return memory

    return run


@pytest.mark.parametrize("preset", CONFIGS)
@pytest.mark.parametrize("bits, kv_heads", [(16, 2), (8, 4), (16, 1)])
@pytest.mark.parametrize("resident", [False, True])
def test_sequences_in_step_equal_each_alone(preset, bits, kv_heads, resident, seed):
    rng, graph = np.random.default_rng(seed), model(seed, bits=bits, kv_heads=kv_heads)
    program = compile_batch(graph, CONFIGS[preset], sequences=3, resident=resident)
    prompts = [rng.integers(0, 30, length).tolist() for length in (5, 1, 8)]
    check(graph, program, prompts, 14, golden(program.config))


def test_caches_in_memory(seed):
    graph, rng = model(seed), np.random.default_rng(seed)
    config = Config(dim=4, lanes=2, bus_bytes=4, weight_rows=1024, activation_rows=2048,
                    accumulator_rows=1024, parameter_rows=64, max_length=32)  # fmt: skip
    program = compile_batch(graph, config, sequences=4)
    assert program.metadata["caches"] == "in memory"
    prompts = [rng.integers(0, 30, length).tolist() for length in (2, 3, 1, 6)]
    check(graph, program, prompts, 12, golden(config))


def test_semaphores_and_rtl(seed):
    graph, rng = model(seed), np.random.default_rng(seed)
    config = PRESETS["tiny"]
    program = compile_batch(graph, config, sequences=2, context=16)
    prompts = [rng.integers(0, 30, length).tolist() for length in (3, 1)]

    def interleaved(memory):
        InterleavedMachine(config, memory, rng).run()
        return memory

    check(graph, program, prompts, 7, interleaved)
    machine = MachineSim(config, size_bytes=1 << 20, latency=17)
    check(graph, program, prompts, 7, lambda memory: machine.run(memory).memory)


def test_errors_say_what_is_wrong(seed):
    graph = model(seed)
    with pytest.raises(Unsupported, match="at least 2 sequences, not 1"):
        compile_batch(graph, TINY, sequences=1)
    program = compile_batch(graph, TINY, sequences=2)
    memory = program.memory()
    with pytest.raises(Unsupported, match="for 2 sequences, and there are 1"):
        set_prompts(program, memory, [[1]], 4)
    with pytest.raises(Unsupported, match="A prompt is empty"):
        set_prompts(program, memory, [[1], []], 4)
    with pytest.raises(DoesNotFit, match="allows 4 to 25"):
        set_prompts(program, memory, [[1, 2, 3], [1]], 3)


def test_texts_of_requests_end_each_in_its_own_place(seed):
    rng, graph = np.random.default_rng(seed), model(seed)
    prompts = [rng.integers(0, 30, length).tolist() for length in (4, 2)]
    alone, _ = reference(graph, prompts[1], 12)
    requests = [
        Request(prompt=prompts[0], tokens=5),
        Request(prompt=prompts[1], tokens=9, stops=(alone[4],)),
    ]
    golden_texts = generate_batch(graph, TINY, requests, "golden").texts
    result = generate_batch(graph, TINY, requests, "machine")
    assert result.texts == golden_texts
    assert len(result.texts[0]) == 9 and result.texts[1] == alone[: alone.index(alone[4], 2) + 1]
