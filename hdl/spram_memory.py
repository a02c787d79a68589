"""A memory of the single-port RAM of an iCE40 UP5K behind an AXI port."""

from amaranth import Module, Mux, Signal
from amaranth.hdl import Value
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from systolith.config import Config
from systolith.hdl.axi import ID_BITS, WRITE_RESPONSE, AXI4Read, AXI4Write, read_data
from systolith.hdl.axi_beats import DECERR, ReadBeats, WriteBeats
from systolith.hdl.block_memory import check_size
from systolith.hdl.pipeline import Buffer

SPRAM_WORDS = 1 << 14
"""Words of 16 bits in an SB_SPRAM256KA; a UP5K has four of them."""

_TAG = data.StructLayout({"id": ID_BITS, "last": 1, "outside": 1})


class SinglePort(wiring.Component):
    """RAM with one port: a cycle reads or writes. ``synth_ice40 -spram`` makes it of SPRAM.

    Members
    -------
    en : in, 1; write : in, 1; index : in; w_data : in; w_strb : in
        In a cycle with ``en``, reads a word, or writes the bytes whose strobes are set.
    r_data : out
        The word of the last read, from the cycle after it until the next ``en``.
    """

    def __init__(self, config: Config, words: int) -> None:
        self.config = config
        self.words = words
        super().__init__(
            {
                "en": In(1),
                "write": In(1),
                "index": In(max((words - 1).bit_length(), 1)),
                "w_data": In(8 * config.bus_bytes),
                "w_strb": In(config.bus_bytes),
                "r_data": Out(8 * config.bus_bytes),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        low_bits = (SPRAM_WORDS - 1).bit_length()
        count = -(-self.words // SPRAM_WORDS)
        which = Signal(range(max(count, 2)), reset_less=True)
        words: list[Value] = []
        for number in range(count):
            ram = Memory(
                shape=8 * self.config.bus_bytes,
                depth=SPRAM_WORDS,
                init=[],
                attrs={"ram_style": "huge"},
            )
            m.submodules[f"bank_{number}"] = ram
            writer, reader = ram.write_port(granularity=8), ram.read_port()
            here = Signal(name=f"here_{number}")
            m.d.comb += [
                here.eq(self.en & (self.index[low_bits:] == number)),
                writer.addr.eq(self.index),
                writer.data.eq(self.w_data),
                writer.en.eq(Mux(here & self.write, self.w_strb, 0)),
                reader.addr.eq(self.index),
                reader.en.eq(here & ~self.write),
            ]
            with m.If(here & ~self.write):
                m.d.sync += which.eq(number)
            words.append(reader.data)
        with m.Switch(which):
            for number, word in enumerate(words):
                with m.Case(number):
                    m.d.comb += self.r_data.eq(word)
        return m


class SpramMemory(wiring.Component):
    """An AXI slave whose memory has one port: as ``BlockMemory``, but reads and writes take turns.

    A beat a cycle in all; where both wait, every other cycle is a write. The first beat of R comes
    three cycles after AR was taken. The memory holds anything when the FPGA has been configured,
    and keeps what it holds in a reset.

    Parameters
    ----------
    size_bytes : int
        A multiple of the bus width. It takes whole SPRAMs: 32 KiB times half the bus width each.

    Members
    -------
    read : ``AXI4Read``, in
    write : ``AXI4Write``, in
    """

    def __init__(self, config: Config, size_bytes: int) -> None:
        check_size(config, size_bytes)
        self.config = config
        self.words = size_bytes // config.bus_bytes
        super().__init__({"read": In(AXI4Read(config)), "write": In(AXI4Write(config))})

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.ram = ram = SinglePort(self.config, self.words)
        m.submodules.reads = reads = ReadBeats(self.config)
        m.submodules.writes = writes = WriteBeats(self.config)
        m.submodules.results = results = Buffer(read_data(self.config))
        m.submodules.answers = answers = Buffer(WRITE_RESPONSE)
        wiring.connect(m, wiring.flipped(self.read.ar), reads.ar)
        wiring.connect(m, wiring.flipped(self.write.aw), writes.aw)
        wiring.connect(m, wiring.flipped(self.write.w), writes.w)
        wiring.connect(m, results.o, wiring.flipped(self.read.r))
        wiring.connect(m, answers.o, wiring.flipped(self.write.b))

        # Who has the port. A read needs a place for its word to go to in the next cycle.
        wanted, beat = reads.beats.payload, writes.beats.payload
        can_read, can_write, write = Signal(), Signal(), Signal()
        wrote = Signal()
        found = Signal()
        tag = Signal(_TAG, reset_less=True)
        m.d.comb += [
            can_read.eq(reads.beats.valid & results.i.ready),
            can_write.eq(writes.beats.valid & answers.i.ready),
            write.eq(can_write & ~(can_read & wrote)),
            reads.beats.ready.eq(results.i.ready & ~write),
            writes.beats.ready.eq(write),
            results.i.valid.eq(found),
            results.i.payload.id.eq(tag.id),
            results.i.payload.last.eq(tag.last),
            results.i.payload.resp.eq(Mux(tag.outside, DECERR, 0)),
            results.i.payload.data.eq(ram.r_data),
        ]
        outside = Signal()
        index = Mux(write, beat.index, wanted.index)
        m.d.comb += [
            outside.eq(index >= self.words),
            ram.index.eq(index),
            ram.write.eq(write),
            ram.w_data.eq(beat.data),
            ram.w_strb.eq(beat.strb),
            ram.en.eq(Mux(write, ~outside, can_read)),
        ]
        m.d.sync += wrote.eq(write)
        with m.If(results.i.ready):
            m.d.sync += found.eq(can_read & ~write)
        with m.If(can_read & ~write):
            m.d.sync += [tag.id.eq(wanted.id), tag.last.eq(wanted.last), tag.outside.eq(outside)]

        failed = Signal()
        m.d.comb += [
            answers.i.valid.eq(write & beat.last),
            answers.i.payload.id.eq(beat.id),
            answers.i.payload.resp.eq(Mux(outside | failed, DECERR, 0)),
        ]
        with m.If(write):
            m.d.sync += failed.eq((failed | outside) & ~beat.last)
        return m
