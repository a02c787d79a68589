// A PLL for the models of the families: locks after a few periods of its input and then runs at
// MULTIPLY / DIVIDE of the frequency that it measured. It must stay within its limits (MHz).
//
// With SYSTOLITH_PLL_THROUGH the output is the input: whoever drives the pin drives it at the
// frequency of the output. Nothing is measured then, and simulation is faster.

`timescale 1ps / 1ps

module systolith_pll #(
  parameter integer MULTIPLY = 1, parameter integer DIVIDE = 1,
  parameter integer PFD_DIVIDE = 1, parameter integer VCO_MULTIPLY = 1,
  parameter integer VCO_DIVIDE = 1,
  parameter real INPUT_MIN = 0, parameter real INPUT_MAX = 1e9,
  parameter real PFD_MIN = 0, parameter real PFD_MAX = 1e9,
  parameter real VCO_MIN = 0, parameter real VCO_MAX = 1e9,
  parameter real OUTPUT_MIN = 0, parameter real OUTPUT_MAX = 1e9
) (input wire clk_in, output wire clk_out, output wire locked);
  localparam [4:0] LOCK = 16;
  reg [4:0] edges = 0;
  always @(posedge clk_in) if (edges != LOCK) edges <= edges + 1;
  assign locked = edges == LOCK;

`ifdef SYSTOLITH_PLL_THROUGH
  assign clk_out = clk_in;
`else
  // Limits are met to one in ten thousand: times are in whole picoseconds.
  localparam real SLACK = 1e-4;
  task automatic check(input [8*6-1:0] what, input real mhz, input real low, input real high);
    if (mhz < low * (1 - SLACK) || mhz > high * (1 + SLACK))
      $fatal(1, "PLL: %0s of %f MHz is not from %f to %f", what, mhz, low, high);
  endtask

  realtime last = 0, period = 0;
  real mhz;
  always @(posedge clk_in) begin
    period = $realtime - last;
    last = $realtime;
    mhz = 1e6 / period;
    if (edges == LOCK - 1) begin
      check("input", mhz, INPUT_MIN, INPUT_MAX);
      check("pfd", mhz / PFD_DIVIDE, PFD_MIN, PFD_MAX);
      check("vco", mhz * VCO_MULTIPLY / VCO_DIVIDE, VCO_MIN, VCO_MAX);
      check("output", mhz * MULTIPLY / DIVIDE, OUTPUT_MIN, OUTPUT_MAX);
    end
  end

  // Edges lie where the measured period puts them, counted from the lock: none is lost to rounding.
  reg out = 0;
  realtime start, next;
  real half, count;
  initial begin
    wait (locked);
    start = $realtime;
    half = period * DIVIDE / MULTIPLY / 2;
    count = 0;
    forever begin
      count = count + 1;
      next = start + count * half;
      /* verilator lint_off ZERODLY */
      #(next - $realtime) out = ~out;
      /* verilator lint_on ZERODLY */
    end
  end
  assign clk_out = out;
`endif
endmodule
