"""The top of a bitstream: PLL, reset, pins with plain names, around a core.

clk ─▶ PLL ─▶ clock of everything else
reset_button, lock of the PLL ─▶ synchronizer ─▶ counter ─▶ reset
uart_rx, uart_tx, led, sdram_* ◀─▶ core

The same Verilog is synthesized and simulated: ``sim/primitives`` has models of the PLLs and of the
I/O cells that are instantiated here.
"""

from collections.abc import Callable
from typing import Any

from amaranth import Cat, ClockDomain, ClockSignal, Const, Instance, Module, ResetSignal, Signal
from amaranth.hdl import Elaboratable, IOPort
from amaranth.lib.cdc import FFSynchronizer

from systolith.boards.board import SDRAM_PINS, Board
from systolith.boards.family import Clock
from systolith.config import Config
from systolith.hdl.verilog import to_verilog

TOP = "systolith_board"

RESET_US = 20
"""How long the reset lasts after the PLL has locked. The block RAMs of an iCE40 cannot be read in
the first microseconds after configuration."""

Core = Callable[[Config, Board, int], Any]
"""Makes what the top surrounds, from configuration, board and the clock's frequency in Hz.

A component in the domain ``sync`` (synchronous reset) with the ports ``uart_rx`` (in, not yet
synchronized), ``uart_tx`` (out), ``leds`` (out, two or more, 1 is lit: ready, busy, error). Where
the board has an SDRAM the core may have ``sdram_cke``, ``sdram_cs_n``, ``sdram_ras_n``,
``sdram_cas_n``, ``sdram_we_n``, ``sdram_dqm``, ``sdram_ba``, ``sdram_a``, ``sdram_dq_o``,
``sdram_dq_oe`` (one bit, out) and ``sdram_dq_i`` (in, sampled at the falling edge: ``capture`` of
``SdramData`` is 1); without them the SDRAM stays deselected.
``build_hash`` (in, 64 bits), if it has it, is the hash of the build.
"""


class BoardTop(Elaboratable):
    """The top of ``board`` around ``core``, clocked at ``clock``.

    ``ports``: a signal (or I/O port) for each of ``board.pins``, as wide as there are pins; what a
    pin inverts is inverted here. ``sdram_clk`` is the clock inverted, by a register of the pad:
    commands and data that change with the clock are halfway through their cycle when the SDRAM
    samples them. ``reset_button``: pressed, the core is in reset until ``RESET_US`` after its
    release.
    """

    def __init__(self, board: Board, core: Any, clock: Clock, build_hash: int = 0) -> None:
        self.board, self.core, self.clock = board, core, clock
        self.build_hash = build_hash
        self.ports: dict[str, Any] = {
            name: (IOPort if pin.direction == "inout" else Signal)(pin.width, name=name)
            for name, pin in board.pins.items()
        }

    def elaborate(self, platform) -> Module:
        m = Module()
        board, core = self.board, self.core

        clock, locked = Signal(), Signal()
        if self.clock.cell:
            ports = board.family.pll_ports(self.clock, self._pin("clk"), clock, locked)
            m.submodules.pll = Instance(self.clock.cell, **ports)
        else:
            m.d.comb += [clock.eq(self._pin("clk")), locked.eq(1)]
        m.domains.sync = ClockDomain(local=True)
        m.domains.always = ClockDomain(local=True, reset_less=True)
        m.d.comb += [ClockSignal("sync").eq(clock), ClockSignal("always").eq(clock)]

        good, steady = Signal(), Signal()
        m.d.comb += good.eq(locked)
        if "reset_button" in board.pins:
            pressed = self._pin("reset_button") ^ board.pins["reset_button"].inverted
            m.d.comb += good.eq(locked & ~pressed)
        m.submodules.steady = FFSynchronizer(good, steady, o_domain="always", stages=3)
        # Counts up to its own width: the top bit, once set, ends the reset.
        cycles = max(16, round(self.clock.mhz * RESET_US))
        counter, reset = Signal(range(cycles + 1)), Signal(init=1)
        with m.If(~steady):
            m.d.always += [counter.eq(0), reset.eq(1)]
        with m.Elif(counter == cycles):
            m.d.always += reset.eq(0)
        with m.Else():
            m.d.always += counter.eq(counter + 1)
        m.d.comb += ResetSignal("sync").eq(reset)

        m.submodules.core = core
        if "build_hash" in core.signature.members:
            m.d.comb += core.build_hash.eq(Const(self.build_hash, 64))
        m.d.comb += [
            core.uart_rx.eq(self._pin("uart_rx") ^ board.pins["uart_rx"].inverted),
            self._pin("uart_tx").eq(core.uart_tx ^ board.pins["uart_tx"].inverted),
        ]
        leds = self._pin("led")
        lit = Cat(core.leds, Const(0, len(leds)))[: len(leds)]
        m.d.comb += leds.eq(~lit if board.pins["led"].inverted else lit)
        if board.sdram is not None:
            self._sdram(m, clock)
        return m

    def _pin(self, name: str) -> Signal:
        return self.ports[name]

    def _sdram(self, m: Module, clock: Signal) -> None:
        board, core = self.board, self.core
        primitive, ports = board.family.output_buffer(
            "inverted_clock", clk=clock, o=self._pin("sdram_clk")
        )
        m.submodules.sdram_clk = Instance(primitive, **ports)
        pad = self._pin("sdram_dq")
        o, oe, i = Signal(len(pad)), Signal(), Signal(len(pad))
        used = "sdram_a" in core.signature.members
        for name in SDRAM_PINS[1:-1]:
            # Deselected: commands high, everything else low.
            idle = Const(int(name.endswith("_n")))
            m.d.comb += self._pin(name).eq(getattr(core, name) if used else idle)
        if used:
            # The chip's clock rises half a cycle after ours, and some 3 ns later for the way out; a
            # word comes 6 ns (its access) and 2 ns (the way back) behind an edge, and stays until
            # as long behind the next. Our falling edges are in the middle of that from 50 to 100
            # MHz, the rising ones are not.
            m.domains.falling = ClockDomain(local=True, reset_less=True, clk_edge="neg")
            sampled = Signal(len(pad), reset_less=True)
            m.d.falling += sampled.eq(i)
            m.d.comb += [
                ClockSignal("falling").eq(clock),
                o.eq(core.sdram_dq_o),
                oe.eq(core.sdram_dq_oe),
                core.sdram_dq_i.eq(sampled),
            ]
        for bit in range(len(pad)):
            primitive, ports = board.family.output_buffer(
                "tristate", o=o[bit], oe=oe, i=i[bit], pad=pad[bit]
            )
            m.submodules[f"sdram_dq_{bit}"] = Instance(primitive, **ports)


def top_verilog(board: Board, core: Core, config: Config, clock: Clock, build_hash: int) -> str:
    """Verilog of the top, module ``systolith_board``; its ports are the board's pins."""
    made = core(config, board, round(clock.hz))
    top = BoardTop(board, made, clock, build_hash)
    return to_verilog(top, TOP, top.ports)
