// The computer's end of a serial line, inside the simulated design: octets in and out in handfuls.
//
//   CYCLES      clock cycles of a bit (8 data bits, no parity, one stop bit)
//   push_go     at a clock edge with it, the first push_count of push_octets (octet 0 lowest) are
//               queued for the line; at most DEPTH - waiting of them
//   waiting     octets that are queued or on their way out
//   pull_go     at a clock edge with it, up to HANDFUL received octets move to pull_octets, and their
//               number to pull_count
//   received    octets that wait to be pulled
//   quiet       nothing is queued, nothing was received, and both lines have been high for 16384
//               cycles: longer than the board needs for any request
module uart_port #(
    parameter int CYCLES = 4,
    parameter int HANDFUL = 64,
    parameter int DEPTH = 4096
) (
    input  logic                 clk,
    output logic                 to_board,
    input  logic                 from_board,
    input  logic                 push_go,
    input  logic [15:0]          push_count,
    input  logic [8*HANDFUL-1:0] push_octets,
    output logic [15:0]          waiting,
    input  logic                 pull_go,
    output logic [15:0]          pull_count,
    output logic [8*HANDFUL-1:0] pull_octets,
    output logic [15:0]          received,
    output logic                 quiet
);
  logic [7:0] out_queue[$], in_queue[$];
  logic [9:0] out_bits = '1, in_bits;
  int out_left = 0, out_timer = 0, in_place = -1, in_timer = 0, high = 0;

  initial begin
    to_board = 1;
    waiting = 0;
    received = 0;
    pull_count = 0;
    quiet = 0;
  end

  always_ff @(posedge clk) begin
    // To the board.
    if (push_go)
      for (int i = 0; i < int'(push_count); i++) out_queue.push_back(push_octets[8*i+:8]);
    if (out_timer != 0) out_timer = out_timer - 1;
    else if (out_left > 1) begin
      out_left = out_left - 1;
      out_bits = {1'b1, out_bits[9:1]};
      out_timer = CYCLES - 1;
    end else if (out_queue.size() != 0) begin
      out_bits = {1'b1, out_queue.pop_front(), 1'b0};
      out_left = 10;
      out_timer = CYCLES - 1;
    end else out_left = 0;
    to_board <= out_bits[0];
    waiting <= 16'(out_queue.size() + (out_left != 0 ? 1 : 0));

    // From the board: a falling edge, then a sample in the middle of each bit.
    high = from_board && out_left == 0 ? high + 1 : 0;
    if (in_place < 0) begin
      if (!from_board) begin
        in_place = 0;
        in_timer = CYCLES / 2;
      end
    end else if (in_timer > 1) in_timer = in_timer - 1;
    else begin
      in_bits[in_place] = from_board;
      in_timer = CYCLES;
      in_place = in_place + 1;
      if (in_place == 10) begin
        in_place = -1;
        if (in_bits[9] && !in_bits[0]) in_queue.push_back(in_bits[8:1]);
      end
    end
    if (pull_go) begin
      pull_count <= in_queue.size() < HANDFUL ? 16'(in_queue.size()) : 16'(HANDFUL);
      for (int i = 0; i < HANDFUL; i++)
        pull_octets[8*i+:8] <= in_queue.size() != 0 ? in_queue.pop_front() : 8'h00;
    end
    received <= 16'(in_queue.size());
    quiet <= out_left == 0 && out_queue.size() == 0 && in_queue.size() == 0 && high > 16384;
  end
endmodule
