"""Parts of pipelines that never stall: delay lines, registered trees, claimed places and rings.

A pipeline that claims a place behind itself when it lets a word in never finds that place taken
when the word comes out, so it needs no enable on its registers and no path from end to beginning.
"""

from collections.abc import Callable, Sequence

from amaranth import Module, Mux, Signal, Value
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for


def delay(m: Module, value: Value, cycles: int, name: str) -> Value:
    """``value`` as it was ``cycles`` cycles ago; the registers start at 0.

    A reset clears single bits only: words are worth nothing without the bit that says they are
    valid, and a reset that reaches every register of a pipeline takes up much of an FPGA's wiring.
    """
    for step in range(cycles):
        stage = Signal(value.shape(), name=f"{name}_{step + 1}", reset_less=len(value) > 1)
        m.d.sync += stage.eq(value)
        value = stage
    return value


def tree(
    m: Module, values: Sequence[Value], join: Callable[[Value, Value], Value], name: str
) -> Value:
    """Joins a power of two of values pairwise; log2 levels, each ends in registers."""
    level = 0
    while len(values) > 1:
        level += 1
        joined = []
        for index in range(0, len(values), 2):
            pair = join(values[index], values[index + 1])
            stage = Signal(pair.shape(), name=f"{name}_{level}_{index // 2}", reset_less=True)
            m.d.sync += stage.eq(pair)
            joined.append(stage)
        values = joined
    return values[0]


def walk(
    m: Module, name: str, beats: Value, single: Value
) -> tuple[Signal, Signal, Signal, Signal]:
    """Counts through rows of ``beats`` beats: signals (accept, index, first, last).

    The caller drives ``accept``, high in the cycles in which the present beat is taken; the others
    describe that beat. ``beats``: of the present row, at least 1; may be anything between rows.
    ``single``: they are 1; a register, so that ``last`` waits for no comparison.
    """
    accept = Signal(name=f"accept_{name}")
    index = Signal(len(beats), name=f"index_{name}")
    first = Signal(name=f"first_{name}", init=1)
    last = Signal(name=f"last_{name}")
    ends = Signal(name=f"ends_{name}")  # last of a row of several beats; found a beat before
    beyond = Signal(len(beats) + 1, name=f"beyond_{name}", init=2)  # index + 2, without an adder
    m.d.comb += last.eq(Mux(first, single, ends))
    with m.If(accept):
        m.d.sync += [
            index.eq(Mux(last, 0, index + 1)),
            beyond.eq(Mux(last, 2, beyond + 1)),
            ends.eq(~last & (beyond == beats)),
            first.eq(last),
        ]
    return accept, index, first, last


class Flow(wiring.Signature):
    """A stream whose sink is always ready.

    Members
    -------
    valid : out, 1
    payload : out, ``shape``
    """

    def __init__(self, shape) -> None:
        super().__init__({"valid": Out(1), "payload": Out(shape)})


class Buffer(wiring.Component):
    """Two places in registers: a stream in, the same stream out a cycle later, at a word a cycle.

    Breaks all combinational paths: ``i.ready``, ``o.valid`` and ``o.payload`` are registers.

    Members
    -------
    i : in, stream of ``shape``
    o : out, stream of ``shape``
    """

    def __init__(self, shape) -> None:
        self.shape = shape
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        spare = Signal(Value.cast(self.i.payload).shape(), reset_less=True)
        head = Signal.like(spare)
        full = Signal()
        m.d.comb += [self.i.ready.eq(~full), Value.cast(self.o.payload).eq(head)]
        # The spare word follows the input until it is needed: its enable waits for nobody.
        with m.If(~full):
            m.d.sync += spare.eq(Value.cast(self.i.payload))
        with m.If(self.o.ready | ~self.o.valid):
            m.d.sync += [
                head.eq(Mux(full, spare, Value.cast(self.i.payload))),
                self.o.valid.eq(full | self.i.valid),
                full.eq(0),
            ]
        with m.Elif(self.i.valid & self.i.ready):
            m.d.sync += full.eq(1)
        return m


