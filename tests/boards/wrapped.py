"""A core with the whole machine and nothing that serves it: shift registers are all it talks to."""

from amaranth import Cat, Module, Signal
from amaranth.hdl import Shape
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolith.hdl.top import Systolith, members


class Wrapped(wiring.Component):
    """``uart_rx`` is shifted through the machine's inputs, its outputs are shifted to ``uart_tx``:
    nothing of the machine is optimised away, and every path in it lies between registers."""

    def __init__(self, config, board, clock_hz: int) -> None:
        self.config = config
        super().__init__({"uart_rx": In(1), "uart_tx": Out(1), "leds": Out(2)})

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.machine = machine = Systolith(self.config)
        ports = {name: getattr(machine, name) for name in members(self.config)}
        inputs, outputs = [], []
        for name, member in members(self.config).items():
            (outputs if member.flow == wiring.Out else inputs).append(ports[name])
        entered = Signal(sum(Shape.cast(port.shape()).width for port in inputs))
        sampled, leaving = Signal(len(Cat(outputs))), Signal(len(Cat(outputs)))
        count = Signal(10)
        m.d.comb += Cat(inputs).eq(entered)
        m.d.sync += [
            entered.eq(Cat(self.uart_rx, entered)),
            sampled.eq(Cat(outputs)),
            count.eq(count + 1),
            leaving.eq(leaving >> 1),
        ]
        with m.If(count == 0):
            m.d.sync += leaving.eq(sampled)
        m.d.comb += [self.uart_tx.eq(leaving[0]), self.leds.eq(Cat(count[-1], machine.irq))]
        return m
