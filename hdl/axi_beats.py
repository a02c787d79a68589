"""A slave's first step: the bursts of an AXI master, beat by beat with the address of each."""

from amaranth import Module, Mux, Signal
from amaranth.hdl import Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from systolith.config import Config
from systolith.hdl.axi import (
    ADDRESS,
    ADDRESS_BITS,
    ID_BITS,
    PAGE_BYTES,
    AXI4Read,
    AXI4Write,
    write_data,
)

OKAY, SLVERR, DECERR = 0, 2, 3


def index_bits(config: Config) -> int:
    """Bits of a beat's address, which counts beats from address 0 on."""
    return ADDRESS_BITS - (config.bus_bytes.bit_length() - 1)


def read_beat(config: Config) -> data.StructLayout:
    """A beat to be read: where, for whom, and whether it ends its burst."""
    return data.StructLayout({"index": index_bits(config), "id": ID_BITS, "last": 1})


def write_beat(config: Config) -> data.StructLayout:
    """A beat to be written: ``read_beat``, data and strobes."""
    return data.StructLayout(
        {
            "index": index_bits(config),
            "id": ID_BITS,
            "last": 1,
            "data": 8 * config.bus_bytes,
            "strb": config.bus_bytes,
        }
    )


class _Walk(wiring.Component):
    """From an address channel to one ``read_beat`` after another.

    A burst is accepted while there is none, or in the cycle in which the last beat of the one
    before is taken: beats follow each other without a gap.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "bursts": In(stream.Signature(ADDRESS)),
                "beats": Out(stream.Signature(read_beat(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        size = self.config.bus_bytes.bit_length() - 1
        # A burst stays within its page: only so many bits count.
        low_bits = (PAGE_BYTES // self.config.bus_bytes - 1).bit_length()
        active = self.beats.valid
        beat = Signal(read_beat(self.config), reset_less=True)
        left = Signal(8, reset_less=True)
        low = beat.index[:low_bits]
        moves = Signal()
        burst = self.bursts.payload
        m.d.comb += [
            moves.eq(active & self.beats.ready),
            self.bursts.ready.eq(~active | (self.beats.ready & beat.last)),
            Value.cast(self.beats.payload).eq(Value.cast(beat)),
        ]
        with m.If(moves):
            m.d.sync += [low.eq(low + 1), left.eq(left - 1), beat.last.eq(left == 1)]
        with m.If(self.bursts.ready):
            m.d.sync += active.eq(self.bursts.valid)
            with m.If(self.bursts.valid):
                m.d.sync += [
                    beat.index.eq(burst.addr[size:]),
                    beat.id.eq(burst.id),
                    beat.last.eq(burst.len == 0),
                    left.eq(burst.len),
                ]
        return m


class ReadBeats(wiring.Component):
    """The read bursts of a master as beats, one a cycle, in order.

    Bursts are INCR, of full-width beats, and do not cross 4 KiB (of an address, the bits below the
    bus width are ignored). The first beat of a burst is offered a cycle after AR was taken.

    Members
    -------
    ar : in, stream of ``ADDRESS``
    beats : out, stream of ``read_beat``
        ``valid`` and ``payload`` are registers.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "ar": In(stream.Signature(ADDRESS)),
                "beats": Out(stream.Signature(read_beat(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.walk = walk = _Walk(self.config)
        wiring.connect(m, wiring.flipped(self.ar), walk.bursts)
        wiring.connect(m, walk.beats, wiring.flipped(self.beats))
        return m


class WriteBeats(wiring.Component):
    """The write bursts of a master as beats with their data, one a cycle, in order.

    As ``ReadBeats``; data is taken behind its AW only. The end of a burst is counted, WLAST is not
    looked at.

    Members
    -------
    aw, w : in, streams as in ``AXI4Write``
    beats : out, stream of ``write_beat``
        ``valid`` is that of ``w``, behind an AND.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "aw": In(stream.Signature(ADDRESS)),
                "w": In(stream.Signature(write_data(config))),
                "beats": Out(stream.Signature(write_beat(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.walk = walk = _Walk(self.config)
        wiring.connect(m, wiring.flipped(self.aw), walk.bursts)
        beat, place = self.beats.payload, walk.beats.payload
        m.d.comb += [
            self.beats.valid.eq(walk.beats.valid & self.w.valid),
            walk.beats.ready.eq(self.beats.ready & self.w.valid),
            self.w.ready.eq(walk.beats.valid & self.beats.ready),
            beat.index.eq(place.index),
            beat.id.eq(place.id),
            beat.last.eq(place.last),
            beat.data.eq(self.w.payload.data),
            beat.strb.eq(self.w.payload.strb),
        ]
        return m


class Nowhere(wiring.Component):
    """A slave for addresses that nothing is at: every beat of a read, every write, is a DECERR.

    Reads have zeros as data. One beat a cycle in each direction.

    Members
    -------
    read : ``AXI4Read``, in
    write : ``AXI4Write``, in
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__({"read": In(AXI4Read(config)), "write": In(AXI4Write(config))})

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.reads = reads = ReadBeats(self.config)
        m.submodules.writes = writes = WriteBeats(self.config)
        wiring.connect(m, wiring.flipped(self.read.ar), reads.ar)
        wiring.connect(m, wiring.flipped(self.write.aw), writes.aw)
        wiring.connect(m, wiring.flipped(self.write.w), writes.w)
        r, b = self.read.r, self.write.b
        last = writes.beats.payload.last
        m.d.comb += [
            r.valid.eq(reads.beats.valid),
            reads.beats.ready.eq(r.ready),
            r.payload.id.eq(reads.beats.payload.id),
            r.payload.last.eq(reads.beats.payload.last),
            r.payload.resp.eq(DECERR),
        ]
        # The answer waits in a register until it is taken; meanwhile no burst may end.
        m.d.comb += [
            b.payload.resp.eq(DECERR),
            writes.beats.ready.eq(~last | ~b.valid | b.ready),
        ]
        with m.If(~b.valid | b.ready):
            m.d.sync += [
                b.valid.eq(writes.beats.valid & last),
                b.payload.id.eq(Mux(last, writes.beats.payload.id, b.payload.id)),
            ]
        return m
