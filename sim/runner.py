"""Run a cocotb bench on a compiled simulator; get its result back as a dictionary.

A bench is a module with `@cocotb.test()` functions; it reads its arguments and reports its result
through this module. In the calling process (a pytest test, or the command line; pytest is not
needed):

    from systolith.sim import build, runner

    made = build.build(build.amaranth_verilog(Counter(8), "counter"), "counter")
    result = runner.run(made, "counter", {"cycles": 100}, seed=1)   # -> {"count": 100}

and in `sim/benches/counter.py`, inside the simulator:

    import cocotb
    from cocotb.triggers import ClockCycles
    from systolith.sim.runner import arguments, progress, report, start

    @cocotb.test()
    async def counts(dut):
        await start(dut)                        # clock on `clk`, a pulse on `rst`
        dut.enable.value = 1
        await ClockCycles(dut.clk, arguments()["cycles"])
        progress({"text": "nearly there"})      # goes to run(..., progress=callback) at once
        assert int(dut.count.value) == arguments()["cycles"], "first mismatch: ..."
        report({"count": int(dut.count.value)})

A bench that needs something from its caller while it runs calls `ask(question)`, and goes on with
what `run(..., answer=callback)` returns for it; simulated time stands still meanwhile.

`bench` is the name of a module in systolith.sim.benches, a dotted module name, or the path of a .py
file. A failed assertion, a crash, a time-out, no tests, or a missing results file raise
`BenchFailure` with the assertion's text and the tail of the log, whose folder is then kept for
inspection.

Speed: a running clock costs no Python, but every trigger that Python awaits does (5 us). Benches of
large designs wait for an edge of a `done` port, not for every cycle. Figures stand in `start()`.
"""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from xml.etree import ElementTree

if TYPE_CHECKING:
    from systolith.sim.build import Build

_RUN = "SYSTOLITH_RUN"  # inside the simulator: the folder of this run
_POLL_S = 0.02
_POLL_QUESTIONS_S = 0.001
_ANSWERS = "answers"  # a named pipe in the folder of the run
_QUESTION = "?"  # key of a question among the lines of progress
_TAIL_LINES = 40


class BenchFailure(AssertionError):
    """A bench failed: the text has its first failed assertion, the seed, the end of the log."""


def run(
    build: "Build",
    bench: str | Path,
    arguments: Mapping[str, Any] | None = None,
    *,
    waves: Path | None = None,
    seed: int = 0,
    timeout_s: float = 600,
    progress: Callable[[dict[str, Any]], None] | None = None,
    answer: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    plusargs: Sequence[str] = (),
    files: Mapping[str, bytes] | None = None,
    directory: Path | None = None,
    test: str = "",
) -> dict[str, Any]:
    """Simulate `build` under `bench`; returns what the bench reported (several reports are merged).

    arguments: anything JSON can hold, numpy scalars and arrays become numbers and lists
    waves: where to write the waveforms; the build must have been made with waves=True, and the
        suffix becomes the format's (.fst or .vcd)
    seed: seeds Python's `random` in the simulator; `seed()` there returns it
    timeout_s: wall-clock limit, after which the simulator is killed and the run has failed
    progress: called in this process with each dictionary that the bench passes to `progress()`,
        live
    answer: called with each dictionary that the bench passes to `ask()`; what it returns goes back
    plusargs: for $value$plusargs, for instance "+axi_memory_image=weights.bin"
    files: written into the run's folder first, for instance memory images
    directory: the run's folder (kept). Default: a temporary one, kept only if the run fails
    test: run only the test function of this name. Default: all of the module's
    """
    if waves is not None and not build.waves:
        raise ValueError("Waves need a build that was made with waves=True")
    kept = directory is not None
    if directory is None:
        parent = build.directory.parents[1] / "runs"
        parent.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix=f"{build.top}-", dir=parent))
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("results.xml", "result.json", "progress.jsonl", _ANSWERS):
        (directory / name).unlink(missing_ok=True)
    for name, data in (files or {}).items():
        (directory / name).write_bytes(data)
    (directory / "arguments.json").write_text(_to_json(dict(arguments or {})))
    command = [str(build.executable), *plusargs]
    if waves is not None:
        waves = waves.with_suffix(f".{build.waves}").resolve()
        waves.parent.mkdir(parents=True, exist_ok=True)
        command[1:1] = ["--trace", "--trace-file", str(waves)]
    environment = _environment(build, bench, seed, directory)
    if test:
        environment["COCOTB_TEST_FILTER"] = rf"\.{re.escape(test)}$"
    status = _simulate(command, environment, directory, timeout_s, progress, answer)
    problem = _problem(directory, status)
    if problem:
        raise BenchFailure(
            f"{problem}\nbench {bench} on {build.top}, seed {seed}; the run is in {directory}\n"
            f"--- end of {directory.name}/simulation.log ---\n{_tail(directory)}"
        )
    result = directory / "result.json"
    reported = json.loads(result.read_text()) if result.exists() else {}
    if not kept:
        shutil.rmtree(directory)
    return reported


