// Behavioural AXI4 slave memory: a DRAM stand-in that runs inside the simulated design.
//
// Contract. All control inputs may change at any time, and all zeros make an ideal memory.
//   latency         cycles from the one that accepts AR to the first beat of R (at least 2). Reads are
//                   pipelined: bursts behind the first stream on at one beat per cycle.
//   write_latency   cycles from the one that accepts the last W to B (at least 2)
//   bandwidth       beats per 256 cycles, in each direction; 0 or 256 and more: one every cycle
//   stall_*         probability, in 1/256, that a cycle does not offer AR, AW, W ready or a new R, B
//   stall_seed      taken over in reset
//   error_*         bursts that touch [error_base, error_base + error_size) are answered according to
//                   error_mode: 2 SLVERR, 3 DECERR (per beat on R; not written), 1 never, which also
//                   blocks all later reads (writes) until reset. Beyond SIZE_BYTES: DECERR.
//   load_go/dump_go when high at a clock edge, the file named by +axi_memory_load=F (default
//                   axi_memory_load.bin) is read to, +axi_memory_dump=F (axi_memory_dump.bin) written
//                   from, file_address; at most file_length bytes; in no simulated time. file_count
//                   then holds the number of bytes moved, all ones if the file did not open. Both leave
//                   bursts in flight alone. +axi_memory_image=F is loaded at address 0 at time 0.
// INCR bursts of 1 to 256 beats, WSTRB, narrow and unaligned (unless STRICT). Everything is answered
// in order. W is accepted only behind its AW. Up to OUTSTANDING bursts wait in each direction.
//
// protocol_error is sticky until reset: the first broken rule, as {channel, rule}, at protocol_address:
//   channel 1 AR, 2 AW, 3 W; rule 1 burst crosses 4 KiB, 2 size beyond the bus, 3 not INCR,
//   4 valid dropped before ready, 5 payload changed while waiting, 6 narrow or unaligned (STRICT),
//   7 WLAST not on the last beat, 8 WSTRB outside the lanes of a narrow or unaligned beat

