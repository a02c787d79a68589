# amaranth: UnusedElaboratable=no
import random
from collections import deque

import pytest
from amaranth import Module, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from systolith.hdl.pipeline import Credits, Results, Ring, delay, tree, walk
from systolith.hdl.verilog import to_verilog


def simulate(dut, bench):
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Credits(0), r"^Places must be at least 1, not 0$"),
        (lambda: Credits(4, 5), r"^Initial places must be from 0 to 4, not 5$"),
        (lambda: Ring(unsigned(8), 12), r"^Depth must be a power of two of at least 2, not 12$"),
    ],
)
def test_constructors_check_their_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("component", [Credits(5), Results(unsigned(9), 8), Ring(unsigned(9), 8)])
def test_converts(component):
    assert "module part" in to_verilog(component, "part")


@pytest.mark.parametrize(("places", "initial"), [(1, None), (5, None), (16, 0), (3, 2)])
def test_credits_count(places, initial, seed):
    dut = Credits(places, initial)
    rng = random.Random(seed)

    async def bench(ctx):
        free = places if initial is None else initial
        seen = set()
        for cycle in range(500):
            assert ctx.get(dut.available) == (free > 0), f"cycle {cycle}, {free} free, seed {seed}"
            seen.add(free)
            bias = 0.8 if cycle // 100 % 2 else 0.2  # drifts to one end, then to the other
            take = free > 0 and rng.random() < bias
            give = free < places and rng.random() < 1 - bias
            ctx.set(dut.take, take)
            ctx.set(dut.give, give)
            free += give - take
            await ctx.tick()
        assert seen == set(range(places + 1))

    simulate(dut, bench)


@pytest.mark.parametrize("fill", [0.3, 0.9])
def test_ring_is_a_queue_with_claims(fill, seed):
    """Claimed places are written a few cycles later, and read in order when written."""
    dut = Ring(unsigned(8), 8)
    rng = random.Random(seed)

    async def bench(ctx):
        pipe = deque([None] * 3)
        model, claimed, full, expected = deque(), 0, 0, None
        for cycle in range(600):
            if expected is not None:
                assert ctx.get(dut.r_data) == expected, f"cycle {cycle}, seed {seed}"
            assert ctx.get(dut.available) == (claimed < 8), f"cycle {cycle}, seed {seed}"
            claim = claimed < 8 and rng.random() < fill
            full += claimed == 8
            pipe.append(rng.randrange(256) if claim else None)
            written = pipe.popleft()
            read = bool(model) and rng.random() < 0.5
            ctx.set(dut.claim, claim)
            ctx.set(dut.write, written is not None)
            ctx.set(dut.w_data, written or 0)
            ctx.set(dut.read, read)
            if read:
                expected = model.popleft()
            if written is not None:
                model.append(written)
            claimed += claim - read
            await ctx.tick()
        assert full or fill < 0.5

    simulate(dut, bench)


@pytest.mark.parametrize("latency", [0, 3])
@pytest.mark.parametrize("fill, drain", [(0.3, 0.5), (0.9, 0.5), (1, 1)])
def test_results_are_a_stream_with_claims(fill, drain, latency, seed):
    """Claimed places are written a few cycles later; at full speed nothing ever waits."""
    dut = Results(unsigned(8), 8)
    rng = random.Random(seed)

    async def bench(ctx):
        pipe = deque([None] * latency)
        model, claimed, full = deque(), 0, 0
        for cycle in range(600):
            where = f"cycle {cycle}, seed {seed}"
            assert ctx.get(dut.available) == (claimed < 8), where
            assert ctx.get(dut.o.valid) == bool(model), where
            if model:
                assert ctx.get(dut.o.payload) == model[0], where
            claim = claimed < 8 and rng.random() < fill
            full += claimed == 8
            pipe.append(rng.randrange(256) if claim else None)
            written = pipe.popleft()
            ready = rng.random() < drain
            ctx.set(dut.claim, claim)
            ctx.set(dut.write, written is not None)
            ctx.set(dut.w_data, written or 0)
            ctx.set(dut.o.ready, ready)
            claimed += claim
            if ready and model:
                model.popleft()
                claimed -= 1
            if written is not None:
                model.append(written)
            await ctx.tick()
        assert bool(full) == (drain < fill)

    simulate(dut, bench)


class Parts(wiring.Component):
    """The functions of the module, on ports."""

    values: In(unsigned(8)).array(4)
    beats: In(3)
    go: In(1)
    late: Out(8)
    total: Out(10)
    index: Out(3)
    first: Out(1)
    last: Out(1)

    def elaborate(self, platform):
        m = Module()
        accept, index, first, last = walk(m, "rows", self.beats, self.beats == 1)
        total = tree(m, list(self.values), lambda a, b: a + b, "sum")
        assert len(total) == 10
        m.d.comb += [
            accept.eq(self.go),
            self.index.eq(index),
            self.first.eq(first),
            self.last.eq(last),
            self.late.eq(delay(m, self.values[0], 5, "late")),
            self.total.eq(total),
        ]
        return m


def test_delay_and_tree(seed):
    dut = Parts()
    rng = random.Random(seed)
    rows = [[rng.randrange(256) for _ in range(4)] for _ in range(40)]

    async def bench(ctx):
        for cycle, row in enumerate(rows):
            for port, value in zip(dut.values, row, strict=True):
                ctx.set(port, value)
            assert ctx.get(dut.late) == (rows[cycle - 5][0] if cycle >= 5 else 0)
            assert ctx.get(dut.total) == (sum(rows[cycle - 2]) if cycle >= 2 else 0)
            await ctx.tick()

    simulate(dut, bench)


def test_delay_by_nothing_is_the_value():
    value = Signal(3)
    assert delay(Module(), value, 0, "same") is value


def test_walk_counts_beats_of_rows(seed):
    dut = Parts()
    rng = random.Random(seed)

    async def bench(ctx):
        for beats in (1, 1, 3, 1, 7, 2, 5, 1):
            ctx.set(dut.beats, beats)
            for index in range(beats):
                go = False
                while not go:
                    go = rng.random() < 0.5
                    ctx.set(dut.go, go)
                    got = tuple(ctx.get(port) for port in (dut.index, dut.first, dut.last))
                    assert got == (index, index == 0, index == beats - 1), f"row of {beats}"
                    await ctx.tick()

    simulate(dut, bench)