def _simulate(
    command: Sequence[str],
    environment: Mapping[str, str],
    directory: Path,
    timeout_s: float,
    progress: Callable[[dict[str, Any]], None] | None,
    answer: Callable[[dict[str, Any]], dict[str, Any]] | None,
) -> str:
    """Run the simulator to its end; returns "" or how it ended badly."""
    path = directory / "progress.jsonl"
    path.touch()
    deadline = time.monotonic() + timeout_s
    poll = _POLL_S if answer is None else _POLL_QUESTIONS_S
    with (
        (directory / "simulation.log").open("w") as log,
        path.open() as lines,
        _pipe(directory / _ANSWERS) as answers,
    ):
        process = subprocess.Popen(
            command, cwd=directory, env=dict(environment), stdout=log, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        pending = ""
        try:
            while True:
                ended = process.poll() is not None  # asked before reading: no line can be missed
                pending += lines.read()
                *complete, pending = pending.split("\n")
                for line in complete:
                    item = json.loads(line)
                    if _QUESTION not in item:
                        if progress:
                            progress(item)
                    elif answer is None:
                        return f"the bench asked {item[_QUESTION]}, and nobody answers"
                    elif not ended:
                        answers.write(_to_json(answer(item[_QUESTION])) + "\n")
                        answers.flush()
                if ended:
                    break
                if time.monotonic() > deadline:
                    return f"the simulation did not end within {timeout_s:g} s"
                with_timeout = min(poll, max(deadline - time.monotonic(), 0.001))
                try:
                    process.wait(with_timeout)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    return (
        "" if process.returncode == 0 else f"the simulator ended with status {process.returncode}"
    )


@contextlib.contextmanager
def _pipe(path: Path) -> Iterator[TextIO]:
    """A new named pipe, to write to. Open for reading, too: it does not wait for the bench."""
    os.mkfifo(path)
    with os.fdopen(os.open(path, os.O_RDWR), "w") as file:
        try:
            yield file
        finally:
            path.unlink()


def _problem(directory: Path, status: str) -> str:
    """What went wrong: the first failed test, or why there is no verdict; else ""."""
    path = directory / "results.xml"
    try:
        cases = list(ElementTree.parse(path).iter("testcase")) if path.exists() else []
    except ElementTree.ParseError:
        cases = []
    for case in cases:
        for kind in ("failure", "error"):
            found = case.find(kind)
            if found is not None:
                text = found.get("error_msg") or found.get("message") or (found.text or "").strip()
                return f"{case.get('name')}: {text or kind}"
    if status:
        return status
    if not any(case.find("skipped") is None for case in cases):
        return "the simulation left no test result"
    return ""


def _tail(directory: Path) -> str:
    lines = (directory / "simulation.log").read_text(errors="replace").splitlines()
    return "\n".join(lines[-_TAIL_LINES:])


def _environment(build: "Build", bench: str | Path, seed: int, directory: Path) -> dict[str, str]:
    """The variables that cocotb wants, as its own runner sets them."""
    import cocotb_tools.runner

    module, folders = _module(bench)
    runner = cocotb_tools.runner.Verilator()
    runner.env = {}
    runner.test_module = module
    runner.sim_hdl_toplevel = build.top
    runner.hdl_toplevel_lang = "verilog"
    try:
        runner._set_env_test()
    except ValueError as error:  # find_libpython found nothing
        from systolith.errors import UserError

        raise UserError(
            "simulation needs a Python with a shared library (libpython3.so), which this one "
            "lacks: use the system's python3 (Debian and Ubuntu: apt-get install libpython3-dev)"
        ) from error
    environment = dict(runner.env)
    environment["PYTHONPATH"] = os.pathsep.join([*folders, environment["PYTHONPATH"]])
    environment["COCOTB_RESULTS_FILE"] = str(directory / "results.xml")
    environment["COCOTB_RANDOM_SEED"] = str(seed)
    environment["COCOTB_ANSI_OUTPUT"] = "0"
    environment[_RUN] = str(directory)
    # A bench that was chosen on someone's command line must not filter ours.
    for name in ("COCOTB_TEST_FILTER", "COCOTB_TESTCASE", "COCOTB_WAVEFORM_VIEWER"):
        environment.pop(name, None)
    return environment


def _module(bench: str | Path) -> tuple[str, list[str]]:
    """Module name of a bench, and the folders it needs on the path."""
    if isinstance(bench, Path) or bench.endswith(".py"):
        path = Path(bench).resolve()
        if not path.exists():
            raise ValueError(f"Bench must be an existing file, not {path}")
        return path.stem, [str(path.parent)]
    if "." in bench:
        checkout = Path(__file__).resolve().parents[1]
        return bench, [] if bench.startswith("systolith.") else [str(checkout)]
    name = f"systolith.sim.benches.{bench}"
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"Bench must be a module of systolith.sim.benches, not {bench!r}")
    return name, []


