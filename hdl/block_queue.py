"""Where blocks wait that were read ahead."""

from amaranth import Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from systolith.hdl.pipeline import Credits


class BlockQueue(wiring.Component):
    """Eight places for the answers of a memory that cannot be held up.

    A request claims a place for its answer, which is pushed in the second cycle after. A place can
    be claimed again in the second cycle after ``pop``: five would do for an answer every cycle.

    Members
    -------
    claim : in, 1
        Claims a place; only while ``room`` is high.
    push : in, 1; i : in, ``shape``
    o : out, ``shape``
        The oldest block, while ``valid`` is high; from the cycle after its ``push``.
    pop : in, 1
        Removes it; only while ``valid`` is high.
    valid : out, 1
    room : out, 1
        A register: a place is free and not claimed.
    """

    PLACES = 8

    def __init__(self, shape) -> None:
        self.shape = shape
        super().__init__(
            {
                "claim": In(1),
                "push": In(1),
                "i": In(shape),
                "o": Out(shape),
                "pop": In(1),
                "valid": Out(1),
                "room": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.places = places = Memory(shape=self.shape, depth=self.PLACES, init=[])
        write, read = places.write_port(), places.read_port(domain="comb")
        m.submodules.credits = credits = Credits(self.PLACES)
        more = Signal(self.PLACES)  # bit i: there are more than i
        popped = Signal()
        m.d.comb += [
            write.en.eq(self.push),
            Value.cast(write.data).eq(Value.cast(self.i)),
            Value.cast(self.o).eq(Value.cast(read.data)),
            credits.take.eq(self.claim),
            credits.give.eq(popped),
            self.valid.eq(more[0]),
            self.room.eq(credits.available),
        ]
        m.d.sync += [
            popped.eq(self.pop),
            write.addr.eq(write.addr + self.push),
            read.addr.eq(read.addr + self.pop),
        ]
        with m.If(self.push ^ self.pop):
            m.d.sync += more.eq(Mux(self.push, Cat(1, more), more[1:]))
        return m
