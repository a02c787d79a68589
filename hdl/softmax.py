"""Streaming softmax of int32 score rows, base 2, bit-exact to ``golden.softmax``.

Three phases, each at V elements a cycle, linked by ring buffers so that rows follow each other::

    i ─▶ A: scale, exp2, maximum ─▶ ring 1 ─▶ B: align, sum, invert ─▶ ring 2 ─▶ C: multiply ─▶ o

No pipeline ever stalls: a phase lets a beat in only if the buffer behind it has a free place, which
it claims at once. Rows much shorter than the pipelines therefore still flow at full rate.
"""

from amaranth import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from systolith import golden, tables
from systolith.hdl.pipeline import Buffer, Credits, Ring, delay, tree, walk
from systolith.hdl.queue import Queue
from systolith.hdl.rom import PiecewiseLinear
from systolith.hdl.softmax_lane import (
    DISTANCE_BITS,
    EXPONENT_BITS,
    INVERSE_BITS,
    MANTISSA_BITS,
    Exponential,
    Probability,
)

TERM_BITS = MANTISSA_BITS + golden.SUM_GUARD_BITS
BEAT_BITS = 12
ROWS_IN_FLIGHT = 32
"""Rows between two phases. More than the latency of a phase, so that rows of one beat flow."""

ROW = data.StructLayout({"limit": 16, "beats": BEAT_BITS, "mult": 16, "shift": 6, "wide": 1})
"""Descriptor of one row of scores."""

_OUTPUT_DEPTH = 16
"""More than phase C's latency and the way of a credit back."""

_INFO = data.StructLayout({"beats": BEAT_BITS, "single": 1, "wide": 1})
"""What the later phases know of a row; ``single``: it has one beat."""


