"""A long queue."""

from amaranth import Module, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out


class RamQueue(wiring.Component):
    """A stream through block RAM: ``depth`` words and one more at the output, a word a cycle.

    A word comes out two cycles after it went in, at the earliest. ``i.ready`` and ``o.valid`` are
    registers, ``o.payload`` is what the RAM has read.

    Members
    -------
    i : in, stream of ``shape``
    o : out, stream of ``shape``
    """

    def __init__(self, shape, depth: int) -> None:
        if depth < 2 or depth & (depth - 1):
            raise ValueError(f"Depth must be a power of two of at least 2, not {depth!r}")
        self.shape = shape
        self.depth = depth
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform) -> Module:
        m = Module()
        # A word is read after it was written, never meanwhile.
        m.submodules.words = words = Memory(
            shape=Value.cast(self.i.payload).shape(),
            depth=self.depth,
            init=[],
            attrs={"ram_style": "block", "no_rw_check": 1},
        )
        writer, reader = words.write_port(), words.read_port()
        level = Signal(range(self.depth + 1))
        some, full = Signal(), Signal()
        push, fetch = Signal(), Signal()
        m.d.comb += [
            self.i.ready.eq(~full),
            push.eq(self.i.valid & ~full),
            fetch.eq(some & (~self.o.valid | self.o.ready)),
            writer.en.eq(push),
            writer.data.eq(Value.cast(self.i.payload)),
            reader.en.eq(fetch),
            Value.cast(self.o.payload).eq(reader.data),
        ]
        m.d.sync += [
            writer.addr.eq(writer.addr + push),
            reader.addr.eq(reader.addr + fetch),
        ]
        with m.If(push & ~fetch):
            m.d.sync += [level.eq(level + 1), some.eq(1), full.eq(level == self.depth - 1)]
        with m.Elif(fetch & ~push):
            m.d.sync += [level.eq(level - 1), some.eq(level != 1), full.eq(0)]
        with m.If(fetch):
            m.d.sync += self.o.valid.eq(1)
        with m.Elif(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        return m
