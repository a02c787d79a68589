"""The data side of an SDRAM controller: beats to words and back, at the right cycles."""

from amaranth import Cat, Module, Signal
from amaranth.hdl import Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from systolith.config import Config
from systolith.hdl.axi import ID_BITS
from systolith.hdl.pipeline import Flow, delay
from systolith.hdl.sdram_chip import SdramChip, SdramCycles
from systolith.hdl.sdram_scheduler import words_per_beat


def result(config: Config) -> data.StructLayout:
    """A beat that was read."""
    return data.StructLayout({"data": 8 * config.bus_bytes, "id": ID_BITS, "last": 1})


def check(config: Config, chip: SdramChip, clock_hz: float, capture: int) -> None:
    """Raises ``ValueError`` for what no controller can be built from."""
    words_per_beat(config, chip)
    SdramCycles.of(chip, clock_hz)
    if not 0 <= capture <= 3:
        raise ValueError(f"Capture must be from 0 to 3, not {capture!r}")


class SdramData(wiring.Component):
    """Drives and samples DQ for the column commands that the scheduler announces.

    With CAS latency CL, a ``read`` in cycle t is on the pins in t + 1, its first word is taken from
    ``dq_i`` by a register at the end of cycle t + CL + ``capture``, and its beat is in ``results``
    in cycle t + CL + ``capture`` + N, N being the words of a beat.

    Parameters
    ----------
    capture : int
        Clock edges, beyond CL, from the one that puts a READ on the pins to the one that samples
        its first word. 1: the chip takes commands at this clock's next edge. 0: it takes them
        half a cycle earlier (an inverted clock) and answers within the other half. More: registers
        in the pads, on the way out or in.

    Members
    -------
    read, write : in, 1; id : in; last : in, 1
        From the scheduler.
    initialised : in, 1
        Until then ``dqm`` is high.
    w_data : in, 8 · ``bus_bytes``; w_strb : in, ``bus_bytes``
        The beat for a ``write``, in the same cycle.
    results : out, flow of ``result``
    dq_o, dq_oe, dqm : out; dq_i : in
        Pins of the chip. ``dqm`` masks what is written; it is low for reads.
    """

    def __init__(self, config: Config, chip: SdramChip, clock_hz: float, capture: int = 1) -> None:
        check(config, chip, clock_hz, capture)
        self.words = words_per_beat(config, chip)
        self.latency = SdramCycles.of(chip, clock_hz).cas + capture
        self.chip = chip
        super().__init__(
            {
                "read": In(1),
                "write": In(1),
                "id": In(ID_BITS),
                "last": In(1),
                "initialised": In(1),
                "w_data": In(8 * config.bus_bytes),
                "w_strb": In(config.bus_bytes),
                "results": Out(Flow(result(config))),
                "dq_o": Out(chip.data_bits),
                "dq_oe": Out(1),
                "dqm": Out(chip.data_bits // 8, init=-1),
                "dq_i": In(chip.data_bits),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        width, words = self.chip.data_bits, self.words
        lanes = width // 8

        # Out: the first word at once, the others from a shift register.
        rest = Signal(max(words - 1, 1) * width, reset_less=True)
        rest_masked = Signal(max(words - 1, 1) * lanes, reset_less=True)
        left = Signal(range(max(words, 2)))
        with m.If(self.write):
            m.d.sync += [
                Cat(self.dq_o, rest).eq(self.w_data),
                Cat(self.dqm, rest_masked).eq(~self.w_strb),
                self.dq_oe.eq(1),
                left.eq(words - 1),
            ]
        with m.Elif(left != 0):
            m.d.sync += [
                Cat(self.dq_o, rest).eq(rest),
                Cat(self.dqm, rest_masked).eq(rest_masked),
                left.eq(left - 1),
            ]
        with m.Else():
            m.d.sync += [self.dq_oe.eq(0), self.dqm.eq(~self.initialised.replicate(lanes))]

        # In: every word is sampled, and the last ones are there when the beat is complete.
        sampled = Signal(words * width, reset_less=True)
        m.d.sync += sampled.eq(Cat(sampled, self.dq_i)[width:])
        cycles = self.latency + words
        m.d.comb += [
            self.results.valid.eq(delay(m, self.read, cycles, "read")),
            Cat(self.results.payload.id, self.results.payload.last).eq(
                delay(m, Cat(self.id, self.last), cycles, "beat")
            ),
            Value.cast(self.results.payload.data).eq(sampled),
        ]
        return m
