"""A core that shows its clock, its reset and its pins outside, for tests of the top."""

from amaranth import Cat, Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out


class Probe(wiring.Component):
    """``leds[0]`` changes with every clock that is not in reset, ``leds[1]`` is the parity of the
    build's hash and of the frequency it was told. With an SDRAM ``sdram_we_n`` is ``leds[0]``, the
    data pins are driven with 0xA5... while ``uart_rx`` is high, and their parity is ``uart_tx``."""

    def __init__(self, config, board, clock_hz: int) -> None:
        self.clock_hz, self.sdram = clock_hz, board.sdram
        members = {"uart_rx": In(1), "uart_tx": Out(1), "leds": Out(2), "build_hash": In(64)}
        if self.sdram is not None:
            members |= {f"sdram_{n}": Out(1) for n in ("cke", "cs_n", "ras_n", "cas_n", "we_n")}
            members |= {
                "sdram_dqm": Out(self.sdram.data_bits // 8), "sdram_ba": Out(2),
                "sdram_a": Out(range(self.sdram.rows)), "sdram_dq_o": Out(self.sdram.data_bits),
                "sdram_dq_oe": Out(1), "sdram_dq_i": In(self.sdram.data_bits),
            }  # fmt: skip
        super().__init__(members)

    def elaborate(self, platform) -> Module:
        m = Module()
        toggle = Signal()
        m.d.sync += toggle.eq(~toggle)
        odd = (Cat(self.build_hash, Const(self.clock_hz))).xor()
        m.d.comb += self.leds.eq(Cat(toggle, odd))
        if self.sdram is None:
            m.d.comb += self.uart_tx.eq(~self.uart_rx)
            return m
        m.d.comb += [
            self.sdram_cke.eq(1), self.sdram_we_n.eq(toggle), self.sdram_a.eq(5),
            self.sdram_dq_oe.eq(self.uart_rx), self.sdram_dq_o.eq(0xA5A5A5A4),
            self.uart_tx.eq(self.sdram_dq_i.xor()),
        ]  # fmt: skip
        return m
