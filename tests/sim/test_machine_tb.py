"""What the machine's test bench refuses, and its cache of Verilog; the rest is in test_top."""

import dataclasses

import numpy as np
import pytest

from systolith import isa
from systolith.config import PRESETS
from systolith.errors import UserError
from systolith.program import Program, ProgramError
from systolith.sim import machine_tb
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
