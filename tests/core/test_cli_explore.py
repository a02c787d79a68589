"""`systolith explore`, and what `compile` says of memory."""

import json
import sys

import pytest
from click.testing import CliRunner

from systolith import cli
from systolith.artifact import Artifact
from systolith.compiler.memory_map import on_chip_map
from systolith.config import load_config
from systolith.program import Program
from systolith.sim import workloads
from tests.core.test_cli import one_sentence


@pytest.fixture
def model(seed, tmp_path):
    """A small Llama in a file."""
    graph = workloads.llama(8, hidden=32, heads=4, kv_heads=2, ffn=48, layers=1, vocabulary=64,
                            context=32, seed=seed)  # fmt: skip
    Artifact(graph, b"").save(tmp_path / "m.slq")
    return tmp_path / "m.slq"


@pytest.fixture
def run():
    def call(*arguments):
        return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])

    return call


def test_a_chosen_machine_is_one_that_compile_takes(run, model, tmp_path, seed):
    front, config = tmp_path / "front.json", tmp_path / "config.json"
    result = run("explore", "--model", model, "--budget", "dsp=150,bram=200", "--trials", 16,
                 "--jobs", 1, "--seed", seed, "-o", front, "--choose", 2,
                 "--save-config", config)  # fmt: skip
    assert result.exit_code == 0, result.output
    entries = json.loads(front.read_text())["front"]
    assert all(entry["dsp"] <= 150 and entry["bram"] <= 200 for entry in entries)
    assert json.loads(config.read_text()) == entries[1]["config"]
    for entry in entries:
        assert f"{entry['cycles']:,}" in result.stdout
    made = run("compile", model, "--config", config, "-o", tmp_path / "m.slp")
    assert made.exit_code == 0, made.output
    assert Program.load(tmp_path / "m.slp").config == load_config(str(config))


def test_a_number_beyond_the_front_is_refused(run, model, tmp_path):
    result = run("explore", "--model", model, "--trials", 4, "--jobs", 1, "--choose", 99,
                 "--save-config", tmp_path / "c.json")  # fmt: skip
    assert result.exit_code == 2 and "and no 99" in result.stderr
    assert not (tmp_path / "c.json").exists()


@pytest.mark.parametrize("budget", ["lut=3", "dsp=", "dsp=-1", "dsp=3,dsp=4", "bram"])
def test_a_wrong_budget_is_one_sentence(run, model, budget):
    result = run("explore", "--model", model, "--budget", budget)
    assert one_sentence(result) == (
        f"systolith: A budget is dsp=NUMBER,bram=NUMBER, not {budget!r}"
    )


@pytest.mark.parametrize("tokens", ["0", "-3", "33"])
def test_tokens_that_the_model_cannot_have_are_refused(run, model, tokens):
    result = run("explore", "--model", model, "--tokens", tokens)
    assert f"explore takes 1 to 32 tokens for this model, not {tokens}" in one_sentence(result)


def test_the_extra_is_named_without_optuna(run, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install 'systolith[explore]'" in one_sentence(run("explore", "--model", model))


def test_compile_says_what_is_on_chip(run, model, tmp_path):
    result = run("compile", model, "--config", "tiny", "-o", tmp_path / "m.slp")
    assert result.exit_code == 0, result.output
    program = Program.load(tmp_path / "m.slp")
    found = on_chip_map(program)
    # Keys and values of 2 heads of 8 for 32 tokens, one layer: 4 blocks of 4 channels each.
    assert program.metadata["caches"] == "on chip"
    assert found["keys and values"] == (2 * 4 * 32, 4096)
    weights = sum(rows for use, (rows, _) in found.items() if not use.startswith("activations"))
    assert weights == program.config.weight_rows
    assert 0 < found["activations, at most"][0] <= program.config.activation_rows
    assert "256 of 4,096 rows, 1,024 bytes" in result.stdout
