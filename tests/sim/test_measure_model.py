import json

import numpy as np
import pytest
from click.testing import CliRunner

from systolith.cli import main
from systolith.compiler.decoder import compile_decoder, logits, set_prompt
from systolith.config import PRESETS, Config
from systolith.forward import IntegerModel
from systolith.sim import workloads
from systolith.sim.machine import GoldenMachine
from systolith.sim.measure_model import (
    measure_attention,
    measure_decode,
    measure_sequence,
    measure_text,
    useful_cycles,
)

TINY = PRESETS["tiny"]


def test_useful_cycles_are_the_products_of_a_layer():
    graph = workloads.encoder(8, hidden=8, heads=2, ffn=12)
    linear = 5 * (4 * 8 * 8 + 2 * 8 * 12)
    attention = 2 * 5 * 5 * 8
    assert useful_cycles(graph, 5, 4) == (linear + attention) / 16
    wide = workloads.encoder(16, hidden=8, heads=2, ffn=12)
    # 12-bit keys: two products of 16-bit queries; 16-bit values: one and a half of 16-bit p.
    assert useful_cycles(wide, 5, 4) == (2 * linear + (4 + 3) * 5 * 5 * 8) / 16


def test_layers_are_predicted_and_attention_hides_its_softmax(seed):
    graph = workloads.encoder(8, hidden=32, heads=4, ffn=64, seed=seed)
    found = measure_sequence(graph, TINY, 24, seed=seed)
    assert found["bit_exact"]
    assert found["cycles"] == pytest.approx(found["predicted"], rel=0.02)
    assert found["useful"] > 0.75
    graph = workloads.attention(8, hidden=32, heads=4, seed=seed)
    found = measure_attention(graph, TINY, 48, seed=seed)
    assert found["bit_exact"] and 0 <= found["softmax_costs"] < 0.1


def test_decode_and_text_are_predicted(seed):
    graph = workloads.llama(8, hidden=16, heads=4, kv_heads=2, ffn=24, layers=2, vocabulary=30,
                            context=24, seed=seed)  # fmt: skip
    found = measure_decode(graph, TINY, seed=seed, tokens=(2, 6))
    assert found["bit_exact"]
    assert found["cycles"] == pytest.approx(found["predicted"], rel=0.05)
    assert found["weights"] == sum(
        graph.constants[node.weight].size for node in graph.nodes if hasattr(node, "weight")
    )
    text = measure_text(graph, TINY, 6, seed=seed)
    assert text["tokens"] == 6 and text["cycles"] == pytest.approx(text["predicted"], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 16])
def test_a_layer_of_minilm_keeps_the_array_busy(bits):
    found = measure_sequence(workloads.encoder(bits), PRESETS["bench"], 128)
    assert found["bit_exact"] and found["useful"] >= 0.95
    assert found["cycles"] == pytest.approx(found["predicted"], rel=0.01)
    softmax = measure_attention(workloads.attention(bits), PRESETS["bench"], 128)
    assert softmax["bit_exact"] and softmax["softmax_costs"] <= 0.01


@pytest.mark.slow
def test_large_vocabulary_weights_and_context():
    """32 k tokens, more than 4 MB of weights, a context of 1,024, on the golden machine."""
    config = Config(dim=16, lanes=8, bus_bytes=16, activation_rows=16384, weight_rows=65536,
                    accumulator_rows=8192, parameter_rows=512, max_length=1024)  # fmt: skip
    graph = workloads.llama(8, hidden=128, heads=4, kv_heads=2, ffn=512, layers=2,
                            vocabulary=32000, context=1024)  # fmt: skip
    program = compile_decoder(graph, config)
    assert program.metadata["context"] == 1024
    prompt = np.random.default_rng(1).integers(0, 32000, 1019).tolist()
    memory = program.memory()
    set_prompt(program, memory, prompt, 1024)
    GoldenMachine(config, memory).run()
    model = IntegerModel(graph)
    rows = [model.step(prompt)[-1]]
    for _ in range(4):
        rows.append(model.step([int(np.argmax(rows[-1]))])[-1])
    assert np.array_equal(logits(program, memory)[1018:1023], np.array(rows))


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["decode", "--model", "bundled", "--tokens", "1", "--config", "small"],
        ["model", "--model", "bundled", "--tokens", "3", "--config", "small"],
        ["layer", "--tokens", "20", "--hidden", "32", "--heads", "2", "--config", "small"],
        ["attention", "--tokens", "20", "--hidden", "32", "--heads", "2", "--config", "small"],
    ],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_commands_print_json(arguments):
    answer = CliRunner().invoke(main, ["bench", *arguments, "--json"])
    assert answer.exit_code == 0, answer.output
    results = json.loads(answer.stdout[answer.stdout.index("[\n") :])
    assert results and all(result["bit_exact"] and result["cycles"] > 0 for result in results)
