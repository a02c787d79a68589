"""Running benches: results and arguments, live progress, waves, and every way to fail."""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from systolith.sim import runner
from systolith.sim.build import Build, build
from systolith.sim.ports import clocked_top
from systolith.sim.runner import BenchFailure, run

BENCH = Path(__file__).with_name("bench_runner.py")
COUNTER = """
module counter(input wire clk, input wire rst, output reg [31:0] count);
  always @(posedge clk) count <= rst ? 0 : count + 1;
endmodule
"""


@pytest.fixture
def counter() -> Build:
    return build(COUNTER, "counter")


def test_arguments_results_and_seed(counter: Build) -> None:
    arguments = {
        "n": np.int16(5),
        "array": np.arange(3),
        "path": Path("a/b"),
        "deep": [{"x": None}],
    }
    files = {"extra.bin": b"\x01\x02"}
    result = run(counter, BENCH, arguments, seed=9, files=files, test="echoes")
    assert result["arguments"] == {"n": 5, "array": [0, 1, 2], "path": "a/b", "deep": [{"x": None}]}
    assert result["seed"] == 9 and result["file"] == "0102"
    again = run(counter, BENCH, arguments, seed=9, files=files, test="echoes")
    other = run(counter, BENCH, arguments, seed=10, files=files, test="echoes")
    assert again["random"] == result["random"] != other["random"]
    with pytest.raises(TypeError, match="set cannot be written as JSON"):
        run(counter, BENCH, {"n": {1}}, test="echoes")


def test_a_dotted_name_and_a_bench_of_the_package(counter: Build) -> None:
    assert run(counter, "tests.sim.bench_runner", {"cycles": 10}, test="counts") == {"count": 10}
    with pytest.raises(ValueError, match=r"module of systolith\.sim\.benches, not 'absent'"):
        run(counter, "absent", {})
    with pytest.raises(ValueError, match="Bench must be an existing file"):
        run(counter, Path("absent.py"), {})


def test_both_clocks_count_the_same_and_differ_at_the_edge(counter: Build) -> None:
    inside = build(*clocked_top(COUNTER, "counter"))
    for made, step in ((counter, 1), (inside, 0)):
        assert run(made, BENCH, {"cycles": 10}, test="counts") == {"count": 10}
        assert run(made, BENCH, {}, test="edges") == {"step": step}


def test_progress_arrives_while_the_simulation_runs(counter: Build) -> None:
    seen: list[tuple[float, dict[str, Any]]] = []
    run(counter, BENCH, {}, test="tells", progress=lambda item: seen.append((time.time(), item)))
    assert [item["index"] for _, item in seen] == [0, 1, 2]
    assert seen[0][1]["text"] == "zwölf\n"
    assert seen[2][0] - seen[0][0] > 0.1


def test_a_callback_that_raises_ends_the_simulation(counter: Build) -> None:
    pids: list[int] = []

    def refuse(item: dict[str, Any]) -> None:
        pids.append(item["pid"])
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        run(counter, BENCH, {}, test="tells", progress=refuse)
    assert len(pids) == 1 and not Path(f"/proc/{pids[0]}").exists()


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("fails", "fails: row 3, column 4 differs"),
        ("fails_in_a_task", "fails_in_a_task: .*in the background"),
        ("crashes", "the simulator ended with status -6"),
        ("leaves", "the simulation left no test result"),
        ("no_such_test", "the simulation left no test result"),
    ],
)
def test_failures_are_never_swallowed(
    counter: Build, test: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(BenchFailure, match=message) as failure:
        run(counter, BENCH, {}, seed=4, test=test, directory=tmp_path)
    assert "seed 4" in str(failure.value)
    assert str(tmp_path) in str(failure.value)
    assert "cocotb" in str(failure.value).split("--- end of")[1]


def test_a_module_of_skipped_tests_fails(counter: Build, tmp_path: Path) -> None:
    bench = tmp_path / "bench_skipped.py"
    bench.write_text("import cocotb\n@cocotb.test(skip=True)\nasync def idle(dut): pass\n")
    with pytest.raises(BenchFailure, match="the simulation left no test result"):
        run(counter, bench, {})


def test_a_module_that_does_not_import_fails(counter: Build, tmp_path: Path) -> None:
    bench = tmp_path / "bench_broken.py"
    bench.write_text("import no_such_module\n")
    with pytest.raises(BenchFailure, match="no_such_module"):
        run(counter, bench, {})


def test_time_out(counter: Build) -> None:
    start = time.monotonic()
    with pytest.raises(BenchFailure, match="the simulation did not end within 2 s"):
        run(counter, BENCH, {}, test="hangs", timeout_s=2)
    assert time.monotonic() - start < 10


def test_runs_leave_nothing_unless_they_fail(counter: Build, tmp_path: Path) -> None:
    (tmp_path / "sim").mkdir()
    (tmp_path / "sim" / "counter").symlink_to(counter.directory)
    own = dataclasses.replace(counter, directory=tmp_path / "sim" / "counter")
    run(own, BENCH, {"cycles": 1}, test="counts")
    assert list((tmp_path / "runs").iterdir()) == []
    with pytest.raises(BenchFailure) as failure:
        run(own, BENCH, {}, test="fails")
    (kept,) = (tmp_path / "runs").iterdir()
    assert str(kept) in str(failure.value)
    assert (kept / "simulation.log").exists()


def test_waves(counter: Build, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Waves need a build that was made with waves=True"):
        run(counter, BENCH, {"cycles": 1}, waves=tmp_path / "w", test="counts")
    made = build(COUNTER, "counter", waves=True)
    run(made, BENCH, {"cycles": 9}, waves=tmp_path / "deep" / "w", test="counts")
    file = tmp_path / "deep" / f"w.{made.waves}"
    data = file.read_bytes()
    assert len(data) > 300
    if made.waves == "vcd":
        assert b"count" in data and b"$enddefinitions" in data


def test_without_pytest(counter: Build) -> None:
    """A command line gets the same verdicts (cocotb's own runner would exit 0 on failure)."""
    code = (
        "import sys; from pathlib import Path; from systolith.sim import build, runner\n"
        f"made = build.build({COUNTER!r}, 'counter')\n"
        f"print(runner.run(made, Path({str(BENCH)!r}), {{'cycles': 4}}, test='counts'))\n"
        f"runner.run(made, Path({str(BENCH)!r}), test='fails')\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert answer.stdout == "{'count': 4}\n"
    assert answer.returncode == 1
    assert "BenchFailure: fails: row 3, column 4 differs" in answer.stderr


def test_no_shared_library(counter: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    from systolith.errors import UserError

    monkeypatch.setattr("find_libpython.find_libpython", lambda: None)
    with pytest.raises(UserError, match="needs a Python with a shared library"):
        runner.run(counter, BENCH, {}, test="counts")


def test_a_bench_asks_its_caller(counter):
    def answer(question):
        return {"answer": f"{question['text']}{question['number'] ** 2}"}

    result = run(counter, BENCH, test="questions", answer=answer)
    assert result["stood_still"]
    assert result["answers"] == [f"zwölf\n{number ** 2}" for number in range(50)]


def test_a_question_that_nobody_answers_ends_the_run(counter):
    with pytest.raises(BenchFailure, match="and nobody answers"):
        run(counter, BENCH, test="questions", timeout_s=60)


def test_an_error_in_an_answer_ends_the_run(counter):
    def answer(question):
        raise KeyError("no such number")

    with pytest.raises(KeyError, match="no such number"):
        run(counter, BENCH, test="questions", answer=answer, timeout_s=60)
