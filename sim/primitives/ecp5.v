// Models of the ECP5 primitives that boards/top.py instantiates, with the ports it connects.

`timescale 1ps / 1ps

// Feedback from CLKOP alone; CLKOS is the output that is used. Limits: data sheet FPGA-DS-02012.
module EHXPLLL #(
  parameter integer CLKI_DIV = 1, parameter integer CLKFB_DIV = 1,
  parameter integer CLKOP_DIV = 8, parameter integer CLKOS_DIV = 8,
  parameter CLKOP_ENABLE = "ENABLED", parameter CLKOS_ENABLE = "DISABLED",
  parameter integer CLKOP_CPHASE = 0, parameter integer CLKOS_CPHASE = 0,
  parameter integer CLKOP_FPHASE = 0, parameter integer CLKOS_FPHASE = 0,
  parameter FEEDBK_PATH = "CLKOP"
) (
  input wire CLKI, CLKFB, RST, STDBY, PHASESEL0, PHASESEL1, PHASEDIR, PHASESTEP, PHASELOADREG,
  input wire PLLWAKESYNC, ENCLKOP,
  output wire CLKOP, CLKOS, LOCK
);
  localparam integer VCO = CLKFB_DIV * CLKOP_DIV;
  wire feedback_locked;
  systolith_pll #(
    .MULTIPLY(VCO), .DIVIDE(CLKI_DIV * CLKOS_DIV),
    .PFD_DIVIDE(CLKI_DIV), .VCO_MULTIPLY(VCO), .VCO_DIVIDE(CLKI_DIV),
    .INPUT_MIN(8), .INPUT_MAX(400), .PFD_MIN(10), .PFD_MAX(400), .VCO_MIN(400), .VCO_MAX(800),
    .OUTPUT_MIN(3.125), .OUTPUT_MAX(400)
  ) clkos (.clk_in(CLKI), .clk_out(CLKOS), .locked(LOCK));
  systolith_pll #(.MULTIPLY(CLKFB_DIV), .DIVIDE(CLKI_DIV), .OUTPUT_MIN(3.125), .OUTPUT_MAX(400))
    clkop (.clk_in(CLKI), .clk_out(CLKOP), .locked(feedback_locked));
endmodule

module ODDRX1F (input wire SCLK, RST, D0, D1, output wire Q);
  reg first = 0, second = 0;
  always @(posedge SCLK) begin
    first <= D0 & ~RST;
    second <= D1 & ~RST;
  end
  assign Q = SCLK ? first : second;
endmodule

module BB (input wire I, T, output wire O, inout wire B);
  assign B = T ? 1'bz : I;
  assign O = B;
endmodule
