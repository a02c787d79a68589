"""Queues whose state is in registers: nobody waits for a comparison of their level.

The words lie in LUT RAM. Cycle by cycle a ``Queue`` does what `amaranth.lib.fifo.SyncFIFO` does,
which compares its level whenever somebody asks whether there is a word or a place.
"""

from amaranth import Cat, Module, Mux, Signal, Value
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out


class Queue(wiring.Component):
    """A queue of ``depth`` words; what is written can be read from the next cycle on.

    Parameters
    ----------
    shape : shape of a word
    depth : int
        Words, at least 1; at least 2 with registered bits.
    registered : int
        So many low bits of the oldest word are in registers: those that decide on much. The others
        are read from memory in the cycle in which they are looked at.

    Members
    -------
    w_data : in, ``shape``; w_en : in, 1
        Writes, if there is room; else nothing happens.
    w_rdy : out, 1
        A register: there is room.
    r_data : out, ``shape``
        The oldest word, while ``r_rdy`` is high.
    r_rdy : out, 1
        A register: there is a word.
    r_en : in, 1
        Removes it, if there is one.
    """

    def __init__(self, shape, depth: int, *, registered: int = 0) -> None:
        least = 2 if registered else 1
        if depth < least:
            raise ValueError(f"Depth must be at least {least}, not {depth!r}")
        self.shape = shape
        self.depth = depth
        self.registered = registered
        super().__init__(
            {
                "w_data": In(shape),
                "w_en": In(1),
                "w_rdy": Out(1),
                "r_data": Out(shape),
                "r_rdy": Out(1),
                "r_en": In(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        put, take = Signal(), Signal()
        # Bit i: there are more than i words. It needs no adder, and no comparison.
        more = Signal(self.depth)
        m.d.comb += [
            self.r_rdy.eq(more[0]),
            self.w_rdy.eq(~more[-1]),
            put.eq(self.w_en & self.w_rdy),
            take.eq(self.r_en & self.r_rdy),
        ]
        with m.If(put ^ take):
            m.d.sync += more.eq(Mux(put, Cat(1, more), more[1:]))

        write = Signal(range(self.depth))
        with m.If(put):
            m.d.sync += write.eq(self._after(write))
        new, old = Value.cast(self.w_data), Value.cast(self.r_data)
        bits = self.registered
        if bits < len(new):
            read = Signal(range(self.depth))
            with m.If(take):
                m.d.sync += read.eq(self._after(read))
            m.d.comb += old[bits:].eq(self._memory(m, "words", put, write, read, new[bits:]))
        if bits:
            # Read where the word behind the oldest one is, or will be.
            behind = Signal(range(self.depth))
            following = self._memory(m, "heads", put, write, behind, new[:bits])
            head = Signal(bits, reset_less=True)
            m.d.comb += old[:bits].eq(head)
            with m.If(take | ~self.r_rdy):
                m.d.sync += head.eq(Mux(more[1], following, new[:bits]))
                with m.If(more[1] | put):
                    m.d.sync += behind.eq(self._after(behind))
        return m

    def _memory(
        self, m: Module, name: str, put: Signal, write: Signal, read: Signal, new: Value
    ) -> Value:
        """Writes ``new``; the word at ``read``."""
        m.submodules[name] = words = memory.Memory(shape=len(new), depth=self.depth, init=[])
        writer, reader = words.write_port(), words.read_port(domain="comb")
        m.d.comb += [
            writer.en.eq(put),
            writer.addr.eq(write),
            writer.data.eq(new),
            reader.addr.eq(read),
        ]
        return reader.data

    def _after(self, place: Value) -> Value:
        """The place behind ``place``, round and round."""
        if self.depth & (self.depth - 1) == 0:
            return (place + 1)[: len(place)]
        return Mux(place == self.depth - 1, 0, place + 1)
