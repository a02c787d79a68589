"""A UART: eight data bits, no parity, one stop bit, least significant bit first."""

from amaranth import Cat, Const, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

SHORTEST_BIT = 4
"""Clock cycles of a bit, at least: the receiver samples in the middle of a bit that it finds within
one cycle."""
_DATA_BITS = 8


def bit_cycles(clock_hz: int, baud: int) -> int:
    """Clock cycles of a bit, the nearest integer.

    Raises ``ValueError`` where that is too few, or off by more than 2 %: the two ends of a line
    together must stay within half a bit in ten.
    """
    cycles = round(clock_hz / baud)
    if cycles < SHORTEST_BIT or abs(clock_hz / baud / cycles - 1) > 0.02:
        raise ValueError(f"A clock of {clock_hz} Hz cannot make {baud} baud")
    return cycles


def _check(cycles: int) -> None:
    if cycles < SHORTEST_BIT:
        raise ValueError(f"A bit must take at least {SHORTEST_BIT} cycles, not {cycles!r}")


class UartTransmitter(wiring.Component):
    """Sends octets; the first bit is on the line one cycle after its octet was taken.

    An octet takes ten bits; the next one is taken in the last cycle of the stop bit.

    Parameters
    ----------
    cycles : int
        Clock cycles of a bit.

    Members
    -------
    octets : stream of unsigned(8), in
    tx : out, 1
        The line, high when nothing is sent.
    """

    def __init__(self, cycles: int) -> None:
        _check(cycles)
        self.cycles = cycles
        super().__init__({"octets": In(stream.Signature(8)), "tx": Out(1, init=1)})

    def elaborate(self, platform) -> Module:
        m = Module()
        bits = Signal(_DATA_BITS + 2, init=(1 << _DATA_BITS + 2) - 1)
        left = Signal(range(_DATA_BITS + 3))
        """Bits that are left, that on the line included."""
        timer = Signal(range(self.cycles))
        m.d.comb += [
            self.tx.eq(bits[0]),
            self.octets.ready.eq((left == 0) | ((left == 1) & (timer == 0))),
        ]
        with m.If(timer != 0):
            m.d.sync += timer.eq(timer - 1)
        with m.Elif(left != 0):
            m.d.sync += [bits.eq(Cat(bits[1:], 1)), left.eq(left - 1)]
            with m.If(left != 1):
                m.d.sync += timer.eq(self.cycles - 1)
        with m.If(self.octets.valid & self.octets.ready):
            m.d.sync += [
                bits.eq(Cat(Const(0, 1), self.octets.payload, Const(1, 1))),
                left.eq(_DATA_BITS + 2),
                timer.eq(self.cycles - 1),
            ]
        return m


class UartReceiver(wiring.Component):
    """Receives octets; one is valid for one cycle, in the middle of its stop bit.

    Nothing can hold the sender back, so an octet must be taken at once. One whose stop bit is low
    is lost (a break, noise, another speed).

    Parameters
    ----------
    cycles : int
        Clock cycles of a bit.

    Members
    -------
    rx : in, 1
        The line; asynchronous, synchronised here (two cycles).
    octets : stream of unsigned(8), out
        Payload and ``valid`` do not wait for ``ready``.
    """

    def __init__(self, cycles: int) -> None:
        _check(cycles)
        self.cycles = cycles
        super().__init__(
            {"rx": In(1, init=1), "octets": Out(stream.Signature(8, always_ready=True))}
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        line = Signal(init=1)
        m.submodules += FFSynchronizer(self.rx, line, init=1)
        timer = Signal(range(self.cycles))
        sampled = Signal(_DATA_BITS)
        place = Signal(range(_DATA_BITS + 2))
        """Bit of the octet that is sampled next: 0 the start bit, 9 the stop bit."""
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [timer.eq(self.cycles // 2 - 1), place.eq(0)]
                with m.If(~line):
                    m.next = "OCTET"
            with m.State("OCTET"):
                with m.If(timer != 0):
                    m.d.sync += timer.eq(timer - 1)
                with m.Else():
                    m.d.sync += [timer.eq(self.cycles - 1), place.eq(place + 1)]
                    with m.If((place == 0) & line):  # a glitch
                        m.next = "IDLE"
                    with m.Elif(place == 0):
                        pass
                    with m.Elif(place <= _DATA_BITS):
                        m.d.sync += sampled.eq(Cat(sampled[1:], line))
                    with m.Elif(line):
                        m.d.comb += self.octets.valid.eq(1)
                        m.next = "IDLE"
                    with m.Else():
                        m.next = "BREAK"
            with m.State("BREAK"), m.If(line):
                m.next = "IDLE"
        m.d.comb += self.octets.payload.eq(sampled)
        return m
