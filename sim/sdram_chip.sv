// Behavioural single-data-rate SDRAM that knows the rules of JEDEC's standard (JESD21-C, 3.11.5) and
// of data sheets, and nothing of any controller. It runs inside the simulated design.
//
// Contract. Pins are sampled at rising edges of clk. A READ at edge E has its first word on dq_o when
// edge E + CL samples it, for one cycle each; at all other times, and where DQM two edges earlier
// masked it, dq_o is noise. A WRITE takes its first word from dq_i at its own edge; DQM masks it.
// dq_driven says whether the controller drives DQ. Time is counted in cycles of PERIOD_PS, whatever
// the simulation's clock. All T_* are in picoseconds.
//
// A byte's place in files is {row, bank, column, byte of the word}. When load_go (dump_go) is high at
// an edge, the file named by +sdram_load=F (default sdram_load.bin) is read to, +sdram_dump=F
// (sdram_dump.bin) written from, file_address: at most file_length bytes, in no simulated time;
// file_count then holds the bytes moved, all ones if the file did not open.
//
// error is sticky: the first broken rule, at error_cycle since the start:
//    1 command during power-up          2 initialisation incomplete        3 ACTIVE on an open bank
//    4 READ or WRITE on an idle bank    5 tRCD                             6 tRP
//    7 tRAS                             8 tRC                              9 tRRD
//   10 tRFC                            11 tWR                             12 REFRESH, LOAD MODE: bank open
//   13 tMRD                            14 refresh too late                15 CAS latency of the clock
//   16 DQ driven by both              17 DQ not driven in a WRITE         18 mode or command not modelled
//   19 address beyond row or column   20 DQ handed over without a cycle   21 tRAS maximum

