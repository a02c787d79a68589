// The products that mul2dsp names become multipliers of a Gowin DSP block, registers bypassed.

(* techmap_celltype = "$__GOWIN_MUL9X9" *)
module gowin_mul9x9(A, B, Y);
  parameter A_SIGNED = 0;
  parameter B_SIGNED = 0;
  parameter A_WIDTH = 1;
  parameter B_WIDTH = 1;
  parameter Y_WIDTH = 1;
  input [8:0] A;
  input [8:0] B;
  output [17:0] Y;
  MULT9X9 _TECHMAP_REPLACE_ (
    .A(A), .B(B), .DOUT(Y), .SIA(9'b0), .SIB(9'b0), .ASEL(1'b0), .BSEL(1'b0),
    .ASIGN(A_SIGNED ? 1'b1 : 1'b0), .BSIGN(B_SIGNED ? 1'b1 : 1'b0),
    .CE(1'b1), .CLK(1'b0), .RESET(1'b0)
  );
endmodule

(* techmap_celltype = "$__GOWIN_MUL18X18" *)
module gowin_mul18x18(A, B, Y);
  parameter A_SIGNED = 0;
  parameter B_SIGNED = 0;
  parameter A_WIDTH = 1;
  parameter B_WIDTH = 1;
  parameter Y_WIDTH = 1;
  input [17:0] A;
  input [17:0] B;
  output [35:0] Y;
  MULT18X18 _TECHMAP_REPLACE_ (
    .A(A), .B(B), .DOUT(Y), .SIA(18'b0), .SIB(18'b0), .ASEL(1'b0), .BSEL(1'b0),
    .ASIGN(A_SIGNED ? 1'b1 : 1'b0), .BSIGN(B_SIGNED ? 1'b1 : 1'b0),
    .CE(1'b1), .CLK(1'b0), .RESET(1'b0)
  );
endmodule
