"""Cycles of a straight program, estimated: units in order, semaphores, and the bus."""

from collections import deque
from collections.abc import Sequence

from systolith.compiler.schedule import Step
from systolith.config import Config
from systolith.isa import INSTRUCTION_BYTES, QUEUED, SEMAPHORES, Unit, semaphore

_DISPATCH = 8
"""Cycles between two instructions."""
_START = 6
"""Cycles from the start, but for the latency, until the first instruction is dispatched."""
_LOAD, _VECTOR, _STORE = 8, 12, 8
"""Cycles of an instruction beyond those that its data take."""


def estimate(config: Config, steps: Sequence[Step], latency: int) -> int:
    """Cycles from start to halt of ``steps`` without branches, with ``latency`` of the memory.

    A unit begins an instruction when the one before has left it, and its semaphores have come. A
    load occupies the bus for its beats, or for as long as ``outstanding`` bursts need to come. A
    matmul takes max(rows, D) cycles a tile, the vector unit D / V cycles a block.
    """
    d, beats = config.dim, config.dim // config.bus_bytes
    free = dict.fromkeys(QUEUED, 0)
    begun: dict[Unit, deque[int]] = {
        unit: deque([0] * config.queue_depth, config.queue_depth) for unit in QUEUED
    }
    signals: list[deque[int]] = [deque() for _ in range(SEMAPHORES)]
    fetched = 0
    """Beats of instructions that share the bus with the next load."""
    ends = 0
    now = latency + _START
    for step in steps:
        item, unit = step.instruction, step.unit
        get = item.get
        now = max(now + _DISPATCH, begun[unit][0])
        fetched += INSTRUCTION_BYTES // config.bus_bytes
        ready = now + 2
        for bit in range(SEMAPHORES):
            if item.wait >> bit & 1:
                ready = max(ready, signals[bit].popleft() + 2)
        if unit in (Unit.LOAD, Unit.STORE):
            row = get("words") * beats
            bursts = -(-row // config.max_burst)
            in_flight = (latency if unit == Unit.LOAD else 4) + 4
            cycles = get("rows") * max(row, -(-bursts * in_flight // config.outstanding))
        if unit == Unit.LOAD:
            begin = max(free[unit], ready + latency + _LOAD)
            # The bus has been free for instructions between the last load and this one.
            free[unit] = begin + cycles + max(0, fetched - (begin - free[unit]))
            fetched = 0
            done = free[unit] + 2
            begun[unit].append(max(ready, begin - latency - _LOAD))
        elif unit == Unit.STORE:
            begin = max(free[unit], ready)
            free[unit] = begin + cycles
            done = free[unit] + _STORE
            begun[unit].append(begin)
        elif unit == Unit.MATMUL:
            begin = max(free[unit], ready)
            tiles = get("k_tiles") * get("n_tiles")
            free[unit] = begin + tiles * max(get("rows"), d)
            done = free[unit] + 2 * d + 7 - max(0, d - get("rows"))
            begun[unit].append(begin)
        else:
            begin = max(free[unit], ready)
            cycles = get("rows") * get("blocks") * d // config.lanes
            free[unit] = done = begin + cycles + _VECTOR
            begun[unit].append(begin)
        for consumer in QUEUED:
            if consumer != unit and item.signal >> semaphore(unit, consumer) & 1:
                signals[semaphore(unit, consumer)].append(done)
        ends = max(ends, done)
    return max(ends, now + _DISPATCH) + 4
