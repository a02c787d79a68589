"""A core without a machine, to try a board, its clock and its cable with."""

from amaranth import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out


class Echo(wiring.Component):
    """Sends back on the UART what comes in, at any baud rate, three clocks later.

    Members
    -------
    uart_rx, uart_tx : in, out, 1
    leds : out, 3
        Bit 0 is lit in every other second; bit 1 is lit while the line is low; bit 2 shows the
        bits of ``build_hash`` one after the other, from bit 0 and around again, one every second.
    build_hash : in, 64
    """

    def __init__(self, config, board, clock_hz: int) -> None:
        self.clock_hz = clock_hz
        super().__init__(
            {"uart_rx": In(1), "uart_tx": Out(1), "leds": Out(3), "build_hash": In(64)}
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        line = Signal(init=1)
        m.submodules.line = FFSynchronizer(self.uart_rx, line, init=1)
        count, second = Signal(range(self.clock_hz)), Signal(6)
        m.d.sync += [self.uart_tx.eq(line), count.eq(count + 1)]
        with m.If(count == self.clock_hz - 1):
            m.d.sync += [count.eq(0), second.eq(second + 1)]
        m.d.comb += self.leds.eq(Cat(second[0], ~line, self.build_hash.bit_select(second, 1)))
        return m
