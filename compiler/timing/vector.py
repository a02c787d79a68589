"""The vector unit: reader, pipelines and writer, each at work on an instruction of its own."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from systolith.compiler.timing.counters import Counters
from systolith.compiler.timing.parameters import Parameters
from systolith.compiler.timing.ports import Accumulator, SharedPort, sources
from systolith.compiler.timing.transfer import At
from systolith.compiler.timing.units import Fields, Vectors
from systolith.config import Config
from systolith.isa import Instruction, LoadSpace, StoreSpace

_OPERATION = ("table", "slot", "combine", "mult_a", "mult_b", "shift", "d_wide", "scale")
"""Fields that say what the ALU does; with others it changes only while it is empty."""


@dataclass(slots=True)
class _Running:
    """An instruction that has begun.

    ``last_beat``: when the reader hands out its last beat; ``end``: its ``done``, if nobody is in
    its way from now on. ``turns``: cycles for which a store read instead.
    """

    index: int
    accepted: int
    start: int
    last_beat: int
    end: int
    beats: int
    banks: frozenset[int]
    blocks: int
    spacing: int
    reads: int
    turns: int = 0

    @property
    def saturates(self) -> bool:
        """Whether it reads the activation memory in every cycle."""
        return self.reads >= self.spacing


class VectorUnit:
    """An instruction begins when all before it are done, an ``independent`` one when the reader is
    free. Results are written in order."""

    def __init__(
        self,
        config: Config,
        parameters: Parameters,
        at: At,
        ports: dict[StoreSpace, SharedPort],
        write_ports: dict[LoadSpace, SharedPort],
        accumulator: Accumulator,
        counters: Counters,
        ready: Callable[[int], None],
        finish: Callable[[int, int], None],
    ) -> None:
        self.p, self.at, self.ports, self.accumulator = parameters, at, ports, accumulator
        self.counters, self.ready, self.finish = counters, ready, finish
        self.write_ports = write_ports
        self.vectors = Vectors(config, parameters)
        self.running: deque[_Running] = deque()
        self.waiting: tuple[int, Instruction, int] | None = None  # index, what, accepted when
        self.reader_free = 0
        self.operation: tuple[int, ...] = ()
        self.drained = -1  # when the ALU hands out the last of its results
        self.last_done = -1
        self.store_reads_until = -1

    def take(self, index: int, item: Instruction, cycle: int) -> None:
        """Accepts an instruction."""
        self.waiting = index, item, cycle
        self._try(cycle + 1)

    def _try(self, cycle: int) -> None:
        """Begins the accepted instruction, in ``cycle`` or when it can."""
        if self.waiting is None:
            return
        index, item, accepted = self.waiting
        independent = item.fields.get("independent", 0)
        if self.running and (not independent or len(self.running) > self.p.destinations):
            return  # until something is done
        start = max(cycle, accepted + 1, self.reader_free if independent else 0)
        self.waiting = None
        self.at(start, self._begin, index, item, accepted, start)

    def _begin(self, index: int, item: Instruction, accepted: int, start: int) -> None:
        if item.fields.get("independent", 0) and self.reader_free > start:
            self.at(self.reader_free, self._begin, index, item, accepted, self.reader_free)
            return
        p, fields, vectors = self.p, item.fields, self.vectors
        spaces = sources(item.op, fields)
        change = max(self.ports[space].change(False) for space in spaces)
        rows, blocks = fields.get("rows", 0), fields.get("blocks", 0)
        spacing, reads = vectors.block(item.op, fields)
        begin = start + change
        if item.op == "vector":
            switch = start + 1
            operation = self._operation(fields)
            if operation != self.operation or fields.get("argmax", 0):
                switch = max(switch, self.drained + p.switch)
            self.operation = operation
            span = vectors.span(item.op, fields)
            last = begin + p.first_beat + max(reads - 1, 0) + span - 1
            # Blocks that were read ahead leave as fast as they are cut up.
            ahead = min(rows * blocks - 1, p.read_ahead) * (spacing - vectors.beats)
            last = max(last, switch + span - ahead)
            end = last + vectors.latency(fields) + p.vector_done
            self.drained = end - p.vector_done
            if fields.get("argmax", 0):
                end += vectors.log_lanes + p.argmax
                self.drained = end - p.switch  # it is waited for anyway
            self.ready(switch + 1)
        else:
            last = begin + p.first_beat + vectors.span(item.op, fields) - 1
            end = begin + vectors.cycles(item.op, fields)
            self.ready(start + 1)
        # Only the first block waits for the port, and the next ones come up with it.
        space = LoadSpace.WEIGHT if fields.get("d_weight", 0) else LoadSpace.ACTIVATION
        wait = self.write_ports[space].change(True)
        end += wait if rows * blocks == 1 or vectors.beats == 1 else 0
        banks: frozenset[int] = frozenset()
        if StoreSpace.ACCUMULATOR in spaces:
            banks = self.accumulator.banks(
                fields.get("a", 0), fields.get("a_stride", 0), rows, blocks
            )
        beats = rows * blocks * vectors.beats
        entry = _Running(
            index, accepted, start, last, end, beats, banks, rows * blocks, spacing, reads
        )
        self.running.append(entry)
        if entry.saturates:
            left = min(self.store_reads_until - start - p.vector_reads, entry.blocks * reads)
            self._turn(entry, max(left, 0))
        self.reader_free = entry.last_beat + 1
        if item.op == "norm" and beats > p.norm_ahead:
            self.reader_free = max(self.reader_free, end - p.norm_parameters + 1)
        self.at(entry.end, self._done, entry, entry.end)

    @staticmethod
    def _operation(fields: Fields) -> tuple[int, ...]:
        scaled = fields.get("scale", 0) or fields.get("a_format", 0) == 0
        return (int(scaled), *(fields.get(name, 0) for name in _OPERATION))

    def _turn(self, entry: _Running, cycles: int) -> None:
        """A store reads in its place for so many cycles."""
        entry.turns += cycles
        entry.last_beat += cycles
        entry.end += cycles
        self.reader_free = max(self.reader_free, entry.last_beat + 1)
        self.drained += cycles

    def _done(self, entry: _Running, cycle: int) -> None:
        """The instruction is done, if nobody was in its way since that was foretold."""
        if self.running[0] is not entry:
            self.at(cycle + 1, self._done, entry, cycle + 1)
            return
        delay = 0
        if entry.banks:
            first = entry.start + self.p.vector_reads
            delay = self.accumulator.delay(entry.banks, first, entry.blocks, entry.spacing)
        end = max(entry.end + delay, self.last_done + entry.beats + self.p.writer)
        if end > cycle:
            self.at(end, self._done, entry, end)
            return
        self.running.popleft()
        self.counters.vector_busy += cycle - max(entry.accepted, self.last_done)
        self.last_done = cycle
        self.finish(entry.index, cycle)
        self._try(cycle + self.p.dependent)

    def share(self, first: int, words: int) -> int:
        """A store reads ``words`` words of the activation memory from cycle ``first`` on: how much
        later it has them because the unit reads, too, by turns."""
        entry = self.running[-1] if self.running else None
        shared = 0
        if entry is not None and entry.reads:
            shared = max(min(words, (entry.last_beat - first) // 2), 0)
            if entry.saturates:
                self._turn(entry, shared)
        self.store_reads_until = first + words + shared
        return shared
