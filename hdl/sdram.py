"""An SDRAM behind an AXI port: bursts become jobs of one row each.

AR ─┐                                ┌─▶ commands ─▶ pins
AW ─┴▶ choose ─▶ cut at rows ─▶ scheduler
W ─▶ queue ─────────────────────▶ data ◀─▶ DQ
R ◀─ queue ◀───────────────────────┘
"""

from amaranth import Cat, Module, Mux, Signal
from amaranth.hdl import Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from systolith.config import Config
from systolith.hdl.axi import ADDRESS, ID_BITS, AXI4Read, AXI4Write
from systolith.hdl.pipeline import Buffer, Credits, delay
from systolith.hdl.ram_queue import RamQueue
from systolith.hdl.sdram_chip import SdramChip
from systolith.hdl.sdram_data import SdramData, check, result
from systolith.hdl.sdram_scheduler import LONGEST, SdramScheduler, job

QUEUE_BEATS = 512
"""Places for beats read, and for beats to be written: two bursts of AXI's longest."""
_ANSWERS = 8

_BURST = data.StructLayout({"write": 1, "id": ID_BITS, "index": 32, "rest": 8})
"""What is left of a burst; ``index`` counts beats, ``rest`` is beats less one."""


class _Choose(wiring.Component):
    """Reads and writes in turn, if their beats have places: those of a read in the queue behind it,
    those of a write are in the queue before it. A burst never waits for a beat, then.

    Members
    -------
    ar, aw : in, streams of ``ADDRESS``
    bursts : out, stream of ``_BURST``
    took : in, 1
        A beat left the queue of R.
    came : in, 1
        A beat entered the queue of W.
    answered : in, 1
        A B was taken.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "ar": In(stream.Signature(ADDRESS)),
                "aw": In(stream.Signature(ADDRESS)),
                "bursts": Out(stream.Signature(_BURST)),
                "took": In(1),
                "came": In(1),
                "answered": In(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        size = self.config.bus_bytes.bit_length() - 1
        room = Signal(range(QUEUE_BEATS + 1), init=QUEUE_BEATS)
        held = Signal(range(QUEUE_BEATS + 2))
        m.submodules.answers = answers = Credits(_ANSWERS)
        free, last_wrote = Signal(), Signal()
        can_read, can_write = Signal(), Signal()
        read, write = Signal(), Signal()
        out = self.bursts
        m.d.comb += [
            free.eq(~out.valid | out.ready),
            can_read.eq(self.ar.valid & (room > self.ar.payload.len)),
            can_write.eq(self.aw.valid & (held > self.aw.payload.len) & answers.available),
            read.eq(free & can_read & (last_wrote | ~can_write)),
            write.eq(free & can_write & ~(can_read & last_wrote)),
            self.ar.ready.eq(read),
            self.aw.ready.eq(write),
            answers.take.eq(write),
            answers.give.eq(self.answered),
        ]
        # The places of a burst in one step, those of beats one by one.
        came = delay(m, self.came, 2, "came")  # from then on the queue can give it
        m.d.sync += [
            room.eq(room + self.took - Mux(read, self.ar.payload.len + 1, 0)),
            held.eq(held + came - Mux(write, self.aw.payload.len + 1, 0)),
        ]
        chosen = Mux(write, Value.cast(self.aw.payload), Value.cast(self.ar.payload))
        address = data.View(ADDRESS, chosen)
        with m.If(free):
            m.d.sync += out.valid.eq(read | write)
            with m.If(read | write):
                m.d.sync += [
                    out.payload.write.eq(write),
                    out.payload.id.eq(address.id),
                    out.payload.index.eq(address.addr[size:]),
                    out.payload.rest.eq(address.len),
                    last_wrote.eq(write),
                ]
        return m


class _Cut(wiring.Component):
    """Cuts bursts into jobs at the ends of rows; one a cycle.

    The address of a beat is {row, bank, beat in the row}: what follows a row is in another bank,
    which can be opened while this one streams.

    Members
    -------
    bursts : in, stream of ``_BURST``
    jobs : out, stream of ``job``
    """

    def __init__(self, config: Config, chip: SdramChip) -> None:
        self.job = job(config, chip)
        super().__init__(
            {"bursts": In(stream.Signature(_BURST)), "jobs": Out(stream.Signature(self.job))}
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        beat_bits, bank_bits, row_bits = (self.job[name].width for name in ("beat", "bank", "row"))
        beats = 1 << beat_bits
        total = beat_bits + bank_bits + row_bits
        burst = Signal(_BURST, reset_less=True)
        active = Signal()
        index = burst.index[:total]
        beat, above = index[:beat_bits], index[beat_bits:]
        reach = Signal(range(beats + LONGEST))
        crosses = Signal()
        new = self.jobs.payload
        m.d.comb += [
            reach.eq(beat + burst.rest),
            crosses.eq(reach >= beats),
            self.jobs.valid.eq(active),
            new.write.eq(burst.write),
            new.id.eq(burst.id),
            new.final.eq(~crosses),
            Cat(new.beat, new.bank, new.row).eq(index),
            new.left.eq(Mux(crosses, ~beat, burst.rest)),
            self.bursts.ready.eq(~active | (self.jobs.ready & ~crosses)),
        ]
        with m.If(active & self.jobs.ready):
            m.d.sync += [beat.eq(0), above.eq(above + 1), burst.rest.eq(reach - beats)]
        with m.If(self.bursts.ready):
            m.d.sync += active.eq(self.bursts.valid)
            with m.If(self.bursts.valid):
                m.d.sync += burst.eq(self.bursts.payload)
        return m


class Sdram(wiring.Component):
    """An AXI slave whose memory is an SDRAM chip, at one word a cycle of this clock.

    Bursts are INCR bursts of full-width beats that do not cross 4 KiB, answered with their IDs,
    reads in order and writes in order. A read whose AR comes after a write's B sees the write.
    Addresses count from the first byte of the chip; those beyond its end begin again (the
    interconnect answers them).

    A read is started when there is room for all of its beats, a write when all of its beats have
    come, so a slow master does not hold up the others; B comes when the write is on the pins, or
    before. Rows stay open; the row behind the one that streams is opened meanwhile. The address of
    a word is {row, bank, column}.

    An idle controller brings the first beat of a closed row CL + ``capture`` + N + tRCD + 8 cycles
    after AR, N being the words of a beat and tRCD two cycles at least. See ``SdramScheduler`` for
    commands, ``SdramData`` for the cycles of DQ.

    Parameters
    ----------
    chip : SdramChip
    clock_hz : float
        Of this clock; the chip has the same one.
    capture : int
        See ``SdramData``.

    Members
    -------
    read : ``AXI4Read``, in
    write : ``AXI4Write``, in
    initialised : out, 1
        Bursts before that wait.
    sdram_a, sdram_ba, sdram_cs_n, sdram_ras_n, sdram_cas_n, sdram_we_n, sdram_cke, sdram_dqm : out
    sdram_dq_o : out; sdram_dq_oe : out, 1; sdram_dq_i : in
        Pins, without the tristate buffers of DQ. All outputs are registers.
    """

    def __init__(
        self, config: Config, chip: SdramChip, clock_hz: float, *, capture: int = 1
    ) -> None:
        self.config = config
        self.chip = chip
        self.clock_hz = clock_hz
        self.capture = capture
        check(config, chip, clock_hz, capture)
        super().__init__(
            {
                "read": In(AXI4Read(config)),
                "write": In(AXI4Write(config)),
                "initialised": Out(1),
                "sdram_a": Out(chip.address_bits),
                "sdram_ba": Out(range(chip.banks)),
                "sdram_cs_n": Out(1),
                "sdram_ras_n": Out(1),
                "sdram_cas_n": Out(1),
                "sdram_we_n": Out(1),
                "sdram_cke": Out(1),
                "sdram_dqm": Out(chip.data_bits // 8),
                "sdram_dq_o": Out(chip.data_bits),
                "sdram_dq_oe": Out(1),
                "sdram_dq_i": In(chip.data_bits),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        m.submodules.scheduler = scheduler = SdramScheduler(config, self.chip, self.clock_hz)
        m.submodules.data = dq = SdramData(config, self.chip, self.clock_hz, self.capture)
        m.submodules.choose = choose = _Choose(config)
        m.submodules.cut = cut = _Cut(config, self.chip)
        m.submodules.ar = ar = Buffer(ADDRESS)
        m.submodules.aw = aw = Buffer(ADDRESS)
        beat = data.StructLayout({"data": 8 * config.bus_bytes, "strb": config.bus_bytes})
        m.submodules.reads = reads = RamQueue(result(config), QUEUE_BEATS)
        m.submodules.writes = writes = RamQueue(beat, QUEUE_BEATS)
        m.submodules.answers = answers = SyncFIFO(width=ID_BITS, depth=_ANSWERS)
        r, w, b = self.read.r, self.write.w, self.write.b

        wiring.connect(m, wiring.flipped(self.read.ar), ar.i)
        wiring.connect(m, wiring.flipped(self.write.aw), aw.i)
        wiring.connect(m, ar.o, choose.ar)
        wiring.connect(m, aw.o, choose.aw)
        wiring.connect(m, choose.bursts, cut.bursts)
        wiring.connect(m, cut.jobs, scheduler.jobs)
        m.d.comb += [
            choose.took.eq(r.valid & r.ready),
            choose.came.eq(w.valid & w.ready),
            choose.answered.eq(b.valid & b.ready),
            # R
            reads.i.valid.eq(dq.results.valid),
            reads.i.payload.eq(dq.results.payload),
            r.valid.eq(reads.o.valid),
            r.payload.data.eq(reads.o.payload.data),
            r.payload.id.eq(reads.o.payload.id),
            r.payload.last.eq(reads.o.payload.last),
            reads.o.ready.eq(r.ready),
            # W
            writes.i.valid.eq(w.valid),
            writes.i.payload.data.eq(w.payload.data),
            writes.i.payload.strb.eq(w.payload.strb),
            w.ready.eq(writes.i.ready),
            dq.w_data.eq(writes.o.payload.data),
            dq.w_strb.eq(writes.o.payload.strb),
            writes.o.ready.eq(scheduler.write),
            # B
            answers.w_data.eq(scheduler.id),
            answers.w_en.eq(scheduler.write & scheduler.last),
            b.valid.eq(answers.r_rdy),
            b.payload.id.eq(answers.r_data),
            answers.r_en.eq(b.ready),
            # The chip
            dq.read.eq(scheduler.read),
            dq.write.eq(scheduler.write),
            dq.id.eq(scheduler.id),
            dq.last.eq(scheduler.last),
            dq.initialised.eq(scheduler.initialised),
            self.initialised.eq(scheduler.initialised),
            *(
                getattr(self, f"sdram_{name}").eq(getattr(scheduler, name))
                for name in ("a", "ba", "cs_n", "ras_n", "cas_n", "we_n", "cke")
            ),
            self.sdram_dqm.eq(dq.dqm),
            self.sdram_dq_o.eq(dq.dq_o),
            self.sdram_dq_oe.eq(dq.dq_oe),
            dq.dq_i.eq(self.sdram_dq_i),
        ]
        return m
