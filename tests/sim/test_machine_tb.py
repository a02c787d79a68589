"""What the machine's test bench refuses, and its cache of Verilog; the rest is in test_top."""

import dataclasses

import numpy as np
import pytest

from systolith import isa
from systolith.config import PRESETS
from systolith.errors import UserError
from systolith.program import Program, ProgramError
from systolith.sim import machine_tb
from systolith.sim.jobs import Job
from systolith.sim.machine_tb import MachineSim


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"Setting must be one of latency, .*, not 'speed'"):
        MachineSim(PRESETS["tiny"], speed=3)
    machine = MachineSim(PRESETS["tiny"], size_bytes=1 << 16)
    with pytest.raises(
        UserError, match=r"needs 65536 bytes at 0x20, .* choose a larger size_bytes"
    ):
        machine.run(np.zeros(1 << 16, np.uint8), base=32)
    code = isa.assemble([isa.Instruction("halt")])
    program = Program(PRESETS["small"], code, 1, len(code))
    with pytest.raises(ValueError, match="The first job must have a program"):
        machine.run_all([Job(None)])
    with pytest.raises(ProgramError, match="compiled for another configuration"):
        machine.run(program)


def test_verilog_is_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Kept until the configuration or a source changes, which a second configuration stands for."""
    made = []
    monkeypatch.setattr(machine_tb, "cache_directory", lambda: tmp_path)
    monkeypatch.setattr(
        "systolith.hdl.verilog.machine_verilog", lambda config: made.append(config) or "module"
    )
    other = dataclasses.replace(PRESETS["tiny"], queue_depth=2)
    for config in (PRESETS["tiny"], PRESETS["tiny"], other):
        assert machine_tb.verilog(config) == "module"
    assert made == [PRESETS["tiny"], other]


def test_jobs_write_and_read_parts_of_the_memory_that_stays():
    """The program of the first job is executed again on what the host writes."""
    config = PRESETS["tiny"]
    image = np.zeros(512, dtype=np.uint8)
    code = isa.assemble(
        [
            isa.Instruction("ldr", {"address": 256, "rd": 1}),
            isa.Instruction("storew", {"address": 320}, {3: 1}),
            isa.Instruction("halt"),
        ]
    )
    image[: len(code)] = np.frombuffer(code, np.uint8)
    image[256:260] = 1, 2, 3, 4
    jobs = [
        Job(image, base=64, reads=[(320, 4)]),
        Job(None, base=64, writes=[(256, b"\5\6\7\10"), (400, b"\1")], reads=[(256, 4), (320, 4)]),
        Job(None, base=64),
    ]
    first, second, third = MachineSim(config, size_bytes=1 << 16).run_all(jobs)
    assert [len(result.memory) for result in (first, second, third)] == [512] * 3
    assert first.memory[320:324].tolist() == [1, 2, 3, 4] and first.memory.sum() == 10
    assert second.memory[320:324].tolist() == [5, 6, 7, 8] and second.memory.sum() == 52
    expected = image.copy()
    expected[256:260] = expected[320:324] = 5, 6, 7, 8
    expected[400] = 1
    assert third.memory.tolist() == expected.tolist()
