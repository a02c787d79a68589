"""Load unit: copies strided rows from memory (AXI reads) to the local memories."""

from amaranth import Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from systolith.config import Config
from systolith.hdl.axi import BurstSplitter, ReadClient
from systolith.hdl.layouts import PC_BITS, UnitSignature, operand, row
from systolith.hdl.pipeline import Buffer
from systolith.hdl.queue import Queue
from systolith.registers import Error

LOCAL_BITS = 20


def load_write(config: Config) -> data.StructLayout:
    """A word for a local memory: ``space`` as ``isa.LoadSpace``, ``addr`` counts D-byte words."""
    return data.StructLayout({"space": 2, "addr": LOCAL_BITS, "data": row(config)})


_TRANSFER = data.StructLayout(
    {
        "space": 2,
        "local": LOCAL_BITS,
        "local_stride": 16,
        "words": 16,
        "rows": 16,
        "misaligned": 1,
        "skip": 1,
        "pc": PC_BITS,
    }
)
"""What the data side knows of an instruction."""


class LoadUnit(wiring.Component):
    """Executes ``load``: ``local + i * local_stride + j`` = word j of row i in memory.

    The address side sends requests, one burst a cycle, and runs ahead of the data side across rows
    and instructions, with up to ``outstanding`` bursts in flight. The data side takes a beat in
    every cycle in which ``writes`` keeps up and assembles D-byte words; the first word is offered
    one cycle after its last beat. An instruction is taken every other cycle. If memory answers
    without a gap there is none between rows or instructions either.

    ``rows`` or ``words`` of 0 copies nothing. Errors come with ``done``: ``MISALIGNED`` if
    ``base + address``, or the stride of more than one row, is no multiple of the bus width (nothing
    is copied); ``BUS_READ`` if a beat had an error (all is copied). The unit stays usable.

    Members
    -------
    base : in, 32
        Added to the addresses.
    stop : in, 1
        Pauses: no further burst is sent, those in flight are completed (a request that has not been
        taken is withdrawn). For a reset that does not break bursts off.
    bus : ``ReadClient``, out
    writes : stream of ``load_write``, out
    commands, done, busy, error, error_code, error_pc : ``UnitSignature``
        ``done`` one cycle after ``writes`` accepted the last word.
    beat : out, 1
        A beat was taken.
    waiting : out, 1
        A load is under way and there is no beat for it.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "base": In(32),
                "stop": In(1),
                "bus": Out(ReadClient(config)),
                "writes": Out(stream.Signature(load_write(config))),
                **UnitSignature().members,
                "beat": Out(1),
                "waiting": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        ratio = config.dim // config.bus_bytes
        ratio_bits = ratio.bit_length() - 1
        size = config.bus_bytes.bit_length() - 1

        # Decode. One register stage behind the queue, which also adds the base.
        command = self.commands.payload
        prepared = Signal()
        transfer = Signal(_TRANSFER, reset_less=True)
        start = Signal(32, reset_less=True)
        stride = Signal(32, reset_less=True)
        misaligned, skip = Signal(reset_less=True), Signal(reset_less=True)

        def field(name: str) -> Value:
            return operand(command, "load", name)

        uneven = Signal()
        m.d.comb += [
            uneven.eq(
                (self.base[:size] + field("address")[:size])[:size].any()
                | (field("stride")[:size].any() & (field("rows") > 1))
            ),
            self.commands.ready.eq(~prepared),
        ]
        with m.If(self.commands.valid & self.commands.ready):
            m.d.sync += [
                prepared.eq(1),
                start.eq(self.base + field("address")),
                stride.eq(field("stride")),
                transfer.pc.eq(command.pc),
                misaligned.eq(uneven),
                skip.eq(uneven | (field("rows") == 0) | (field("words") == 0)),
                *(
                    transfer[name].eq(field(name))
                    for name in ("space", "local", "local_stride", "words", "rows")
                ),
            ]

        # Address side.
        m.submodules.splitter = splitter = BurstSplitter(config, 16 + ratio_bits, unsigned(0))
        m.submodules.transfers = transfers = Queue(
            _TRANSFER.size, max(2, config.outstanding)
        )
        head_in = Signal(_TRANSFER)
        m.d.comb += [
            head_in.eq(transfer),
            head_in.misaligned.eq(misaligned),
            head_in.skip.eq(skip),
            transfers.w_data.eq(head_in),
            transfers.w_en.eq(prepared & (splitter.jobs.ready | skip)),
            splitter.jobs.valid.eq(prepared & ~skip & transfers.w_rdy),
            splitter.jobs.payload.addr.eq(start),
            splitter.jobs.payload.stride.eq(stride),
            splitter.jobs.payload.beats.eq(transfer.words << ratio_bits),
            splitter.jobs.payload.rows.eq(transfer.rows),
        ]
        with m.If(transfers.w_en & transfers.w_rdy):
            m.d.sync += prepared.eq(0)

        # A burst waits in registers, so that the splitter needs no answer of the bus in its cycle.
        m.submodules.bursts = bursts = Buffer(splitter.bursts.payload.shape())
        wiring.connect(m, splitter.bursts, bursts.i)
        in_flight = Signal(range(config.outstanding + 1))
        requested = Signal()
        answered = Signal()
        may_ask = Signal()
        m.d.comb += [
            may_ask.eq((in_flight != config.outstanding) & ~self.stop),
            self.bus.requests.valid.eq(bursts.o.valid & may_ask),
            self.bus.requests.payload.addr.eq(bursts.o.payload.addr),
            self.bus.requests.payload.beats.eq(bursts.o.payload.len + 1),
            bursts.o.ready.eq(self.bus.requests.ready & may_ask),
            requested.eq(self.bus.requests.valid & self.bus.requests.ready),
            answered.eq(self.beat & self.bus.data.payload.last),
        ]
        m.d.sync += in_flight.eq(in_flight + requested - answered)

        # Data side: the transfer whose beats arrive, and behind it one word on its way out.
        active = Signal()
        current = Signal(_TRANSFER, reset_less=True)
        head = data.View(_TRANSFER, transfers.r_data)
        address = Signal(LOCAL_BITS, reset_less=True)
        row_address = Signal(LOCAL_BITS, reset_less=True)
        words_left = Signal(16, reset_less=True)
        # Registers, each found a word or a row ahead.
        one_word, row_ends = Signal(reset_less=True), Signal(reset_less=True)
        last_row, final = Signal(reset_less=True), Signal(reset_less=True)
        failed = Signal()
        gathered = Signal(8 * config.dim, reset_less=True)
        """The beats of a word so far, the youngest at the top."""
        phase = Signal(range(ratio))

        # A word, or the end of a transfer without words. Two places, so that what becomes of a word
        # here is not known to the bus in the same cycle.
        word = data.StructLayout(
            {
                "data": 8 * config.dim,
                "space": 2,
                "address": LOCAL_BITS,
                "pc": PC_BITS,
                "code": 4,
                "without_word": 1,
                "ends": 1,
            }
        )
        m.submodules.words = words = Buffer(word)
        new, old = words.i.payload, words.o.payload
        leaves = Signal()

        free = Signal()
        completes = Signal()
        finishes = Signal()
        m.d.comb += [
            leaves.eq(words.o.valid & (self.writes.ready | old.without_word)),
            words.o.ready.eq(self.writes.ready | old.without_word),
            free.eq(words.i.ready),
            self.bus.data.ready.eq(active & ~current.skip & free),
            self.beat.eq(self.bus.data.valid & self.bus.data.ready),
            self.waiting.eq(active & ~current.skip & ~self.bus.data.valid),
            completes.eq(self.beat & (phase == ratio - 1)),
            finishes.eq(
                active & Mux(current.skip, free, completes & final)
            ),
            transfers.r_en.eq(~active | finishes),
            self.writes.valid.eq(words.o.valid & ~old.without_word),
            self.writes.payload.space.eq(old.space),
            self.writes.payload.addr.eq(old.address),
            self.writes.payload.data.eq(old.data),
            words.i.valid.eq(completes | finishes),
            new.data.eq(Cat(gathered, self.bus.data.payload.data)[8 * config.bus_bytes :]),
            new.space.eq(current.space),
            new.address.eq(address),
            new.pc.eq(current.pc),
            new.without_word.eq(current.skip),
            new.ends.eq(finishes),
        ]
        with m.If(self.beat):
            m.d.sync += [
                gathered.eq(new.data),
                phase.eq(Mux(completes, 0, phase + 1)),
                failed.eq(failed | self.bus.data.payload.error),
            ]
        with m.If(completes):
            m.d.sync += [
                address.eq(address + 1),
                words_left.eq(words_left - 1),
                row_ends.eq(words_left == 2),
                final.eq((words_left == 2) & last_row),
            ]
            with m.If(row_ends):
                m.d.sync += [
                    address.eq(row_address),
                    row_address.eq(row_address + current.local_stride),
                    words_left.eq(current.words),
                    current.rows.eq(current.rows - 1),
                    row_ends.eq(one_word),
                    last_row.eq(current.rows == 2),
                    final.eq(one_word & (current.rows == 2)),
                ]
        with m.If(current.misaligned):
            m.d.comb += new.code.eq(Error.MISALIGNED)
        with m.Elif(~current.skip & (failed | self.bus.data.payload.error)):
            m.d.comb += new.code.eq(Error.BUS_READ)
        with m.Else():
            m.d.comb += new.code.eq(Error.NONE)
        with m.If(transfers.r_en):
            m.d.sync += [
                active.eq(transfers.r_rdy),
                current.eq(head),
                address.eq(head.local),
                row_address.eq(head.local + head.local_stride),
                words_left.eq(head.words),
                one_word.eq(head.words == 1),
                row_ends.eq(head.words == 1),
                last_row.eq(head.rows == 1),
                final.eq((head.words == 1) & (head.rows == 1)),
                failed.eq(0),
            ]

        m.d.sync += [
            self.done.eq(leaves & old.ends),
            self.error.eq(leaves & old.ends & (old.code != Error.NONE)),
            self.error_code.eq(old.code),
            self.error_pc.eq(old.pc),
        ]
        m.d.comb += self.busy.eq(
            prepared
            | splitter.bursts.valid
            | bursts.o.valid
            | transfers.r_rdy
            | active
            | words.o.valid
            | self.done
        )
        return m
