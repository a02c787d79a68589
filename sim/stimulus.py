"""Drive and watch Amaranth streams from cocotb, with pauses drawn at random.

A stream port `i` appears in Verilog as `i__payload`, `i__valid`, `i__ready` (a payload that is a
struct or an array is one vector, first field or lane in the low bits). Create the helpers after
`runner.start()`:

    source = StreamSource(dut, "i", pauses=pauses("random", seed))
    sink = StreamSink(dut, "o", pauses=pauses("bursty", seed + 1))
    await source.send(items)                        # ints; returns when the last was transferred
    assert await sink.receive(len(expected)) == expected
    assert sink.gaps() == [1]                       # one item every cycle: only if nobody pauses

Every source and sink is monitored: a stream that drops `valid`, or changes its payload, before the
transfer fails the test. While a source has nothing to offer, its payload is random.

Values are read in the read-only phase at the end of a cycle, which is right for every kind of
clock. Benches that read just after `RisingEdge` must know theirs: with a clock that cocotb drives
they read what was before the edge, with a self-clocked top what is after it.
"""

import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

PATTERNS = ("none", "random", "bursty")


def pauses(pattern: str, seed: int) -> Iterator[bool]:
    """Endless choice, per cycle, whether to pause.

    none: never; random: each cycle for itself, half of the time; bursty: runs of 1 to 20 cycles.
    """
    if pattern not in PATTERNS:
        raise ValueError(f"Pattern must be one of {', '.join(PATTERNS)}, not {pattern!r}")
    return _pauses(pattern, random.Random(f"{pattern} {seed}"))


def _pauses(pattern: str, generator: random.Random) -> Iterator[bool]:
    while True:
        if pattern == "none":
            yield False
        elif pattern == "random":
            yield generator.random() < 0.5
        else:
            for pause in (True, False):
                for _ in range(generator.randint(1, 20)):
                    yield pause


def pack(lanes: Iterable[int], width: int) -> int:
    """One integer from lanes of `width` bits (signed or not), lane 0 in the low bits."""
    value = 0
    for index, lane in enumerate(lanes):
        if not -(1 << width - 1) <= int(lane) < 1 << width:
            raise ValueError(f"Lane {index} must fit in {width} bits, not {int(lane)}")
        value |= (int(lane) & ((1 << width) - 1)) << index * width
    return value


def unpack(value: int, width: int, count: int, *, signed: bool) -> list[int]:
    """The `count` lanes of an integer; the inverse of `pack`."""
    half = 1 << width - 1 if signed else 0
    mask = (1 << width) - 1
    return [((value >> index * width & mask) ^ half) - half for index in range(count)]


class StreamMonitor:
    """Watches the stream `port` of `dut`: `items` transferred, the `cycles` of their transfers.

    check: fail the test if the stream breaks its promise to hold an offer until it is taken. A
    reset (port `rst`) forgives.
    """

    def __init__(self, dut: Any, port: str, *, clock: str = "clk", check: bool = True) -> None:
        import cocotb
        from cocotb.triggers import Event

        self.items: list[int] = []
        self.cycles: list[int] = []
        self.cycle = 0
        self._port = port
        self._clock = getattr(dut, clock)
        self._valid = getattr(dut, f"{port}__valid")
        self._ready = getattr(dut, f"{port}__ready")
        self._payload = getattr(dut, f"{port}__payload", None)  # absent if it has no bits
        self._reset = getattr(dut, "rst", None)
        self._check = check
        self._transfer = Event()
        cocotb.start_soon(self._watch())

    def gaps(self) -> list[int]:
        """The distinct distances between transfers, in cycles: [1] is full throughput."""
        pairs = zip(self.cycles, self.cycles[1:], strict=False)
        return sorted({after - before for before, after in pairs})

    async def _watch(self) -> None:
        from cocotb.triggers import ReadOnly, RisingEdge

        waiting: int | None = None  # the payload of an offer that was not taken
        while True:
            await ReadOnly()
            valid = bool(int(self._valid.value))
            ready = bool(int(self._ready.value))
            item = int(self._payload.value) if valid and self._payload is not None else 0
            resetting = self._reset is not None and bool(int(self._reset.value))
            if self._check and waiting is not None and not resetting:
                where = f"stream {self._port}, cycle {self.cycle}, item {len(self.items)}"
                assert valid, f"{where}: valid was dropped before the transfer"
                assert item == waiting, f"{where}: payload {waiting:#x} became {item:#x}"
            waiting = item if valid and not ready and not resetting else None
            # Recorded after the edge: who waits for it may then write.
            await RisingEdge(self._clock)
            if valid and ready and not resetting:
                self.items.append(item)
                self.cycles.append(self.cycle)
                self._transfer.set()
            self.cycle += 1


