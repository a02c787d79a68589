"""Systolic array: D x D processing elements, skewed on the way in, deskewed on the way out."""

from amaranth import Module, Signal, signed, unsigned
from amaranth.hdl import Shape, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from systolith.hdl.pe import ACTIVATION, WEIGHT, ProcessingElement, sum_bits


def index_bits(dim: int, ports: int) -> int:
    """Bits of the index of a row among those of its weight port."""
    return max((dim // ports - 1).bit_length(), 1)


class SystolicArray(wiring.Component):
    """Weight-stationary matrix product: ``sums[c] = sum over r of activations[r] * weight[r, c]``.

    One row of D activations a cycle in, one row of D exact sums a cycle out, no back-pressure. The
    sums of a row presented in cycle t are in ``sums`` in cycle ``t + latency``, ``latency`` being
    2 D + 1 (an input register, D - 1 cycles across the columns, D down the rows, one for the
    product). The array does not know which rows count: the user delays a flag by ``latency``.

    A tile of weights enters row by row, in any order, all D of them. In row entry row j, lane i
    becomes the weight of contraction index j and output i; with ``columns`` that of contraction
    index i and output j. The tile counts for the activations presented after ``swap``, which may
    come in the same cycle as the last row of the tile before. Weights, activations and swaps travel
    with the same wavefront, and reach element (r, c) after r + c cycles: row j of a tile must come
    j cycles after the swap of the tile before at the earliest (it replaces what that swap takes),
    and less than j cycles after its own swap.

    Each of the W weight ports brings one row a cycle at most: port p rows p D / W to (p + 1) D / W
    - 1. With row j in cycle t + j, ``swap`` may come in any cycle from t + 1 on, and row 0 of the
    next tile from the cycle of ``swap`` or from t + D / W on, whichever is later: port 0 begins
    with it while the other ports still bring this one.

    Members
    -------
    activations : in, D x signed(9)
    weights : in, W x D x signed(8)
    sums : out, D x signed(17 + log2 D)
    load : in, W
        Of each port: ``weights`` holds a row of the coming tile.
    index : in, W x log2(D / W), at least 1 bit each
        Which one of the rows of the port.
    columns : in, W
    swap : in, 1
    """

    def __init__(self, dim: int, ports: int = 1) -> None:
        if dim not in (4, 8, 16, 32):
            raise ValueError(f"Dim must be one of 4, 8, 16, 32, not {dim!r}")
        if ports not in (1, 2, 4):
            raise ValueError(f"Ports must be one of 1, 2, 4, not {ports!r}")
        self.dim = dim
        self.ports = ports
        self.latency = 2 * dim + 1
        self.sum_shape = signed(sum_bits(dim))
        super().__init__(
            {
                "activations": In(data.ArrayLayout(ACTIVATION, dim)),
                "weights": In(data.ArrayLayout(data.ArrayLayout(WEIGHT, dim), ports)),
                "sums": Out(data.ArrayLayout(self.sum_shape, dim)),
                "load": In(ports),
                "index": In(data.ArrayLayout(index_bits(dim, ports), ports)),
                "columns": In(ports),
                "swap": In(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        dim = self.dim
        port_rows = dim // self.ports

        def delay(value: Value, shape: Shape, cycles: int, *, reset: bool = False) -> Value:
            for _ in range(cycles):
                stage = Signal(shape, reset_less=not reset)
                m.d.sync += stage.eq(value)
                value = stage
            return value

        # A capture token enters with its row of weights and follows the wavefront: along array row
        # j in row entry, down array column j in column entry. No element compares an index.
        rows = [Signal(name=f"load_row_{j}") for j in range(dim)]
        columns = [Signal(name=f"load_column_{j}") for j in range(dim)]
        for j in range(dim):
            port = j // port_rows
            chosen = self.load[port] & (self.index[port] == j % port_rows)
            m.d.sync += [
                rows[j].eq(chosen & ~self.columns[port]),
                columns[j].eq(chosen & self.columns[port]),
            ]

        lanes = range(dim)
        activations = [delay(self.activations[i], ACTIVATION, i + 1) for i in lanes]
        buses = [
            [delay(self.weights[port][i], WEIGHT, i + 1) for i in lanes]
            for port in range(self.ports)
        ]
        swaps = [delay(self.swap, unsigned(1), 1, reset=True)]
        for _ in range(dim - 1):
            swaps.append(delay(swaps[-1], unsigned(1), 1, reset=True))

        above: list[ProcessingElement] = []
        for r in lanes:
            line: list[ProcessingElement] = []
            for c in lanes:
                m.submodules[f"pe_{r}_{c}"] = pe = ProcessingElement(r + 1)
                left = line[-1] if line else None
                m.d.comb += [
                    pe.activation.eq(left.activation_out if left else activations[r]),
                    pe.swap.eq(left.swap_out if left else swaps[r]),
                    pe.capture_column.eq(left.capture_column_out if left else rows[r]),
                    pe.capture_row.eq(above[c].capture_row_out if above else columns[c]),
                    pe.sum_in.eq(above[c].sum_out if above else 0),
                    pe.weight_column.eq(buses[r // port_rows][c]),
                    pe.weight_row.eq(buses[c // port_rows][r]),
                ]
                line.append(pe)
            above = line
        for c in lanes:
            m.d.comb += self.sums[c].eq(delay(above[c].sum_out, self.sum_shape, dim - 1 - c))
        return m
