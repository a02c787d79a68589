"""The row descriptors that softmax and norm want, from the fields of an instruction."""

from amaranth import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

ROWS = data.StructLayout({"rows": 12, "value": 16, "step": 16, "group": 8})
"""The value of row m is ``value + m // max(group, 1) * step``."""


class VectorRows(wiring.Component):
    """Streams the value of each row: what is different from row to row in a descriptor.

    Members
    -------
    o : out, stream of unsigned 16
        One item a row, from the cycle after ``start``.
    start : in, 1
        Takes ``rows``; only when all rows of the previous start have been taken.
    rows : in, ``ROWS``
    """

    o: Out(stream.Signature(16))
    start: In(1)
    rows: In(ROWS)

    def elaborate(self, platform) -> Module:
        m = Module()
        rows = Signal(ROWS)
        left = Signal(12)
        in_group = Signal(8)
        with m.If(self.start):
            m.d.sync += [
                rows.eq(self.rows),
                left.eq(self.rows.rows),
                in_group.eq(1),
                self.o.payload.eq(self.rows.value),
                self.o.valid.eq(1),
            ]
        with m.Elif(self.o.valid & self.o.ready):
            ends = Signal()
            m.d.comb += ends.eq(in_group >= rows.group)
            m.d.sync += [
                left.eq(left - 1),
                in_group.eq(Mux(ends, 1, in_group + 1)),
                self.o.valid.eq(left != 1),
            ]
            with m.If(ends):
                m.d.sync += self.o.payload.eq(self.o.payload + rows.step)
        return m
