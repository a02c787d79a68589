"""Streaming LayerNorm and RMSNorm of int16 rows, bit-exact to ``golden.norm``.

Two phases, each at V features a cycle, linked by a ring buffer so that rows follow each other::

    i ─▶ A: sum, sum of squares ─▶ ring ─▶ B: normalise, gain, bias ─▶ o
                     └──▶ reciprocal of the deviation ──▶┘

No pipeline ever stalls: a beat is let in only if the buffer behind has a free place for it.
"""

from amaranth import Cat, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from systolith.hdl.layouts import PARAMETER
from systolith.hdl.norm_deviation import STEPS, InverseDeviation
from systolith.hdl.norm_lane import INVERSE_BITS, SHIFT_BITS, Affine, Normalise
from systolith.hdl.pipeline import Buffer, Credits, Ring, delay, tree, walk
from systolith.hdl.queue import Queue

BEAT_BITS = 12
ROWS_IN_FLIGHT = 16
"""Rows between the phases. At one row in ``STEPS`` cycles, more than the latency between them."""

ROW = data.StructLayout(
    {"length": 16, "beats": BEAT_BITS, "center": 1, "eps": 16, "eps_shift": 6, "wide": 1}
)
"""Descriptor of one row of features."""

_PARAMETER_DEPTH = 16
"""More than the cycles from the claim of a beat of parameters to its use."""
_OUTPUT_DEPTH = 32
"""More than phase B's latency and the way of a credit back."""


