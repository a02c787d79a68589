"""A golden machine whose units run in a random order that the semaphores allow.

It executes nothing concurrently; it only chooses, again and again, whether the sequencer or one of
the units takes its next instruction. Every order that the hardware can produce (at the grain of
whole instructions) is possible, so a missing semaphore shows as a wrong result for some seed.
"""

from collections import deque

import numpy as np

from systolith.isa import QUEUED, SEMAPHORES, Instruction, Unit
from systolith.sim.machine import GoldenMachine


class Deadlock(AssertionError):
    """Every queue's head waits for a semaphore that nobody can signal."""


class InterleavedMachine(GoldenMachine):
    """``rng`` chooses the order; each queue holds at most ``depth`` instructions."""

    def __init__(self, config, memory, rng: np.random.Generator, depth: int = 8) -> None:
        super().__init__(config, memory)
        self.rng = rng
        self.depth = depth
        self.queues: dict[Unit, deque[Instruction]] = {unit: deque() for unit in QUEUED}
        self.semaphores = [0] * SEMAPHORES

    def _ready(self, unit: Unit) -> bool:
        queue = self.queues[unit]
        return bool(queue) and all(
            self.semaphores[i] for i in range(SEMAPHORES) if queue[0].wait >> i & 1
        )

    def _execute(self, unit: Unit) -> None:
        item = self.queues[unit].popleft()
        for i in range(SEMAPHORES):
            self.semaphores[i] += (item.signal >> i & 1) - (item.wait >> i & 1)
        getattr(self, f"_{item.op}")(item)

    def _drain(self, units) -> None:
        while any(self.queues[unit] for unit in units):
            self._execute_one()

    def _execute_one(self) -> None:
        ready = [unit for unit in QUEUED if self._ready(unit)]
        if not ready:
            raise Deadlock(str({unit.name: list(q)[:1] for unit, q in self.queues.items()}))
        self._execute(ready[self.rng.integers(len(ready))])

    def run(self, max_instructions: int = 1 << 30) -> None:
        pc = 0
        for _ in range(max_instructions):
            item = self._with_registers(self._fetch(pc), pc)
            if item.unit != Unit.SEQUENCER:
                while len(self.queues[item.unit]) >= self.depth:
                    self._execute_one()
                self.queues[item.unit].append(item)
                pc += 1
                # Sometimes the sequencer runs ahead, sometimes the units catch up.
                while self.rng.random() < 0.5 and any(self._ready(unit) for unit in QUEUED):
                    self._execute_one()
                continue
            if item.op in ("halt", "fence", "mark"):
                self._drain(QUEUED)
            elif item.op == "argmax":
                self._drain([Unit.VECTOR])
            if item.op == "halt":
                assert self.semaphores == [0] * SEMAPHORES, "semaphores are not balanced"
                return
            pc = self._step(item, pc)
        raise AssertionError("the program does not halt")
