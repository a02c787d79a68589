"""What happened when in a run of a program, be it predicted or measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from systolith.isa import Unit


@dataclass(frozen=True, slots=True)
class Executed:
    """One executed instruction. Cycles count from 0, the first one in which the machine is busy.

    ``queued``: it entered the queue of its unit (for the sequencer's own, it was complete in the
    sequencer). ``granted``: it was at the head of the queue and had taken its semaphores.
    ``start``: its unit took it. ``end``: the unit was done (for the sequencer's own, it retired).
    """

    pc: int
    unit: Unit
    queued: int
    granted: int
    start: int
    end: int


@dataclass(frozen=True)
class Timeline:
    """All executed instructions, in the order in which the sequencer met them.

    ``cycles``: of the whole program, as the register CYCLES counts them. ``counters``: the
    hardware's, by their names in ``systolith.registers``.
    """

    executed: Sequence[Executed]
    cycles: int
    counters: Mapping[str, int] = field(default_factory=dict)

    def of(self, unit: Unit) -> list[Executed]:
        """What ``unit`` executed, in order."""
        return [item for item in self.executed if item.unit == unit]
