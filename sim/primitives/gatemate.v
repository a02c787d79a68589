// Models of the GateMate primitives that boards/top.py instantiates, with the ports it connects.

`timescale 1ps / 1ps

// The dividers are nextpnr's; the model has frequencies in MHz, as text with up to four decimals.
module CC_PLL #(
  parameter [8*16-1:0] REF_CLK = "10.0", parameter [8*16-1:0] OUT_CLK = "10.0",
  parameter PERF_MD = "ECONOMY", parameter LOW_JITTER = 1,
  parameter CI_FILTER_CONST = 2, parameter CP_FILTER_CONST = 4, parameter LOCK_REQ = 1
) (
  input wire CLK_REF, CLK_FEEDBACK, USR_CLK_REF, USR_LOCKED_STDY_RST,
  output wire CLK0, USR_PLL_LOCKED
);
  // A decimal number in units of 1e-4.
  function automatic integer units(input [8*16-1:0] text);
    integer i, decimals;
    begin
      units = 0;
      decimals = -1;
      for (i = 15; i >= 0; i = i - 1)
        if (text[8*i +: 8] == ".") decimals = 0;
        else if (text[8*i +: 8] != 0) begin
          units = 10 * units + {24'b0, text[8*i +: 8] - "0"};
          if (decimals >= 0) decimals = decimals + 1;
        end
      for (i = decimals < 0 ? 0 : decimals; i < 4; i = i + 1) units = 10 * units;
    end
  endfunction

  systolith_pll #(
    .MULTIPLY(units(OUT_CLK)), .DIVIDE(units(REF_CLK)), .INPUT_MIN(1), .INPUT_MAX(50),
    .OUTPUT_MIN(1), .OUTPUT_MAX(312.5)
  ) pll (.clk_in(CLK_REF), .clk_out(CLK0), .locked(USR_PLL_LOCKED));
endmodule
