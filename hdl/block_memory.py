"""A memory of the FPGA's own RAM behind an AXI port."""

from amaranth import Module, Mux, Signal
from amaranth.hdl import Value
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from systolith.config import Config
from systolith.hdl.axi import ID_BITS, WRITE_RESPONSE, AXI4Read, AXI4Write, read_data
from systolith.hdl.axi_beats import DECERR, ReadBeats, WriteBeats
from systolith.hdl.pipeline import Buffer, Results, delay

DEEPEST = 1 << 13
"""Words of the largest bank: the depth of a block RAM that is two bits wide. Deeper ones have so
many block RAMs that their wires take too long."""
SHALLOWEST = 1 << 9
"""Words of a block RAM at its widest; a smaller bank would take as much."""

_READ_CYCLES = 4
"""Of ``Banks``."""
_PLACES = 8
"""For words that are read: two more than cycles of the pipeline, rounded up."""
_TAG = data.StructLayout({"id": ID_BITS, "last": 1, "outside": 1})
"""What a read keeps to itself while the RAM is asked."""


def banks(words: int) -> list[tuple[int, int]]:
    """(first word, words) of the banks of a memory: powers of two that add up to ``words``.

    Each starts at a multiple of its size, so that a few bits of the address choose it. Only the
    last one can be smaller than ``SHALLOWEST``, and then it is of any size.
    """
    found, first = [], 0
    while words - first:
        left = words - first
        size = left if left < SHALLOWEST else min(1 << (left.bit_length() - 1), DEEPEST)
        found.append((first, size))
        first += size
    return found


def check_size(config: Config, size_bytes: int, init: bytes = b"") -> None:
    """Raises ``ValueError`` for a size that is none, and for contents that are larger."""
    if size_bytes <= 0 or size_bytes % config.bus_bytes:
        raise ValueError(
            f"Size must be a positive multiple of the bus width of {config.bus_bytes} bytes, "
            f"not {size_bytes!r}"
        )
    if len(init) > size_bytes:
        raise ValueError(f"Initial contents must have at most {size_bytes} bytes, not {len(init)}")


