"""Processing element: one multiplier, the weight at work and the weight that comes next."""

from amaranth import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

ACTIVATION = signed(9)
"""An activation byte of either kind: -128..127 or 0..255."""
WEIGHT = signed(8)
PRODUCT_BITS = 17


def sum_bits(terms: int) -> int:
    """Bits of a signed sum of ``terms`` products (1 for no term: the constant 0)."""
    return PRODUCT_BITS + (terms - 1).bit_length() if terms else 1


class ProcessingElement(wiring.Component):
    """Adds ``activation * weight`` to the partial sum that passes through; exact.

    ``terms`` is the number of products in ``sum_out``: the element's row, counted from 1. An
    activation seen in cycle t is multiplied by the weight at work in t, added to ``sum_in`` of
    t + 1, and in ``sum_out`` of t + 2. One activation a cycle, no back-pressure.

    ``swap`` in cycle t makes the shadow weight the one at work from t + 1 on: it comes one cycle
    before the first activation of a tile, beside the last one of the tile before. A capture in
    cycle t is in the shadow weight from t + 1 on; a swap in the same cycle still takes the old one.

    Members
    -------
    activation, sum_in : in, signed
        From the left neighbour, from the upper neighbour.
    weight_row, weight_column : in, signed(8)
        The weight buses of this element's row and column.
    activation_out, sum_out : out, signed
        To the right neighbour one cycle later, to the lower neighbour.
    capture_column, capture_row : in, 1
        The shadow weight is on the column bus (row entry), on the row bus (column entry).
    swap : in, 1
    capture_column_out, capture_row_out, swap_out : out, 1
        Passed on a cycle later: to the right, downwards, to the right.
    """

    def __init__(self, terms: int) -> None:
        if not isinstance(terms, int) or terms < 1:
            raise ValueError(f"Terms must be a positive integer, not {terms!r}")
        self.terms = terms
        super().__init__(
            {
                "activation": In(ACTIVATION),
                "sum_in": In(signed(sum_bits(terms - 1))),
                "weight_row": In(WEIGHT),
                "weight_column": In(WEIGHT),
                "activation_out": Out(ACTIVATION),
                "sum_out": Out(signed(sum_bits(terms))),
                "capture_column": In(1),
                "capture_row": In(1),
                "swap": In(1),
                "capture_column_out": Out(1),
                "capture_row_out": Out(1),
                "swap_out": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        # Data needs no reset: tokens decide what counts, and they have one.
        activation = Signal(ACTIVATION, reset_less=True)
        product = Signal(signed(PRODUCT_BITS), reset_less=True)
        total = Signal.like(self.sum_out, reset_less=True)
        weight = Signal(WEIGHT, reset_less=True)
        shadow = Signal(WEIGHT, reset_less=True)
        m.d.sync += [
            activation.eq(self.activation),
            product.eq(self.activation * weight),
            total.eq(self.sum_in + product),
            self.capture_column_out.eq(self.capture_column),
            self.capture_row_out.eq(self.capture_row),
            self.swap_out.eq(self.swap),
        ]
        with m.If(self.capture_column | self.capture_row):
            m.d.sync += shadow.eq(Mux(self.capture_column, self.weight_column, self.weight_row))
        with m.If(self.swap):
            m.d.sync += weight.eq(shadow)
        m.d.comb += [self.activation_out.eq(activation), self.sum_out.eq(total)]
        return m
