"""The reader of the vector unit: blocks of sources A and B, cut into beats of V lanes."""

from amaranth import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from systolith import isa
from systolith.config import Config
from systolith.hdl.block_queue import BlockQueue
from systolith.hdl.layouts import ReadPort, acc_row, bits_for_rows, line
from systolith.hdl.pipeline import Buffer, delay
from systolith.hdl.row_walk import WALK, RowWalk

SOURCES = data.StructLayout(
    {"a": WALK, "format": 2, "b": WALK, "b_used": 1, "b_wide": 1, "b_pair": 1}
)
"""Where A and B lie. ``format``: ``isa.Format`` of A. ``b_pair``: each block of B is followed by a
second one (of int16 both), two rows further on: cosines and sines."""


def values(lanes: int) -> data.StructLayout:
    """A beat of V lanes as it was read, sign-extended."""
    return data.StructLayout(
        {
            "a": data.ArrayLayout(signed(32), lanes),
            "b": data.ArrayLayout(signed(16), lanes),
            "b2": data.ArrayLayout(signed(16), lanes),
        }
    )


class VectorRead(wiring.Component):
    """Reads the blocks of A and B in lockstep, ahead of the beats that they are cut into.

    A block takes D / V cycles or as many cycles as it needs reads from the activation memory,
    whichever is more. The first beat is offered five cycles after ``start`` if one read suffices
    and no port waits, and a cycle later for each further read. ``o`` depends on no ``ready``
    within a cycle.

    Members
    -------
    o : out, stream of ``values(lanes)``
        D / V beats for each block. What ``b`` and ``b2`` hold if they are not used is undefined.
    acc : read port of accumulator rows, may wait
    activation : read port of activation lines, may wait
    start : in, 1
        Takes ``sources``; only when all beats of the previous start have been taken.
    sources : in, ``SOURCES``
    busy : out, 1
        Beats of the last start have not been taken; from the cycle after it.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "o": Out(stream.Signature(values(config.lanes))),
                "acc": Out(ReadPort(bits_for_rows(config.accumulator_rows), acc_row(config))),
                "activation": Out(
                    ReadPort(bits_for_rows(config.activation_rows) - 1, line(config))
                ),
                "start": In(1),
                "sources": In(SOURCES),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        sources = Signal(SOURCES, reset_less=True)
        with m.If(self.start):
            m.d.sync += sources.eq(self.sources)
        # Twice: one register for the words, one for the requests, which are on long paths.
        from_acc, from_activation = Signal(), Signal()
        with m.If(self.start):
            m.d.sync += [
                from_acc.eq(self.sources.format == isa.Format.ACC32),
                from_activation.eq(self.sources.format != isa.Format.ACC32),
            ]

        block16 = data.ArrayLayout(signed(16), config.dim)
        m.submodules.walk_a = walk_a = RowWalk()
        m.submodules.walk_b = walk_b = RowWalk()
        m.submodules.queue_a = queue_a = BlockQueue(acc_row(config))
        m.submodules.queue_b = queue_b = BlockQueue(block16)
        m.submodules.queue_b2 = queue_b2 = BlockQueue(block16)
        m.d.comb += [
            walk_a.walk.eq(self.sources.a),
            walk_a.start.eq(self.start),
            walk_b.walk.eq(self.sources.b),
            walk_b.start.eq(self.start & self.sources.b_used),
        ]

        # The activation port serves A, B and the second block of B in turns, as far as used. One of
        # the bits of ``turn`` is set.
        a_wants, acc_goes = Signal(), Signal()
        wants, goes = Signal(3), Signal(3)
        turn = Signal(3)
        in_turn = (wants & turn).any()
        m.d.comb += [
            a_wants.eq(walk_a.valid & queue_a.room),
            self.acc.en.eq(a_wants & ~from_activation),
            self.acc.addr.eq(walk_a.address),
            acc_goes.eq(self.acc.en & self.acc.ready),
            wants[0].eq(a_wants & from_activation),
            wants[1].eq(walk_b.valid & queue_b.room),
            wants[2].eq(walk_b.valid & queue_b2.room),
            self.activation.en.eq(in_turn),
            goes.eq(wants & turn & self.activation.ready.replicate(3)),
            queue_a.claim.eq(acc_goes | goes[0]),
            queue_b.claim.eq(goes[1]),
            queue_b2.claim.eq(goes[2]),
            walk_a.next.eq(queue_a.claim),
            walk_b.next.eq(Mux(sources.b_pair, goes[2], goes[1])),
        ]
        # The line behind a block of B is wanted in the second cycle of the block at the earliest.
        line_a, line_b = walk_a.address[1:], walk_b.address[1:]
        next_line = Signal(len(line_b), reset_less=True)
        m.d.sync += next_line.eq(line_b + 1)
        m.d.comb += self.activation.addr.eq(
            Mux(turn[0], line_a, Mux(turn[1], line_b, next_line))
        )
        a, b, b2 = 0b001, 0b010, 0b100
        after_a = Mux(sources.b_used, b, a)
        after_b = Mux(from_activation, a, b)
        with m.If(self.start):
            m.d.sync += turn.eq(Mux(self.sources.format == isa.Format.ACC32, b, a))
        with m.Elif(goes[0]):
            m.d.sync += turn.eq(after_a)
        with m.Elif(goes[1]):
            m.d.sync += turn.eq(Mux(sources.b_pair, b2, after_b))
        with m.Elif(goes[2]):
            m.d.sync += turn.eq(after_b)

        # Answers come a cycle later, late in the cycle, and wait in registers for the next one.
        acc_came, came, odd = Signal(), Signal(3), Signal()
        m.d.sync += [
            acc_came.eq(delay(m, acc_goes, 1, "acc_asked")),
            came.eq(delay(m, goes, 1, "asked")),
            odd.eq(delay(m, Mux(turn[0], walk_a.address[0], walk_b.address[0]), 1, "odd_asked")),
        ]
        answer = Signal(line(config), reset_less=True)
        acc_answer = Signal(acc_row(config), reset_less=True)
        m.d.sync += [
            Value.cast(answer).eq(Value.cast(self.activation.data)),
            Value.cast(acc_answer).eq(Value.cast(self.acc.data)),
        ]
        a_wide = sources.format == isa.Format.INT16
        for lane in range(config.dim):
            a16, b16 = Signal(signed(16), name=f"a_{lane}"), Signal(signed(16), name=f"b_{lane}")
            byte = Mux(odd, answer[1][lane], answer[0][lane]).as_signed()
            wide = Cat(answer[0][lane], answer[1][lane]).as_signed()
            m.d.comb += [
                a16.eq(Mux(a_wide, wide, byte)),
                b16.eq(Mux(sources.b_wide | sources.b_pair, wide, byte)),
                queue_a.i[lane].eq(Mux(from_acc, acc_answer[lane], a16)),
                queue_b.i[lane].eq(b16),
                queue_b2.i[lane].eq(wide),
            ]
        m.d.comb += [
            queue_a.push.eq(acc_came | came[0]),
            queue_b.push.eq(came[1]),
            queue_b2.push.eq(came[2]),
        ]
        m.submodules.beats = beats = Buffer(values(config.lanes))
        wiring.connect(m, wiring.flipped(self.o), beats.o)
        self._cut(m, beats.i, sources, queue_a, queue_b, queue_b2)
        blocks = Signal(range(BlockQueue.PLACES + 1))  # asked for, not yet cut up
        m.d.sync += blocks.eq(blocks + queue_a.claim - queue_a.pop)
        m.d.comb += self.busy.eq(walk_a.valid | blocks.any() | beats.o.valid)
        return m

    def _cut(self, m: Module, o, sources, a: BlockQueue, b: BlockQueue, b2: BlockQueue) -> None:
        """Offers the oldest blocks of the queues, V lanes at a time."""
        lanes = self.config.lanes
        beats = self.config.dim // lanes
        beat = Signal(ceil_log2(beats))
        done = Signal()  # with the block
        m.d.comb += [
            o.valid.eq(a.valid & (b.valid | ~sources.b_used) & (b2.valid | ~sources.b_pair)),
            done.eq(o.valid & o.ready & (beat == beats - 1)),
            a.pop.eq(done),
            b.pop.eq(done & sources.b_used),
            b2.pop.eq(done & sources.b_pair),
        ]
        with m.If(o.valid & o.ready):
            m.d.sync += beat.eq(beat + 1)
        for queue, name, bits in ((a, "a", 32), (b, "b", 16), (b2, "b2", 16)):
            part = Value.cast(queue.o).word_select(beat, lanes * bits)
            m.d.comb += Value.cast(o.payload[name]).eq(part)
