"""Where instructions wait that were fetched ahead, and where those of a loop stay."""

from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from systolith.hdl.layouts import PC_BITS


class InstructionBuffer(wiring.Component):
    """A ring of the beats with the instructions that were fetched last, in order.

    Reading goes on from beat to beat, behind the writing. With a history, a restart at an
    instruction that is in the ring, or on its way to it, moves the reading only: the first beat is
    offered in the next cycle. Any other restart empties the ring.

    Parameters
    ----------
    width : int
        Bits of a beat.
    beats : int
        Beats of an instruction, a power of two.
    ahead, rows : int
        Instructions that may be requested ahead of the reading; instructions in the ring, a power
        of two. A history is kept if there are more rows than that.

    Members
    -------
    request : in, 1; beats_asked : in
        So many beats are requested in this cycle, at most ``free``.
    write : in, 1; w_data : in, ``width``
        The next of the requested beats came.
    beat : out, ``width``; valid : out, 1
        The beat to be read next.
    next : in, 1
        Goes on to the one after it; only while ``valid``.
    restart : in, 1; pc : in, 24
        Goes on with the first beat of instruction ``pc``; no request in this cycle.
    flush : in, 1
        With ``restart``: what is in the ring is worth nothing.
    hit : out, 1
        With ``restart``: the instruction is there or on its way; otherwise what was requested must
        not be written any more.
    free : out
        Beats that may be requested; a register. It is 0 in the cycle after a request or a hit,
        until both are counted.
    """

    def __init__(self, width: int, beats: int, ahead: int, rows: int) -> None:
        if rows < ahead or rows & (rows - 1):
            raise ValueError(f"Rows must be a power of two of at least {ahead}, not {rows!r}")
        self.beats = beats
        self.ahead = ahead * beats
        self.depth = rows * beats
        self.history = rows > ahead
        super().__init__(
            {
                "request": In(1),
                "beats_asked": In(range(self.ahead + 1)),
                "write": In(1),
                "w_data": In(width),
                "beat": Out(width),
                "valid": Out(1),
                "next": In(1),
                "restart": In(1),
                "pc": In(PC_BITS),
                "flush": In(1),
                "hit": Out(1),
                "free": Out(range(self.ahead + 1)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        index_bits = (self.beats - 1).bit_length()
        place_bits = (self.depth - 1).bit_length()
        m.submodules.ring = ring = Memory(
            shape=len(self.w_data), depth=self.depth, init=[], attrs={"no_rw_check": 1}
        )
        write, read = ring.write_port(), ring.read_port()

        # Beats count from instruction 0. Of what is read and written the low bits are enough.
        wanted = Signal(PC_BITS + index_bits)
        requested = Signal.like(wanted)
        written, reading, ahead = (Signal(place_bits + 1) for _ in range(3))
        at = Signal(place_bits + 1)
        there = Signal()
        kept = Signal(range(self.depth + 1))
        more = Signal(range(self.depth + self.ahead + 1))
        m.d.comb += [
            wanted.eq(self.pc << index_bits),
            ahead.eq(requested[: place_bits + 1] - reading),
            at.eq(Mux(self.restart, wanted[: place_bits + 1], reading + self.next)),
            read.addr.eq(at[:place_bits]),
            read.en.eq(1),
            self.beat.eq(read.data),
            write.addr.eq(written[:place_bits]),
            write.data.eq(self.w_data),
            write.en.eq(self.write),
            more.eq(kept + self.beats_asked),
        ]
        if self.history:
            behind = Signal.like(wanted)
            to_go = Signal.like(written)
            # A hit may be on its way still: then reading is ahead of writing for a while.
            m.d.comb += [
                behind.eq(requested - wanted),
                self.hit.eq(~self.flush & (behind <= kept)),
                to_go.eq(written - at),
                there.eq(to_go[:-1].any() ^ to_go[-1]),
            ]
        else:
            m.d.comb += there.eq(at != written)
        m.d.sync += [
            self.free.eq(
                Mux(~self.request & (ahead < self.ahead), self.ahead - ahead, 0)
            ),
            reading.eq(at),
            written.eq(written + self.write),
            self.valid.eq(there & ~(self.restart & ~self.hit)),
        ]
        with m.If(self.request):
            m.d.sync += [
                requested.eq(requested + self.beats_asked),
                kept.eq(Mux(more > self.depth, self.depth, more)),
            ]
        with m.If(self.restart):
            m.d.sync += self.free.eq(Mux(self.hit, 0, self.ahead))
        with m.If(self.restart & ~self.hit):
            m.d.sync += [
                written.eq(wanted[: place_bits + 1]),
                requested.eq(wanted),
                kept.eq(0),
            ]
        return m
