"""A board of the catalog under Verilator: the top that bitstreams are made of, with its pins.

    with simulated_board("ulx3s") as port:
        device = Device.open(port)

The models of the PLLs let the clock through, and the serial line is as fast as its receiver allows:
with 1 Mbaud the simulation would wait for bits most of the time.
"""

from pathlib import Path

from systolith import sim as sim_package
from systolith.boards.board import SDRAM_PINS
from systolith.boards.catalog import find_board
from systolith.boards.core import machine_core
from systolith.boards.top import RESET_US, TOP, top_verilog
from systolith.config import Config, load_config
from systolith.hdl.uart import SHORTEST_BIT
from systolith.sim.board import Pins, SimulatedBoard
from systolith.sim.sdram import SDRAM_CHIP, chip_parameters

SIMULATED_BUILD = 0x51A1_0000_0000_0001
"""The fingerprint of all simulated boards."""

PRIMITIVES = Path(sim_package.__file__).resolve().parent / "primitives"
_CHIP = """
  wire [{high}:0] chip_dq;
  wire [7:0] chip_error;
  assign sdram_dq = dut.core.sdram_dq_oe ? {width}'bz : chip_dq;
  sdram_chip #({parameters}) chip (
    .clk(sdram_clk), .cke(sdram_cke), .cs_n(sdram_cs_n), .ras_n(sdram_ras_n), .cas_n(sdram_cas_n),
    .we_n(sdram_we_n), .ba(sdram_ba), .a(sdram_a), .dqm(sdram_dqm), .dq_i(sdram_dq),
    .dq_driven(dut.core.sdram_dq_oe), .dq_o(chip_dq), .load_go(1'b0), .dump_go(1'b0),
    .file_address(0), .file_length(0), .error(chip_error), .file_count(), .words_read(),
    .words_written(), .activations(), .refreshes(), .owed_most(), .error_cycle()
  );
  always @(posedge clk) if (chip_error != 0) $fatal(1, "SDRAM: rule %0d is broken", chip_error);
"""


def simulated_board(name: str, config: Config | None = None) -> SimulatedBoard:
    """The board ``name`` with the machine of its preset, or of ``config``.

    Raises ``BoardError`` for one that is not in the catalog.
    """
    board = find_board(name)
    config = load_config(board.preset) if config is None else config
    clock = board.family.clock(board.clock_mhz, board.wanted_mhz)

    def core(config, board, clock_hz):
        return machine_core(config, board, clock_hz, cycles=SHORTEST_BIT)

    verilog = top_verilog(board, core, config, clock, SIMULATED_BUILD)
    models = [PRIMITIVES / "pll.v", PRIMITIVES / f"{board.family.name}.v"]
    sources = [path for path in models if path.exists()]
    extra, beside = "", []
    if board.sdram is not None:
        parameters = chip_parameters(board.sdram, float(clock.hz))
        extra = _CHIP.format(
            high=board.sdram.data_bits - 1,
            width=board.sdram.data_bits,
            parameters=", ".join(f".{key}({value})" for key, value in parameters.items()),
        )
        beside = list(SDRAM_PINS)
        sources.append(SDRAM_CHIP)
    tied = {}
    if "reset_button" in board.pins:
        tied["reset_button"] = "1'b1" if board.pins["reset_button"].inverted else "1'b0"
    pins = Pins(
        clk="clk", rx="uart_rx", tx="uart_tx", busy="dut.core.leds[1]", tied=tied, extra=extra,
        beside=beside,
    )  # fmt: skip
    # The PLL's lock, the reset's length, and the power-up of an SDRAM.
    reset_cycles = round(float(clock.mhz) * (RESET_US + 250))
    return SimulatedBoard(
        verilog, TOP, pins, bit_cycles=SHORTEST_BIT, reset_cycles=reset_cycles, sources=sources,
        defines={"SYSTOLITH_PLL_THROUGH": 1},
    )  # fmt: skip
