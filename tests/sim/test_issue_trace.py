"""The trace that the simulation writes of itself."""

from pathlib import Path

import numpy as np

from systolith import isa
from systolith.compiler.timeline import Executed
from systolith.config import PRESETS
from systolith.isa import Instruction, Unit, semaphore
from systolith.program import Program
from systolith.sim.issue_trace import read_trace
from systolith.sim.jobs import Job
from systolith.sim.machine_tb import MachineSim

LOAD_MATMUL = 1 << semaphore(Unit.LOAD, Unit.MATMUL)
CODE = [
    Instruction("load", {"address": 2048, "words": 40, "rows": 1}, signal=LOAD_MATMUL),
    Instruction("matmul", {"rows": 5, "k_tiles": 2, "n_tiles": 1}, wait=LOAD_MATMUL),
    Instruction("alu", {"rd": 1, "y": 1}),
    Instruction("alu", {"rd": 2, "x": 1}, {2: 2}),
    Instruction("branch", {"y": 2, "target": 3, "condition": isa.Condition.LT}, {2: 2}),
    Instruction("storew", {"address": 1024, "value": 7}),
    Instruction("halt"),
]


def test_every_instruction_is_seen_when_it_happens() -> None:
    image = isa.assemble(CODE)
    machine = MachineSim(PRESETS["tiny"], latency=40)
    result = machine.run(Program(machine.config, image, len(CODE), 4096), trace=True)
    timeline = result.timeline
    assert timeline is not None and timeline.cycles == result.counters["CYCLES"]
    assert [item.pc for item in timeline.executed] == [0, 1, 2, 3, 4, 3, 4, 5, 6]
    assert len(timeline.executed) == result.counters["INSTRUCTIONS"]
    (load,), (matmul,), (store,) = (
        timeline.of(unit) for unit in (Unit.LOAD, Unit.MATMUL, Unit.STORE)
    )
    for item in (load, matmul, store):
        assert item.queued < item.granted < item.start < item.end
    # Two tiles of five rows, D = 4; the semaphore comes a cycle after the load is done.
    assert matmul.end - matmul.start == 5 + 5 + 2 * 4 + 3
    assert matmul.granted == load.end + 1
    assert timeline.executed[-1].end == timeline.cycles - 1
    assert machine.run(Program(machine.config, image, len(CODE), 4096)).timeline is None


def test_the_first_of_several_programs_counts(tmp_path: Path) -> None:
    memory = np.zeros(4096, np.uint8)
    raw = isa.assemble(CODE)
    memory[: len(raw)] = np.frombuffer(raw, np.uint8)
    machine = MachineSim(PRESETS["tiny"], latency=40)
    machine.run_all([Job(memory), Job(memory)], trace=tmp_path / "trace.txt")
    assert len(read_trace(tmp_path / "trace.txt")) == 9


def test_what_had_not_finished_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    lines = [
        "reset", "reset", "8 1 0 1 2 0 0 0", "9 0 1 0 0 4 0 0", "10 0 1 0 0 0 4 0",
        "16 1 1 1 2 0 0 0", "17 0 2 0 0 4 0 4", "25 1 2 0 0 0 0 0", "reset", "8 1 0 0 0 0 0 0",
    ]  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    assert read_trace(path) == [
        Executed(0, Unit.MATMUL, 8, 9, 10, 17),
        Executed(2, Unit.SEQUENCER, 17, 17, 17, 25),
    ]