class Credits(wiring.Component):
    """Counts free places, or whatever else can be claimed.

    Parameters
    ----------
    places : int
        The most there can be.
    initial : int
        How many there are at first; by default all.

    Members
    -------
    take : in, 1
        Claims a place; only while ``available``.
    give : in, 1
        Frees one; it can be claimed from the next cycle.
    available : out, 1
        A register: at least one place is free.
    """

    def __init__(self, places: int, initial: int | None = None) -> None:
        if places < 1:
            raise ValueError(f"Places must be at least 1, not {places!r}")
        self.places = places
        self.initial = places if initial is None else initial
        if not 0 <= self.initial <= places:
            raise ValueError(f"Initial places must be from 0 to {places}, not {initial!r}")
        super().__init__(
            {"take": In(1), "give": In(1), "available": Out(1, init=int(self.initial > 0))}
        )

    def elaborate(self, platform):
        m = Module()
        free = Signal(bits_for(self.places), init=self.initial)
        with m.If(self.take & ~self.give):
            m.d.sync += [free.eq(free - 1), self.available.eq(free != 1)]
        with m.Elif(self.give & ~self.take):
            m.d.sync += [free.eq(free + 1), self.available.eq(1)]
        return m


class Results(wiring.Component):
    """A stream from pipelines that never wait: places in LUT RAM, claimed before they are written.

    At a word a cycle a pipeline of L cycles needs L + 2 places.

    Parameters
    ----------
    shape : shape of a word
    depth : int
        Words, a power of two.

    Members
    -------
    claim : in, 1
        Claims a place; only while ``available``.
    write : in, 1; w_data : in
        Writes the next of the claimed places; at the earliest in the cycle of its ``claim``.
    o : out, stream of ``shape``
        A word is offered from the cycle after its ``write``. ``valid`` is a register.
    available : out, 1
        A register: a place can be claimed.
    """

    def __init__(self, shape, depth: int) -> None:
        if depth < 2 or depth & (depth - 1):
            raise ValueError(f"Depth must be a power of two of at least 2, not {depth!r}")
        self.shape = shape
        self.depth = depth
        super().__init__(
            {
                "claim": In(1),
                "write": In(1),
                "w_data": In(shape),
                "o": Out(stream.Signature(shape)),
                "available": Out(1, init=1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.words = words = memory.Memory(shape=self.shape, depth=self.depth, init=[])
        writer, reader = words.write_port(), words.read_port(domain="comb")
        m.submodules.credits = credits = Credits(self.depth)
        pop = Signal()
        level = Signal(range(self.depth + 1))
        m.d.comb += [
            pop.eq(self.o.valid & self.o.ready),
            writer.en.eq(self.write),
            Value.cast(writer.data).eq(Value.cast(self.w_data)),
            Value.cast(self.o.payload).eq(Value.cast(reader.data)),
            credits.take.eq(self.claim),
            credits.give.eq(pop),
            self.available.eq(credits.available),
        ]
        m.d.sync += [
            writer.addr.eq(writer.addr + self.write),
            reader.addr.eq(reader.addr + pop),
        ]
        with m.If(self.write & ~pop):
            m.d.sync += [level.eq(level + 1), self.o.valid.eq(1)]
        with m.Elif(pop & ~self.write):
            m.d.sync += [level.eq(level - 1), self.o.valid.eq(level != 1)]
        return m


class Ring(wiring.Component):
    """A queue in block RAM whose places are claimed before they are written.

    The reader has to know what has been written; it usually is told of complete rows.

    Parameters
    ----------
    shape : shape of a word
    depth : int
        Words, a power of two.

    Members
    -------
    claim : in, 1
        Claims a place; only while ``available``.
    write : in, 1; w_data : in
        Writes the next of the claimed places.
    read : in, 1
        Reads the oldest word and frees its place. A word can be read from the cycle after the one
        in which it was written.
    r_data : out
        The word last read, from the cycle after the read.
    available : out, 1
        A place can be claimed.
    """

    def __init__(self, shape, depth: int) -> None:
        if depth < 2 or depth & (depth - 1):
            raise ValueError(f"Depth must be a power of two of at least 2, not {depth!r}")
        self.shape = shape
        self.depth = depth
        super().__init__(
            {
                "claim": In(1),
                "write": In(1),
                "w_data": In(shape),
                "read": In(1),
                "r_data": Out(shape),
                "available": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.words = words = memory.Memory(
            shape=self.shape, depth=self.depth, init=[], attrs={"ram_style": "block"}
        )
        writer, reader = words.write_port(), words.read_port()
        m.d.comb += [
            writer.en.eq(self.write),
            writer.data.eq(self.w_data),
            reader.en.eq(self.read),
            self.r_data.eq(reader.data),
        ]
        m.d.sync += [
            writer.addr.eq(writer.addr + self.write),
            reader.addr.eq(reader.addr + self.read),
        ]
        m.submodules.credits = credits = Credits(self.depth)
        m.d.comb += [
            credits.take.eq(self.claim),
            credits.give.eq(self.read),
            self.available.eq(credits.available),
        ]
        return m