class Softmax(wiring.Component):
    """Softmax of rows of scores, ``golden.softmax`` to the last bit.

    A row enters as ``beats`` beats of V scores and leaves as as many beats of V probabilities.
    The first ``limit`` scores take part; the results at and beyond the limit are 0.

    Throughput: V elements a cycle, without a bubble between rows. Latency from the first beat in
    to the first beat out of a row of n beats: ``2 * n + 29 + log2(V)`` cycles. Between them, the
    rings hold more than two rows of the maximum length; beyond that, and beyond
    ``ROWS_IN_FLIGHT`` short rows, ``i`` waits for ``o``. A row that pauses in the middle of ``i``
    holds up only the rows behind it.

    Parameters
    ----------
    lanes : int
        V, a power of two from 2 to 32.
    max_length : int
        Longest row, a power of two from ``2 * lanes`` to 4096.

    Members
    -------
    rows : in, stream of ``ROW``
        One descriptor a row: ``limit`` (1 to the row's length), ``beats`` (1 to
        ``max_length / lanes``), ``mult`` and ``shift`` (score to base-2 exponent with 16 fraction
        bits), ``wide`` (16-bit results, scale 1/65535; otherwise 8-bit, scale 1/255).
    i : in, stream of V signed 32-bit scores
    o : out, stream of V unsigned 16-bit probabilities
    """

    def __init__(self, lanes: int, max_length: int) -> None:
        if lanes not in (2, 4, 8, 16, 32):
            raise ValueError(f"Lanes must be one of 2, 4, 8, 16, 32, not {lanes!r}")
        good = 2 * lanes <= max_length <= 4096 and max_length & (max_length - 1) == 0
        if not good:
            raise ValueError(
                f"Maximum length must be a power of two from {2 * lanes} to 4096, "
                f"not {max_length!r}"
            )
        self.lanes = lanes
        self.max_length = max_length
        super().__init__(
            {
                "rows": In(stream.Signature(ROW)),
                "i": In(stream.Signature(data.ArrayLayout(signed(32), lanes))),
                "o": Out(stream.Signature(data.ArrayLayout(unsigned(16), lanes))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        v = self.lanes
        # Both rings hold the longest row and what the pipelines around them hold.
        depth = 1 << bits_for(self.max_length // v + 32 - 1)
        exponents = data.StructLayout(
            {"mantissa": MANTISSA_BITS, "exponent": signed(EXPONENT_BITS), "valid": 1}
        )
        distances = data.StructLayout(
            {"mantissa": MANTISSA_BITS, "distance": DISTANCE_BITS, "valid": 1}
        )
        m.submodules.ring_1 = Ring(data.ArrayLayout(exponents, v), depth)
        m.submodules.ring_2 = Ring(data.ArrayLayout(distances, v), depth)
        # Descriptors travel ahead of their rows; the row's result of a phase follows its end.
        m.submodules.info_1 = Queue(_INFO, ROWS_IN_FLIGHT, registered=_INFO.size)
        m.submodules.info_2 = Queue(_INFO, ROWS_IN_FLIGHT, registered=_INFO.size)
        m.submodules.tops = Queue(EXPONENT_BITS, ROWS_IN_FLIGHT)
        self._scale(m)
        total, done = self._align(m)
        self._invert(m, total, done)
        self._multiply(m)
        return m

    def _scale(self, m: Module) -> None:
        """Phase A: exponentials into ring 1, the largest exponent of each row into ``tops``."""
        v, log_v = self.lanes, exact_log2(self.lanes)
        ring, info, tops = m.submodules.ring_1, m.submodules.info_1, m.submodules.tops
        # Two descriptors, so that a row can begin right after the last beat of the one before.
        m.submodules.rows = queue = Buffer(data.StructLayout({"row": ROW, "single": 1}))
        row, single = queue.o.payload.row, queue.o.payload.single
        m.d.comb += [
            queue.i.payload.row.eq(self.rows.payload),
            queue.i.payload.single.eq(self.rows.payload.beats == 1),
            queue.i.valid.eq(self.rows.valid),
            self.rows.ready.eq(queue.i.ready),
        ]
        accept, index, first, last = walk(m, "a", row.beats, single)
        m.d.comb += [
            self.i.ready.eq(queue.o.valid & ring.available & (info.w_rdy | ~first)),
            accept.eq(self.i.valid & self.i.ready),
            queue.o.ready.eq(accept & last),
            ring.claim.eq(accept),
            info.w_en.eq(accept & first),
            info.w_data.eq(Cat(row.beats, single, row.wide)),
        ]
        mask = Signal(v)
        whole, part = row.limit[log_v:], row.limit[:log_v]
        for lane in range(v):
            m.d.sync += mask[lane].eq((index < whole) | ((index == whole) & (part > lane)))
        mask_early = delay(m, mask, Exponential.EARLY - 1, "mask_a")
        mask_late = delay(m, mask_early, PiecewiseLinear.LATENCY, "mask_b")
        accept_early = delay(m, accept, Exponential.EARLY, "accept_a")
        accept_late = delay(m, accept_early, PiecewiseLinear.LATENCY, "accept_b")
        m.d.comb += ring.write.eq(accept_late)

        lowest = Const(-(1 << (EXPONENT_BITS - 1)), signed(EXPONENT_BITS))
        candidates = []
        for lane in range(v):
            m.submodules[f"exponential_{lane}"] = unit = Exponential()
            m.d.comb += [
                unit.score.eq(self.i.payload[lane]),
                unit.mult.eq(row.mult),
                unit.shift.eq(row.shift),
                ring.w_data[lane].mantissa.eq(unit.mantissa),
                ring.w_data[lane].exponent.eq(unit.exponent),
                ring.w_data[lane].valid.eq(mask_late[lane]),
            ]
            candidate = Signal(signed(EXPONENT_BITS), name=f"candidate_{lane}")
            m.d.comb += candidate.eq(Mux(mask_early[lane], unit.early_exponent, lowest))
            candidates.append(candidate)
        largest = tree(m, candidates, lambda a, b: Mux(a > b, a, b), "largest")
        # The row's maximum must not overtake the row's last beat on its way into the ring.
        settle = max(PiecewiseLinear.LATENCY - 1 - log_v, 0)
        largest = delay(m, largest, settle, "settled")
        cycles = Exponential.EARLY + log_v + settle
        first, last, accept = (
            delay(m, value, cycles, name)
            for value, name in ((first, "first_a"), (last, "last_a"), (accept, "accept_c"))
        )
        top = Signal(signed(EXPONENT_BITS))
        with m.If(accept & (first | (largest > top))):
            m.d.sync += top.eq(largest)
        m.d.sync += tops.w_en.eq(accept & last)
        m.d.comb += tops.w_data.eq(top)

    def _align(self, m: Module) -> tuple[Signal, Signal]:
        """Phase B: distances into ring 2; returns each row's sum and the strobe that it is done."""
        v, log_v = self.lanes, exact_log2(self.lanes)
        source, target = m.submodules.ring_1, m.submodules.ring_2
        info, info_2, tops = m.submodules.info_1, m.submodules.info_2, m.submodules.tops
        accept, _, first, last = walk(m, "b", info.r_data.beats, info.r_data.single)
        m.d.comb += [
            accept.eq(tops.r_rdy & target.available & (info_2.w_rdy | ~first)),
            source.read.eq(accept),
            target.claim.eq(accept),
            tops.r_en.eq(accept & last),
            info.r_en.eq(accept & last),
            info_2.w_en.eq(accept & first),
            info_2.w_data.eq(info.r_data),
            target.write.eq(delay(m, accept, 3, "accept_d")),
        ]
        # A block RAM answers late in the cycle: its word is registered before the subtraction.
        words = Signal.like(source.r_data, reset_less=True)
        m.d.sync += words.eq(source.r_data)
        top = delay(m, tops.r_data, 2, "top").as_signed()
        terms = []
        for lane in range(v):
            word = words[lane]
            gap = Signal(signed(EXPONENT_BITS + 1), name=f"gap_{lane}")
            aligned = Signal(target.w_data[lane].shape(), name=f"aligned_{lane}")
            far = gap[DISTANCE_BITS:].any()  # or negative: then the lane takes no part
            m.d.comb += [gap.eq(top - word.exponent), target.w_data[lane].eq(aligned)]
            m.d.sync += [
                aligned.mantissa.eq(word.mantissa),
                aligned.distance.eq(Mux(far, golden.MAX_EXPONENT, gap[:DISTANCE_BITS])),
                aligned.valid.eq(word.valid),
            ]
            term = Signal(TERM_BITS, name=f"term_{lane}", reset_less=True)
            shifted = (aligned.mantissa << golden.SUM_GUARD_BITS) >> aligned.distance
            m.d.sync += term.eq(Mux(aligned.valid, shifted, 0))
            terms.append(term)
        beat_sum = tree(m, terms, lambda a, b: a + b, "sum")
        first, last, accept = (
            delay(m, value, 4 + log_v, name)
            for value, name in ((first, "first_b"), (last, "last_b"), (accept, "accept_e"))
        )
        # Below max_length * 2**TERM_BITS, so no carry is lost.
        total = Signal(TERM_BITS + exact_log2(self.max_length), reset_less=True)
        done = Signal()
        with m.If(accept):
            m.d.sync += total.eq(Mux(first, 0, total) + beat_sum)
        m.d.sync += done.eq(accept & last)
        return total, done

    def _invert(self, m: Module, total: Signal, done: Signal) -> None:
        """Once a row: the sum's mantissa, rounded to 20 bits, and its reciprocal: ``inverses``."""
        # The largest term has its top bit set, so the sum has at least TERM_BITS bits.
        excess_max = exact_log2(self.max_length)
        excess = Signal(range(excess_max + 1))
        total_1 = Signal.like(total, reset_less=True)
        m.d.sync += [total_1.eq(total), excess.eq(0)]
        for position in range(1, excess_max + 1):
            with m.If(total[TERM_BITS - 1 + position]):
                m.d.sync += excess.eq(position)
        t = Signal(21)
        rounded = Signal(21)
        m.d.sync += [
            t.eq(total_1[TERM_BITS - 21 :] >> excess),
            rounded.eq((t + 1) >> 1),
        ]
        # A carry out of the rounding leaves zeros behind: the same mantissa, one bit longer.
        m.submodules.reciprocal = reciprocal = PiecewiseLinear(tables.reciprocal())
        m.d.comb += [reciprocal.segment.eq(rounded[10:19]), reciprocal.fraction.eq(rounded[:10])]
        length = Signal(range(excess_max + 2))
        m.d.comb += length.eq(delay(m, excess, 2, "excess") + rounded[20])

        m.submodules.inverses = inverses = Queue(INVERSE_BITS + len(length), ROWS_IN_FLIGHT)
        m.d.comb += [
            inverses.w_data.eq(
                Cat(reciprocal.value, delay(m, length, reciprocal.LATENCY, "length"))
            ),
            inverses.w_en.eq(delay(m, done, 3 + reciprocal.LATENCY, "done")),
        ]

    def _multiply(self, m: Module) -> None:
        """Phase C: mantissas of ring 2 times the reciprocal, rounded, to ``o``."""
        source, info = m.submodules.ring_2, m.submodules.info_2
        inverses = m.submodules.inverses
        m.submodules.results = output = Queue(
            len(Value.cast(self.o.payload)), _OUTPUT_DEPTH
        )
        m.submodules.places = places = Credits(_OUTPUT_DEPTH)
        row = info.r_data
        accept, _, _, last = walk(m, "c", row.beats, row.single)
        m.d.comb += [
            accept.eq(inverses.r_rdy & places.available),
            source.read.eq(accept),
            inverses.r_en.eq(accept & last),
            info.r_en.eq(accept & last),
            places.take.eq(accept),
            places.give.eq(self.o.valid & self.o.ready),
            output.w_en.eq(delay(m, accept, 1 + Probability.LATENCY, "accept_f")),
            Value.cast(self.o.payload).eq(output.r_data),
            self.o.valid.eq(output.r_rdy),
            output.r_en.eq(self.o.ready),
        ]
        inverse = Signal(INVERSE_BITS)
        offset = Signal(range(exact_log2(self.max_length) + 1 + 8 + 1))
        wide = Signal()
        m.d.sync += [
            inverse.eq(inverses.r_data[:INVERSE_BITS]),
            offset.eq(inverses.r_data[INVERSE_BITS:] + Mux(row.wide, 0, 8)),
            wide.eq(row.wide),
        ]
        for lane in range(self.lanes):
            m.submodules[f"probability_{lane}"] = unit = Probability(len(offset))
            m.d.comb += [
                unit.mantissa.eq(source.r_data[lane].mantissa),
                unit.distance.eq(source.r_data[lane].distance),
                unit.valid.eq(source.r_data[lane].valid),
                unit.inverse.eq(inverse),
                unit.offset.eq(offset),
                unit.wide.eq(wide),
                output.w_data.word_select(lane, 16).eq(unit.result),
            ]