def _to_json(value: Any) -> str:
    def default(item: Any) -> Any:
        if hasattr(item, "tolist"):  # numpy scalars and arrays
            return item.tolist()
        if isinstance(item, Path):
            return str(item)
        raise TypeError(f"{type(item).__name__} cannot be written as JSON")

    return json.dumps(value, default=default)


# The rest is for benches: it runs inside the simulator.


def run_directory() -> Path:
    """The folder of this run: the simulator's working directory, where files are exchanged."""
    return Path(os.environ[_RUN])


def arguments() -> dict[str, Any]:
    """What the caller passed to `run()`."""
    return json.loads((run_directory() / "arguments.json").read_text())


def seed() -> int:
    """The seed of this run, for `numpy.random.default_rng(seed())`."""
    return int(os.environ["COCOTB_RANDOM_SEED"])


def report(values: Mapping[str, Any]) -> None:
    """Add to what `run()` returns. May be called several times."""
    path = run_directory() / "result.json"
    merged = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(_to_json({**merged, **values}))


def progress(values: Mapping[str, Any]) -> None:
    """Pass a dictionary to the caller's `progress` callback now, while the simulation runs."""
    with (run_directory() / "progress.jsonl").open("a") as file:
        file.write(_to_json(dict(values)) + "\n")


def ask(question: Mapping[str, Any]) -> dict[str, Any]:
    """What the caller answers; it takes no simulated time."""
    global _answers
    if _answers is None:
        _answers = (run_directory() / _ANSWERS).open()
    progress({_QUESTION: dict(question)})
    line = _answers.readline()
    assert line, "the caller is gone"
    return json.loads(line)


_answers: TextIO | None = None


async def start(dut: Any, *, clock: str = "clk", reset: str = "rst", cycles: int = 2) -> None:
    """Start the clock of `dut` (10 ns) and pulse its reset, where it has such ports.

    Returns just after the clock edge that ended the reset: drive inputs from here on. The clock is
    cocotb's C++ clock: 1.6 M cycles/s on a free-running counter, without Python. A top made by
    `ports.clocked_top` runs its own, at 4.4 M cycles/s; use it for whole machines. Each edge that
    Python awaits costs 5 us, and 11 us with one port written and one read.
    """
    from cocotb.clock import Clock
    from cocotb.triggers import ClockCycles

    handle = getattr(dut, clock)
    if not hasattr(dut, "self_clocked"):
        Clock(handle, 10, "ns", impl="gpi").start()
    if hasattr(dut, reset):
        getattr(dut, reset).value = 1
        await ClockCycles(handle, cycles)
        getattr(dut, reset).value = 0
    await ClockCycles(handle, 1)
