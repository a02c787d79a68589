"""From instructions in program order to instructions that overlap: prefetch and semaphores.

The lowering emits *steps*: an instruction with the regions that it reads and writes. Two passes
follow. `prefetch` moves loads of constants ahead of the work that needs them, as far as the regions
allow. `synchronize` finds every pair of steps on different units that touch the same region, at
least one of them writing, and orders them by semaphores.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from systolith.isa import QUEUED, Instruction, Unit, semaphore


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
    node that the instruction belongs to. ``target``: for a branch, the step it goes to.
    """

    instruction: Instruction
    reads: tuple[Region, ...] = ()
    writes: tuple[Region, ...] = ()
    constant: bool = False
    label: str = ""
    target: "Step | None" = field(default=None, repr=False)

    @property
    def unit(self) -> Unit:
        return self.instruction.unit


def conflict(first: Step, second: Step) -> bool:
    """Whether two steps must keep their order."""
    return any(
        a.overlaps(b)
        for mine, theirs in (
            (first.writes, second.reads),
            (first.writes, second.writes),
            (first.reads, second.writes),
        )
        for a in mine
        for b in theirs
    )


def prefetch(steps: Sequence[Step], distance: int) -> list[Step]:
    """Moves constant loads up to ``distance`` steps ahead, never past a conflict or a load.

    Loads keep their order among themselves. Sequencer steps are passed, too: a load of constants
    depends on no register.
    """
    result: list[Step] = []
    for step in steps:
        place = len(result)
        if step.constant:
            floor = max(0, place - distance)
            while place > floor:
                previous = result[place - 1]
                if previous.unit == Unit.LOAD or conflict(previous, step):
                    break
                place -= 1
        result.insert(place, step)
    return result


def prefetch_queued(steps: Sequence[Step], ahead: int) -> list[Step]:
    """As ``prefetch``; a step is preceded by ``ahead`` later loads at most.

    As many as fit into the queue of the load unit: with more, the sequencer would wait for room in
    it instead of handing out work whose operands are there.
    """
    result: list[Step] = []
    before: list[int] = []
    """Loads in front of each step of the result in program order."""
    loads = 0
    for step in steps:
        place = len(result)
        if step.constant:
            while place > 0:
                previous = result[place - 1]
                late = loads >= before[place - 1] + ahead
                if previous.unit == Unit.LOAD or late or conflict(previous, step):
                    break
                place -= 1
        result.insert(place, step)
        before.insert(place, loads)
        loads += step.unit == Unit.LOAD
    return result


def synchronize(steps: Sequence[Step]) -> list[Step]:
    """Adds the waits and signals that keep conflicting steps of different units in order.

    For each ordered pair of units the signals are taken in order, one by one, by the waits: a wait
    is added only where the consumer does not already know of the producer's step (or a later one).
    """
    signals = [0] * len(steps)
    waits = [0] * len(steps)
    known = {(p, c): -1 for p in QUEUED for c in QUEUED if p != c}
    # Regions that each unit has written and read so far, by memory, with the indices of the steps.
    written: dict[tuple[Unit, str], list[tuple[int, Region]]] = defaultdict(list)
    read: dict[tuple[Unit, str], list[tuple[int, Region]]] = defaultdict(list)
    for index, step in enumerate(steps):
        if step.unit == Unit.SEQUENCER:
            continue
        for producer in QUEUED:
            if producer == step.unit:
                continue
            pair = (producer, step.unit)
            latest = known[pair]
            for history, regions in ((written, step.reads + step.writes), (read, step.writes)):
                for region in regions:
                    for earlier, other in reversed(history[producer, region.space]):
                        if earlier <= latest:
                            break
                        if region.overlaps(other):
                            latest = earlier
                            break
            if latest > known[pair]:
                bit = 1 << semaphore(*pair)
                signals[latest] |= bit
                waits[index] |= bit
                known[pair] = latest
        for history, regions in ((written, step.writes), (read, step.reads)):
            for region in regions:
                history[step.unit, region.space].append((index, region))
    for step, wait, signal in zip(steps, waits, signals, strict=True):
        step.instruction = replace(step.instruction, wait=wait, signal=signal)
    return list(steps)
