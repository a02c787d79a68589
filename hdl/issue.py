"""Queues in front of the units, semaphores between them, and the order in which work starts."""

from amaranth import Cat, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from systolith.config import Config
from systolith.hdl.layouts import COMMAND, PC_BITS
from systolith.isa import QUEUED, SEMAPHORES

UNDER_WAY = 8
"""Instructions that one unit may have begun and not finished."""
SEMAPHORE_BITS = 8

QUEUED_INSTRUCTION = data.StructLayout(
    {"unit": 2, "wait": SEMAPHORES, "signal": SEMAPHORES, "command": COMMAND}
)
"""An instruction for the queue of ``unit``; registers are added."""

_ENTRY = data.StructLayout({"wait": SEMAPHORES, "signal": SEMAPHORES, "command": COMMAND})
_STARTED = data.StructLayout({"signal": SEMAPHORES, "pc": PC_BITS})


class Semaphores(wiring.Component):
    """Twelve counters of ``SEMAPHORE_BITS`` bits.

    Members
    -------
    signals : array of 4 x 12, in
        Counters that each unit increments in this cycle.
    take : in, 12
        Counters that are decremented in this cycle; only ones that are ``available``.
    available : out, 12
        The counter is above zero.
    overflow : out, 12
        The counter passes its maximum in this cycle.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "signals": In(SEMAPHORES).array(len(QUEUED)),
                "take": In(SEMAPHORES),
                "available": Out(SEMAPHORES),
                "overflow": Out(SEMAPHORES),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        for index in range(SEMAPHORES):
            count = Signal(SEMAPHORE_BITS, name=f"count_{index}")
            following = Signal(SEMAPHORE_BITS + 1, name=f"following_{index}")
            added = Signal(3, name=f"added_{index}")
            m.d.comb += [
                added.eq(sum(signal[index] for signal in self.signals)),
                following.eq(count + added - self.take[index]),
                self.available[index].eq(count != 0),
                self.overflow[index].eq(following[SEMAPHORE_BITS]),
            ]
            m.d.sync += count.eq(following)
        return m


class Issue(wiring.Component):
    """Starts queued instructions when their semaphores allow, and signals when they are finished.

    Each cycle at most one instruction in the whole machine is granted its semaphores (load before
    store before matmul before vector); from the next cycle on it is offered to its unit. A unit may
    have up to ``UNDER_WAY`` instructions begun and not finished; ``done`` refers to the oldest.
    An instruction is offered two cycles after it was queued at the earliest, and a unit can take
    one every other cycle. A signal can let another unit's instruction be offered two cycles after
    ``done``.

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
        Something was queued, granted, taken or finished; for the watchdog.
    overflow : out, 1; overflow_pc : out, 24
        A semaphore passed its maximum; index of an instruction that signalled it.
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
        incoming = self.queued.payload
        earlier = Signal(len(QUEUED) + 1)
        """Bit i: a unit before i is granted."""
        for unit in QUEUED:
            queue = SyncFIFO(width=_ENTRY.size, depth=self.config.queue_depth)
            under_way = SyncFIFO(width=_STARTED.size, depth=UNDER_WAY)
            name = unit.name.lower()
            m.submodules[f"{name}_queue"] = queue
            m.submodules[f"{name}_under_way"] = under_way
            head = data.View(_ENTRY, queue.r_data)
            begun = data.View(_STARTED, under_way.w_data)
            oldest = data.View(_STARTED, under_way.r_data)
            granted = Signal(name=f"{name}_granted")
            command = self.commands[unit]

            with m.If(incoming.unit == unit):
                m.d.comb += self.queued.ready.eq(queue.w_rdy)
            missing = head.wait & ~semaphores.available
            m.d.comb += [
                queue.w_data.eq(Cat(incoming.wait, incoming.signal, incoming.command)),
                queue.w_en.eq(self.queued.valid & (incoming.unit == unit)),
                grants[unit].eq(
                    queue.r_rdy & ~granted & under_way.w_rdy & ~missing.any() & ~self.stop
                    & ~earlier[unit]
                ),
                earlier[unit + 1].eq(earlier[unit] | grants[unit]),
                command.valid.eq(granted & ~self.stop),
                command.payload.eq(head.command),
                taken[unit].eq(command.valid & command.ready),
                queue.r_en.eq(taken[unit]),
                begun.signal.eq(head.signal),
                begun.pc.eq(head.command.pc),
                under_way.w_en.eq(grants[unit]),
                under_way.r_en.eq(self.done[unit]),
                semaphores.signals[unit].eq(
                    oldest.signal & self.done[unit].replicate(SEMAPHORES)
                ),
                self.unit_idle[unit].eq(~queue.r_rdy & ~under_way.r_rdy),
                self.running[unit].eq(under_way.r_rdy),
                self.running_pc[unit].eq(oldest.pc),
                self.blocked[unit].eq(queue.r_rdy & ~granted),
                self.blocked_pc[unit].eq(head.command.pc),
            ]  # fmt: skip
            with m.If(grants[unit]):
                m.d.comb += semaphores.take.eq(head.wait)
                m.d.sync += granted.eq(1)
            with m.Elif(taken[unit]):
                m.d.sync += granted.eq(0)

        m.d.comb += [
            self.idle.eq(self.unit_idle.all()),
            self.moved.eq(
                (self.queued.valid & self.queued.ready) | grants.any() | taken.any()
                | self.done.any()
            ),
            self.overflow.eq(semaphores.overflow.any()),
        ]  # fmt: skip
        for unit in reversed(QUEUED):
            with m.If((semaphores.signals[unit] & semaphores.overflow).any()):
                m.d.comb += self.overflow_pc.eq(self.running_pc[unit])
        return m
