import json

import pytest
from click.testing import CliRunner

from systolith.cli import main
from systolith.compiler.resources import Resources, resources
from systolith.compiler.tensors import Unsupported
from systolith.config import PRESETS, Config
from systolith.errors import UserError
from systolith.sim import workloads
from systolith.sim.explore import (
    Candidate,
    _evaluate,
    explore,
    pareto_front,
    parse_budget,
    predicted_cycles,
)


def small_llama(seed):
    return workloads.llama(8, hidden=32, heads=4, kv_heads=2, ffn=48, layers=1, vocabulary=64,
                           context=32, seed=seed)  # fmt: skip


def test_resources_are_those_of_the_routed_machine():
    found = resources(PRESETS["small"])
    assert (found.dsp, found.bram) == (136, 113)


def test_resources_grow_with_every_memory():
    base = resources(PRESETS["small"]).bram
    for name in ("activation_rows", "weight_rows", "accumulator_rows", "parameter_rows"):
        values = {"dim": 8, "lanes": 4, name: 4 * getattr(PRESETS["small"], name)}
        assert resources(Config(**values)).bram > base


def test_the_front_has_what_nothing_beats():
    config = PRESETS["tiny"]
    costs = [(100, 20, 30), (90, 30, 30), (100, 25, 30), (90, 30, 40), (80, 40, 50)]
    found = [Candidate(config, cycles, Resources(dsp, bram)) for cycles, dsp, bram in costs]
    assert [c.costs() for c in pareto_front(found)] == [(80, 40, 50), (90, 30, 30), (100, 20, 30)]


def test_a_search_keeps_its_budget_and_repeats_itself(seed, tmp_path):
    graph = small_llama(seed)
    first, second = (
        explore(graph, budget={"dsp": 150, "bram": 200}, tokens=32, trials=24, seed=seed)
        for _ in range(2)
    )
    assert first.front and first == second
    assert sum(first.failed.values()) + len(first.front) <= first.tried == 24
    for one in first.front:
        assert one.resources.dsp <= 150 and one.resources.bram <= 200
        assert one.cycles == predicted_cycles(graph, one.config, 32)
    first.save(tmp_path / "front.json")
    entries = json.loads((tmp_path / "front.json").read_text())["front"]
    assert Config(**entries[0]["config"]) == first.front[0].config


def test_encoders_are_searched_too(seed):
    graph = workloads.encoder(8, hidden=32, heads=4, ffn=48, seed=seed)
    assert explore(graph, tokens=16, trials=8, jobs=2, seed=seed).front


def test_what_cannot_be_is_said(seed):
    found = r"None of 4 configurations .*beyond dsp=1\): the smallest that was found needs dsp=52,"
    with pytest.raises(UserError, match=found):
        explore(small_llama(seed), budget={"dsp": 1}, tokens=32, trials=4)
    assert parse_budget("bram=20,dsp=3") == {"bram": 20, "dsp": 3}
    answer = CliRunner().invoke(main, ["explore", "--budget", "lut=3"])
    assert answer.exit_code == 2
    assert answer.output == "systolith: A budget is dsp=NUMBER,bram=NUMBER, not 'lut=3'\n"


def test_logits_may_be_wider_than_any_norm(seed):
    graph = workloads.llama(8, hidden=32, heads=4, kv_heads=2, ffn=48, layers=1, vocabulary=5000,
                            context=32, seed=seed)  # fmt: skip
    front = explore(graph, tokens=16, trials=8, seed=seed).front
    assert front and all(one.config.max_features <= 64 for one in front)


def test_what_the_compiler_does_not_support_is_a_reason_and_no_end(seed, monkeypatch):
    def refuse(graph, config, tokens):
        raise Unsupported("heads")

    monkeypatch.setattr("systolith.sim.explore._graph", small_llama(seed))
    monkeypatch.setattr("systolith.sim.explore.predicted_cycles", refuse)
    values = {"dim": 8, "lanes": 4}
    assert _evaluate(values, 32, {}) == "not supported: heads"
    assert _evaluate(values, 32, {"dsp": 10}) == "beyond dsp=10"
    assert _evaluate({"dim": 5}, 32, {}).startswith("no such machine: dim must be one of")
