"""Why a unit did nothing: what the next instruction of each unit waited for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from systolith.compiler.timeline import Executed, Timeline
from systolith.isa import QUEUED, Instruction, Unit, semaphore

SEQUENCER = "sequencer"
"""The instruction had not come yet: the sequencer was behind, or waited itself."""
HANDOVER = "handover"
"""The cycles that the issue logic takes from one thing to the next."""
END = "end"
"""There was nothing left to do."""


@dataclass(frozen=True, slots=True)
class Stall:
    """Cycles ``start`` to ``stop`` (exclusive) in which ``unit`` did nothing.

    ``reason``: one of the above, or the name of the unit whose semaphore was missing. ``index``: of
    the instruction among the executed ones that came next; -1: there was none.
    """

    unit: Unit
    start: int
    stop: int
    reason: str
    index: int

    @property
    def cycles(self) -> int:
        return self.stop - self.start


def stalls(timeline: Timeline) -> list[Stall]:
    """Every cycle in which a unit that executes something in ``timeline`` did nothing.

    Needs the timeline's ``items``.
    """
    found: list[Stall] = []
    signals = _signals(timeline)
    for unit in QUEUED:
        mine = [i for i, item in enumerate(timeline.executed) if item.unit == unit]
        taken: Counter[int] = Counter()
        free = 0  # from then on the unit has nothing to do
        for index in mine:
            item, instruction = timeline.executed[index], timeline.items[index]
            producer, signalled = _last_signal(unit, instruction, signals, taken)
            found += _gap(unit, index, item, free, producer, signalled)
            free = item.end + 1
        if mine and free < timeline.cycles:
            found.append(Stall(unit, free, timeline.cycles, END, -1))
    return found


def _signals(timeline: Timeline) -> dict[int, list[int]]:
    """For each semaphore, when it was signalled: cycles in order."""
    signals: dict[int, list[int]] = {}
    for item, instruction in zip(timeline.executed, timeline.items, strict=True):
        if item.unit in QUEUED:
            for consumer in QUEUED:
                bit = semaphore(item.unit, consumer) if consumer != item.unit else 0
                if consumer != item.unit and instruction.signal >> bit & 1:
                    signals.setdefault(bit, []).append(item.end)
    return signals


def _last_signal(
    unit: Unit, item: Instruction, signals: dict[int, list[int]], taken: Counter[int]
) -> tuple[Unit, int]:
    """(producer, cycle) of the latest of the signals that an instruction takes."""
    last = (unit, -1)
    for producer in QUEUED:
        if producer == unit:
            continue
        bit = semaphore(producer, unit)
        if item.wait >> bit & 1:
            last = max(last, (producer, signals[bit][taken[bit]]), key=lambda pair: pair[1])
            taken[bit] += 1
    return last


def _gap(
    unit: Unit, index: int, item: Executed, free: int, producer: Unit, signalled: int
) -> list[Stall]:
    """The cycles from ``free`` to an instruction's start, cut by reason."""
    reasons = (
        (item.queued + 1, SEQUENCER),
        (signalled + 1, producer.name.lower()),
        (item.start, HANDOVER),
    )
    found = []
    for until, reason in reasons:
        stop = min(until, item.start)
        if stop > free:
            found.append(Stall(unit, free, stop, reason, index))
            free = stop
    return found


def by_reason(found: Sequence[Stall]) -> dict[Unit, dict[str, int]]:
    """Cycles of each unit's stalls, by reason."""
    sums: dict[Unit, dict[str, int]] = {}
    for stall in found:
        reasons = sums.setdefault(stall.unit, {})
        reasons[stall.reason] = reasons.get(stall.reason, 0) + stall.cycles
    return sums
