"""What happened when in a run of a program, be it predicted or measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from systolith.isa import Instruction, Unit


@dataclass(frozen=True, slots=True)
class Executed:
    """One executed instruction. Cycles count from 0, the first one in which the machine is busy.

    ``queued``: it entered the queue of its unit. ``granted``: it was at the head of the queue and
    had taken its semaphores. ``start``: its unit took it. ``end``: the unit was done. A unit may
    take an instruction while the one before is still under way; they end in order.

    Of the sequencer's own, the first three are the cycle after the instruction before left the
    sequencer, and ``end`` is when this one does: its words arrive, it waits, it is executed.
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
    hardware's, by their names in ``systolith.registers``. ``items``: the instructions themselves,
    registers added, one for each of ``executed``; empty where they are not known.
    """

    executed: Sequence[Executed]
    cycles: int
    counters: Mapping[str, int] = field(default_factory=dict)
    items: Sequence[Instruction] = ()

    def of(self, unit: Unit) -> list[Executed]:
        """What ``unit`` executed, in order."""
        return [item for item in self.executed if item.unit == unit]

    def with_items(self, other: "Timeline") -> "Timeline":
        """This timeline with the instructions of ``other``, if both executed the same; else as it
        is."""
        mine, theirs = ([item.pc for item in line.executed] for line in (self, other))
        return replace(self, items=other.items) if mine == theirs else self

    def with_code(self, code: Sequence[Instruction]) -> "Timeline":
        """This timeline with the instructions as they stand in a program, no registers added; where
        ``items`` are known, as it is."""
        if self.items:
            return self
        return replace(self, items=[code[item.pc] for item in self.executed])
