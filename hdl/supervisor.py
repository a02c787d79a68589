"""Start, stop, reset and errors of the machine, and the watchdog."""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from systolith.hdl.layouts import PC_BITS
from systolith.isa import QUEUED
from systolith.registers import Error

FAILURE = data.StructLayout({"valid": 1, "code": 4, "pc": PC_BITS})
"""An error of the instruction ``pc``; ``code`` is a ``registers.Error``."""

QUIET = 32
"""Cycles without any transaction under way after which the bus counts as quiet."""
PATIENCE = 1 << 14
"""Cycles that a reset waits for the bus to become quiet."""
_TRANSACTIONS = 10
"""Bits that count the bursts under way."""


class Watchdog(wiring.Component):
    """Notices when nothing moves, and says which instruction it is due to.

    Members
    -------
    limit : in, 32
        Cycles without movement; 0: never expires.
    active : in, 1
        Counts only while high.
    moved : in, 1
        Something went on in this cycle.
    running, running_pc, blocked, blocked_pc : in
        From ``Issue``.
    starved : in, 1; pc : in, 24
        From ``Sequencer``.
    expired : out, 1
        The limit has been reached.
    suspect : out, 24
        The oldest unfinished instruction of a unit, else the sequencer's if it waits for memory,
        else the head of a queue that waits for its semaphores, else the sequencer's. A register,
        as ``expired`` is.
    """

    def __init__(self) -> None:
        units = len(QUEUED)
        super().__init__(
            {
                "limit": In(32),
                "active": In(1),
                "moved": In(1),
                "running": In(units),
                "running_pc": In(PC_BITS).array(units),
                "blocked": In(units),
                "blocked_pc": In(PC_BITS).array(units),
                "starved": In(1),
                "pc": In(PC_BITS),
                "expired": Out(1),
                "suspect": Out(PC_BITS),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        count = Signal(32)
        with m.If(self.moved | ~self.active):
            m.d.sync += count.eq(0)
        with m.Else():
            m.d.sync += count.eq(count + 1)
        m.d.sync += self.expired.eq(
            self.active & ~self.moved & (self.limit != 0) & (count == self.limit)
        )
        # In two steps, as nothing has moved for long when it matters.
        starved, running, running_pc = Signal(), Signal(), Signal(PC_BITS, reset_less=True)
        waiting_pc = Signal(PC_BITS, reset_less=True)
        m.d.sync += [
            starved.eq(self.starved),
            waiting_pc.eq(self.pc),
            running.eq(self.running.any()),
            self.suspect.eq(Mux(running, running_pc, waiting_pc)),
        ]
        for unit in reversed(QUEUED):
            with m.If(self.blocked[unit] & ~starved):
                m.d.sync += waiting_pc.eq(self.blocked_pc[unit])
            with m.If(self.running[unit]):
                m.d.sync += running_pc.eq(self.running_pc[unit])
        return m


class Quiet(wiring.Component):
    """Watches the AXI channels for transactions under way.

    Members
    -------
    read, read_end, write, write_end : in, 1
        A transfer on AR, the last of a burst on R, a transfer on AW, one on B.
    offered : in, 1
        VALID on AR, AW or W.
    quiet : out, 1
        Nothing was offered or under way for ``QUIET`` cycles.
    """

    read: In(1)
    read_end: In(1)
    write: In(1)
    write_end: In(1)
    offered: In(1)
    quiet: Out(1)

    def elaborate(self, platform) -> Module:
        m = Module()
        reads, writes = Signal(_TRANSACTIONS), Signal(_TRANSACTIONS)
        since = Signal(range(QUIET + 1))
        m.d.sync += [
            reads.eq(reads + self.read - self.read_end),
            writes.eq(writes + self.write - self.write_end),
        ]
        m.d.comb += self.quiet.eq(since == QUIET)
        with m.If(self.offered | (reads != 0) | (writes != 0)):
            m.d.sync += since.eq(0)
        with m.Elif(~self.quiet):
            m.d.sync += since.eq(since + 1)
        return m


class Supervisor(wiring.Component):
    """Runs programs: reset, start, end by ``halt`` or by the first error.

    ``start`` and ``reset`` of the host first wait until the bus is ``quiet``: transactions of a
    stopped machine are completed, and no answer to an old request can meet a new program. After
    ``PATIENCE`` cycles a bus that does not answer is given up; an answer that comes later still is
    then a violation on its side or, to a new program, wrong data. Then everything in the machine
    but the contents of the memories is reset for one cycle, and a start goes on with the program.
    ``start`` while ``busy`` is ignored, unless it follows a ``reset`` that is still waiting.

    Members
    -------
    start, reset : in, 1
        Commands of the host.
    quiet : in, 1
        From ``Quiet``.
    halted : in, 1
        The program has reached its end.
    failures : array of ``FAILURE``, in
        The first one stops the machine; of simultaneous ones the one with the lowest index.
    machine_reset : out, 1
        Resets the machine.
    go : out, 1
        Starts the sequencer.
    stop : out, 1
        No instruction starts, nothing is fetched; high while no program runs. A register.
    busy, done, error : out, 1
        Status. ``busy`` includes the time before a start and of a reset.
    error_code : out, 4; error_pc : out, 24
        Of the error.
    """

    def __init__(self, failures: int) -> None:
        super().__init__(
            {
                "start": In(1),
                "reset": In(1),
                "quiet": In(1),
                "halted": In(1),
                "failures": In(FAILURE).array(failures),
                "machine_reset": Out(1),
                "go": Out(1),
                "stop": Out(1, init=1),
                "busy": Out(1),
                "done": Out(1),
                "error": Out(1),
                "error_code": Out(4),
                "error_pc": Out(PC_BITS),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        waited = Signal(range(PATIENCE))
        starting = Signal()

        failed = Cat(failure.valid for failure in self.failures)
        first = Signal(FAILURE)
        for failure in reversed(self.failures):
            with m.If(failure.valid):
                m.d.comb += first.eq(failure)

        m.d.sync += self.machine_reset.eq(0)
        with m.FSM(init="stopped"):
            with m.State("stopped"):
                m.d.sync += [starting.eq(self.start), waited.eq(0)]
                with m.If(self.start | self.reset):
                    m.next = "drain"

            with m.State("drain"):
                m.d.comb += self.busy.eq(1)
                m.d.sync += [starting.eq(starting | self.start), waited.eq(waited + 1)]
                with m.If(self.quiet | (waited == PATIENCE - 1)):
                    m.d.sync += [
                        self.machine_reset.eq(1),
                        self.done.eq(0),
                        self.error.eq(0),
                        self.error_code.eq(Error.NONE),
                        self.error_pc.eq(0),
                    ]
                    m.next = "reset"

            with m.State("reset"):  # machine_reset is high
                m.d.comb += self.busy.eq(1)
                with m.If(starting | self.start):
                    m.d.sync += self.stop.eq(0)
                    m.next = "go"
                with m.Else():
                    m.next = "stopped"

            with m.State("go"):
                m.d.comb += [self.busy.eq(1), self.go.eq(1)]
                m.next = "run"

            with m.State("run"):
                m.d.comb += self.busy.eq(1)
                m.d.sync += [starting.eq(0), waited.eq(0)]
                with m.If(failed.any()):
                    m.d.sync += [
                        self.error.eq(1),
                        self.error_code.eq(first.code),
                        self.error_pc.eq(first.pc),
                    ]
                    m.next = "stopped"
                with m.Elif(self.halted):
                    m.d.sync += self.done.eq(1)
                    m.next = "stopped"
                with m.If(self.reset):
                    m.next = "drain"
                m.d.sync += self.stop.eq(failed.any() | self.halted | self.reset)
        return m
