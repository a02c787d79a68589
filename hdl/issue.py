"""Queues in front of the units, semaphores between them, and the order in which work starts."""

from amaranth import Cat, Module, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from systolith.config import Config
from systolith.hdl.layouts import COMMAND, PC_BITS
from systolith.hdl.queue import Queue
from systolith.isa import QUEUED, SEMAPHORES, Unit, semaphore

UNDER_WAY = 8
"""Instructions that one unit may have begun and not finished."""
SEMAPHORE_BITS = 8

QUEUED_INSTRUCTION = data.StructLayout(
    {"unit": 2, "wait": SEMAPHORES, "signal": SEMAPHORES, "command": COMMAND}
)
"""An instruction for the queue of ``unit``; registers are added."""

_OWN = len(QUEUED) - 1
_ENTRY = data.StructLayout({"wait": _OWN, "signal": _OWN, "command": COMMAND})
_STARTED = data.StructLayout({"signal": _OWN, "pc": PC_BITS})


def _consumed(unit: Unit) -> list[int]:
    """The semaphores that instructions of ``unit`` wait for."""
    return [semaphore(producer, unit) for producer in QUEUED if producer != unit]


def _produced(unit: Unit) -> list[int]:
    """The semaphores that instructions of ``unit`` signal."""
    return [semaphore(unit, consumer) for consumer in QUEUED if consumer != unit]


class Semaphores(wiring.Component):
    """Twelve counters of ``SEMAPHORE_BITS`` bits, each with one producer and one consumer.

    Members
    -------
    signal : in, 12
        Counters that are incremented in this cycle.
    take : in, 12
        Counters that are decremented in this cycle; only ones that are ``available``.
    available : out, 12
        The counter is above zero.
    full : out, 12
        The counter is at its maximum: it must not be incremented.
    """

    signal: In(SEMAPHORES)
    take: In(SEMAPHORES)
    available: Out(SEMAPHORES)
    full: Out(SEMAPHORES)

    def elaborate(self, platform) -> Module:
        m = Module()
        for index in range(SEMAPHORES):
            count = Signal(SEMAPHORE_BITS, name=f"count_{index}")
            # A register of its own: what starts depends on it within the cycle.
            available = Signal(name=f"available_{index}")
            m.d.comb += [self.available[index].eq(available), self.full[index].eq(count.all())]
            with m.If(self.signal[index] & ~self.take[index]):
                m.d.sync += [count.eq(count + 1), available.eq(~count.all())]
            with m.Elif(self.take[index] & ~self.signal[index]):
                m.d.sync += [count.eq(count - 1), available.eq(count != 1)]
        return m


