"""The address generator of the vector unit: rows of blocks in a local memory."""

from amaranth import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

ADDRESS_BITS = 20

WALK = data.StructLayout(
    {"base": ADDRESS_BITS, "stride": 12, "rows": 12, "blocks": 12, "step": 3, "period": 8}
)
"""Block f of row m is at ``base + m * stride + (f mod period) * step``; period 0: no modulus."""


class RowWalk(wiring.Component):
    """Visits the blocks of rows in order: row by row, and block by block within a row.

    Members
    -------
    start : in, 1
        Takes ``walk`` and begins, in the next cycle, with its first block.
    walk : in, ``WALK``
    next : in, 1
        Goes on to the next block; ignored while ``valid`` is low.
    address : out, unsigned 20
        Of the current block.
    last : out, 1
        The current block is the last one of the last row.
    valid : out, 1
        There is a current block.
    """

    start: In(1)
    walk: In(WALK)
    next: In(1)
    address: Out(ADDRESS_BITS)
    last: Out(1)
    valid: Out(1)

    def elaborate(self, platform) -> Module:
        m = Module()
        walk = Signal(WALK, reset_less=True)
        row = Signal(ADDRESS_BITS, reset_less=True)
        rows_left = Signal(12, reset_less=True)
        blocks_left = Signal(12, reset_less=True)
        phase = Signal(8, reset_less=True)

        # Registers, each found a step ahead: of a single block or row, and of the present one.
        one_block, row_ends = Signal(reset_less=True), Signal(reset_less=True)
        one_period, period_ends = Signal(reset_less=True), Signal(reset_less=True)
        last_row = Signal(reset_less=True)
        next_row = Signal(ADDRESS_BITS)
        m.d.comb += [
            next_row.eq(row + walk.stride),
            self.last.eq(row_ends & last_row),
        ]
        with m.If(self.start):
            m.d.sync += [
                walk.eq(self.walk),
                row.eq(self.walk.base),
                self.address.eq(self.walk.base),
                rows_left.eq(self.walk.rows),
                blocks_left.eq(self.walk.blocks),
                phase.eq(0),
                one_block.eq(self.walk.blocks == 1),
                row_ends.eq(self.walk.blocks == 1),
                one_period.eq(self.walk.period == 1),
                period_ends.eq(self.walk.period == 1),
                last_row.eq(self.walk.rows == 1),
                self.valid.eq(1),
            ]
        with m.Elif(self.next & self.valid):
            with m.If(row_ends):
                m.d.sync += [
                    self.valid.eq(~self.last),
                    row.eq(next_row),
                    self.address.eq(next_row),
                    rows_left.eq(rows_left - 1),
                    blocks_left.eq(walk.blocks),
                    phase.eq(0),
                    row_ends.eq(one_block),
                    period_ends.eq(one_period),
                    last_row.eq(rows_left == 2),
                ]
            with m.Else():
                m.d.sync += [
                    self.address.eq(Mux(period_ends, row, self.address + walk.step)),
                    blocks_left.eq(blocks_left - 1),
                    phase.eq(Mux(period_ends, 0, phase + 1)),
                    row_ends.eq(blocks_left == 2),
                    # 9 bits: never equal to 0
                    period_ends.eq(Mux(period_ends, one_period, phase + 2 == walk.period)),
                ]
        return m
