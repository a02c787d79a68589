// Models of the iCE40 primitives that boards/top.py instantiates, with the ports it connects.

`timescale 1ps / 1ps

// FEEDBACK_PATH "SIMPLE" alone. Limits: data sheet FPGA-DS-02008.
module SB_PLL40_PAD #(
  parameter FEEDBACK_PATH = "SIMPLE", parameter PLLOUT_SELECT = "GENCLK",
  parameter [3:0] DIVR = 0, parameter [6:0] DIVF = 0, parameter [2:0] DIVQ = 0,
  parameter [2:0] FILTER_RANGE = 0
) (
  input wire PACKAGEPIN, RESETB, BYPASS,
  output wire PLLOUTGLOBAL, LOCK
);
  localparam integer R = {28'b0, DIVR} + 1, F = {25'b0, DIVF} + 1;
  systolith_pll #(
    .MULTIPLY(F), .DIVIDE(R << DIVQ), .PFD_DIVIDE(R), .VCO_MULTIPLY(F), .VCO_DIVIDE(R),
    .INPUT_MIN(10), .INPUT_MAX(133), .PFD_MIN(10), .PFD_MAX(133), .VCO_MIN(533), .VCO_MAX(1066),
    .OUTPUT_MIN(16), .OUTPUT_MAX(275)
  ) pll (.clk_in(PACKAGEPIN), .clk_out(PLLOUTGLOBAL), .locked(LOCK));
endmodule
