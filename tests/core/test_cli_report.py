"""`systolith report`, and the traces of `generate`."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from systolith.cli import main
from systolith.compiler.decoder import compile_decoder
from systolith.compiler.gemm import Shape, compile_gemm
from systolith.compiler.sequence import compile_sequence
from systolith.config import PRESETS
from systolith.sim.profile import prepare, profile
from tests.compiler.test_decoder import random_graph

TINY = PRESETS["tiny"]


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_report_of_a_program(tmp_path: Path, seed: int) -> None:
    program = compile_decoder(random_graph(seed), TINY)
    program.save(tmp_path / "model.slp")
    page, trace = tmp_path / "report.html", tmp_path / "trace.json"
    result = call(
        "report", "--program", tmp_path / "model.slp", "--prompt-tokens", 3, "--tokens", 2,
        "--measure", "-o", page, "--trace", trace,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    expected = profile(program, prepare(program, tokens=3, new=2))
    assert f"predicted {expected.predicted.cycles:,} cycles" in result.output
    measured = int(result.output.split("measured ")[-1].split()[0].replace(",", ""))
    assert expected.predicted.cycles == pytest.approx(measured, rel=0.01)
    text = page.read_text()
    assert "model.slp: where the cycles go" in text and f"{measured:,}" in text
    processes = {e["args"]["name"] for e in json.loads(trace.read_text())["traceEvents"]
                 if e["name"] == "process_name"}  # fmt: skip
    assert processes == {"predicted", "RTL"}


def test_slower_memory_is_predicted_to_be_slower(tmp_path: Path) -> None:
    program = compile_gemm(TINY, [Shape(30, 40, 50)], "dram")
    program.save(tmp_path / "gemm.slp")
    cycles = []
    for options in ([], ["--latency", "200"], ["--bus-bytes-per-cycle", "1"]):
        result = call("report", "--program", tmp_path / "gemm.slp", *options)
        assert result.exit_code == 0, result.output
        cycles.append(int(result.output.split("predicted ")[-1].split()[0].replace(",", "")))
    assert cycles[0] + 100 < cycles[1] < cycles[2]


def test_sequences_are_as_long_as_asked(seed: int) -> None:
    program = compile_sequence(random_graph(seed), TINY, tokens=8)
    memories = [prepare(program, tokens=tokens, new=1) for tokens in (3, 100)]
    assert [int(program.read(memory, "control")[0]) for memory in memories] == [3, 8]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "-o", "page.txt"], "must end with .html, not 'page.txt'"),
        (["report", "--trace", "nowhere/t.json"], "There is no folder nowhere to write t.json"),
        (["report", "--clock", "0"], "The clock must be above 0 MHz, not 0"),
        (["report", "--program", "none.slp"], "There is no program none.slp"),
        (["generate", "--trace", "t.json"], "A trace needs the backend rtl: add --backend rtl"),
        (["generate", "--backend", "rtl", "--trace", "t"], "must end with .json, not 't'"),
    ],
)
def test_refusals(arguments: list[str], message: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2 and message in result.output


def test_tokens_must_be_there(seed: int) -> None:
    from systolith.errors import UserError

    with pytest.raises(UserError, match="Tokens must be at least 1, not 0"):
        prepare(compile_decoder(random_graph(seed), TINY), tokens=0, new=4)
