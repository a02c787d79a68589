from dataclasses import replace

import numpy as np
import pytest

from systolith.compiler.allocate import DoesNotFit
from systolith.compiler.sequence import compile_sequence, outputs, set_inputs
from systolith.config import PRESETS, Config
from systolith.errors import UserError
from systolith.forward import IntegerModel
from systolith.sim import workloads
from systolith.sim.machine import GoldenMachine
from systolith.sim.machine_tb import MachineSim
from tests.graphs import encoder
from tests.interleaved import InterleavedMachine

TINY = Config(
    dim=4,
    lanes=2,
    bus_bytes=4,
    weight_rows=1024,
    activation_rows=1024,
    accumulator_rows=512,
    parameter_rows=32,
    max_length=32,
)
CONFIGS = {"tiny": TINY, "small": PRESETS["small"], "bench": PRESETS["bench"]}


def check(graph, program, length, machine, rng):
    """Runs a sequence on ``machine`` (memory → memory) and compares all of its outputs."""
    indices, given = workloads.random_inputs(graph, length, rng)
    memory = program.memory()
    set_inputs(program, memory, length, indices, given)
    memory = machine(memory)
    expected = IntegerModel(graph).trace({**indices, **given})
    found = outputs(program, memory, length)
    assert set(found) == {output.tensor for output in graph.outputs}
    for name, values in found.items():
        wrong = np.argwhere(values != expected[name])
        assert not len(wrong), f"{name}: first wrong value at (token, channel) {wrong[0]}"


def golden(config, limit=1 << 20):
    def run(memory):
        GoldenMachine(config, memory).run(limit)
        return memory

    return run


@pytest.mark.parametrize("preset", CONFIGS)
@pytest.mark.parametrize("tokens, length", [(12, 12), (12, 7), (5, 1)])
def test_every_kind_of_node(preset, tokens, length, seed):
    graph, rng = encoder(seed), np.random.default_rng(seed)
    program = compile_sequence(graph, CONFIGS[preset], tokens=tokens)
    check(graph, program, length, golden(program.config), rng)


SHAPES = [
    # bits, hidden, heads, ffn, layers, tokens, length
    (8, 24, 3, 40, 2, 21, 21),
    (16, 24, 3, 40, 2, 21, 17),
    (16, 32, 4, 20, 2, 9, 4),
    (8, 36, 3, 17, 1, 30, 30),
]


@pytest.mark.parametrize("preset", CONFIGS)
@pytest.mark.parametrize("bits, hidden, heads, ffn, layers, tokens, length", SHAPES)
def test_encoders(preset, bits, hidden, heads, ffn, layers, tokens, length, seed):
    graph = workloads.encoder(bits, hidden=hidden, heads=heads, ffn=ffn, layers=layers, seed=seed)
    program = compile_sequence(graph, CONFIGS[preset], tokens=tokens)
    check(graph, program, length, golden(program.config), np.random.default_rng(seed))


@pytest.mark.parametrize("block", [4, 8, 21])
@pytest.mark.parametrize("spill", [False, True])
def test_blocks_and_tensors_in_memory(block, spill, seed):
    graph = workloads.encoder(8, hidden=24, heads=3, ffn=40, layers=3, seed=seed)
    program = compile_sequence(graph, PRESETS["small"], tokens=21, block=block, spill=spill)
    assert program.metadata["block"] == block
    assert bool(program.metadata["spilled"]) == spill
    check(graph, program, 20, golden(program.config), np.random.default_rng(seed))


@pytest.mark.parametrize("kv_heads, bits", [(1, 16), (2, 8), (4, 16)])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_alone(kv_heads, bits, causal, seed):
    graph = workloads.attention(bits, hidden=32, heads=4, kv_heads=kv_heads, causal=causal)
    for preset, tokens in (("tiny", 19), ("bench", 70), ("bench", 3)):
        program = compile_sequence(graph, CONFIGS[preset], tokens=tokens)
        check(graph, program, tokens, golden(program.config), np.random.default_rng(seed))


def test_language_models_give_the_scores_of_every_token(seed):
    graph = workloads.llama(16, hidden=32, heads=4, kv_heads=2, ffn=40, layers=2, vocabulary=50)
    program = compile_sequence(graph, TINY, tokens=13)
    check(graph, program, 13, golden(TINY), np.random.default_rng(seed))


def test_semaphores_hold_in_every_order(seed):
    rng = np.random.default_rng(seed)
    for graph, tokens, block in (
        (workloads.encoder(16, hidden=24, heads=3, ffn=40, layers=2, seed=seed), 13, 8),
        (encoder(seed), 11, 4),
    ):
        for spill in (False, True):
            program = compile_sequence(graph, TINY, tokens=tokens, block=block, spill=spill)

            def run(memory):
                InterleavedMachine(TINY, memory, rng).run()
                return memory

            check(graph, program, tokens - 1, run, rng)


def test_rtl_equals_the_integer_forward(seed):
    graph, config = encoder(seed), PRESETS["tiny"]
    machine = MachineSim(config, size_bytes=1 << 20, latency=17)
    rng = np.random.default_rng(seed)
    layer = workloads.encoder(16, hidden=24, heads=3, ffn=40, layers=2, seed=seed)
    for each, block, spill in ((graph, 12, False), (layer, 4, True)):
        program = compile_sequence(each, config, tokens=12, block=block, spill=spill)
        check(each, program, 11, lambda memory: machine.run(memory).memory, rng)


def test_errors_say_what_is_wrong(seed):
    graph = workloads.encoder(8, hidden=24, heads=3, ffn=40, context=64)
    with pytest.raises(DoesNotFit, match="65 tokens are asked for, and the model has 1 to 64"):
        compile_sequence(graph, PRESETS["bench"], tokens=65)
    with pytest.raises(DoesNotFit, match="the softmax unit of the configuration has 32"):
        compile_sequence(graph, TINY, tokens=33)
    small = replace(TINY, activation_rows=64)
    with pytest.raises(DoesNotFit, match="choose a configuration with a larger one"):
        compile_sequence(graph, small, tokens=30)
    program = compile_sequence(graph, TINY, tokens=5)
    memory = program.memory()
    with pytest.raises(UserError, match="has 6 tokens, and the program is for 1 to 5"):
        set_inputs(program, memory, 6, {}, {"x": np.zeros((6, 24))})
    with pytest.raises(UserError, match="'x' must be there, with 4 tokens"):
        set_inputs(program, memory, 4, {}, {"x": np.zeros((3, 24))})
    with pytest.raises(UserError, match="'x' must be there, with 4 tokens"):
        set_inputs(program, memory, 4, {}, {})
