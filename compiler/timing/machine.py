"""The model of the whole machine: an event for each thing that the issue logic does.

The fetch asks for instructions, the sequencer hands them to queues, a queue's head takes its
semaphores and goes to its unit, the unit reports that it is done. How long a unit works follows
from an instruction's fields (`units`), what passes through memory from a queue of beats
(`transfer`).
"""

import heapq
from collections import deque
from collections.abc import Callable
from typing import Any

from systolith.compiler.timeline import Executed, Timeline
from systolith.compiler.timing.counters import Counters
from systolith.compiler.timing.memory import Memory
from systolith.compiler.timing.parameters import Parameters
from systolith.compiler.timing.ports import Accumulator, SharedPort
from systolith.compiler.timing.transfer import Fetch, Load, ReadBus, Store
from systolith.compiler.timing.units import Fields, Matmuls
from systolith.compiler.timing.vector import VectorUnit
from systolith.compiler.unroll import Dynamic
from systolith.config import Config
from systolith.isa import (
    QUEUED,
    SEMAPHORES,
    AluOp,
    Instruction,
    LoadSpace,
    ProgramError,
    StoreSpace,
    Unit,
    semaphore,
)


def _pairs() -> tuple[dict[Unit, list[tuple[int, Unit]]], dict[Unit, int]]:
    """For each unit the semaphores that it signals, with their consumers, and those it takes."""
    signals: dict[Unit, list[tuple[int, Unit]]] = {unit: [] for unit in QUEUED}
    takes = dict.fromkeys(QUEUED, 0)
    for producer in QUEUED:
        for consumer in QUEUED:
            if producer != consumer:
                signals[producer].append((semaphore(producer, consumer), consumer))
                takes[consumer] |= 1 << semaphore(producer, consumer)
    return signals, takes


_SIGNALS, _TAKES = _pairs()


class Deadlock(ProgramError):
    """A program that waits for a semaphore that nobody signals."""


class _Queue:
    """A unit's queue, and what it has begun."""

    __slots__ = ("granted", "items", "ready", "started", "under_way")

    def __init__(self) -> None:
        self.items: deque[int] = deque()
        self.granted = -1
        """Cycle of the head's grant; -1: it has none."""
        self.ready: int | None = 0
        """When the unit can take its next instruction; None: that is not known yet."""
        self.started: list[int] = []
        self.under_way = 0


