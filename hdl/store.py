"""Store unit: copies strided rows from the local memories to memory (AXI writes)."""

from amaranth import Module, Mux, Signal
from amaranth.hdl import Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from systolith import isa
from systolith.config import Config
from systolith.hdl.axi import AXI4Write, BurstSplitter, drive_address
from systolith.hdl.layouts import (
    PC_BITS,
    ReadPort,
    UnitSignature,
    acc_row,
    bits_for_rows,
    operand,
    row,
)
from systolith.hdl.pipeline import Buffer
from systolith.hdl.queue import Queue
from systolith.registers import Error

LOCAL_BITS = 20
_WORD_BYTES = 4
"""A ``storew`` writes this many bytes."""
_ACC_WORDS = 4
"""D-byte words in a row of the accumulator."""


def local_ports(config: Config) -> dict[str, wiring.Member]:
    """Read ports of the memories that a store can copy from."""
    return {
        "activation": Out(ReadPort(bits_for_rows(config.activation_rows), row(config))),
        "accumulator": Out(ReadPort(bits_for_rows(config.accumulator_rows), acc_row(config))),
    }


_FETCH = data.StructLayout(
    {
        "local": LOCAL_BITS,
        "local_stride": 16,
        "words": 16,
        "rows": 16,
        "accumulator": 1,
        "single": 1,
        "value": 32,
    }
)
"""What the data side knows of an instruction; ``single`` is a ``storew``, which reads nothing."""


