"""The command side of an SDRAM controller: initialisation, refresh, rows, column commands.

jobs ─▶ prepare (the row is opened) ─▶ stream (a column command for each beat)
                     └── commands ──┴─▶ one register ─▶ pins;   refresh, between two jobs

A job stays within a row and, once it streams, never waits. While it streams, the row of the next
job is closed and opened in the slots between its column commands.
"""

from amaranth import Array, Cat, Const, Module, Mux, Signal
from amaranth.hdl import Value
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from systolith.config import Config
from systolith.hdl.axi import ID_BITS
from systolith.hdl.pipeline import Buffer
from systolith.hdl.sdram_chip import SdramChip, SdramCycles

LONGEST = 256
"""Beats of the longest job: those of the longest AXI burst."""
_DEBT_BITS = 4


class Command(enum.Enum):
    """RAS#, CAS#, WE# of the commands, RAS# in the lowest bit."""

    NOP = 0b111
    ACTIVE = 0b110
    READ = 0b101
    WRITE = 0b001
    PRECHARGE = 0b010
    REFRESH = 0b100
    LOAD_MODE = 0b000


def words_per_beat(config: Config, chip: SdramChip) -> int:
    """Words of the chip in a beat of the bus, the burst length it is programmed to."""
    words = 8 * config.bus_bytes // chip.data_bits
    if words not in (1, 2, 4, 8):
        raise ValueError(
            f"The bus must be 1, 2, 4 or 8 times as wide as the {chip.data_bits} bits of "
            f"{chip.name}, not {8 * config.bus_bytes} bits"
        )
    if words > chip.columns:
        raise ValueError(f"A row of {chip.name} must hold a beat of {words} words")
    return words


def job(config: Config, chip: SdramChip) -> data.StructLayout:
    """Beats in one row: ``left`` and one more from ``beat`` on; ``final`` ends an AXI burst."""
    beats = chip.columns // words_per_beat(config, chip)
    return data.StructLayout(
        {
            "write": 1,
            "id": ID_BITS,
            "final": 1,
            "bank": range(chip.banks),
            "row": range(chip.rows),
            "beat": range(beats),
            "left": range(min(beats, LONGEST)),
        }
    )


def count_down(m: Module, timer: Signal) -> None:
    """``timer`` goes down to 0; a later assignment starts it again."""
    with m.If(timer != 0):
        m.d.sync += timer.eq(timer - 1)


class _Prepare(enum.Enum):
    EMPTY = 0
    LOOK = 1
    CONFLICT = 2  # another row is open
    CLOSED = 3
    OPENING = 4  # and ready, when the wait is over


