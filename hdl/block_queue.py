"""Where blocks wait that were read ahead."""

from amaranth import Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out


class BlockQueue(wiring.Component):
    """Two places for the answers of a memory that cannot be held up.

    A request made in a cycle where ``room`` is high finds a place when its answer is pushed in the
    next cycle. That is enough for an answer every cycle.

    Members
    -------
    push : in, 1; i : in, ``shape``
    o : out, ``shape``
        The older block, while ``valid`` is high; from the cycle after its ``push``.
    pop : in, 1
        Removes it; only while ``valid`` is high.
    valid : out, 1
    room : out, 1
        Depends on ``push`` and ``pop`` in the same cycle.
    """

    def __init__(self, shape) -> None:
        self.shape = shape
        super().__init__(
            {
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
        places = [Signal(self.shape, name=f"place_{index}", reset_less=True) for index in range(2)]
        into, out_of = Signal(), Signal()
        level = Signal(2)
        next_level = Signal(2)
        m.d.comb += [
            next_level.eq(level + self.push - self.pop),
            self.room.eq(next_level < 2),
            self.valid.eq(level != 0),
            Value.cast(self.o).eq(Mux(out_of, *(Value.cast(p) for p in reversed(places)))),
        ]
        m.d.sync += [level.eq(next_level), into.eq(into ^ self.push), out_of.eq(out_of ^ self.pop)]
        for index, place in enumerate(places):
            with m.If(self.push & (into == index)):
                m.d.sync += Value.cast(place).eq(Value.cast(self.i))
        return m
