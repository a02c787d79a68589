"""Compiling: the cache and its key, what cocotb sees, what a user reads when it fails."""

import subprocess
import sys
from pathlib import Path

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolith.errors import UserError
from systolith.sim.build import BuildFailure, amaranth_verilog, build, cache_directory
from systolith.sim.ports import Port, clocked_top, parse_ports

BENCH = Path(__file__).with_name("bench_runner.py")
COUNTER = """
module counter #(parameter STEP = 1) (input wire clk, input wire rst, output reg [31:0] count);
  wire [31:0] next = count + STEP `ifdef FASTER + 100 `endif ;
  always @(posedge clk) count <= rst ? 0 : next;
endmodule
"""


class Counter(wiring.Component):
    """Counts the cycles in which `enable` is high."""

    enable: In(1)
    count: Out(8)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        with m.If(self.enable):
            m.d.sync += self.count.eq(self.count + 1)
        return m


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build_cache: Path) -> Path:
    """A cache of the test's own, which may use the run-time library of the common one."""
    (tmp_path / "sim").mkdir()
    for library in (build_cache / "sim").glob("verilated-*"):
        (tmp_path / "sim" / library.name).symlink_to(library)
    monkeypatch.setenv("SYSTOLITH_CACHE", str(tmp_path))
    return tmp_path / "sim"


def test_equal_inputs_compile_once(empty_cache: Path) -> None:
    first = build(COUNTER, "counter")
    made = first.executable.stat().st_mtime_ns
    assert build(COUNTER, "counter") == first
    assert first.executable.stat().st_mtime_ns == made
    assert first.directory.parent == empty_cache
    assert first.ports == ("clk", "rst", "count")
    left = {path.suffix for path in first.directory.iterdir()}
    assert not left & {".o", ".cpp", ".h", ".partial"}
    assert (first.directory / "design.v").read_text() == COUNTER


def test_the_key_covers_every_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Different inputs, different folders: compilation itself is left out."""
    monkeypatch.setenv("SYSTOLITH_CACHE", str(tmp_path))
    monkeypatch.setattr("systolith.sim.build._Compiler.compile", lambda self, work, top, *_: None)
    source = tmp_path / "more.v"
    source.write_text("module more; endmodule")
    made = [
        build(COUNTER, "counter"),
        build(COUNTER + "\n", "counter"),
        build(COUNTER, "counter", parameters={"STEP": 2}),
        build(COUNTER, "counter", parameters={"STEP": 3}),
        build(COUNTER, "counter", defines={"FASTER": 1}),
        build(COUNTER, "counter", waves=True),
        build(COUNTER, "counter", public=["next"]),
        build(COUNTER, "counter", sources=[source]),
    ]
    source.write_text("module more; /* changed */ endmodule")
    made.append(build(COUNTER, "counter", sources=[source]))
    assert len({item.directory for item in made}) == len(made)


def test_two_processes_build_the_same_once(empty_cache: Path) -> None:
    code = (
        "from systolith.sim.build import build; import sys; "
        "print(build(sys.argv[1], 'counter').executable.stat().st_mtime_ns)"
    )
    command = [sys.executable, "-c", code, COUNTER]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {process.communicate(timeout=120)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(answers) == 1 and answers != {""}
    assert len(list(empty_cache.glob("counter-*/"))) == 1


def test_an_interrupted_build_is_done_again(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: object, work: Path, *_: object) -> None:
        (work / "counter").write_text("half a simulator")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("systolith.sim.build._Compiler.compile", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(COUNTER, "counter")
    assert [path.suffix for path in empty_cache.glob("counter-*/")] == [".partial"]
    made = build(COUNTER, "counter")
    assert made.executable.stat().st_size > 100_000
    assert [path.suffix for path in empty_cache.glob("counter-*/")] == [""]


def test_parameters_and_defines_reach_the_design() -> None:
    from systolith.sim.runner import run

    made = build(COUNTER, "counter", parameters={"STEP": 5}, defines={"FASTER": 1})
    assert run(made, BENCH, {"cycles": 3}, test="counts")["count"] == 3 * 105


def test_only_ports_and_what_is_asked_for_are_visible() -> None:
    from systolith.sim.runner import run

    text = amaranth_verilog(Counter(), "counter") + COUNTER.replace("counter", "other")
    hidden = build(COUNTER, "counter")
    assert run(hidden, BENCH, {}, test="names")["names"] == ["clk", "count", "rst"]
    shown = build(COUNTER, "counter", public=["next"])
    assert run(shown, BENCH, {}, test="names")["names"] == ["clk", "count", "next", "rst"]
    inner = build(*clocked_top(text, "other"), public=["other.next"])
    assert "clk" in run(inner, BENCH, {}, test="names")["names"]


def test_amaranth_text_is_stable_and_has_the_ports() -> None:
    text = amaranth_verilog(Counter(), "counter")
    assert text == amaranth_verilog(Counter(), "counter")
    ports = {port.name: port for port in parse_ports(text, "counter")}
    assert set(ports) == {"clk", "rst", "enable", "count"}
    assert ports["count"] == Port("count", "output", "[7:0]") and ports["count"].width == 8
    assert "src =" not in text


def test_errors_by_message(empty_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the Verilog has no module named 'absent'"):
        build(COUNTER, "absent")
    with pytest.raises(BuildFailure, match=r"Error.*nonsense") as failure:
        build(COUNTER.replace("rst ? 0", "nonsense ? 0"), "counter")
    assert "verilator failed; the log is" in str(failure.value)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for folder in "ab":
        (tmp_path / folder / "x.v").write_text("")
    with pytest.raises(ValueError, match="Sources must have distinct file names"):
        build(COUNTER, "counter", sources=[tmp_path / "a" / "x.v", tmp_path / "b" / "x.v"])


def test_ports_of_both_styles() -> None:
    ansi = """
        module other(input x); endmodule
        module m #(parameter int W = 8, localparam int B = W / 8) (
            input  logic clk, /* input hidden, */
            input  logic [W-1:0] a, b,  // output commented
            output logic signed [3:0] c = 3,
            output wire d
        );
          function automatic int f(input int inner); return inner; endfunction
        endmodule
    """
    assert [(p.name, p.direction, p.range) for p in parse_ports(ansi, "m")] == [
        ("clk", "input", ""), ("a", "input", "[W-1:0]"), ("b", "input", "[W-1:0]"),
        ("c", "output", "[3:0]"), ("d", "output", ""),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"Range of port a must be constant, not \[W-1:0\]"):
        clocked_top(ansi, "m")
    yosys = """(* top = 1 *)
        module m(clk, a, \\b.c );
          input clk;
          wire clk;
          input [7:0] a;
          output \\b.c ;
        endmodule"""
    assert [(p.name, p.width) for p in parse_ports(yosys, "m")] == [
        ("clk", 1),
        ("a", 8),
        ("b.c", 1),
    ]
    with pytest.raises(UserError, match="module 'm' has no clock port named 'clock'"):
        clocked_top(yosys, "m", clock="clock")


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SYSTOLITH_CACHE", str(tmp_path / "new"))
    assert cache_directory() == tmp_path / "new" and (tmp_path / "new").is_dir()
    monkeypatch.delenv("SYSTOLITH_CACHE")
    assert cache_directory() == Path(__file__).resolve().parents[2] / "build"
