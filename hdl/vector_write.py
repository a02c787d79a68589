"""The writer of the vector unit: beats of V lanes collected into blocks of D."""

from amaranth import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from systolith.config import Config
from systolith.hdl.layouts import WritePort, bits_for_rows, line, row
from systolith.hdl.row_walk import WALK, RowWalk

DESTINATION = data.StructLayout({"d": WALK, "wide": 1, "weight": 1})
"""Where blocks go. ``wide``: 16-bit, two rows of the activation memory, the first one even;
``weight``: to the weight memory (8-bit)."""


class VectorWrite(wiring.Component):
    """Collects D / V beats into a block and writes it, one write a block.

    A write is offered in the cycle after the last beat of its block. While a write waits, beats are
    taken until a further block is complete; ``i.ready`` comes straight from registers. Beats of the
    last start only are taken, from the cycle after it.

    Members
    -------
    i : in, stream of V 16-bit results
        The low bytes count if the destination is 8-bit.
    activation : write port of activation lines, may wait
    weight : write port of weight rows, may wait
    start : in, 1
        Takes ``destination``; only when ``finished``.
    destination : in, ``DESTINATION``
    finished : out, 1
        The last block has been written or is written in this cycle; low from the cycle after
        ``start`` until then.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(data.ArrayLayout(signed(16), config.lanes))),
                "activation": Out(
                    WritePort(
                        bits_for_rows(config.activation_rows) - 1, line(config), 2 * config.dim
                    )
                ),
                "weight": Out(
                    WritePort(bits_for_rows(config.weight_rows), row(config), config.dim)
                ),
                "start": In(1),
                "destination": In(DESTINATION),
                "finished": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        dim = self.config.dim
        wide, to_weight = Signal(), Signal()
        m.submodules.walk = walk = RowWalk()
        m.submodules.gathering = gathering = RowWalk()  # of which the address is not used
        block = Signal(16 * dim)
        complete = Signal()
        self._collect(m, block, complete)
        for each in (walk, gathering):
            m.d.comb += [each.start.eq(self.start), each.walk.eq(self.destination.d)]
        m.d.comb += gathering.next.eq(complete)

        # Two places: a write that is offered, and a block that completes while it waits.
        offered, spare = Signal(16 * dim, reset_less=True), Signal(16 * dim, reset_less=True)
        is_offered, is_spare = Signal(), Signal()
        written, ended = Signal(), Signal(init=1)
        m.d.comb += [
            self.i.ready.eq(gathering.valid & ~is_spare),
            self.finished.eq(ended | (written & walk.last)),
            written.eq(is_offered & Mux(to_weight, self.weight.ready, self.activation.ready)),
            walk.next.eq(written),
        ]
        with m.If(written | ~is_offered):
            m.d.sync += [
                offered.eq(Mux(is_spare, spare, block)),
                is_offered.eq(is_spare | complete),
                is_spare.eq(0),
            ]
        with m.Elif(complete):
            m.d.sync += [spare.eq(block), is_spare.eq(1)]

        with m.If(self.start):
            m.d.sync += [
                wide.eq(self.destination.wide),
                to_weight.eq(self.destination.weight),
                ended.eq(0),
            ]
        with m.Elif(written & walk.last):
            m.d.sync += ended.eq(1)

        low = Cat(offered.word_select(2 * lane, 8) for lane in range(dim))
        high = Cat(offered.word_select(2 * lane + 1, 8) for lane in range(dim))
        odd = walk.address[0]
        m.d.comb += [
            self.activation.en.eq(is_offered & ~to_weight),
            self.activation.addr.eq(walk.address[1:]),
            Value.cast(self.activation.data).eq(Cat(low, Mux(wide, high, low))),
            self.activation.mask.eq(
                Cat((wide | ~odd).replicate(dim), (wide | odd).replicate(dim))
            ),
            self.weight.en.eq(is_offered & to_weight),
            self.weight.addr.eq(walk.address),
            Value.cast(self.weight.data).eq(low),
            self.weight.mask.eq((1 << dim) - 1),
        ]
        return m

    def _collect(self, m: Module, block: Signal, complete: Signal) -> None:
        """``block`` is complete with the beat that is taken now."""
        beats = self.config.dim // self.config.lanes
        beat = Value.cast(self.i.payload)
        if beats == 1:
            m.d.comb += [block.eq(beat), complete.eq(self.i.valid & self.i.ready)]
            return
        count = Signal(ceil_log2(beats))
        earlier = Signal((beats - 1) * len(beat), reset_less=True)
        m.d.comb += [
            block.eq(Cat(earlier, beat)),
            complete.eq(self.i.valid & self.i.ready & (count == beats - 1)),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [count.eq(count + 1), earlier.eq(block[len(beat) :])]