class _Source(wiring.Component):
    """Data side: reads what a fetch asks for; out comes a stream of D-byte words.

    One word a cycle. An accumulator row is read every fourth cycle and leaves as four words. Reads
    run ahead into a FIFO of ``AHEAD`` words, whose space is reserved before a read is asked for:
    there must have been room for two rows of the accumulator one cycle earlier.
    """

    AHEAD = 16

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "fetches": In(stream.Signature(_FETCH)),
                **local_ports(config),
                "words": Out(stream.Signature(8 * config.dim)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        word_bits = 8 * self.config.dim
        active = Signal()
        current = Signal(_FETCH, reset_less=True)
        address = Signal(LOCAL_BITS, reset_less=True)
        row_address = Signal(LOCAL_BITS, reset_less=True)
        words_left = Signal(16, reset_less=True)
        # Registers, each found a word or a row ahead.
        one_word, row_ends = Signal(reset_less=True), Signal(reset_less=True)
        last_row = Signal(reset_less=True)

        m.submodules.ahead = ahead = Queue(word_bits, self.AHEAD)
        room = Signal(range(self.AHEAD + 1), init=self.AHEAD)
        """Words of the FIFO that are neither occupied nor reserved."""
        enough = Signal(init=1)
        need = Signal(3)
        # What to read next waits in registers: whether a memory grants the read is known late.
        read = data.StructLayout(
            {"address": LOCAL_BITS, "accumulator": 1, "single": 1, "value": 32}
        )
        m.submodules.reads = reads = Buffer(read)
        this = reads.o.payload
        arrived = Signal()
        arrived_accumulator = Signal()
        arrived_row = Signal()
        """Both of these, from a register."""
        arrived_single = Signal()
        value = Signal(32, reset_less=True)
        rest = Signal(_ACC_WORDS * word_bits, reset_less=True)
        """Words of the last accumulator row that still have to go into the FIFO."""
        one, from_row = Signal(word_bits, reset_less=True), Signal()
        """Any other word on its way there, a register too: memories answer late in a cycle."""
        rest_count = Signal(range(_ACC_WORDS + 1))

        wanted = Signal()
        granted = Signal()
        asked = Signal()
        finishes = Signal()
        m.d.comb += [
            asked.eq(active & reads.i.ready),
            reads.i.valid.eq(active),
            reads.i.payload.address.eq(address),
            reads.i.payload.accumulator.eq(current.accumulator),
            reads.i.payload.single.eq(current.single),
            reads.i.payload.value.eq(current.value),
            finishes.eq(asked & (current.single | (row_ends & last_row))),
            self.fetches.ready.eq(~active | finishes),
            need.eq(Mux(this.accumulator & ~this.single, _ACC_WORDS, 1)),
            # One word enters the FIFO in each cycle: the next must find the way free.
            wanted.eq(reads.o.valid & ~arrived_row & (rest_count <= 2) & enough),
            self.activation.en.eq(wanted & ~this.single & ~this.accumulator),
            self.activation.addr.eq(this.address),
            self.accumulator.en.eq(wanted & ~this.single & this.accumulator),
            self.accumulator.addr.eq(this.address),
            granted.eq(
                (wanted & this.single)
                | (self.activation.en & self.activation.ready)
                | (self.accumulator.en & self.accumulator.ready)
            ),
            reads.o.ready.eq(granted),
        ]
        with m.If(asked):
            m.d.sync += [
                address.eq(address + 1), words_left.eq(words_left - 1), row_ends.eq(words_left == 2)
            ]
            with m.If(row_ends):
                m.d.sync += [
                    address.eq(row_address),
                    row_address.eq(row_address + current.local_stride),
                    words_left.eq(current.words),
                    current.rows.eq(current.rows - 1),
                    row_ends.eq(one_word),
                    last_row.eq(current.rows == 2),
                ]
        with m.If(self.fetches.ready):
            fetch = self.fetches.payload
            m.d.sync += [
                active.eq(self.fetches.valid),
                current.eq(fetch),
                address.eq(fetch.local),
                row_address.eq(fetch.local + fetch.local_stride),
                words_left.eq(fetch.words),
                one_word.eq(fetch.words == 1),
                row_ends.eq(fetch.words == 1),
                last_row.eq(fetch.rows == 1),
            ]

        m.d.sync += [
            arrived.eq(granted),
            arrived_accumulator.eq(self.accumulator.en),
            arrived_row.eq(self.accumulator.en & self.accumulator.ready),
            arrived_single.eq(this.single),
            value.eq(this.value),
            enough.eq(room >= 2 * _ACC_WORDS),
            room.eq(room - Mux(granted, need, 0) + (self.words.valid & self.words.ready)),
        ]
        a_row = arrived & arrived_accumulator
        m.d.sync += [
            rest.eq(Mux(a_row, Value.cast(self.accumulator.data), rest[word_bits:])),
            one.eq(
                Mux(
                    arrived_single,
                    value.replicate(word_bits // 32),
                    Value.cast(self.activation.data),
                )
            ),
        ]
        with m.If(arrived):
            m.d.sync += [
                rest_count.eq(Mux(arrived_accumulator, _ACC_WORDS, 1)),
                from_row.eq(arrived_accumulator),
            ]
        with m.Elif(rest_count != 0):
            m.d.sync += rest_count.eq(rest_count - 1)
        m.d.comb += [
            ahead.w_data.eq(Mux(from_row, rest[:word_bits], one)),
            ahead.w_en.eq(rest_count != 0),
            self.words.payload.eq(ahead.r_data),
            self.words.valid.eq(ahead.r_rdy),
            ahead.r_en.eq(self.words.ready),
        ]
        return m


class StoreUnit(wiring.Component):
    """Executes ``store`` (rows of D-byte activation or 4·D-byte accumulator words) and ``storew``.

    Word j of row i in memory = ``local + i * local_stride + j``; accumulator words are D
    little-endian int32, lane 0 first. ``storew`` is one beat with four strobes.

    Bursts are sent one a cycle, up to ``outstanding`` without their response; local reads run ahead
    of W by eight D-byte words or a few more. W carries a beat a cycle, without gaps between rows
    and bursts, as long as memory takes it and the local memory grants a read whenever one is needed
    (every ``D / bus_bytes`` cycles for activations, a quarter as often for accumulators). An
    instruction may start before the responses of the last have arrived; one is taken every other
    cycle.

    ``rows`` or ``words`` of 0 copies nothing. Errors come with ``done``: ``MISALIGNED`` if
    ``base + address``, or the stride of more than one row, is no multiple of the bus width, of 4
    for ``storew`` (nothing is written); ``BUS_WRITE`` if a response was an error. The unit stays
    usable.

    Members
    -------
    base : in, 32
        Added to the addresses.
    stop : in, 1
        Pauses: no further burst is sent, those in flight are completed. For a reset that does not
        break bursts off.
    bus : ``AXI4Write``, out
    activation : ``ReadPort`` of ``row``, out
    accumulator : ``ReadPort`` of ``acc_row``, out
        May both make the unit wait.
    commands, done, busy, error, error_code, error_pc : ``UnitSignature``
        ``done`` one cycle after the response to the last burst.
    beat : out, 1
        Memory took a beat.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "base": In(32),
                "stop": In(1),
                "bus": Out(AXI4Write(config)),
                **local_ports(config),
                **UnitSignature().members,
                "beat": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        ratio_bits = (config.dim // config.bus_bytes).bit_length() - 1
        size = config.bus_bytes.bit_length() - 1
        lane_bits = (config.bus_bytes // _WORD_BYTES).bit_length() - 1

        # Decode. One register stage behind the queue, which also adds the base.
        command = self.commands.payload
        prepared = Signal()
        fetch = Signal(_FETCH, reset_less=True)
        start = Signal(32, reset_less=True)
        stride = Signal(32, reset_less=True)
        pc = Signal(PC_BITS, reset_less=True)
        misaligned, skip = Signal(reset_less=True), Signal(reset_less=True)

        def field(name: str) -> Value:
            return operand(command, "store", name)

        single, uneven = Signal(), Signal()
        low = (self.base[:size] + field("address")[:size])[:size]
        m.d.comb += [
            single.eq(command.opcode == isa.BY_NAME["storew"].code),
            uneven.eq(
                Mux(
                    single,
                    low[:2].any(),
                    low.any() | (field("stride")[:size].any() & (field("rows") > 1)),
                )
            ),
        ]
        with m.If(self.commands.valid & self.commands.ready):
            m.d.sync += [
                prepared.eq(1),
                start.eq(self.base + field("address")),
                stride.eq(field("stride")),
                pc.eq(command.pc),
                misaligned.eq(uneven),
                skip.eq(uneven | (~single & ((field("rows") == 0) | (field("words") == 0)))),
                fetch.value.eq(operand(command, "storew", "value")),
                fetch.single.eq(single),
                fetch.accumulator.eq(field("space") == isa.StoreSpace.ACCUMULATOR),
                *(
                    fetch[name].eq(field(name))
                    for name in ("local", "local_stride", "words", "rows")
                ),
            ]

        # A job goes to the address side and to the data side in the same cycle.
        tag = data.StructLayout(
            {"pc": PC_BITS, "skip": 1, "misaligned": 1, "single": 1, "lane": lane_bits}
        )
        m.submodules.splitter = splitter = BurstSplitter(config, 16 + 2 + ratio_bits, tag)
        m.submodules.source = source = _Source(config)
        # The address side must not know in the same cycle whether a local memory granted a read.
        m.submodules.fetches = fetches = Buffer(_FETCH)
        wiring.connect(m, fetches.o, source.fetches)
        job = splitter.jobs.payload
        beats = Signal(16 + 2 + ratio_bits)
        with m.If(skip | fetch.single):
            m.d.comb += [beats.eq(1), job.rows.eq(1)]
        with m.Else():
            m.d.comb += [
                beats.eq(Mux(fetch.accumulator, fetch.words << 2, fetch.words) << ratio_bits),
                job.rows.eq(fetch.rows),
            ]
        m.d.comb += [
            self.commands.ready.eq(~prepared),
            job.addr.eq(start),
            job.stride.eq(stride),
            job.beats.eq(beats),
            job.tag.pc.eq(pc),
            job.tag.skip.eq(skip),
            job.tag.misaligned.eq(misaligned),
            job.tag.single.eq(fetch.single),
            job.tag.lane.eq(start[2:size]),
            splitter.jobs.valid.eq(prepared & (fetches.i.ready | skip)),
            fetches.i.valid.eq(prepared & splitter.jobs.ready & ~skip),
            fetches.i.payload.eq(fetch),
        ]
        with m.If(splitter.jobs.valid & splitter.jobs.ready):
            m.d.sync += prepared.eq(0)
        wiring.connect(m, wiring.flipped(self.activation), source.activation)
        wiring.connect(m, wiring.flipped(self.accumulator), source.accumulator)

        # Address side: each burst goes to AW, to the W side and, in order, to the response side.
        w_burst = data.StructLayout({"len": 8, "single": 1, "lane": lane_bits})
        b_burst = data.StructLayout({"pc": PC_BITS, "final": 1, "skip": 1, "misaligned": 1})
        m.submodules.w_bursts = w_bursts = Queue(w_burst.size, config.outstanding)
        m.submodules.b_bursts = b_bursts = Queue(b_burst.size, config.outstanding)
        # A burst waits in registers, so that the splitter needs no answer of the bus in its cycle.
        m.submodules.bursts = bursts = Buffer(splitter.bursts.payload.shape())
        wiring.connect(m, splitter.bursts, bursts.i)
        burst = bursts.o.payload
        w_new = Signal(w_burst)
        b_new = Signal(b_burst)
        aw = self.bus.aw
        aw_address = Signal(32, reset_less=True)
        aw_length = Signal(8, reset_less=True)
        room = Signal()
        accept = Signal()
        issue = Signal()
        m.d.comb += [
            room.eq(b_bursts.w_rdy & w_bursts.w_rdy & (~aw.valid | aw.ready)),
            accept.eq(bursts.o.valid & bursts.o.ready),
            bursts.o.ready.eq(room & ~self.stop),
            issue.eq(accept & ~burst.tag.skip),
            w_new.len.eq(burst.len),
            w_new.single.eq(burst.tag.single),
            w_new.lane.eq(burst.tag.lane),
            w_bursts.w_data.eq(w_new),
            w_bursts.w_en.eq(issue),
            b_new.pc.eq(burst.tag.pc),
            b_new.final.eq(burst.final),
            b_new.skip.eq(burst.tag.skip),
            b_new.misaligned.eq(burst.tag.misaligned),
            b_bursts.w_data.eq(b_new),
            b_bursts.w_en.eq(accept),
            *drive_address(aw.payload, config, source=0, addr=aw_address, length=aw_length),
        ]
        with m.If(issue):
            m.d.sync += [aw.valid.eq(1), aw_address.eq(burst.addr), aw_length.eq(burst.len)]
        with m.Elif(aw.ready):
            m.d.sync += aw.valid.eq(0)

        # W.
        w = self.bus.w
        w_head = data.View(w_burst, w_bursts.r_data)
        phase = Signal(ratio_bits)
        count = Signal(8)
        strobes = Signal(config.bus_bytes)
        take = Signal()
        last = Signal()
        m.d.comb += [
            take.eq(source.words.valid & w_bursts.r_rdy & (~w.valid | w.ready)),
            last.eq(count == w_head.len),
            source.words.ready.eq(take & (w_head.single | (phase == (1 << ratio_bits) - 1))),
            w_bursts.r_en.eq(take & last),
            strobes.eq(
                Mux(
                    w_head.single,
                    0b1111 << (_WORD_BYTES * w_head.lane),
                    (1 << config.bus_bytes) - 1,
                )
            ),
            self.beat.eq(w.valid & w.ready),
        ]
        with m.If(take):
            m.d.sync += [
                w.valid.eq(1),
                w.payload.data.eq(source.words.payload.word_select(phase, 8 * config.bus_bytes)),
                w.payload.strb.eq(strobes),
                w.payload.last.eq(last),
                phase.eq(Mux(w_head.single, 0, phase + 1)),
                count.eq(Mux(last, 0, count + 1)),
            ]
        with m.Elif(w.ready):
            m.d.sync += w.valid.eq(0)

        # B.
        b_head = data.View(b_burst, b_bursts.r_data)
        answered = Signal()
        failed = Signal()
        error = Signal()
        m.d.comb += [
            self.bus.b.ready.eq(b_bursts.r_rdy & ~b_head.skip),
            answered.eq(b_bursts.r_rdy & (b_head.skip | self.bus.b.valid)),
            b_bursts.r_en.eq(answered),
            error.eq(
                Mux(
                    b_head.skip,
                    b_head.misaligned,
                    failed | (self.bus.b.valid & self.bus.b.payload.resp[1]),
                )
            ),
        ]
        with m.If(answered):
            m.d.sync += failed.eq(error & ~b_head.final)
        m.d.sync += [
            self.done.eq(answered & b_head.final),
            self.error.eq(answered & b_head.final & error),
            self.error_code.eq(Mux(b_head.skip, Error.MISALIGNED, Error.BUS_WRITE)),
            self.error_pc.eq(b_head.pc),
        ]
        m.d.comb += self.busy.eq(
            prepared | splitter.bursts.valid | bursts.o.valid | b_bursts.r_rdy | self.done
        )
        return m