class StreamSource(StreamMonitor):
    """Offers items to the input stream `port`, pausing before an offer where `pauses` says so."""

    def __init__(
        self, dut: Any, port: str, *, clock: str = "clk", pauses: Iterator[bool] | None = None
    ) -> None:
        import cocotb

        super().__init__(dut, port, clock=clock)
        self._pauses = pauses if pauses is not None else _pauses("none", random.Random(0))
        self._queue: deque[int] = deque()
        self._noise = random.Random(port)
        self._idle()
        cocotb.start_soon(self._drive())

    def offer(self, items: Iterable[int]) -> None:
        """Queue items and return at once."""
        self._queue.extend(int(item) for item in items)

    async def send(self, items: Iterable[int], *, timeout_cycles: int = 100_000) -> None:
        """Queue items, and return after the edge that transferred the last one queued."""
        from cocotb.triggers import RisingEdge

        self.offer(items)
        start, left = self.cycle, len(self._queue)
        while self._queue:
            await RisingEdge(self._clock)
            if self.cycle - start > timeout_cycles:
                raise AssertionError(
                    f"stream {self._port}: {left - len(self._queue)} of {left} items were taken "
                    f"in {timeout_cycles} cycles"
                )

    def _idle(self) -> None:
        self._valid.value = 0
        if self._payload is not None:
            self._payload.value = self._noise.getrandbits(len(self._payload))

    async def _drive(self) -> None:
        from cocotb.triggers import ReadOnly, RisingEdge

        while True:
            if not self._queue or next(self._pauses):
                self._idle()
                await RisingEdge(self._clock)
                continue
            self._valid.value = 1
            if self._payload is not None:
                self._payload.value = self._queue[0]
            taken = False
            while not taken:
                await ReadOnly()
                taken = bool(int(self._ready.value))
                await RisingEdge(self._clock)
            self._queue.popleft()


class StreamSink(StreamMonitor):
    """Takes items from the output stream `port`, not ready in the cycles that `pauses` names."""

    def __init__(
        self, dut: Any, port: str, *, clock: str = "clk", pauses: Iterator[bool] | None = None
    ) -> None:
        import cocotb

        super().__init__(dut, port, clock=clock)
        self._pauses = pauses
        self._read = 0
        self._ready.value = 0
        cocotb.start_soon(self._drive())

    async def receive(self, count: int, *, timeout_cycles: int = 100_000) -> Sequence[int]:
        """The next `count` items, after the edge of the last one's transfer."""
        from cocotb.triggers import RisingEdge

        start = self.cycle
        while len(self.items) < self._read + count:
            await RisingEdge(self._clock)
            if self.cycle - start > timeout_cycles:
                raise AssertionError(
                    f"stream {self._port}: {len(self.items) - self._read} of {count} items came "
                    f"in {timeout_cycles} cycles"
                )
        items = self.items[self._read : self._read + count]
        self._read += count
        return items

    async def _drive(self) -> None:
        from cocotb.triggers import RisingEdge

        while True:
            self._ready.value = int(self._pauses is None or not next(self._pauses))
            await RisingEdge(self._clock)