// Addresses are computed with int and longint, and cut to what indexes the memory.
// verilator lint_off WIDTHEXPAND
// verilator lint_off WIDTHTRUNC
module axi_memory #(
    parameter int ADDR_WIDTH = 32,
    parameter int DATA_WIDTH = 64,
    parameter int ID_WIDTH = 1,
    parameter int SIZE_BYTES = 1 << 20,
    parameter int OUTSTANDING = 64,
    parameter bit STRICT = 0,
    localparam int BYTES = DATA_WIDTH / 8
) (
    input  logic                  clk,
    input  logic                  rst,

    input  logic [ID_WIDTH-1:0]   s_axi_arid,
    input  logic [ADDR_WIDTH-1:0] s_axi_araddr,
    input  logic [7:0]            s_axi_arlen,
    input  logic [2:0]            s_axi_arsize,
    input  logic [1:0]            s_axi_arburst,
    input  logic                  s_axi_arvalid,
    output logic                  s_axi_arready,
    output logic [ID_WIDTH-1:0]   s_axi_rid,
    output logic [DATA_WIDTH-1:0] s_axi_rdata,
    output logic [1:0]            s_axi_rresp,
    output logic                  s_axi_rlast,
    output logic                  s_axi_rvalid,
    input  logic                  s_axi_rready,

    input  logic [ID_WIDTH-1:0]   s_axi_awid,
    input  logic [ADDR_WIDTH-1:0] s_axi_awaddr,
    input  logic [7:0]            s_axi_awlen,
    input  logic [2:0]            s_axi_awsize,
    input  logic [1:0]            s_axi_awburst,
    input  logic                  s_axi_awvalid,
    output logic                  s_axi_awready,
    input  logic [DATA_WIDTH-1:0] s_axi_wdata,
    input  logic [BYTES-1:0]      s_axi_wstrb,
    input  logic                  s_axi_wlast,
    input  logic                  s_axi_wvalid,
    output logic                  s_axi_wready,
    output logic [ID_WIDTH-1:0]   s_axi_bid,
    output logic [1:0]            s_axi_bresp,
    output logic                  s_axi_bvalid,
    input  logic                  s_axi_bready,

    input  logic [15:0]           latency,
    input  logic [15:0]           write_latency,
    input  logic [8:0]            bandwidth,
    input  logic [7:0]            stall_ar,
    input  logic [7:0]            stall_r,
    input  logic [7:0]            stall_aw,
    input  logic [7:0]            stall_w,
    input  logic [7:0]            stall_b,
    input  logic [31:0]           stall_seed,
    input  logic [1:0]            error_mode,
    input  logic [ADDR_WIDTH-1:0] error_base,
    input  logic [ADDR_WIDTH-1:0] error_size,
    input  logic                  load_go,
    input  logic                  dump_go,
    input  logic [ADDR_WIDTH-1:0] file_address,
    input  logic [31:0]           file_length,

    output logic [31:0]           file_count,
    output logic [31:0]           read_beats,
    output logic [31:0]           write_beats,
    output logic [7:0]            protocol_error,
    output logic [ADDR_WIDTH-1:0] protocol_address
);
  localparam int SLOT_BITS = $clog2(OUTSTANDING);
  localparam logic [1:0] OKAY = 0, NEVER = 1, DECERR = 3;

  typedef logic [ADDR_WIDTH:0] addr_t;  // one bit more: ends of ranges do not wrap
  typedef struct packed {
    logic [ID_WIDTH-1:0]   id;
    logic [ADDR_WIDTH-1:0] addr;
    logic [7:0]            len;
    logic [2:0]            size;
    logic [63:0]           due;
  } burst_t;
  typedef struct packed {
    logic [ID_WIDTH-1:0] id;
    logic [1:0]          resp;
    logic [63:0]         due;
  } answer_t;

  logic [7:0] mem[SIZE_BYTES];
  logic [63:0] now;

  always_ff @(posedge clk)
    if (rst) now <= 0;
    else now <= now + 1;

  // The address of a beat, aligned to the size of the transfer except for an unaligned first one.
  function automatic logic [ADDR_WIDTH-1:0] beat_address(burst_t burst, logic [7:0] beat);
    logic [ADDR_WIDTH-1:0] aligned = burst.addr >> burst.size << burst.size;
    return beat == 0 ? burst.addr : aligned + (ADDR_WIDTH'(beat) << burst.size);
  endfunction

  function automatic logic [ADDR_WIDTH-1:0] word_address(logic [ADDR_WIDTH-1:0] address);
    return address / BYTES * BYTES;
  endfunction

  function automatic logic in_error_range(addr_t first, addr_t last);
    return error_mode != OKAY && error_size != 0 && last >= addr_t'(error_base)
        && first < addr_t'(error_base) + addr_t'(error_size);
  endfunction

  function automatic logic [1:0] beat_response(logic [ADDR_WIDTH-1:0] address, logic [2:0] size);
    addr_t last = addr_t'(address) | ((addr_t'(1) << size) - 1);
    if (in_error_range(addr_t'(address), last)) return error_mode;
    return addr_t'(word_address(address)) + BYTES > SIZE_BYTES ? DECERR : OKAY;
  endfunction

  function automatic addr_t burst_end(burst_t burst);  // its last byte
    return addr_t'(burst.addr >> burst.size << burst.size)
        + (addr_t'(burst.len + 9'd1) << burst.size) - 1;
  endfunction

  function automatic logic unanswered(burst_t burst);
    return error_mode == NEVER && in_error_range(addr_t'(burst.addr), burst_end(burst));
  endfunction

  // Random stalls: one byte of a xorshift generator per channel; one draw per cycle.
  logic [63:0] random;
  wire offer_ar = random[7:0] >= stall_ar;
  wire offer_r = random[15:8] >= stall_r;
  wire offer_aw = random[23:16] >= stall_aw;
  wire offer_w = random[31:24] >= stall_w;
  wire offer_b = random[39:32] >= stall_b;

  function automatic logic [63:0] xorshift(logic [63:0] x);
    x ^= x << 13;
    x ^= x >> 7;
    return x ^ (x << 17);
  endfunction

  always_ff @(posedge clk)
    if (rst) random <= xorshift({32'h9e3779b9, stall_seed});
    else random <= xorshift(random);

  // Bandwidth: each cycle adds `bandwidth` to a credit and a beat takes 256 from it. The credit kept
  // while idle is worth less than one beat, so that no burst is faster than the limit.
  logic [7:0] read_credit, write_credit;
  wire [9:0] rate = bandwidth == 0 || bandwidth > 256 ? 10'd256 : 10'(bandwidth);
  wire [9:0] read_have = 10'(read_credit) + rate;
  wire [9:0] write_have = 10'(write_credit) + rate;

  function automatic logic [7:0] credit_left(logic [9:0] have, logic spent);
    if (spent) return 8'(have - 256);
    return have > 255 ? 8'd255 : 8'(have);
  endfunction

  // Read.
  burst_t reads[OUTSTANDING];
  logic [SLOT_BITS:0] reads_in, reads_out;
  logic [7:0] read_beat;
  wire burst_t ar = '{s_axi_arid, s_axi_araddr, s_axi_arlen, s_axi_arsize, now + 64'(latency)};
  wire burst_t read = reads[reads_out[SLOT_BITS-1:0]];
  wire [ADDR_WIDTH-1:0] read_address = beat_address(read, read_beat);
  wire read_issue = reads_in != reads_out && read.due <= now + 1 && read_have >= 256 && offer_r
      && (!s_axi_rvalid || s_axi_rready) && !unanswered(read);
  assign s_axi_arready = !rst && offer_ar && (SLOT_BITS+1)'(reads_in - reads_out) != OUTSTANDING;

  always_ff @(posedge clk)
    if (rst) begin
      reads_in <= 0;
      reads_out <= 0;
      read_beat <= 0;
      read_credit <= 0;
      read_beats <= 0;
      s_axi_rvalid <= 0;
    end else begin
      if (s_axi_arvalid && s_axi_arready) begin
        reads[reads_in[SLOT_BITS-1:0]] <= ar;
        reads_in <= reads_in + 1;
      end
      read_credit <= credit_left(read_have, read_issue);
      if (read_issue) begin
        for (int i = 0; i < BYTES; i++)
          s_axi_rdata[i*8+:8] <= mem[$clog2(SIZE_BYTES)'(word_address(read_address) + i)];
        s_axi_rid <= read.id;
        s_axi_rresp <= beat_response(read_address, read.size);
        s_axi_rlast <= read_beat == read.len;
        read_beat <= read_beat == read.len ? 0 : read_beat + 1;
        if (read_beat == read.len) reads_out <= reads_out + 1;
        read_beats <= read_beats + 1;
      end
      if (!s_axi_rvalid || s_axi_rready) s_axi_rvalid <= read_issue;
    end

  // Write.
  burst_t writes[OUTSTANDING];
  answer_t answers[OUTSTANDING];
  logic [SLOT_BITS:0] writes_in, writes_out, answers_in, answers_out;
  logic [7:0] write_beat;
  logic [1:0] write_worst;
  wire burst_t aw = '{s_axi_awid, s_axi_awaddr, s_axi_awlen, s_axi_awsize, 64'd0};
  wire burst_t write = writes[writes_out[SLOT_BITS-1:0]];
  wire answer_t answer = answers[answers_out[SLOT_BITS-1:0]];
  wire [ADDR_WIDTH-1:0] write_address = beat_address(write, write_beat);
  wire [1:0] write_response = beat_response(write_address, write.size);
  wire [1:0] write_worst_now = write_response > write_worst ? write_response : write_worst;
  wire write_last = write_beat == write.len;
  wire w_taken = s_axi_wvalid && s_axi_wready;
  wire b_issue = answers_in != answers_out && answer.due <= now + 1 && offer_b
      && (!s_axi_bvalid || s_axi_bready) && answer.resp != NEVER;
  // Bursts in all, up to their answer: an answer's slot is free when its burst was accepted.
  assign s_axi_awready = !rst && offer_aw && (SLOT_BITS+1)'(writes_in - answers_out) != OUTSTANDING;
  assign s_axi_wready = !rst && offer_w && writes_in != writes_out && write_have >= 256;

  always_ff @(posedge clk)
    if (rst) begin
      writes_in <= 0;
      writes_out <= 0;
      answers_in <= 0;
      answers_out <= 0;
      write_beat <= 0;
      write_worst <= OKAY;
      write_credit <= 0;
      write_beats <= 0;
      s_axi_bvalid <= 0;
    end else begin
      if (s_axi_awvalid && s_axi_awready) begin
        writes[writes_in[SLOT_BITS-1:0]] <= aw;
        writes_in <= writes_in + 1;
      end
      write_credit <= credit_left(write_have, w_taken);
      if (w_taken) begin
        write_beats <= write_beats + 1;
        write_beat <= write_last ? 0 : write_beat + 1;
        write_worst <= write_last ? OKAY : write_worst_now;
        if (write_last) begin
          writes_out <= writes_out + 1;
          answers[answers_in[SLOT_BITS-1:0]] <= '{
              write.id, unanswered(write) ? NEVER : write_worst_now, now + 64'(write_latency)};
          answers_in <= answers_in + 1;
        end
      end
      if (b_issue) begin
        s_axi_bid <= answer.id;
        s_axi_bresp <= answer.resp;
        answers_out <= answers_out + 1;
      end
      if (!s_axi_bvalid || s_axi_bready) s_axi_bvalid <= b_issue;
    end

  // The one process that writes the memory: W beats, files.
  string load_name = "axi_memory_load.bin", dump_name = "axi_memory_dump.bin", image_name;
  int fd;

  function automatic logic [31:0] load(string name, logic [ADDR_WIDTH-1:0] address, longint length);
    int count;
    fd = $fopen(name, "rb");
    if (fd == 0) return '1;
    if (longint'(address) + length > SIZE_BYTES) length = SIZE_BYTES - longint'(address);
    count = $fread(mem, fd, int'(address), int'(length));
    $fclose(fd);
    return count;
  endfunction

  function automatic logic [31:0] dump(string name, logic [ADDR_WIDTH-1:0] address, longint length);
    longint i, stop;
    fd = $fopen(name, "wb");
    if (fd == 0) return '1;
    stop = longint'(address) + length > SIZE_BYTES ? SIZE_BYTES : longint'(address) + length;
    for (i = longint'(address); i + 8 <= stop; i += 8)
      $fwrite(fd, "%c%c%c%c%c%c%c%c", mem[i], mem[i+1], mem[i+2], mem[i+3],
              mem[i+4], mem[i+5], mem[i+6], mem[i+7]);
    for (; i < stop; i++) $fwrite(fd, "%c", mem[i]);
    $fclose(fd);
    return 32'(stop - longint'(address));
  endfunction

  initial begin
    void'($value$plusargs("axi_memory_load=%s", load_name));
    void'($value$plusargs("axi_memory_dump=%s", dump_name));
    if ($value$plusargs("axi_memory_image=%s", image_name))
      if (load(image_name, 0, SIZE_BYTES) == '1) $error("cannot open %s", image_name);
  end

  always @(posedge clk) begin
    if (!rst && w_taken && write_response == OKAY)
      for (int i = 0; i < BYTES; i++)
        if (s_axi_wstrb[i])
          mem[$clog2(SIZE_BYTES)'(word_address(write_address) + i)] = s_axi_wdata[i*8+:8];
    if (load_go) file_count <= load(load_name, file_address, longint'(file_length));
    else if (dump_go) file_count <= dump(dump_name, file_address, longint'(file_length));
  end

  // The protocol, from this side.
  wire [ADDR_WIDTH+ID_WIDTH+12:0] ar_payload =
      {s_axi_arid, s_axi_araddr, s_axi_arlen, s_axi_arsize, s_axi_arburst};
  wire [ADDR_WIDTH+ID_WIDTH+12:0] aw_payload =
      {s_axi_awid, s_axi_awaddr, s_axi_awlen, s_axi_awsize, s_axi_awburst};
  wire [DATA_WIDTH+BYTES:0] w_payload = {s_axi_wdata, s_axi_wstrb, s_axi_wlast};
  logic ar_waits, aw_waits, w_waits;
  logic [ADDR_WIDTH+ID_WIDTH+12:0] ar_before, aw_before;
  logic [DATA_WIDTH+BYTES:0] w_before;

  function automatic logic [3:0] address_rule(burst_t burst, logic [1:0] kind);
    logic narrow_or_unaligned = (1 << burst.size) != BYTES || burst.addr % BYTES != 0;
    if (kind != 1) return 3;
    if ((1 << burst.size) > BYTES) return 2;
    if (burst_end(burst) >> 12 != addr_t'(burst.addr >> 12)) return 1;
    return STRICT && narrow_or_unaligned ? 6 : 0;
  endfunction

  function automatic logic [BYTES-1:0] lanes(logic [ADDR_WIDTH-1:0] address, logic [2:0] size);
    int first = int'(address % BYTES);
    int last = int'((address % BYTES) | ((1 << size) - 1));
    logic [BYTES-1:0] mask = 0;
    for (int i = 0; i < BYTES; i++) mask[i] = i >= first && i <= last;
    return mask;
  endfunction

  always_ff @(posedge clk)
    if (rst) begin
      protocol_error <= 0;
      protocol_address <= 0;
      {ar_waits, aw_waits, w_waits} <= 0;
    end else begin
      ar_waits <= s_axi_arvalid && !s_axi_arready;
      aw_waits <= s_axi_awvalid && !s_axi_awready;
      w_waits <= s_axi_wvalid && !s_axi_wready;
      ar_before <= ar_payload;
      aw_before <= aw_payload;
      w_before <= w_payload;
      if (protocol_error == 0) begin
        if (ar_waits && (!s_axi_arvalid || ar_payload != ar_before)) begin
          protocol_error <= s_axi_arvalid ? 8'h15 : 8'h14;
          protocol_address <= s_axi_araddr;
        end else if (aw_waits && (!s_axi_awvalid || aw_payload != aw_before)) begin
          protocol_error <= s_axi_awvalid ? 8'h25 : 8'h24;
          protocol_address <= s_axi_awaddr;
        end else if (w_waits && (!s_axi_wvalid || w_payload != w_before)) begin
          protocol_error <= s_axi_wvalid ? 8'h35 : 8'h34;
          protocol_address <= write_address;
        end else if (s_axi_arvalid && address_rule(ar, s_axi_arburst) != 0) begin
          protocol_error <= {4'd1, address_rule(ar, s_axi_arburst)};
          protocol_address <= s_axi_araddr;
        end else if (s_axi_awvalid && address_rule(aw, s_axi_awburst) != 0) begin
          protocol_error <= {4'd2, address_rule(aw, s_axi_awburst)};
          protocol_address <= s_axi_awaddr;
        end else if (w_taken && s_axi_wlast != write_last) begin
          protocol_error <= 8'h37;
          protocol_address <= write_address;
        end else if (w_taken && (s_axi_wstrb & ~lanes(write_address, write.size)) != 0) begin
          protocol_error <= 8'h38;
          protocol_address <= write_address;
        end
      end
    end
endmodule