class Issue(wiring.Component):
    """Starts queued instructions when their semaphores allow, and signals when they are finished.

    The head of each queue takes its semaphores when they are all there; from the cycle after it is
    offered to its unit. Units do not hinder each other: a semaphore has one producer and one
    consumer. Of the wait mask of an instruction only the semaphores that its unit consumes count,
    of the signal mask those that it produces. A unit may have up to ``UNDER_WAY`` instructions
    begun and not finished; ``done`` refers to the oldest. An instruction is offered in
    the second cycle after it was queued at the earliest, and a unit can take one every other cycle.
    A signal lets another unit's instruction be offered in the second cycle after ``done``.

    Members
    -------
    queued : stream of ``QUEUED_INSTRUCTION``, in
    commands : array of 4 streams of ``COMMAND``, out
        In the order of ``isa.Unit``.
    done : in, 4
        ``done`` of the units.
    stop : in, 1
        Nothing starts: no semaphore is taken, and ``commands`` are withdrawn.
    idle : out, 1
        All queues are empty, and all that was started is done.
    unit_idle : out, 4
        The same of each unit.
    running : out, 4; running_pc : array of 4 x 24, out
        A unit has an unfinished instruction; index of the oldest one.
    blocked : out, 4; blocked_pc : array of 4 x 24, out
        An instruction is at the head of the queue, not granted; its index.
    moved : out, 1
        Something was queued, granted, taken or finished in the cycle before; for the watchdog.
    overflow : out, 1; overflow_pc : out, 24
        A semaphore at its maximum was signalled in the cycle before; index of the instruction that
        did.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        units = len(QUEUED)
        super().__init__(
            {
                "queued": In(stream.Signature(QUEUED_INSTRUCTION)),
                "commands": Out(stream.Signature(COMMAND)).array(units),
                "done": In(units),
                "stop": In(1),
                "idle": Out(1),
                "unit_idle": Out(units),
                "running": Out(units),
                "running_pc": Out(PC_BITS).array(units),
                "blocked": Out(units),
                "blocked_pc": Out(PC_BITS).array(units),
                "moved": Out(1),
                "overflow": Out(1),
                "overflow_pc": Out(PC_BITS),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.semaphores = semaphores = Semaphores()
        grants = Signal(len(QUEUED))
        taken = Signal(len(QUEUED))
        overflows, overflowed = Signal(len(QUEUED)), Signal(len(QUEUED))
        incoming = self.queued.payload
        moves = Signal(1 + 3 * len(QUEUED))

        def pick(mask: Value, bits: list[int]) -> Value:
            return Cat(mask[bit] for bit in bits)

        for unit in QUEUED:
            # The wait mask from registers: what starts depends on it within the cycle.
            queue = Queue(_ENTRY.size, self.config.queue_depth, registered=_OWN)
            under_way = Queue(_STARTED.size, UNDER_WAY)
            name = unit.name.lower()
            m.submodules[f"{name}_queue"] = queue
            m.submodules[f"{name}_under_way"] = under_way
            head = data.View(_ENTRY, queue.r_data)
            begun = data.View(_STARTED, under_way.w_data)
            oldest = data.View(_STARTED, under_way.r_data)
            granted = Signal(name=f"{name}_granted")
            command = self.commands[unit]
            consumed, produced = _consumed(unit), _produced(unit)
            missing = head.wait & ~pick(semaphores.available, consumed)

            with m.If(incoming.unit == unit):
                m.d.comb += self.queued.ready.eq(queue.w_rdy)
            m.d.comb += [
                queue.w_data.eq(
                    Cat(
                        pick(incoming.wait, consumed),
                        pick(incoming.signal, produced),
                        incoming.command,
                    )
                ),
                queue.w_en.eq(self.queued.valid & (incoming.unit == unit)),
                grants[unit].eq(
                    queue.r_rdy & ~granted & under_way.w_rdy & ~missing.any() & ~self.stop
                ),
                pick(semaphores.take, consumed).eq(head.wait & grants[unit].replicate(_OWN)),
                command.valid.eq(granted & ~self.stop),
                command.payload.eq(head.command),
                taken[unit].eq(command.valid & command.ready),
                queue.r_en.eq(taken[unit]),
                begun.signal.eq(head.signal),
                begun.pc.eq(head.command.pc),
                under_way.w_en.eq(grants[unit]),
                under_way.r_en.eq(self.done[unit]),
                pick(semaphores.signal, produced).eq(
                    oldest.signal & self.done[unit].replicate(_OWN)
                ),
                overflows[unit].eq(
                    (pick(semaphores.signal, produced) & pick(semaphores.full, produced)).any()
                ),
                self.unit_idle[unit].eq(~queue.r_rdy & ~under_way.r_rdy),
                self.running[unit].eq(under_way.r_rdy),
                self.running_pc[unit].eq(oldest.pc),
                self.blocked[unit].eq(queue.r_rdy & ~granted),
                self.blocked_pc[unit].eq(head.command.pc),
            ]
            with m.If(taken[unit]):
                m.d.sync += granted.eq(0)
            with m.Elif(grants[unit]):
                m.d.sync += granted.eq(1)

        m.d.comb += [
            self.idle.eq(self.unit_idle.all()),
            self.overflow.eq(overflowed.any()),
        ]
        # Registers: ``done`` comes late.
        m.d.sync += [
            overflowed.eq(overflows),
            moves.eq(Cat(self.queued.valid & self.queued.ready, grants, taken, self.done)),
        ]
        m.d.comb += self.moved.eq(moves.any())
        for unit in reversed(QUEUED):
            pc = Signal(PC_BITS, name=f"overflowed_pc_{unit}", reset_less=True)
            m.d.sync += pc.eq(self.running_pc[unit])
            with m.If(overflowed[unit]):
                m.d.comb += self.overflow_pc.eq(pc)
        return m
