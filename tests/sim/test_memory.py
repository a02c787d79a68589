"""The generated test top: a design with an AXI master, the memory on it, the clock inside."""

from pathlib import Path

import pytest

from systolith.errors import UserError
from systolith.sim.build import build
from systolith.sim.memory import AXI_MEMORY, AxiMemory, memory_top
from systolith.sim.runner import run

BENCH = Path(__file__).with_name("bench_memory.py")
# Copies 4 KiB from `source` to `target`, one 64-beat burst at a time.
COPIER = """
module copier(
  input wire clk, input wire rst,
  input wire start, input wire [31:0] source, input wire [31:0] target, output reg done,
  output reg [31:0] m_axi_araddr, output wire [7:0] m_axi_arlen, output wire [2:0] m_axi_arsize,
  output wire [1:0] m_axi_arburst, output reg m_axi_arvalid, input wire m_axi_arready,
  input wire [63:0] m_axi_rdata, input wire [1:0] m_axi_rresp, input wire m_axi_rlast,
  input wire m_axi_rvalid, output wire m_axi_rready,
  output reg [31:0] m_axi_awaddr, output wire [7:0] m_axi_awlen, output wire [2:0] m_axi_awsize,
  output wire [1:0] m_axi_awburst, output reg m_axi_awvalid, input wire m_axi_awready,
  output wire [63:0] m_axi_wdata, output wire [7:0] m_axi_wstrb, output wire m_axi_wlast,
  output wire m_axi_wvalid, input wire m_axi_wready,
  input wire [1:0] m_axi_bresp, input wire m_axi_bvalid, output wire m_axi_bready);
  assign m_axi_arlen = 63;
  assign m_axi_awlen = 63;
  assign m_axi_arsize = 3;
  assign m_axi_awsize = 3;
  assign m_axi_arburst = 1;
  assign m_axi_awburst = 1;
  assign m_axi_wdata = m_axi_rdata;
  assign m_axi_wstrb = 8'hff;
  assign m_axi_wlast = m_axi_rlast;
  assign m_axi_wvalid = m_axi_rvalid;
  assign m_axi_rready = m_axi_wready;
  assign m_axi_bready = 1;
  reg [3:0] left;
  always @(posedge clk) begin
    if (m_axi_arready) m_axi_arvalid <= 0;
    if (m_axi_awready) m_axi_awvalid <= 0;
    if (start && left == 0 && !done) begin
      left <= 8;
      m_axi_araddr <= source;
      m_axi_awaddr <= target;
      m_axi_arvalid <= 1;
      m_axi_awvalid <= 1;
    end else if (m_axi_bvalid) begin
      left <= left - 1;
      done <= left == 1;
      m_axi_araddr <= m_axi_araddr + 512;
      m_axi_awaddr <= m_axi_awaddr + 512;
      m_axi_arvalid <= left != 1;
      m_axi_awvalid <= left != 1;
    end
    if (rst) begin
      left <= 0;
      done <= 0;
      m_axi_arvalid <= 0;
      m_axi_awvalid <= 0;
    end
  end
endmodule
"""


@pytest.mark.parametrize("inside", [True, False], ids=["self-clocked", "driven"])
def test_a_design_copies_through_the_memory(inside: bool, seed: int) -> None:
    text, top = memory_top(COPIER, "copier", size_bytes=1 << 16, clock_inside=inside)
    made = build(text, top, sources=[AXI_MEMORY])
    assert {"source", "mem_latency", "clk"} <= set(made.ports)
    assert ("self_clocked" in made.ports) == inside
    assert not any(name.startswith("m_axi") for name in made.ports)
    result = run(made, BENCH, {"source": 0x1000, "target": 0x8000}, seed=seed, test="copies")
    assert result == {"read": 512, "written": 512}


def test_a_broken_rule_is_named() -> None:
    text, top = memory_top(COPIER, "copier", size_bytes=1 << 16)
    made = build(text, top, sources=[AXI_MEMORY])
    with pytest.raises(AssertionError, match="AXI protocol: AR: burst crosses 4 KiB, at 0xf08"):
        run(made, BENCH, {"source": 0xF08, "target": 0x8000}, test="copies")


def test_errors_by_message() -> None:
    with pytest.raises(UserError, match="module 'copier' has no port named 'x_araddr'"):
        memory_top(COPIER, "copier", size_bytes=4096, prefix="x_")
    without = COPIER.replace("output wire m_axi_wlast,", "").replace("assign m_axi_wlast", "//")
    with pytest.raises(UserError, match="the AXI master lacks the signal 'wlast'"):
        memory_top(without, "copier", size_bytes=4096)


class _Port:
    value = 0


class _Design:
    def __getattr__(self, name: str) -> _Port:
        return _Port()


def test_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Setting must be one of latency, .* not 'speed'"):
        AxiMemory(_Design()).configure(speed=3)