class SdramScheduler(wiring.Component):
    """Executes jobs in order; all pins come straight from registers.

    After a reset the chip is initialised as JEDEC demands: a pause, PRECHARGE ALL, refreshes, LOAD
    MODE with a burst length of a beat. Rows stay open until another row of the bank is wanted or
    refresh is due. When it is, it takes its turn after the job that streams, so it is late by one
    job at most, and what was missed is made up for at once.

    READ and WRITE follow each other at intervals of a beat's words. From READ to WRITE one cycle is
    left in which nobody drives DQ.

    Members
    -------
    jobs : in, stream of ``job``
    read, write : out, 1
        A column command will be on the pins in the next cycle; its beat has ``id``, and ``last`` if
        it ends the AXI burst.
    id : out; last : out, 1
    initialised : out, 1
    a, ba, cs_n, ras_n, cas_n, we_n, cke : out
        Pins of the chip.
    """

    def __init__(self, config: Config, chip: SdramChip, clock_hz: float) -> None:
        self.chip = chip
        self.words = words_per_beat(config, chip)
        self.cycles = SdramCycles.of(chip, clock_hz)
        self.job = job(config, chip)
        super().__init__(
            {
                "jobs": In(stream.Signature(self.job)),
                "read": Out(1),
                "write": Out(1),
                "id": Out(ID_BITS),
                "last": Out(1),
                "initialised": Out(1),
                "a": Out(chip.address_bits),
                "ba": Out(range(chip.banks)),
                "cs_n": Out(1, init=1),
                "ras_n": Out(1, init=1),
                "cas_n": Out(1, init=1),
                "we_n": Out(1, init=1),
                "cke": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        chip, cycles, words = self.chip, self.cycles, self.words

        # What the banks do. ``before_precharge``: cycles until one may be closed.
        is_open = Signal(chip.banks)
        rows = Array(
            Signal(range(chip.rows), name=f"row_{bank}", reset_less=True)
            for bank in range(chip.banks)
        )
        after_write = words - 1 + cycles.wr
        longest = max(cycles.ras, after_write, words)
        before_precharge = [
            Signal(range(longest), name=f"before_precharge_{bank}") for bank in range(chip.banks)
        ]
        closable = Signal(chip.banks)
        m.d.comb += closable.eq(Cat(timer == 0 for timer in before_precharge))

        # The command of this cycle.
        command = Signal(Command, init=Command.NOP)
        address = Signal(chip.address_bits)
        bank = Signal(range(chip.banks))
        m.d.comb += [command.eq(Command.NOP)]
        m.d.sync += [
            self.cke.eq(1),
            self.cs_n.eq(0),
            Cat(self.ras_n, self.cas_n, self.we_n).eq(Value.cast(command)),
            self.a.eq(address),
            self.ba.eq(bank),
        ]

        # The job that streams, and the one that is prepared.
        m.submodules.waiting = waiting = Buffer(self.job)
        wiring.connect(m, wiring.flipped(self.jobs), waiting.i)
        active = Signal()
        now = Signal(self.job, reset_less=True)
        then = Signal(self.job, reset_less=True)
        state = Signal(_Prepare)
        wait = Signal(range(max(cycles.rp, cycles.rcd, 2)))
        running, due = Signal(), Signal()
        column, ends, takes, prepares = Signal(), Signal(), Signal(), Signal()
        count_down(m, wait)

        # Column commands.
        spacing = Signal(range(max(words, 2)))
        before_write = Signal(range(cycles.cas + words + 1))
        count_down(m, spacing)
        count_down(m, before_write)
        steals = prepares if words == 1 else Const(0)  # there is no slot between the columns
        m.d.comb += [
            column.eq(active & (spacing == 0) & ~(now.write & (before_write != 0)) & ~steals),
            self.read.eq(column & ~now.write),
            self.write.eq(column & now.write),
            self.id.eq(now.id),
            self.last.eq(now.final & (now.left == 0)),
            ends.eq(column & (now.left == 0)),
            takes.eq((state == _Prepare.OPENING) & (wait == 0) & running & ~due & (~active | ends)),
        ]
        with m.If(column):
            m.d.comb += [
                command.eq(Mux(now.write, Command.WRITE, Command.READ)),
                address.eq(self._column(now.beat)),
                bank.eq(now.bank),
            ]
            m.d.sync += [
                spacing.eq(words - 1),
                now.beat.eq(now.beat + 1),
                now.left.eq(now.left - 1),
                active.eq(now.left != 0),
            ]
            with m.If(~now.write):
                m.d.sync += before_write.eq(cycles.cas + words)
        with m.If(takes):
            m.d.sync += [active.eq(1), now.eq(then)]

        # Rows.
        row_known = Signal(range(chip.rows))
        closes, opens = Signal(), Signal()
        here = is_open.bit_select(then.bank, 1)
        m.d.comb += [
            row_known.eq(rows[then.bank]),
            closes.eq(
                (state == _Prepare.CONFLICT)
                & closable.bit_select(then.bank, 1)
                & ~(active & (now.bank == then.bank))
            ),
            opens.eq((state == _Prepare.CLOSED) & (wait == 0)),
            prepares.eq((closes | opens) & running & ~due),
            waiting.o.ready.eq((state == _Prepare.EMPTY) | takes),
        ]
        with m.If(state == _Prepare.LOOK):
            with m.If(~here):
                m.d.sync += state.eq(_Prepare.CLOSED)
            with m.Elif(row_known == then.row):
                m.d.sync += state.eq(_Prepare.OPENING)
            with m.Else():
                m.d.sync += state.eq(_Prepare.CONFLICT)
        opened, closed = Signal(), Signal()
        with m.If(prepares & ~column):
            m.d.comb += [bank.eq(then.bank), opened.eq(opens), closed.eq(closes)]
            with m.If(closes):
                m.d.comb += command.eq(Command.PRECHARGE)
                m.d.sync += [state.eq(_Prepare.CLOSED), wait.eq(cycles.rp - 1)]
            with m.Else():
                m.d.comb += [command.eq(Command.ACTIVE), address.eq(then.row)]
                # The column command is in the cycle after the job is taken.
                m.d.sync += [
                    state.eq(_Prepare.OPENING),
                    wait.eq(max(cycles.rcd - 2, 0)),
                    rows[then.bank].eq(then.row),
                ]
        with m.If(waiting.o.ready):
            m.d.sync += state.eq(Mux(waiting.o.valid, _Prepare.LOOK, _Prepare.EMPTY))
            with m.If(waiting.o.valid):
                m.d.sync += then.eq(waiting.o.payload)

        for number, timer in enumerate(before_precharge):
            count_down(m, timer)
            with m.If(column & (now.bank == number)):
                value = Mux(now.write, after_write - 1, words - 1)
                with m.If(timer <= value):
                    m.d.sync += timer.eq(value)
            with m.If(opened & (then.bank == number)):
                m.d.sync += [timer.eq(cycles.ras - 1), is_open[number].eq(1)]
            with m.If(closed & (then.bank == number)):
                m.d.sync += is_open[number].eq(0)

        self._refresh(m, command, address, running, due, active, closable, is_open, state)
        return m

    def _refresh(
        self, m: Module, command, address, running, due, active, closable, is_open, state
    ) -> None:
        """Power-up and refresh: they own the pins while not ``running``."""
        chip, cycles = self.chip, self.cycles
        debt = Signal(_DEBT_BITS, init=chip.init_refreshes)
        """Refreshes that are due; those of the initialisation first."""
        refreshed, passed = Signal(), Signal()
        interval = Signal(range(cycles.refi))
        m.d.comb += [due.eq(debt != 0), passed.eq(interval == cycles.refi - 1)]
        with m.If(self.initialised):
            m.d.sync += interval.eq(Mux(passed, 0, interval + 1))
        with m.If(passed & ~refreshed):
            m.d.sync += debt.eq(Mux(debt.all(), debt, debt + 1))
        with m.Elif(refreshed & ~passed):
            m.d.sync += debt.eq(debt - 1)

        pause = Signal(range(max(cycles.power_up, cycles.rfc, 2)), init=cycles.power_up - 1)
        count_down(m, pause)
        with m.FSM(init="POWER_UP"):
            with m.State("POWER_UP"), m.If(pause == 0):
                m.next = "PRECHARGE"
            with m.State("RUN"):
                m.d.comb += running.eq(1)
                with m.If(due & ~active & closable.all()):
                    m.next = "PRECHARGE"
            with m.State("PRECHARGE"):
                m.d.comb += [command.eq(Command.PRECHARGE), address.eq(1 << 10)]
                m.d.sync += [pause.eq(cycles.rp - 1), is_open.eq(0)]
                with m.If(state != _Prepare.EMPTY):
                    m.d.sync += state.eq(_Prepare.LOOK)
                m.next = "REFRESH"
            with m.State("REFRESH"), m.If(pause == 0):
                m.d.comb += [command.eq(Command.REFRESH), refreshed.eq(1)]
                m.d.sync += pause.eq(cycles.rfc - 1)
                m.next = "REFRESHING"
            with m.State("REFRESHING"), m.If(pause == 0):
                with m.If(due):
                    m.next = "REFRESH"
                with m.Elif(self.initialised):
                    m.next = "RUN"
                with m.Else():
                    m.next = "LOAD_MODE"
            with m.State("LOAD_MODE"):
                burst_length = self.words.bit_length() - 1
                m.d.comb += [
                    command.eq(Command.LOAD_MODE),
                    address.eq(cycles.cas << 4 | burst_length),
                ]
                m.d.sync += [pause.eq(cycles.mode - 1), self.initialised.eq(1)]
                m.next = "REFRESHING"

    def _column(self, beat: Value) -> Value:
        """The address pins of a column command: A10 is low, no automatic precharge."""
        zeros = self.words.bit_length() - 1
        column = Cat(Const(0, zeros), beat)
        return Cat(column[:10], Const(0, 11 - min(len(column), 10)), column[10:])