// Times and addresses are computed with int and longint, and cut to what indexes the memory.
// verilator lint_off WIDTHEXPAND
// verilator lint_off WIDTHTRUNC
// verilator lint_off BLKSEQ
module sdram_chip #(
    parameter int ROW_BITS = 13,
    parameter int COLUMN_BITS = 9,
    parameter int BANK_BITS = 2,
    parameter int DATA_BITS = 16,
    parameter int ADDRESS_BITS = 13,
    parameter longint PERIOD_PS = 10000,
    parameter longint T_CK2 = 10000,
    parameter longint T_CK3 = 7500,
    parameter longint T_RCD = 20000,
    parameter longint T_RP = 20000,
    parameter longint T_RAS = 44000,
    parameter longint T_RAS_MAX = 100000000,
    parameter longint T_RC = 66000,
    parameter longint T_RRD = 15000,
    parameter longint T_RFC = 66000,
    parameter longint T_WR = 15000,
    parameter longint T_REFI = 7812500,
    parameter longint T_POWER_UP = 200000000,
    parameter int MODE_CYCLES = 2,
    parameter int INIT_REFRESHES = 8,
    parameter int MOST_OWED = 8,
    localparam int LANES = DATA_BITS / 8,
    localparam int BANKS = 1 << BANK_BITS,
    localparam int SIZE_BYTES = LANES << (ROW_BITS + BANK_BITS + COLUMN_BITS)
) (
    input  logic                    clk,
    input  logic                    cke,
    input  logic                    cs_n,
    input  logic                    ras_n,
    input  logic                    cas_n,
    input  logic                    we_n,
    input  logic [BANK_BITS-1:0]    ba,
    input  logic [ADDRESS_BITS-1:0] a,
    input  logic [LANES-1:0]        dqm,
    input  logic [DATA_BITS-1:0]    dq_i,
    input  logic                    dq_driven,
    output logic [DATA_BITS-1:0]    dq_o,

    input  logic                    load_go,
    input  logic                    dump_go,
    input  logic [31:0]             file_address,
    input  logic [31:0]             file_length,
    output logic [31:0]             file_count,
    output logic [31:0]             words_read,
    output logic [31:0]             words_written,
    output logic [31:0]             activations,
    output logic [31:0]             refreshes,
    output logic [31:0]             owed_most,
    output logic [7:0]              error,
    output logic [31:0]             error_cycle
);
  localparam longint LONG_AGO = -(64'd1 << 60);
  localparam logic [2:0] LOAD_MODE = 0, REFRESH = 1, PRECHARGE = 2, ACTIVE = 3, WRITE = 4, READ = 5,
      BURST_STOP = 6;

  logic [7:0] mem[SIZE_BYTES];

  // Cycles in which things happened last.
  longint now, powered, refreshed, mode_set;
  longint activated[BANKS], precharged[BANKS], wrote[BANKS];
  logic open[BANKS];
  logic [ROW_BITS-1:0] row[BANKS];

  logic all_precharged, moded;
  int cas, length;  // of the mode register
  longint refreshes_wanted_ps;

  // The burst that runs, and what it has on its way to DQ.
  logic burst, burst_write;
  logic [BANK_BITS-1:0] burst_bank;
  logic [COLUMN_BITS-1:0] burst_column;
  int burst_beat;
  logic [DATA_BITS-1:0] way[4];
  logic way_valid[4];
  logic driving, driving_before, driven_before;
  logic [LANES-1:0] dqm_before;
  logic [63:0] noise;

  function automatic void broken(int rule);
    if (error == 0) begin
      error = 8'(rule);
      error_cycle = 32'(now);
    end
  endfunction

  function automatic void at_least(longint since, longint time_ps, int rule);
    if ((now - since) * PERIOD_PS < time_ps) broken(rule);
  endfunction

  function automatic longint place(int beat);  // of a word of the burst: it wraps at its length
    longint mask = longint'(length - 1);
    longint column = (longint'(burst_column) & ~mask) | ((longint'(burst_column) + beat) & mask);
    return ((longint'(row[burst_bank]) << BANK_BITS | longint'(burst_bank)) << COLUMN_BITS | column)
        * LANES;
  endfunction

  function automatic void any_command();
    if ((now - powered) * PERIOD_PS < T_POWER_UP) broken(1);
    at_least(refreshed, T_RFC, 10);
    if (moded && now - mode_set < MODE_CYCLES) broken(13);
  endfunction

  function automatic void precharge(int bank);
    if (open[bank]) begin
      at_least(activated[bank], T_RAS, 7);
      at_least(wrote[bank], T_WR, 11);
      if ((now - activated[bank]) * PERIOD_PS > T_RAS_MAX) broken(21);
      if (burst && burst_bank == bank) burst = 0;
      precharged[bank] = now;
    end
    open[bank] = 0;
  endfunction

  function automatic void all_idle();
    for (int i = 0; i < BANKS; i++) begin
      if (open[i]) broken(12);
      at_least(precharged[i], T_RP, 6);
    end
    if (!all_precharged) broken(2);
  endfunction

  function automatic void active();
    if (open[ba]) broken(3);
    if (!all_precharged || !moded || refreshes < INIT_REFRESHES) broken(2);
    at_least(precharged[ba], T_RP, 6);
    at_least(activated[ba], T_RC, 8);
    for (int i = 0; i < BANKS; i++) if (i != ba) at_least(activated[i], T_RRD, 9);
    if (a >> ROW_BITS != 0) broken(19);
    open[ba] = 1;
    row[ba] = a[ROW_BITS-1:0];
    activated[ba] = now;
    activations = activations + 1;
  endfunction

  function automatic void column(logic write);
    int pins = int'(a[9:0]) | int'(a) >> 11 << 10;  // A10 is no part of the column
    if (!open[ba]) broken(4);
    at_least(activated[ba], T_RCD, 5);
    if (a[10]) broken(18);  // automatic precharge
    if (pins >> COLUMN_BITS != 0) broken(19);
    burst = 1;
    burst_write = write;
    burst_bank = ba;
    burst_column = COLUMN_BITS'(pins);
    burst_beat = 0;
  endfunction

  function automatic void mode();
    all_idle();
    moded = 1;
    mode_set = now;
    cas = int'(a[6:4]);
    length = 1 << a[2:0];
    if (a[2:0] > 3 || a[3] || a >> 7 != 0 || ba != 0) broken(18);
    if (cas != 2 && cas != 3) broken(18);
    if (PERIOD_PS < (cas == 2 ? T_CK2 : T_CK3)) broken(15);
  endfunction

  function automatic void command();
    logic [2:0] code = {ras_n, cas_n, we_n};
    if (!cke || cs_n || code == 7) return;
    any_command();
    case (code)
      LOAD_MODE: mode();
      REFRESH: begin
        all_idle();
        refreshed = now;
        refreshes = refreshes + 1;
      end
      PRECHARGE: begin
        for (int i = 0; i < BANKS; i++) if (a[10] || ba == i) precharge(i);
        if (a[10]) all_precharged = 1;
      end
      ACTIVE: active();
      READ, WRITE: column(code == WRITE);
      BURST_STOP: burst = 0;
      default: ;
    endcase
  endfunction

  function automatic logic [63:0] xorshift(logic [63:0] x);
    x ^= x << 13;
    x ^= x >> 7;
    return x ^ (x << 17);
  endfunction

  task automatic data();
    logic take = burst && burst_write, give = burst && !burst_write;
    logic [DATA_BITS-1:0] word = 0;
    longint at = place(burst_beat);
    if (driving && dq_driven) broken(16);
    if ((driving_before && dq_driven) || (driven_before && driving)) broken(20);
    driving_before = driving;
    driven_before = dq_driven;
    if (take) begin
      if (!dq_driven) broken(17);
      for (int i = 0; i < LANES; i++) if (!dqm[i]) mem[at+i] = dq_i[i*8+:8];
      wrote[burst_bank] = now;
      words_written = words_written + 1;
    end
    if (give) begin
      for (int i = 0; i < LANES; i++) word[i*8+:8] = mem[at+i];
      words_read = words_read + 1;
    end
    for (int i = 3; i > 0; i--) begin
      way[i] = way[i-1];
      way_valid[i] = way_valid[i-1];
    end
    way[0] = word;
    way_valid[0] = give;
    // What leaves now is sampled at the next edge.
    noise = xorshift(noise);
    driving = way_valid[cas-1];
    for (int i = 0; i < LANES; i++)
      dq_o[i*8+:8] <= driving && !dqm_before[i] ? way[cas-1][i*8+:8] : noise[i*8+:8];
    dqm_before = dqm;
    if (burst) begin
      burst_beat = burst_beat + 1;
      if (burst_beat == length) burst = 0;
    end
  endtask

  task automatic refresh_in_time();
    longint owed;
    if (moded) begin
      refreshes_wanted_ps = refreshes_wanted_ps + PERIOD_PS;
      owed = refreshes_wanted_ps / T_REFI - (longint'(refreshes) - INIT_REFRESHES);
      if (owed > longint'(owed_most)) owed_most = 32'(owed);
      if (owed > MOST_OWED) broken(14);
    end
  endtask

  string load_name = "sdram_load.bin", dump_name = "sdram_dump.bin";
  int fd;

  function automatic logic [31:0] load(string name, longint address, longint bytes);
    int count;
    fd = $fopen(name, "rb");
    if (fd == 0) return '1;
    if (address + bytes > SIZE_BYTES) bytes = SIZE_BYTES - address;
    count = $fread(mem, fd, int'(address), int'(bytes));
    $fclose(fd);
    return count;
  endfunction

  function automatic logic [31:0] dump(string name, longint address, longint bytes);
    longint stop = address + bytes > SIZE_BYTES ? SIZE_BYTES : address + bytes;
    fd = $fopen(name, "wb");
    if (fd == 0) return '1;
    for (longint i = address; i < stop; i++) $fwrite(fd, "%c", mem[i]);
    $fclose(fd);
    return 32'(stop - address);
  endfunction

  initial begin
    void'($value$plusargs("sdram_load=%s", load_name));
    void'($value$plusargs("sdram_dump=%s", dump_name));
    now = 0;
    powered = 0;
    refreshed = LONG_AGO / PERIOD_PS;
    mode_set = 0;
    for (int i = 0; i < BANKS; i++) begin
      activated[i] = LONG_AGO / PERIOD_PS;
      precharged[i] = LONG_AGO / PERIOD_PS;
      wrote[i] = LONG_AGO / PERIOD_PS;
      open[i] = 0;
      row[i] = 0;
    end
    for (int i = 0; i < 4; i++) begin
      way[i] = 0;
      way_valid[i] = 0;
    end
    {all_precharged, moded, burst, burst_write, driving, driving_before, driven_before} = 0;
    burst_bank = 0;
    burst_column = 0;
    burst_beat = 0;
    dqm_before = 0;
    cas = 2;
    length = 1;
    refreshes_wanted_ps = 0;
    noise = 64'h9e3779b97f4a7c15;
    words_read = 0;
    words_written = 0;
    activations = 0;
    refreshes = 0;
    owed_most = 0;
    error = 0;
    error_cycle = 0;
    file_count = 0;
  end

  always @(posedge clk) begin
    now = now + 1;
    if (!cke) begin
      if (all_precharged) broken(18);  // power-down and self refresh
      powered = now;
    end
    command();
    data();
    refresh_in_time();
    if (load_go) file_count <= load(load_name, longint'(file_address), longint'(file_length));
    else if (dump_go) file_count <= dump(dump_name, longint'(file_address), longint'(file_length));
  end
endmodule
