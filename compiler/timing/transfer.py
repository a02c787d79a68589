"""Who moves words between the machine and memory: instruction fetch, loads, stores."""

from collections import deque
from collections.abc import Callable, Iterator

from systolith.compiler.timing.memory import Memory, Pipe
from systolith.compiler.timing.parameters import Parameters
from systolith.compiler.timing.units import Fields, bursts
from systolith.config import Config
from systolith.isa import INSTRUCTION_BYTES, WORDS

At = Callable[..., None]
"""``at(cycle, function, *arguments)``: calls back when the model has come to that cycle."""


class ReadBus:
    """The read channels, shared by the instruction fetch and loads."""

    def __init__(self, memory: Memory) -> None:
        self.latency = max(memory.latency, 2)
        self.pipe = Pipe(memory.bandwidth)
        self.next = 0

    def request(self, address_cycle: int, beats: int) -> tuple[int, int]:
        """(first, last) beat of a burst whose address could be on the bus in that cycle."""
        address_cycle = max(address_cycle, self.next)
        self.next = address_cycle + 1
        return self.pipe.take(address_cycle + self.latency, beats)


class Fetch:
    """Instructions in bursts, ahead of the sequencer as far as the buffer has room.

    Beats count from instruction 0. With ``instruction_rows`` the buffer keeps the last ones asked
    for, and a restart at one of them asks for nothing.
    """

    def __init__(
        self, config: Config, parameters: Parameters, bus: ReadBus, at: At, base: int,
        arrived: Callable[[], None],
    ) -> None:  # fmt: skip
        self.p, self.bus, self.at, self.arrived = parameters, bus, at, arrived
        self.beat_words = config.bus_bytes // 4
        self.instruction_beats = max(INSTRUCTION_BYTES // config.bus_bytes, 1)
        longest = min(config.max_burst, parameters.burst * self.instruction_beats)
        self.burst = 1 << (longest.bit_length() - 1)
        self.capacity = parameters.ahead * self.instruction_beats
        self.history = config.instruction_rows * self.instruction_beats
        self.base_beat = base // config.bus_bytes
        self.oldest = 0  # beat that is still kept
        self.asked = 0  # the first beat that has not been asked for
        self.arrival: dict[int, int] = {}
        self.reads_from = 0  # the beat of the last restart
        self.taken: list[int] = []  # since then: when first words of instructions left the buffer
        self.earliest = 0
        self.plan = 0  # the number of the plan for the next burst that counts
        self.planned = False
        self.generation = 0
        self.times: list[tuple[int, int, int]] = []  # first, last, beats of all bursts
        self.loaded = 0  # words for ldr

    def restart(self, cycle: int, pc: int) -> int:
        """Goes on with instruction ``pc``; the first cycle in which a word can be taken.

        If the instruction is not kept, everything is dropped; bursts under way still occupy the
        bus.
        """
        wanted = pc * self.instruction_beats
        kept = bool(self.history) and bool(self.generation)
        hit = kept and max(self.oldest, self.asked - self.history) <= wanted <= self.asked
        if not hit:
            self.oldest = self.asked = wanted
            self.arrival.clear()
            self.generation += 1
        self.reads_from = wanted
        self.taken = []
        self.earliest = max(self.earliest, cycle + (self.p.ask if hit else 1))
        self._plan()
        return cycle + (self.p.hit if hit else 1)

    def _plan(self) -> None:
        """Schedules the next burst, if what has to leave the buffer before it has left."""
        self.plan += 1
        self.planned = False
        count = self._count()
        cycle = self.earliest
        wanted = self.asked + count - self.capacity - self.reads_from
        if wanted > 0:
            # A beat leaves the buffer when its last word moves into the register behind it, that
            # is when the word before it is taken.
            word = wanted * self.beat_words - 2
            if word // WORDS >= len(self.taken):
                return
            cycle = max(cycle, self.taken[word // WORDS] + word % WORDS + self.p.ask)
        self.planned = True
        self.at(cycle, self._ask, cycle, self.plan)

    def _count(self) -> int:
        return self.burst - (self.base_beat + self.asked) % self.burst

    def _ask(self, cycle: int, plan: int) -> None:
        if plan != self.plan:
            return
        if cycle < self.earliest:  # an ldr came first
            self.at(self.earliest, self._ask, self.earliest, plan)
            return
        count = self._count()
        # The arbiter sees the request a cycle before AR, as it sees a load's.
        address = cycle + self.p.request
        self.at(address - 1, self._request, address, self.asked, count, self.generation)
        self.asked += count
        self.earliest = cycle + self.p.ask
        self._plan()

    def _request(self, address: int, beat: int, count: int, generation: int) -> None:
        first, last = self.bus.request(address, count)
        self.times.append((first, last, count))
        if generation == self.generation:
            steps = max(count - 1, 1)
            for step in range(count):
                self.arrival[beat + step] = first + (last - first) * step // steps
            self.arrived()

    def take(self, cycle: int) -> int | None:
        """When the last word of the next instruction is taken, the first one not before ``cycle``.

        None: not all of it has been asked for; ``arrived`` will be called.
        """
        begin = self.reads_from + len(self.taken) * self.instruction_beats
        end = begin + self.instruction_beats - 1
        if end not in self.arrival:
            return None
        first_word = max(cycle, self.arrival[begin] + self.p.word)
        last_beat = self.arrival[end] + self.p.word
        last_word = max(first_word + WORDS - 1, last_beat + min(self.beat_words, WORDS) - 1)
        self.taken.append(first_word)
        if not self.planned:
            self._plan()
        return last_word

    def beats(self, until: int) -> int:
        """Beats of instructions that have come by the end of cycle ``until``."""
        total = 0
        for first, last, beats in self.times:
            if last <= until:
                total += beats
            elif first <= until:
                total += (until - first + 1) * beats // (last - first + 1)
        return total

    def load_word(self, cycle: int, arrived: Callable[[int], None]) -> None:
        """An ``ldr`` that is executed in ``cycle``; ``arrived``: told when its beat comes. No burst
        is asked for in the meantime."""
        address = cycle + self.p.word_asked + self.p.request
        self.earliest = address + 1  # for the time being; an ask waits at least that long
        self.at(address - 1, self._request_word, address, arrived)

    def _request_word(self, address: int, arrived: Callable[[int], None]) -> None:
        first, _ = self.bus.request(address, 1)
        self.loaded += 1
        self.earliest = first + 1
        arrived(first)


class Load:
    """Bursts of loads, up to ``outstanding`` in flight, ahead of the data.

    A job's bursts leave the splitter one a cycle, as long as the buffer behind it has a free place;
    the next job enters when the last of them leaves.
    """

    PLACES = 2
    """Of the buffer between splitter and bus."""

    def __init__(
        self, config: Config, parameters: Parameters, bus: ReadBus, at: At, base: int
    ) -> None:
        self.config, self.p, self.bus, self.at, self.base = config, parameters, bus, at, base
        self.ends: deque[int] = deque([-1] * config.outstanding, config.outstanding)
        """Last beats of the bursts in flight."""
        self.job: tuple[Iterator[int], int, Callable[[int], None]] | None = None
        """What is in the splitter: the bursts that are left, the next one, whom to tell."""
        self.pending: tuple[int, Fields, Callable[[int], None], Callable[[int], None]] | None = None
        self.buffer: deque[tuple[int, int, int, Callable[[int], None] | None]] = deque()
        """Since when, its beats, and with a job's last burst: since when its data can come, whom to
        tell."""
        self.left = -1  # when the last burst left the splitter
        self.requested = -1
        self.requesting = False
        self.begun = 0  # when the present job entered the splitter
        self.last_end = -1
        self.waited = 0
        self.beats = 0
        self.job_beats = 0

    def start(
        self, cycle: int, fields: Fields, ready: Callable[[int], None], done: Callable[[int], None]
    ) -> None:
        """Executes a load; ``ready(cycle)``: the next one can start, ``done(cycle)``."""
        self.pending = cycle, fields, ready, done
        if self.job is None:
            self._begin()
            self._fill(0)

    def _begin(self) -> None:
        assert self.pending is not None
        (cycle, fields, ready, done), self.pending = self.pending, None
        self.begun = self.left = max(cycle + self.p.load_prepare, self.left)
        ready(self.begun + 1)
        parts = bursts(self.config, "load", fields, self.base)
        self.job = parts, next(parts, 0), done

    def _fill(self, free: int) -> None:
        """Moves bursts into the buffer, which has a free place from cycle ``free`` on."""
        while self.job is not None and len(self.buffer) < self.PLACES:
            parts, count, done = self.job
            following = next(parts, 0)
            self.left = max(self.left + 1, free)
            if following:
                self.buffer.append((self.left, count, 0, None))
                self.job = parts, following, done
                continue
            self.buffer.append((self.left, count, self.begun + 2, done))
            self.job = None
            if self.pending is not None:
                self._begin()
        if self.buffer and not self.requesting:
            self.requesting = True
            cycle = max(self.buffer[0][0] + 1, self.requested + 1, self.ends[0] + 1)
            self.at(cycle, self._request, cycle)

    def _request(self, cycle: int) -> None:
        _, count, since, done = self.buffer.popleft()
        self.requested, self.requesting = cycle, False
        last = max(cycle, self.last_end)
        if count:
            _, last = self.bus.request(cycle + self.p.arbiter, count)
            self.ends.append(last)
            self.job_beats += count
        if done is not None:
            self.waited += last - max(since - 1, self.last_end) - self.job_beats
            self.beats += self.job_beats
            self.job_beats = 0
            self.last_end = last
            done(last + self.p.load_done)
        self._fill(cycle + 1)


class Store:
    """Bursts of stores; the write channels belong to them alone."""

    def __init__(self, config: Config, parameters: Parameters, memory: Memory, base: int) -> None:
        self.config, self.p, self.base = config, parameters, base
        self.pipe = Pipe(memory.bandwidth)
        self.response = max(memory.write_latency, parameters.response)
        self.answers: deque[int] = deque(maxlen=config.outstanding)
        self.accepts: deque[int] = deque([-2, -2], maxlen=2)
        self.entered = -1

    def run(self, fields: Fields, op: str, cycle: int, wait: int) -> tuple[int, int]:
        """(when the next one can start, ``done``) of a store that starts in ``cycle``; ``wait``:
        for the read port of the local memory."""
        job = max(cycle + self.p.load_prepare, self.entered)
        entered = job
        data = job + self.p.store_data + wait
        answer = job + self.p.store_burst
        for count in bursts(self.config, op, fields, self.base):
            entered = max(entered + 1, self.accepts[0] + 1)
            accept = max(entered + 1, self.accepts[1] + 1)
            if len(self.answers) == self.answers.maxlen:
                accept = max(accept, self.answers[0] + 1)
            self.accepts.append(accept)
            _, last = self.pipe.take(max(accept + self.p.store_burst, data), count)
            answer = last + self.response
            self.answers.append(answer)
        self.entered = entered
        return job + 1, answer + self.p.store_done