class Machine:
    """Executes a stream of instructions once; ``base``: byte address of the program in memory."""

    def __init__(
        self,
        config: Config,
        stream: list[Dynamic],
        memory: Memory,
        base: int,
        parameters: Parameters,
    ) -> None:
        self.config, self.stream, self.p = config, stream, parameters
        self.heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self.number = 0
        self.queues = {unit: _Queue() for unit in QUEUED}
        self.semaphores = [0] * SEMAPHORES
        bus = ReadBus(memory)
        self.fetch = Fetch(config, parameters, bus, self.at, base, self._arrived)
        self.load = Load(config, parameters, bus, self.at, base)
        self.store = Store(config, parameters, memory, base)
        self.matmuls = Matmuls(config, parameters)

        count = len(stream)
        self.queued, self.granted = [-1] * count, [-1] * count
        self.start, self.end = [-1] * count, [-1] * count
        self.index = 0  # the instruction that the sequencer takes or executes
        self.left = -1  # when the last instruction left the sequencer
        self.words_from: int | None = None  # it waits for words since then
        self.waiting: Unit | None = None  # for room in that queue
        self.draining: tuple[Unit, ...] = ()  # for these units
        self.unfinished = dict.fromkeys(QUEUED, 0)
        self.last_done = dict.fromkeys(QUEUED, -1)
        self.ports = {space: SharedPort(parameters) for space in StoreSpace}
        written = (LoadSpace.ACTIVATION, LoadSpace.WEIGHT)
        self.write_ports = {space: SharedPort(parameters) for space in written}
        self.accumulator = Accumulator(config, parameters)
        self.halted = -1
        self.counters = Counters()
        self.vector = VectorUnit(
            config,
            parameters,
            self.at,
            self.ports,
            self.write_ports,
            self.accumulator,
            self.counters,
            lambda cycle: self._ready(Unit.VECTOR, cycle),
            lambda index, cycle: self._finish(Unit.VECTOR, index, cycle),
        )

    def at(self, cycle: int, function: Callable[..., None], *arguments: Any) -> None:
        self.number += 1
        heapq.heappush(self.heap, (cycle, self.number, function, arguments))

    def run(self) -> Timeline:
        if self.stream:
            self._next(self.fetch.restart(self.p.first_restart, self.stream[0].pc))
        while self.heap and self.halted < 0:
            _, _, function, arguments = heapq.heappop(self.heap)
            function(*arguments)
        if self.halted < 0:
            self._demand_end()
            self.halted = max(self.end, default=-1)
        stream = self.stream[: self.index]
        times = zip(self.queued, self.granted, self.start, self.end, strict=True)
        executed = [
            Executed(item.pc, item.item.unit, *cycles)
            for item, cycles in zip(stream, times, strict=False)
        ]
        items = [item.item for item in stream]
        return Timeline(executed, self.halted + 1, self._registers(len(stream)), items)

    # The sequencer -------------------------------------------------------------------------------

    def _next(self, cycle: int) -> None:
        """Takes the words of the instruction ``index``, the first one in ``cycle`` or later."""
        if self.index >= len(self.stream):
            return
        last_word = self.fetch.take(cycle)
        if last_word is None:
            self.words_from = cycle
            return
        self.words_from = None
        self.at(last_word + 1, self._execute, last_word + 1)

    def _arrived(self) -> None:
        if self.words_from is not None:
            self._next(self.words_from)

    def _execute(self, cycle: int) -> None:
        index = self.index
        dynamic = self.stream[index]
        item = dynamic.item
        unit = item.unit
        if unit != Unit.SEQUENCER:
            self._hand_on(unit, index, cycle)
            return
        op = item.op
        if op == "alu":
            fields = item.fields
            if fields.get("op", 0) in (AluOp.SHL, AluOp.SHR):
                bits = fields.get("y", 0) & 31
                cycle += 1 + bits // self.p.shift_bits + bits % self.p.shift_bits
            self._retire(cycle)
        elif op == "branch":
            if dynamic.taken:
                restart = cycle + self.p.branch
                self._retire(cycle)
                self._next(self.fetch.restart(restart, item.fields.get("target", 0)))
                return
            self._retire(cycle)
        elif op == "ldr":
            self.fetch.load_word(cycle, self._loaded)
            return
        else:
            units = (Unit.VECTOR,) if op == "argmax" else QUEUED
            if any(self.unfinished[unit] for unit in units):
                self.draining = units
                return
            self._drained(cycle, units)
            return
        self._next(self.end[index] + 1)

    def _loaded(self, beat: int) -> None:
        self._retire(beat + self.p.loaded)
        self._next(beat + self.p.loaded + 1)

    def _drained(self, cycle: int, units: tuple[Unit, ...]) -> None:
        """The instruction that waited for ``units`` is executed."""
        self.draining = ()
        cycle = max(cycle, *(self.last_done[unit] + self.p.drained for unit in units))
        if self.stream[self.index].item.op == "halt":
            self.halted = cycle
        self._retire(cycle)
        self._next(cycle + 1)

    def _retire(self, cycle: int) -> None:
        index, since = self.index, self.left + 1
        self.queued[index] = self.granted[index] = self.start[index] = since
        self.end[index] = self.left = cycle
        self.index += 1

    def _hand_on(self, unit: Unit, index: int, cycle: int) -> None:
        queue = self.queues[unit]
        before = len(queue.started) + len(queue.items) - self.config.queue_depth
        if before >= len(queue.started):
            self.waiting = unit
            return
        if before >= 0 and queue.started[before] + self.p.room > cycle:
            cycle = queue.started[before] + self.p.room
            self.at(cycle, self._execute, cycle)
            return
        self.queued[index] = self.left = cycle
        self.unfinished[unit] += 1
        queue.items.append(index)
        if len(queue.items) == 1:
            self.at(cycle + self.p.grant, self._grant, unit, cycle + self.p.grant)
        self.index += 1
        self._next(cycle)

    # Queues --------------------------------------------------------------------------------------

    def _grant(self, unit: Unit, cycle: int) -> None:
        queue = self.queues[unit]
        if not queue.items or queue.granted >= 0 or queue.under_way >= self.p.under_way:
            return
        index = queue.items[0]
        wait = self.stream[index].item.wait & _TAKES[unit]
        if wait:
            needed = [i for i in range(SEMAPHORES) if wait >> i & 1]
            if not all(self.semaphores[i] for i in needed):
                return
            for i in needed:
                self.semaphores[i] -= 1
        queue.granted = self.granted[index] = cycle
        queue.under_way += 1
        self._offer(unit)

    def _offer(self, unit: Unit) -> None:
        queue = self.queues[unit]
        if queue.granted >= 0 and queue.ready is not None:
            cycle = max(queue.granted + self.p.offer, queue.ready)
            queue.ready = None
            self.at(cycle, self._take, unit, cycle)

    def _ready(self, unit: Unit, cycle: int) -> None:
        self.queues[unit].ready = cycle
        self._offer(unit)

    def _take(self, unit: Unit, cycle: int) -> None:
        queue = self.queues[unit]
        index = queue.items.popleft()
        queue.granted = -1
        queue.started.append(cycle)
        self.start[index] = cycle
        if self.waiting == unit:
            self.waiting = None
            self.at(cycle + self.p.room, self._execute, cycle + self.p.room)
        if queue.items:
            self.at(cycle + self.p.grant, self._grant, unit, cycle + self.p.grant)
        self._work(unit, index, cycle)

    def _finish(self, unit: Unit, index: int, cycle: int) -> None:
        """The unit's ``done``."""
        queue = self.queues[unit]
        self.end[index] = self.last_done[unit] = cycle
        self.unfinished[unit] -= 1
        queue.under_way -= 1
        signal = self.stream[index].item.signal
        following = cycle + self.p.grant
        if signal:
            for bit, consumer in _SIGNALS[unit]:
                if signal >> bit & 1:
                    self.semaphores[bit] += 1
                    self.at(following, self._grant, consumer, following)
        if queue.items and queue.granted < 0 and queue.under_way == self.p.under_way - 1:
            self.at(following, self._grant, unit, following)
        if self.draining and not any(self.unfinished[unit] for unit in self.draining):
            self._drained(cycle + self.p.drained, self.draining)

    # Units ---------------------------------------------------------------------------------------

    def _work(self, unit: Unit, index: int, cycle: int) -> None:
        item = self.stream[index].item
        fields = item.fields
        if unit == Unit.LOAD:
            self.load.start(
                cycle, fields,
                lambda ready: self._ready(Unit.LOAD, ready),
                lambda done: self._written(index, fields, done),
            )  # fmt: skip
        elif unit == Unit.STORE:
            ready, done = self.store.run(fields, item.op, cycle, self._store_waits(item, cycle))
            self._ready(unit, ready)
            self.at(done, self._finish, unit, index, done)
        elif unit == Unit.MATMUL:
            self._multiply(fields, index, cycle)
        else:
            self.vector.take(index, item, cycle)

    def _written(self, index: int, fields: Fields, done: int) -> None:
        port = self.write_ports.get(LoadSpace(fields.get("space", 0)))
        done += port.change(False) if port is not None else 0
        self.at(done, self._finish, Unit.LOAD, index, done)

    def _multiply(self, fields: Fields, index: int, cycle: int) -> None:
        ready, swap, streamed, waited = self.matmuls.run(fields, cycle)
        done = self.matmuls.done(streamed)
        self.accumulator.add(fields, swap, streamed)
        self.counters.multiply(fields, cycle, done, waited, done + self.p.early)
        self._ready(Unit.MATMUL, ready)
        self.at(done, self._finish, Unit.MATMUL, index, done)

    def _store_waits(self, item: Instruction, cycle: int) -> int:
        """Cycles by which a store's data is late because of the vector unit."""
        if item.op != "store":
            return 0
        fields = item.fields
        space = StoreSpace(fields.get("space", 0))
        wait = self.ports[space].change(True)
        if space == StoreSpace.ACTIVATION:
            words = fields.get("rows", 0) * fields.get("words", 0)
            wait += self.vector.share(cycle + self.p.store_read, words)
        return wait

    # The end -------------------------------------------------------------------------------------

    def _demand_end(self) -> None:
        """Raises ``Deadlock`` if something has not been executed."""
        for index, dynamic in enumerate(self.stream):
            if self.end[index] < 0:
                raise Deadlock(
                    f"Instruction {dynamic.pc} ({dynamic.item.op}) never gets what it waits for"
                )

    def _registers(self, instructions: int) -> dict[str, int]:
        bus = self.config.bus_bytes
        return self.counters.registers(
            cycles=self.halted + 1,
            instructions=instructions,
            fetch_bytes=bus * self.fetch.beats(self.halted),
            load_bytes=bus * (self.load.beats + self.fetch.loaded),
            write_bytes=bus * self.store.pipe.beats,
            wait_memory=self.load.waited,
        )
