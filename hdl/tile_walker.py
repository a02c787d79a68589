"""Tile walker: the tiles of a matmul instruction, one after the other, without a multiplier."""

from amaranth import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from systolith.config import Config
from systolith.hdl.layouts import COMMAND, bits_for_rows, operand


def tile_layout(config: Config) -> data.StructLayout:
    """A tile of stationary weights, and the rows to stream through it."""
    activation_bits = bits_for_rows(config.activation_rows)
    accumulator_bits = bits_for_rows(config.accumulator_rows)
    return data.StructLayout(
        {
            "weight": bits_for_rows(config.weight_rows),
            "columns": 1,
            "act": activation_bits,
            "act_stride": activation_bits,
            "rows": 16,
            "wide": 1,
            "signed": 1,
            "acc": accumulator_bits,
            "acc_stride": accumulator_bits,
            "overwrite": 1,
            "lanes_in": config.dim,
            "lanes_out": config.dim,
            "last": 1,
        }
    )


class TileWalker(wiring.Component):
    """Turns an instruction into its tiles, n outer, k inner.

    The first tile is offered in the cycle after the command's transfer, the following ones in the
    cycle after the transfer of the one before; the next command is accepted in the cycle after the
    transfer of the last tile. A tile count of 0 means 4096.

    Members
    -------
    commands : stream of ``COMMAND``, all of them ``matmul``
    tiles : stream of ``tile_layout``
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "commands": In(stream.Signature(COMMAND)),
                "tiles": Out(stream.Signature(tile_layout(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        tile = self.tiles.payload
        weight_bits, act_bits, acc_bits = tile.weight.shape(), tile.act.shape(), tile.acc.shape()

        # Sizes and strides of the instruction; addresses of the present tile.
        k_tiles, k_left, n_left = Signal(12), Signal(12), Signal(12)
        stride_n, stride_k = Signal(weight_bits), Signal(weight_bits)
        act_stride, acc_stride = Signal(act_bits), Signal(acc_bits)
        rows = Signal(16, reset_less=True)
        columns, wide, is_signed, accumulate = Signal(), Signal(), Signal(), Signal()
        block = Signal(range(3))  # rows from one block to the next
        mask_in, mask_out, group_log2, group = Signal(), Signal(), Signal(4), Signal(8)
        act_first, act = Signal(act_bits), Signal(act_bits)
        weight_n, weight = Signal(weight_bits), Signal(weight_bits)
        acc = Signal(acc_bits, reset_less=True)
        first_k = Signal()

        def field(name: str) -> Value:
            return operand(self.commands.payload, "matmul", name)

        valid, last_k, last = Signal(), Signal(), Signal()
        m.d.comb += [
            self.commands.ready.eq(~valid),
            last_k.eq(k_left == 1),
            last.eq(last_k & (n_left == 1)),
        ]
        with m.If(self.commands.valid & self.commands.ready):
            m.d.sync += [
                valid.eq(1),
                k_tiles.eq(field("k_tiles")),
                k_left.eq(field("k_tiles")),
                n_left.eq(field("n_tiles")),
                stride_n.eq(field("w_stride_n")),
                stride_k.eq(field("w_stride_k")),
                act_stride.eq(field("act_stride")),
                acc_stride.eq(field("acc_stride")),
                rows.eq(field("rows")),
                columns.eq(field("columns")),
                wide.eq(field("wide")),
                block.eq(Mux(field("wide") | field("apart"), 2, 1)),
                is_signed.eq(field("signed")),
                accumulate.eq(field("accumulate")),
                mask_in.eq(field("mask_in")),
                mask_out.eq(field("mask_out")),
                group_log2.eq(field("group_log2")),
                group.eq(field("group")),
                act_first.eq(field("act")),
                act.eq(field("act")),
                weight_n.eq(field("weight")),
                weight.eq(field("weight")),
                acc.eq(field("acc")),
                first_k.eq(1),
            ]
        next_weight = Signal(weight_bits)
        m.d.comb += next_weight.eq(Mux(last_k, weight_n, weight) + Mux(last_k, stride_n, stride_k))
        with m.If(self.tiles.valid & self.tiles.ready):
            m.d.sync += weight.eq(next_weight)
            with m.If(last_k):
                m.d.sync += [
                    valid.eq(~last),
                    n_left.eq(n_left - 1),
                    k_left.eq(k_tiles),
                    weight_n.eq(next_weight),
                    act.eq(act_first),
                    acc.eq(acc + 1),
                    first_k.eq(1),
                ]
            with m.Else():
                m.d.sync += [k_left.eq(k_left - 1), act.eq(act + block), first_k.eq(0)]

        lanes = Signal(self.config.dim)
        for lane in range(self.config.dim):
            matches = [(group_log2 == log2) & (group == lane >> log2) for log2 in range(16)]
            m.d.comb += lanes[lane].eq(Cat(matches).any())
        m.d.comb += [
            self.tiles.valid.eq(valid),
            tile.weight.eq(weight),
            tile.columns.eq(columns),
            tile.act.eq(act),
            tile.act_stride.eq(act_stride),
            tile.rows.eq(rows),
            tile.wide.eq(wide),
            tile.signed.eq(is_signed),
            tile.acc.eq(acc),
            tile.acc_stride.eq(acc_stride),
            tile.overwrite.eq(first_k & ~accumulate),
            tile.lanes_in.eq(Mux(mask_in, lanes, ~0)),
            tile.lanes_out.eq(Mux(mask_out, lanes, ~0)),
            tile.last.eq(last),
        ]
        return m
