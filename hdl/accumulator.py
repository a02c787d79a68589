"""Accumulator memory: adds rows of sums to int32 rows, while another unit reads the other half."""

from itertools import pairwise

from amaranth import Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from systolith.config import Config
from systolith.hdl.layouts import ReadPort, acc_row, bits_for_rows


def minimum_pass(config: Config) -> int:
    """Cycles that a pass takes at least, so that updates of a row are far enough apart."""
    return 4 if config.weight_ports == 1 else 2


class Accumulator(wiring.Component):
    """Two banks of D x int32 rows; the top address bit selects the bank.

    One update a cycle, never refused: its address comes ``LEAD`` = 2 cycles before its sums. Lanes
    in ``lanes`` become ``(overwrite ? 0 : old) + (sums << (shift ? 8 : 0))`` modulo 2**32, the
    others keep what they hold. An update presented (with its address) in cycle t is written in
    cycle ``t + WRITE``, with ``wrote`` high, and seen by reads accepted from ``t + WRITE + 1`` on,
    be they updates' own reads or the reader's. Updates of one row must therefore be ``distance``
    cycles apart or more, unless the later one overwrites: 4 with one weight port. With more, where
    a tile of few rows would wait for it, results are forwarded to updates that come two or three
    cycles later, and it is 2.

    The reader shares the banks' read ports. ``read.ready`` is low in a cycle in which an update
    that does not overwrite reads the bank of ``read.addr`` (combinational from ``read.addr`` and
    from the update); otherwise the reader may read a row every cycle. A row that is read in the
    cycle of its write is not defined.

    Members
    -------
    address : in
        Row of the update.
    sums : in, D x ``sum_shape``
        Sums of the update whose address came two cycles before.
    valid : in, 1
    overwrite, shift : in, 1
        With the address.
    lanes : in, D
        With the address: the lanes that are written.
    read : read port, D x signed(32)
    wrote : out, 1
    """

    LEAD = 2
    WRITE = 3

    def __init__(self, config: Config, sum_shape: Shape) -> None:
        if not sum_shape.signed or sum_shape.width > 32:
            raise ValueError(f"Sum shape must be signed, of at most 32 bits, not {sum_shape!r}")
        self.config = config
        self.distance = minimum_pass(config)
        self.bits = bits_for_rows(config.accumulator_rows)
        super().__init__(
            {
                "address": In(self.bits),
                "sums": In(data.ArrayLayout(sum_shape, config.dim)),
                "valid": In(1),
                "overwrite": In(1),
                "shift": In(1),
                "lanes": In(config.dim),
                "read": In(ReadPort(self.bits, acc_row(config))),
                "wrote": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        dim, shape = self.config.dim, acc_row(self.config)
        stages = range(self.WRITE + 1)  # stage 0 is the address phase

        valid = [self.valid, *(Signal(name=f"valid_{i}") for i in stages[1:])]
        address = [self.address, *(Signal(self.bits, name=f"address_{i}") for i in stages[1:])]
        lanes = [self.lanes, *(Signal(dim, name=f"lanes_{i}") for i in stages[1:])]
        overwrite = Signal()
        shift = [self.shift, *(Signal(name=f"shift_{i}") for i in stages[1:3])]
        for pipe in (valid, address, lanes, shift):
            m.d.sync += [after.eq(before) for before, after in pairwise(pipe)]
        m.d.sync += overwrite.eq(self.overwrite)

        update_reads, update_bank = Signal(), Signal()
        m.d.comb += [
            update_reads.eq(self.valid & ~self.overwrite),
            update_bank.eq(self.address[-1]),
            self.read.ready.eq(~(update_reads & (update_bank == self.read.addr[-1]))),
        ]
        result = Signal(shape, reset_less=True)
        rows = []
        for bank in range(2):
            # Without the attribute Yosys spends a row of registers to define reads during writes.
            memory = Memory(
                shape=shape,
                depth=self.config.accumulator_rows // 2,
                init=[],
                attrs={"no_rw_check": 1, "ram_style": "block"},
            )
            m.submodules[f"bank_{bank}"] = memory
            reader, writer = memory.read_port(), memory.write_port(granularity=1)
            updated = Signal(name=f"updated_{bank}")
            m.d.comb += [
                updated.eq(update_reads & (update_bank == bank)),
                reader.addr.eq(Mux(updated, self.address[:-1], self.read.addr[:-1])),
                reader.en.eq(updated | (self.read.en & (self.read.addr[-1] == bank))),
                writer.addr.eq(address[-1][:-1]),
                writer.data.eq(result),
            ]
            with m.If(valid[-1] & (address[-1][-1] == bank)):
                m.d.comb += writer.en.eq(lanes[-1])
            rows.append(reader.data)

        read_bank = Signal()
        m.d.sync += read_bank.eq(self.read.addr[-1])
        old = Signal(shape, reset_less=True)
        m.d.comb += self.wrote.eq(valid[-1])
        forwarded = self._forward(m, valid, address, lanes, result) if self.distance == 2 else None
        for i in range(dim):
            m.d.comb += self.read.data[i].eq(Mux(read_bank, rows[1][i], rows[0][i]))
            # Zero by the register's own reset: no gate between the block RAM and the register.
            held = Mux(address[1][-1], rows[1][i], rows[0][i])
            if forwarded is not None:
                held = Mux(forwarded[i].valid, forwarded[i].value, held)
            m.d.sync += old[i].eq(held)
            with m.If(overwrite):
                m.d.sync += old[i].eq(0)
            addend = Signal(signed(32), name=f"addend_{i}")
            m.d.comb += addend.eq(Mux(shift[2], self.sums[i] << 8, self.sums[i]))
            m.d.sync += result[i].eq(old[i] + addend)
        return m

    def _forward(
        self,
        m: Module,
        valid: list[Signal],
        address: list[Signal],
        lanes: list[Signal],
        result: data.View,
    ) -> data.View:
        """For each lane the result that memory does not give yet to the update in stage 1.

        The update two cycles ahead is in its last stage then, the one three cycles ahead is past
        it. Rows are compared a cycle before, so that the comparison is not in the way.
        """
        dim = self.config.dim
        lane = data.StructLayout({"value": signed(32), "valid": 1})
        forwarded = Signal(data.ArrayLayout(lane, dim))
        near, far = Signal(), Signal()
        past, past_lanes = Signal(result.shape(), reset_less=True), Signal(dim)
        m.d.sync += [
            near.eq(valid[2] & (address[0] == address[2])),
            far.eq(valid[3] & (address[0] == address[3])),
            Value.cast(past).eq(Value.cast(result)),
            past_lanes.eq(lanes[3]),
        ]
        for i in range(dim):
            from_near, from_far = near & lanes[3][i], far & past_lanes[i]
            m.d.comb += [
                forwarded[i].value.eq(Mux(from_near, result[i], past[i])),
                forwarded[i].valid.eq(from_near | from_far),
            ]
        return forwarded