class Banks(wiring.Component):
    """RAM of any number of words: a byte-enabled write port and a read port of four cycles.

    FPGAs' tools round the depth of a memory up, or put multiplexers of many block RAMs behind it.
    It is therefore cut into banks that are powers of two. On ECP5, where a block RAM (DP16KD) holds
    2 KiB, words of B bytes take ⌈words / 512⌉ · B / 4 block RAMs. Each bank has registers of its
    own for addresses and data: wires from one register to all banks would take too long.

    Members
    -------
    w_en : in, 1; w_index : in; w_data : in, 8 · ``bus_bytes``; w_strb : in, ``bus_bytes``
        Writes the bytes whose strobes are set; a read of the next cycle sees it.
    r_index : in
        A word to read, every cycle.
    r_data : out
        The word that was asked for four cycles ago; anything if it was written in that cycle.
    """

    def __init__(self, config: Config, words: int, init: bytes = b"") -> None:
        self.config = config
        self.words = words
        self.init = init
        bits = max((words - 1).bit_length(), 1)
        super().__init__(
            {
                "w_en": In(1),
                "w_index": In(bits),
                "w_data": In(8 * config.bus_bytes),
                "w_strb": In(config.bus_bytes),
                "r_index": In(bits),
                "r_data": Out(8 * config.bus_bytes),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        step = self.config.bus_bytes
        parts = banks(self.words)
        asked = Signal(range(len(parts)), reset_less=True)
        read = Signal(range(len(parts)), reset_less=True)
        found = Signal(range(len(parts)), reset_less=True)
        m.d.sync += [read.eq(asked), found.eq(read)]
        words: list[Value] = []
        for number, (first, size) in enumerate(parts):
            init = self.init[first * step : (first + size) * step]
            init += bytes(-len(init) % step)
            # A program does not read what is being written: RAM needs no logic for that case.
            ram = Memory(
                shape=8 * step,
                depth=size,
                init=[
                    int.from_bytes(init[i : i + step], "little") for i in range(0, len(init), step)
                ],
                attrs={"ram_style": "block", "no_rw_check": 1},
            )
            m.submodules[f"bank_{number}"] = ram
            writer, reader = ram.write_port(granularity=8), ram.read_port()
            low = (size - 1).bit_length()
            writes = Signal(name=f"writes_{number}")
            reads = Signal(name=f"reads_{number}")
            w_index = Signal(low, name=f"w_index_{number}", reset_less=True)
            w_data = Signal(8 * step, name=f"w_data_{number}", reset_less=True)
            w_strb = Signal(step, name=f"w_strb_{number}")
            r_index = Signal(low, name=f"r_index_{number}", reset_less=True)
            m.d.comb += [
                writes.eq(self.w_en & (self.w_index[low:] == first >> low)),
                reads.eq(self.r_index[low:] == first >> low),
                writer.addr.eq(w_index),
                writer.data.eq(w_data),
                writer.en.eq(w_strb),
                reader.addr.eq(r_index),
            ]
            m.d.sync += w_strb.eq(Mux(writes, self.w_strb, 0))
            with m.If(writes):
                m.d.sync += [w_index.eq(self.w_index), w_data.eq(self.w_data)]
            with m.If(reads):
                m.d.sync += [r_index.eq(self.r_index), asked.eq(number)]
            # Block RAM is slow, and far from some of what it goes to.
            word = Signal(8 * step, name=f"word_{number}", reset_less=True)
            m.d.sync += word.eq(reader.data)
            words.append(word)
        with m.Switch(found):
            for number, word in enumerate(words):
                with m.Case(number):
                    m.d.sync += self.r_data.eq(word)
        return m


class BlockMemory(wiring.Component):
    """An AXI slave whose memory is block RAM.

    Reads and writes run beside each other, each a beat a cycle, without a gap between bursts. The
    first beat of R comes six cycles after AR was taken, B one cycle after the last W; a read whose
    AR comes after a write's B sees it (before that, it may bring anything). Bursts are answered in
    order, with their IDs; they are INCR bursts of full-width beats that do not cross 4 KiB.
    Addresses count from the first byte; beats beyond the last are answered with DECERR, and not
    written. No ``ready`` depends on the ``ready`` of R or B in the same cycle.

    Parameters
    ----------
    size_bytes : int
        A multiple of the bus width; see ``Banks`` for what it takes.
    init : bytes
        What the memory holds after configuration, from address 0 on; zeros beyond. A reset does
        not bring it back.

    Members
    -------
    read : ``AXI4Read``, in
    write : ``AXI4Write``, in
    """

    def __init__(self, config: Config, size_bytes: int, init: bytes = b"") -> None:
        check_size(config, size_bytes, init)
        self.config = config
        self.words = size_bytes // config.bus_bytes
        self.init = init
        super().__init__({"read": In(AXI4Read(config)), "write": In(AXI4Write(config))})

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.ram = ram = Banks(self.config, self.words, self.init)
        m.submodules.reads = reads = ReadBeats(self.config)
        m.submodules.writes = writes = WriteBeats(self.config)
        m.submodules.answers = answers = Buffer(WRITE_RESPONSE)
        wiring.connect(m, wiring.flipped(self.read.ar), reads.ar)
        wiring.connect(m, wiring.flipped(self.write.aw), writes.aw)
        wiring.connect(m, wiring.flipped(self.write.w), writes.w)
        wiring.connect(m, answers.o, wiring.flipped(self.write.b))

        # A read claims a place for its word, and then runs on by itself.
        m.submodules.results = results = Results(read_data(self.config), _PLACES)
        wiring.connect(m, results.o, wiring.flipped(self.read.r))
        wanted = reads.beats.payload
        tag = Signal(_TAG)
        found = Signal(_TAG)
        m.d.comb += [
            reads.beats.ready.eq(results.available),
            results.claim.eq(reads.beats.valid & results.available),
            ram.r_index.eq(wanted.index),
            tag.id.eq(wanted.id),
            tag.last.eq(wanted.last),
            tag.outside.eq(wanted.index >= self.words),
            Value.cast(found).eq(delay(m, Value.cast(tag), _READ_CYCLES, "tag")),
            results.write.eq(delay(m, results.claim, _READ_CYCLES, "reads")),
            results.w_data.id.eq(found.id),
            results.w_data.last.eq(found.last),
            results.w_data.resp.eq(Mux(found.outside, DECERR, 0)),
            results.w_data.data.eq(ram.r_data),
        ]

        # The burst of a write fails if any beat is outside.
        beat = writes.beats.payload
        moves = writes.beats.valid & writes.beats.ready
        outside, failed = Signal(), Signal()
        m.d.comb += [
            outside.eq(beat.index >= self.words),
            writes.beats.ready.eq(answers.i.ready),
            answers.i.valid.eq(writes.beats.valid & beat.last),
            answers.i.payload.id.eq(beat.id),
            answers.i.payload.resp.eq(Mux(outside | failed, DECERR, 0)),
        ]
        m.d.comb += [
            ram.w_en.eq(moves & ~outside),
            ram.w_index.eq(beat.index),
            ram.w_data.eq(beat.data),
            ram.w_strb.eq(beat.strb),
        ]
        with m.If(moves):
            m.d.sync += failed.eq((failed | outside) & ~beat.last)
        return m