class Norm(wiring.Component):
    """LayerNorm or RMSNorm of rows of features, ``golden.norm`` to the last bit.

    A row enters as ``beats`` beats of V features and leaves as as many beats of V results, for
    which as many beats of parameters are consumed. The first ``length`` features are the row; the
    results beyond are 0.

    Throughput: V features a cycle, without a bubble between rows, but a row takes ``STEPS`` (4)
    cycles at least. Latency from the first beat in to the first beat out of a row of n beats:
    ``n + 34 + log2(V)`` cycles. Between them, the ring holds more than a row of the maximum length;
    beyond that, ``i`` waits for ``o``.

    Parameters
    ----------
    lanes : int
        V, a power of two from 2 to 32.
    max_features : int
        Longest row, a power of two from ``2 * lanes`` to 4096 (which stands for 4095).

    Members
    -------
    rows : in, stream of ``ROW``
        One descriptor a row: ``length`` (features, at least 1), ``beats`` (``length / lanes``
        rounded up, or more), ``center`` (LayerNorm, otherwise RMSNorm), epsilon ``eps <<
        eps_shift`` in units of length² input LSB² (the shift at most 38), ``wide`` (16-bit
        results, otherwise 8-bit).
    i : in, stream of V signed 16-bit features
    params : in, stream of V ``PARAMETER``
        A beat for each beat of ``o``: ``mult`` is the gain (int16), ``bias`` is int32, ``shift``
        0 to 63. The beats of a row are needed when it is normalised, not before.
    o : out, stream of V signed 16-bit results
    """

    def __init__(self, lanes: int, max_features: int) -> None:
        if lanes not in (2, 4, 8, 16, 32):
            raise ValueError(f"Lanes must be one of 2, 4, 8, 16, 32, not {lanes!r}")
        good = 2 * lanes <= max_features <= 4096 and max_features & (max_features - 1) == 0
        if not good:
            raise ValueError(
                f"Maximum features must be a power of two from {2 * lanes} to 4096, "
                f"not {max_features!r}"
            )
        self.lanes = lanes
        self.max_features = max_features
        self.count_bits = bits_for(min(max_features, 4095))
        self.total_bits = 16 + exact_log2(max_features)
        self.squares_bits = 31 + exact_log2(max_features)
        super().__init__(
            {
                "rows": In(stream.Signature(ROW)),
                "i": In(stream.Signature(data.ArrayLayout(signed(16), lanes))),
                "params": In(stream.Signature(data.ArrayLayout(PARAMETER, lanes))),
                "o": Out(stream.Signature(data.ArrayLayout(signed(16), lanes))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        depth = 1 << bits_for(self.max_features // self.lanes + 32 - 1)
        feature = data.StructLayout({"x": signed(16), "valid": 1})
        m.submodules.ring = Ring(data.ArrayLayout(feature, self.lanes), depth)
        info = data.StructLayout(
            {"beats": BEAT_BITS, "single": 1, "count": self.count_bits, "wide": 1}
        )
        m.submodules.info = _queue(info, registered=BEAT_BITS + 1)
        m.submodules.totals = _queue(signed(self.total_bits))
        m.submodules.inverses = _queue(
            data.StructLayout({"inverse": INVERSE_BITS, "shift": SHIFT_BITS})
        )
        self._accumulate(m)
        self._normalise(m, info)
        return m

    def _accumulate(self, m: Module) -> None:
        """Phase A: features into the ring; a row's sum and inverse into their queues."""
        v, log_v = self.lanes, exact_log2(self.lanes)
        ring, info = m.submodules.ring, m.submodules.info
        m.submodules.rows = rows = Buffer(data.StructLayout({"row": ROW, "single": 1}))
        row, single = rows.o.payload.row, rows.o.payload.single
        # What the end of a row needs: taken there, while phase B takes ``info``.
        epilogue = data.StructLayout(
            {"count": self.count_bits, "center": 1, "eps": 16, "eps_shift": 6}
        )
        m.submodules.epilogues = epilogues = _queue(epilogue)
        accept, index, first, last = walk(m, "a", row.beats, single)
        # The divider takes a row every STEPS cycles.
        cooling = Signal(STEPS - 1)
        m.d.sync += cooling.eq(Mux(accept & last, ~0, cooling >> 1))
        room = ring.available & (info.w_rdy | ~first) & ~(last & cooling[0])
        m.d.comb += [
            rows.i.payload.row.eq(self.rows.payload),
            rows.i.payload.single.eq(self.rows.payload.beats == 1),
            rows.i.valid.eq(self.rows.valid),
            self.rows.ready.eq(rows.i.ready),
            rows.o.ready.eq(accept & last),
            self.i.ready.eq(rows.o.valid & room),
            accept.eq(self.i.valid & self.i.ready),
            info.w_en.eq(accept & first),
            info.w_data.eq(Cat(row.beats, single, row.length[: self.count_bits], row.wide)),
            ring.claim.eq(accept),
            ring.write.eq(delay(m, accept, 1, "accept_w")),
        ]

        # A cycle later: whether a beat is accepted is known late, and the row's end is far.
        m.d.sync += [
            epilogues.w_en.eq(accept & first),
            epilogues.w_data.eq(
                Cat(row.length[: self.count_bits], row.center, row.eps, row.eps_shift)
            ),
        ]

        whole, part = row.length[log_v:], row.length[:log_v]
        features, squares = [], []
        for lane in range(v):
            word = Signal(ring.w_data[lane].shape(), name=f"word_{lane}", reset_less=True)
            valid = (index < whole) | ((index == whole) & (part > lane))
            m.d.sync += [word.valid.eq(valid), word.x.eq(Mux(valid, self.i.payload[lane], 0))]
            m.d.comb += ring.w_data[lane].eq(word)
            feature = Signal(signed(16), name=f"feature_{lane}", reset_less=True)
            square = Signal(31, name=f"square_{lane}", reset_less=True)
            m.d.sync += [feature.eq(word.x), square.eq(word.x * word.x)]
            features.append(feature)
            squares.append(square)
        sum_of_features = tree(m, features, lambda a, b: a + b, "sum")
        sum_of_squares = tree(m, squares, lambda a, b: a + b, "squares")
        first, last, accept = (
            delay(m, value, 2 + log_v, name)
            for value, name in ((first, "first_s"), (last, "last_s"), (accept, "accept_s"))
        )
        total = Signal(signed(self.total_bits), reset_less=True)
        squares_total = Signal(self.squares_bits, reset_less=True)
        done = Signal()
        m.d.sync += done.eq(accept & last)
        with m.If(accept):
            m.d.sync += [
                total.eq(Mux(first, 0, total) + sum_of_features),
                squares_total.eq(Mux(first, 0, squares_total) + sum_of_squares),
            ]

        m.submodules.deviation = deviation = InverseDeviation(
            self.count_bits, self.total_bits, self.squares_bits
        )
        ended = data.View(epilogue, epilogues.r_data)
        totals, inverses = m.submodules.totals, m.submodules.inverses
        m.d.comb += [
            epilogues.r_en.eq(done),
            deviation.start.eq(done),
            deviation.count.eq(ended.count),
            deviation.total.eq(Mux(ended.center, total, 0)),
            deviation.squares.eq(squares_total),
            deviation.eps.eq(ended.eps),
            deviation.eps_shift.eq(ended.eps_shift),
            totals.w_en.eq(done),
            totals.w_data.eq(deviation.total),
            inverses.w_en.eq(deviation.done),
            inverses.w_data.eq(Cat(deviation.inverse, deviation.shift)),
        ]

    def _normalise(self, m: Module, info_layout: data.StructLayout) -> None:
        """Phase B: the ring's features, normalised, times gain plus bias, to ``o``."""
        v = self.lanes
        ring, info = m.submodules.ring, m.submodules.info
        totals, inverses = m.submodules.totals, m.submodules.inverses
        m.submodules.results = results = Queue(16 * v, _OUTPUT_DEPTH)
        m.submodules.places = places = Credits(_OUTPUT_DEPTH)
        # Parameters wait here for their features, which are under way when they are claimed.
        kept = data.ArrayLayout(data.StructLayout({"bias": 32, "gain": 16, "shift": 6}), v)
        m.submodules.parameters = parameters = Queue(kept.size, _PARAMETER_DEPTH)
        m.submodules.claims = claims = Credits(_PARAMETER_DEPTH, 0)
        row = data.View(info_layout, info.r_data)
        accept, _, _, last = walk(m, "b", row.beats, row.single)
        needed = delay(m, accept, Normalise.LATENCY, "needed")
        m.d.comb += [
            accept.eq(inverses.r_rdy & places.available & claims.available),
            ring.read.eq(accept),
            info.r_en.eq(accept & last),
            totals.r_en.eq(accept & last),
            inverses.r_en.eq(accept & last),
            places.take.eq(accept),
            places.give.eq(self.o.valid & self.o.ready),
            claims.take.eq(accept),
            claims.give.eq(self.params.valid & self.params.ready),
            parameters.w_en.eq(self.params.valid),
            parameters.w_data.eq(
                Cat(
                    Cat(lane.bias, lane.mult, lane.shift[:6])
                    for lane in (self.params.payload[index] for index in range(v))
                )
            ),
            parameters.r_en.eq(needed),
            self.params.ready.eq(parameters.w_rdy),
            results.w_en.eq(delay(m, needed, 1 + Affine.LATENCY, "finished")),
            results.r_en.eq(self.o.ready),
            self.o.valid.eq(results.r_rdy),
            Value.cast(self.o.payload).eq(results.r_data),
        ]

        count = Signal(self.count_bits, reset_less=True)
        wide = Signal()
        total = Signal(signed(self.total_bits), reset_less=True)
        inverse = Signal(INVERSE_BITS, reset_less=True)
        shift = Signal(SHIFT_BITS, reset_less=True)
        m.d.sync += [
            count.eq(row.count),
            wide.eq(row.wide),
            total.eq(totals.r_data),
            Cat(inverse, shift).eq(inverses.r_data),
        ]
        wide = delay(m, wide, Normalise.LATENCY, "wide")
        parameter = Signal(kept, reset_less=True)
        m.d.sync += parameter.eq(parameters.r_data)
        for lane in range(v):
            m.submodules[f"normalise_{lane}"] = unit = Normalise(self.count_bits, self.total_bits)
            m.submodules[f"affine_{lane}"] = affine = Affine()
            word = ring.r_data[lane]
            m.d.comb += [
                unit.x.eq(word.x),
                unit.count.eq(count),
                unit.total.eq(total),
                unit.inverse.eq(inverse),
                unit.shift.eq(shift),
                affine.z.eq(unit.z),
                affine.gain.eq(parameter[lane].gain),
                affine.bias.eq(parameter[lane].bias),
                affine.shift.eq(parameter[lane].shift),
                affine.wide.eq(wide),
                affine.valid.eq(delay(m, word.valid, Normalise.LATENCY, f"valid_{lane}")),
                results.w_data.word_select(lane, 16).eq(affine.result),
            ]


def _queue(shape, *, registered: int = 0) -> Queue:
    return Queue(Shape.cast(shape).width, ROWS_IN_FLIGHT, registered=registered)
