"""From instructions in program order to instructions that overlap: prefetch and semaphores.

The lowering emits *steps*: an instruction with the regions that it reads and writes. Three passes
follow. `prefetch` moves loads of constants ahead of the work that needs them, as far as the regions
allow and the bus can use. `synchronize` finds every pair of steps on different units that touch the
same region, at least one of them writing, and orders them by semaphores. `overlap` marks the vector
instructions that need not wait for the ones before them.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from systolith.fixed import Int
from systolith.isa import QUEUED, Instruction, Unit, semaphore

DISPATCH = 8
"""Cycles in which the sequencer puts one instruction into the queue of its unit."""
MOST_AHEAD = 128
"""Loads that are moved ahead of what needs them at a time: semaphores count to 255."""
_NEVER = -1


@dataclass(frozen=True)
class Region:
    """Rows ``start`` to ``stop`` (exclusive) of a memory, or bytes of a named buffer."""

    space: str
    start: int
    stop: int

    def overlaps(self, other: "Region") -> bool:
        return self.space == other.space and self.start < other.stop and other.start < self.stop


@dataclass
class Step:
    """One instruction, what it touches, and whose work it is.

    ``constant``: a load whose source never changes; it may be moved ahead. ``label``: the graph
    node that the instruction belongs to. ``cycles``: roughly how long its unit is busy with it.
    ``target``: for a branch, the step it goes to.
    """

    instruction: Instruction
    reads: tuple[Region, ...] = ()
    writes: tuple[Region, ...] = ()
    constant: bool = False
    label: str = ""
    cycles: int = 0
    target: "Step | None" = field(default=None, repr=False)

    @property
    def unit(self) -> Unit:
        return self.instruction.unit


class Touches:
    """For each row of each memory and each unit, a number that its last reader or writer left.

    Numbers must not decrease from note to note: indices of steps, or times.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[str, bool], Int] = {}

    def _lines(self, region: Region, write: bool) -> Int:
        """The numbers of every unit in the rows of a region, (units, rows)."""
        key = region.space, write
        rows = self._rows.get(key)
        if rows is None or rows.shape[1] < region.stop:
            grown = np.full((len(QUEUED), max(64, 2 * region.stop)), _NEVER, dtype=np.int64)
            if rows is not None:
                grown[:, : rows.shape[1]] = rows
            rows = self._rows[key] = grown
        return rows[:, region.start : region.stop]

    def note(self, step: Step, number: int) -> None:
        """Leaves ``number`` in all that the step touches."""
        for regions, write in ((step.reads, False), (step.writes, True)):
            for region in regions:
                self._lines(region, write)[step.unit] = number

    def latest(self, step: Step) -> Int:
        """For each unit the largest number that a step in conflict with this one left, or -1."""
        found = np.full(len(QUEUED), _NEVER, dtype=np.int64)
        for regions, kinds in ((step.reads, (True,)), (step.writes, (True, False))):
            for region in regions:
                for write in kinds:
                    lines = self._lines(region, write)
                    if lines.shape[1]:
                        found = np.maximum(found, lines.max(axis=1))
        return found


def prefetch(steps: Sequence[Step], queue_depth: int) -> list[Step]:
    """Moves constant loads ahead of the work before them, never past a conflict.

    They keep their order among themselves; so do all other steps. A load goes where the sequencer
    will be, by an estimate, when half a queue of loads before it has not begun: earlier it might
    find the queue of the load unit full, and then the sequencer could not serve the other units.
    """
    starts, floors = _estimate(steps)
    others = [i for i, step in enumerate(steps) if not step.constant]
    loads = [i for i, step in enumerate(steps) if step.constant]
    # When a load may be queued: when the one half a queue before it has begun.
    due = [0] * (queue_depth // 2) + [starts[i] for i in loads]
    result: list[Step] = []
    queued: dict[Unit, list[int]] = defaultdict(list)
    now = done = 0
    for index in others:
        unit = steps[index].unit
        before = queued[unit]
        if len(before) >= queue_depth:
            now = max(now, before[-queue_depth])
        while done < len(loads) and (
            loads[done] < index
            or (
                due[done] <= now
                and floors[loads[done]] < index
                and done - bisect_left(loads, index) < MOST_AHEAD
            )
        ):
            result.append(steps[loads[done]])
            now += DISPATCH
            done += 1
        result.append(steps[index])
        now += DISPATCH
        before.append(starts[index])
    return result + [steps[i] for i in loads[done:]]


def _estimate(steps: Sequence[Step]) -> tuple[list[int], list[int]]:
    """For each step its start if units waited only for data, and the last step it conflicts with.

    Loads of constants run on a clock of their own order: they are as early as the bus allows.
    """
    times, indices = Touches(), Touches()
    free = dict.fromkeys(Unit, 0)
    starts, floors = [], []
    for index, step in enumerate(steps):
        start = free[step.unit]
        floor = _NEVER
        if step.unit != Unit.SEQUENCER:
            start = max(start, int(times.latest(step).max()))
            floor = int(indices.latest(step).max())
            times.note(step, start + step.cycles)
            indices.note(step, index)
        free[step.unit] = start + step.cycles
        starts.append(start)
        floors.append(floor)
    return starts, floors


def synchronize(steps: Sequence[Step]) -> list[Step]:
    """Adds the waits and signals that keep conflicting steps of different units in order.

    For each ordered pair of units the signals are taken in order, one by one, by the waits: a wait
    is added only where the consumer does not already know of the producer's step (or a later one).
    """
    signals = [0] * len(steps)
    waits = [0] * len(steps)
    known = {(p, c): _NEVER for p in QUEUED for c in QUEUED if p != c}
    touches = Touches()
    for index, step in enumerate(steps):
        if step.unit == Unit.SEQUENCER:
            continue
        latest = touches.latest(step)
        for producer in QUEUED:
            earlier = int(latest[producer])
            if producer == step.unit or earlier <= known[producer, step.unit]:
                continue
            bit = 1 << semaphore(producer, step.unit)
            signals[earlier] |= bit
            waits[index] |= bit
            known[producer, step.unit] = earlier
        touches.note(step, index)
    for step, wait, signal in zip(steps, waits, signals, strict=True):
        step.instruction = replace(step.instruction, wait=wait, signal=signal)
    return list(steps)


def overlap(steps: Sequence[Step]) -> list[Step]:
    """Marks the steps of the vector unit that may start before the ones before have finished.

    A step is ``independent`` if it reads nothing that is written from the last step without the
    mark on. The first one behind a branch or at the target of one has no mark.
    """
    targets = {id(step.target) for step in steps if step.target is not None}
    unfinished: list[Region] | None = None  # None: what comes before is not known
    for step in steps:
        if step.instruction.op == "branch" or id(step) in targets:
            unfinished = None
        if step.unit != Unit.VECTOR:
            continue
        independent = unfinished is not None and not any(
            read.overlaps(written) for read in step.reads for written in unfinished
        )
        unfinished = [*(unfinished or [] if independent else []), *step.writes]
        fields = {**step.instruction.fields, "independent": int(independent)}
        step.instruction = replace(step.instruction, fields=fields)
    return list(steps)
