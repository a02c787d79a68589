"""The run-time function tables of the vector unit and their interpolation."""

from amaranth import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from systolith import tables
from systolith.config import Config
from systolith.hdl.layouts import WritePort, bits_for_rows, row
from systolith.hdl.pipeline import delay

ENTRY_BYTES = 4
ENTRY = data.StructLayout({"base": signed(16), "slope": signed(16)})


class FunctionTable(wiring.Component):
    """``golden.lookup`` and ``golden.lookup8`` on V lanes, bit-exact, from loadable tables.

    ``result`` belongs to the inputs of ``LATENCY`` cycles ago; V values enter every cycle, and
    nothing waits. One multiplier a lane. Every lane has a copy of all tables in block RAM, in D / 4
    banks, because a word of D bytes writes D / 4 entries at once.

    Members
    -------
    write : write port, words of D bytes, never waits
        Entry e of slot s is bytes 4 (e mod D/4) .. + 3 of word 1024 s / D + e // (D / 4).
    x : in, V signed 16
    result : out, V signed 16
    exact : in, 1
        Look up x saturated to 8 bits, without interpolation.
    slot : in, 3
        Which table, modulo ``table_slots``. Stays the same while values are under way, as
        ``exact`` does.
    """

    LATENCY = 4

    def __init__(self, config: Config) -> None:
        self.config = config
        self.words = config.table_slots * tables.TABLE_ENTRIES * ENTRY_BYTES // config.dim
        lanes = data.ArrayLayout(signed(16), config.lanes)
        super().__init__(
            {
                "write": In(WritePort(bits_for_rows(self.words), row(config), 1)),
                "x": In(lanes),
                "result": Out(lanes),
                "exact": In(1),
                "slot": In(3),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.d.comb += self.write.ready.eq(1)
        for lane in range(self.config.lanes):
            m.submodules[f"lane_{lane}"] = self._lane(lane)
        return m

    def _lane(self, lane: int) -> Module:
        m = Module()
        x = self.x[lane]
        index = Signal(8, reset_less=True)
        fraction = Signal(8, reset_less=True)
        small = Signal(reset_less=True)  # x fits 8 bits
        m.d.comb += small.eq((x[7:] == 0) | x[7:].all())
        exact = Mux(small, x[:8], Cat((~x[15]).replicate(7), x[15]))
        m.d.comb += [
            index.eq(Mux(self.exact, exact, x[8:]) ^ 0x80),
            fraction.eq(Mux(self.exact, 0, x[:8])),
        ]
        base, slope = self._read(m, index)

        product = Signal(signed(24), reset_less=True)
        line = Signal(signed(18), reset_less=True)
        over = Signal(reset_less=True)
        fraction_2 = delay(m, fraction, 2, "fraction")
        base_3 = delay(m, base, 1, "base")
        m.d.sync += product.eq(slope * fraction_2)
        m.d.comb += [
            line.eq(base_3 + ((product + Const(128, signed(24))) >> 8)),
            over.eq((line[15:] != 0) & ~line[15:].all()),
        ]
        clamped = Cat((~line[-1]).replicate(15), line[-1])
        m.d.sync += self.result[lane].eq(Mux(over, clamped, line[:16]).as_signed())
        return m

    def _read(self, m: Module, index: Signal) -> tuple[Signal, Signal]:
        """Base and slope of an entry, two cycles later: a block RAM answers late in its cycle."""
        banks = self.config.dim // ENTRY_BYTES
        bank_bits = ceil_log2(banks)
        slot_bits = ceil_log2(self.config.table_slots)
        entry = Cat(index, self.slot[:slot_bits])
        words = []
        for bank in range(banks):
            m.submodules[f"bank_{bank}"] = memory = Memory(
                shape=unsigned(32), depth=self.words, init=[], attrs={"ram_style": "block"}
            )
            write, read = memory.write_port(), memory.read_port()
            bits = 8 * ENTRY_BYTES * bank
            m.d.comb += [
                write.addr.eq(self.write.addr),
                write.data.eq(self.write.data.as_value()[bits : bits + 32]),
                write.en.eq(self.write.en & self.write.mask),
                read.addr.eq(entry[bank_bits:]),
                read.en.eq(1),
            ]
            words.append(read.data)
        chosen = Signal(bank_bits, reset_less=True)
        found = Signal(ENTRY, reset_less=True)
        m.d.sync += chosen.eq(index[:bank_bits])
        m.d.sync += found.as_value().eq(Cat(words).word_select(chosen, 32))
        return found.base, found.slope
