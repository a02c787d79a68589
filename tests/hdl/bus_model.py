"""A memory behind a ``ReadClient`` in Amaranth's simulator, with random latency and gaps."""

import numpy as np


class BusModel:
    """Answers requests in order: ``drive`` at the start of each cycle, ``sample`` at its end.

    ``latency``: cycles from a request to its first beat, at least; ``gap``: probability that a
    cycle brings no beat or takes no request. Beats at addresses in ``bad`` carry an error.
    """

    def __init__(self, bus, memory: np.ndarray, bus_bytes: int, rng, latency=3, gap=0.0) -> None:
        self.bus, self.memory, self.bus_bytes, self.rng = bus, memory, bus_bytes, rng
        self.latency, self.gap = latency, gap
        self.bad: range = range(0)
        self.jobs: list[list[int]] = []  # address, beats left, cycle from which it is answered
        self.cycle = 0
        self.requests: list[tuple[int, int]] = []
        self.beat: tuple[int, int, int] | None = None
        self.waiting: tuple[int, int] | None = None

    def drive(self, ctx) -> None:
        due = bool(self.jobs) and self.jobs[0][2] <= self.cycle
        if self.beat is None and due and self.rng.random() >= self.gap:
            address, left, _ = self.jobs[0]
            raw = self.memory[address : address + self.bus_bytes].tobytes()
            raw = raw.ljust(self.bus_bytes, b"\0")
            self.beat = int.from_bytes(raw, "little"), address in self.bad, left == 1
            self.jobs[0][:2] = address + self.bus_bytes, left - 1
            if left == 1:
                del self.jobs[0]
        ctx.set(self.bus.data.valid, self.beat is not None)
        if self.beat is not None:
            for name, value in zip(("data", "error", "last"), self.beat, strict=True):
                ctx.set(getattr(self.bus.data.payload, name), value)
        ctx.set(self.bus.requests.ready, self.rng.random() >= self.gap)

    def sample(self, ctx) -> None:
        requests = self.bus.requests
        valid, payload = ctx.get(requests.valid), ctx.get(requests.payload)
        now = payload.addr, payload.beats
        if self.waiting is not None:
            assert valid and now == self.waiting, "a request changed while it waited"
        self.waiting = now if valid and not ctx.get(requests.ready) else None
        if valid and ctx.get(requests.ready):
            address, beats = now
            assert address % self.bus_bytes == 0 and beats >= 1, now
            assert address // 4096 == (address + beats * self.bus_bytes - 1) // 4096, now
            self.requests.append(now)
            self.jobs.append([address, beats, self.cycle + self.latency])
        if ctx.get(self.bus.data.ready):
            self.beat = None
        self.cycle += 1
