// Models of the Gowin primitives that boards/top.py instantiates, with the ports it connects.

`timescale 1ps / 1ps

// Limits: data sheet DS226, speed C8/I7.
module rPLL #(
  parameter FCLKIN = "27", parameter DEVICE = "GW2AR-18C",
  parameter integer IDIV_SEL = 0, parameter integer FBDIV_SEL = 0, parameter integer ODIV_SEL = 8,
  parameter DYN_IDIV_SEL = "false", parameter DYN_FBDIV_SEL = "false",
  parameter DYN_ODIV_SEL = "false", parameter integer DYN_SDIV_SEL = 2,
  parameter CLKFB_SEL = "internal"
) (
  input wire CLKIN, CLKFB, RESET, RESET_P,
  input wire [5:0] FBDSEL, IDSEL, ODSEL, input wire [3:0] PSDA, DUTYDA, FDLY,
  output wire CLKOUT, LOCK
);
  localparam integer I = IDIV_SEL + 1, F = FBDIV_SEL + 1;
  systolith_pll #(
    .MULTIPLY(F), .DIVIDE(I), .PFD_DIVIDE(I), .VCO_MULTIPLY(F * ODIV_SEL), .VCO_DIVIDE(I),
    .INPUT_MIN(3), .INPUT_MAX(500), .PFD_MIN(3), .PFD_MAX(500), .VCO_MIN(500), .VCO_MAX(1250),
    .OUTPUT_MIN(3.90625), .OUTPUT_MAX(625)
  ) pll (.clk_in(CLKIN), .clk_out(CLKOUT), .locked(LOCK));
endmodule

module ODDR (input wire CLK, D0, D1, TX, output wire Q0);
  reg first = 0, second = 0;
  always @(posedge CLK) begin
    first <= D0;
    second <= D1;
  end
  assign Q0 = CLK ? first : second;
endmodule

module IOBUF (input wire I, OEN, output wire O, inout wire IO);
  assign IO = OEN ? 1'bz : I;
  assign O = IO;
endmodule
