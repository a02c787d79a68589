import json
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner

from systolith import cli
from systolith.boards import figures
from systolith.boards.board import bitstreams
from systolith.config import Config
from systolith.cost import product_cycles
from systolith.errors import UserError
from systolith.graph import Graph, Linear
from systolith.sim.workloads import llama

SMALL = Config(
    dim=4, lanes=2, bus_bytes=4, activation_rows=256, weight_rows=512, accumulator_rows=128,
    parameter_rows=32, max_length=32, max_features=32,
)  # fmt: skip


def model(context: int = 16) -> Graph:
    return llama(
        16, hidden=16, heads=4, kv_heads=2, ffn=24, layers=1, vocabulary=40, context=context
    )


def manifest(clock_mhz: float) -> dict:
    report = {
        "board": "ulx3s", "preset": "small.json", "dim": 4, "lut": 12345, "ff": 2345, "dsp": 22,
        "bram": 33, "fmax_mhz": clock_mhz + 0.5, "clock_mhz": clock_mhz, "seconds": 61.2,
    }  # fmt: skip
    return {"board": "ulx3s", "configuration": asdict(SMALL), "report": report}


def test_a_line_of_the_table() -> None:
    """Cycles are those of new tokens on the simulated board, tokens/s follow from the clock."""
    graph = model()
    line = figures.row(manifest(60.0), graph, 3)
    # The products of a token are the least that it takes; that prefill is in it would be far more.
    least = sum(
        product_cycles(1, *graph.constants[node.weight].shape[::-1], dim=4)
        for node in graph.of_kind(Linear)
    )
    assert least < line["cycles_per_token"] < 10 * least
    assert line["tokens_per_second"] == pytest.approx(60e6 / line["cycles_per_token"], rel=1e-3)
    assert line["context"] == 16 and line["tokens"] == 3
    header, rule, row = figures.markdown([line], "small").splitlines()
    assert header.count("|") == rule.count("|") == row.count("|")
    assert f"{line['cycles_per_token']:,}" in row and "12,345" in row


def test_a_model_that_no_board_has_room_for() -> None:
    wide = llama(16, hidden=64, heads=4, kv_heads=2, ffn=256, layers=1, vocabulary=40, context=16)
    line = figures.row(manifest(60.0), wide, 3)
    assert "64 features are more than max_features 32" in line["problem"]
    header, _, row = figures.markdown([line], "wide").splitlines()
    assert header.count("|") == row.count("|")


def test_which_bitstreams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYSTOLITH_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="no bitstream yet: run systolith build"):
        figures.built()
    folder = bitstreams() / "ulx3s"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest(60.0)))
    assert figures.built() == figures.built(["ulx3s"]) == [manifest(60.0)]
    with pytest.raises(UserError, match="no bitstream of icebreaker: run systolith build --board"):
        figures.built(["icebreaker"])


def test_build_finds_out_about_a_model_before_the_tools_run(tmp_path: Path) -> None:
    for options, message in (
        (["--model", "missing.bin"], "missing.bin"),
        (["--model", "bundled", "--echo"], "--echo has no machine for --model"),
    ):
        result = CliRunner().invoke(
            cli.main, ["build", "--board", "ulx3s", *options, "-o", str(tmp_path / "out")]
        )
        assert result.exit_code != 0
        assert message in f"{result.output}{result.exception}" and "yosys" not in result.output
    assert not (tmp_path / "out").exists()
