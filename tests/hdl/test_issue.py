"""Order, semaphores and signals of the issue stage, checked by a model of the rules."""

from collections import deque

import numpy as np
import pytest
from amaranth.sim import Simulator

from systolith.config import PRESETS, Config
from systolith.hdl.issue import UNDER_WAY, Issue
from systolith.hdl.verilog import to_verilog
from systolith.isa import QUEUED, Unit, semaphore

CONFIG = Config(queue_depth=3)


def simulate(dut, bench) -> None:
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


def put(ctx, dut, unit: int, pc: int, wait: int = 0, signal: int = 0) -> None:
    payload = dut.queued.payload
    ctx.set(payload.unit, unit)
    ctx.set(payload.wait, wait)
    ctx.set(payload.signal, signal)
    ctx.set(payload.command.pc, pc)
    ctx.set(payload.command.opcode, pc & 0xFF)
    ctx.set(payload.command.words[5], pc * 0x01000193 & 0xFFFF_FFFF)
    ctx.set(dut.queued.valid, 1)


def program(rng, length: int) -> list[tuple[int, int, int]]:
    """(unit, wait, signal) whose order in the program satisfies every wait, so that it ends."""
    pending = np.zeros(12, int)
    items = []
    for _ in range(length):
        unit = Unit(int(rng.integers(4)))
        wait = signal = 0
        for other in QUEUED:
            if other != unit:
                here, there = semaphore(other, unit), semaphore(unit, other)
                if pending[here] and rng.random() < 0.7:
                    wait |= 1 << here
                    pending[here] -= 1
                if pending[there] < 20 and rng.random() < 0.4:
                    signal |= 1 << there
                    pending[there] += 1
        items.append((int(unit), wait, signal))
    return items


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_random(rate: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    items = program(rng, 300)
    dut = Issue(CONFIG)
    count = np.zeros(12, int)
    queues = [deque() for _ in QUEUED]  # queued, not yet taken by the unit
    under_way = [deque() for _ in QUEUED]
    taken_total = 0

    async def bench(ctx) -> None:
        nonlocal taken_total
        position = 0
        had_moved = False
        for cycle in range(6000):
            if position < len(items):
                put(ctx, dut, items[position][0], position, *items[position][1:])
            else:
                ctx.set(dut.queued.valid, 0)
            done = 0
            for unit in QUEUED:
                ctx.set(dut.commands[unit].ready, rng.random() < rate)
                if under_way[unit] and rng.random() < rate:
                    done |= 1 << unit
            ctx.set(dut.done, done)

            where = f"cycle {cycle}"
            busy = sum(bool(queues[u]) or bool(under_way[u]) for u in QUEUED)
            assert ctx.get(dut.idle) == (busy == 0), where
            moved = bool(done)
            for unit in QUEUED:
                idle = ctx.get(dut.unit_idle) >> unit & 1
                assert idle == (not queues[unit] and not under_way[unit]), (where, unit)
                # Signals are visible in the next cycle at the earliest: take before counting.
                if ctx.get(dut.commands[unit].valid):
                    index = queues[unit][0]
                    payload = ctx.get(dut.commands[unit].payload)
                    assert payload.pc == index and payload.opcode == index & 0xFF, (where, unit)
                    assert payload.words[5] == index * 0x01000193 & 0xFFFF_FFFF
                    if ctx.get(dut.commands[unit].ready):
                        for bit in range(12):
                            count[bit] -= items[index][1] >> bit & 1
                        assert (count >= 0).all(), f"{where}: {index} has not waited"
                        queues[unit].popleft()
                        under_way[unit].append(index)
                        taken_total += 1
                        moved = True
            for unit in QUEUED:
                if done >> unit & 1:
                    index = under_way[unit].popleft()
                    for bit in range(12):
                        count[bit] += items[index][2] >> bit & 1
            if position < len(items):
                unit = items[position][0]
                assert len(queues[unit]) <= CONFIG.queue_depth
                if ctx.get(dut.queued.ready):
                    queues[unit].append(position)
                    position += 1
                    moved = True
            assert ctx.get(dut.moved) or not had_moved, where
            had_moved = moved
            assert not ctx.get(dut.overflow)
            if position == len(items) and not any(queues) and not any(under_way):
                return
            await ctx.tick()

    simulate(dut, bench)
    assert taken_total == len(items)


def test_latency_and_rate() -> None:
    """Offered in the second cycle after it was queued; a unit takes one every other cycle."""
    dut = Issue(CONFIG)
    taken = []

    async def bench(ctx) -> None:
        ctx.set(dut.commands[Unit.MATMUL].ready, 1)
        for cycle in range(32):
            put(ctx, dut, Unit.MATMUL, cycle)
            if ctx.get(dut.commands[Unit.MATMUL].valid):
                taken.append(cycle)
            ctx.set(dut.done, (1 << Unit.MATMUL) if cycle > 18 and cycle % 2 else 0)
            await ctx.tick()

    simulate(dut, bench)
    # Eight are under way in cycle 17; from 19 on one is done every other cycle.
    assert taken == [*range(2, 18, 2), *range(21, 32, 2)]


def test_signal_latency() -> None:
    """A unit that waited for a ``done`` is offered its command in the second cycle after it."""
    dut = Issue(CONFIG)
    bit = 1 << semaphore(Unit.LOAD, Unit.MATMUL)
    seen = []

    async def bench(ctx) -> None:
        put(ctx, dut, Unit.LOAD, 1, signal=bit)
        ctx.set(dut.commands[Unit.LOAD].ready, 1)
        await ctx.tick()
        put(ctx, dut, Unit.MATMUL, 2, wait=bit)
        await ctx.tick()
        ctx.set(dut.queued.valid, 0)
        for _ in range(5):
            assert not ctx.get(dut.commands[Unit.MATMUL].valid)
            await ctx.tick()
        assert ctx.get(dut.running) == 1 << Unit.LOAD and ctx.get(dut.running_pc[Unit.LOAD]) == 1
        assert ctx.get(dut.blocked) == 1 << Unit.MATMUL
        assert ctx.get(dut.blocked_pc[Unit.MATMUL]) == 2
        ctx.set(dut.done, 1 << Unit.LOAD)
        for _ in range(5):
            seen.append(ctx.get(dut.commands[Unit.MATMUL].valid))
            await ctx.tick()
            ctx.set(dut.done, 0)

    simulate(dut, bench)
    assert seen == [0, 0, 1, 1, 1]


def test_units_do_not_hinder_each_other() -> None:
    """Heads whose semaphores come in the same cycle start in the same cycle."""
    dut = Issue(CONFIG)
    bit = {unit: 1 << semaphore(Unit.LOAD, unit) for unit in QUEUED if unit != Unit.LOAD}
    seen = []

    async def bench(ctx) -> None:
        ctx.set(dut.commands[Unit.LOAD].ready, 1)
        put(ctx, dut, Unit.LOAD, 9, signal=sum(bit.values()))
        await ctx.tick()
        for unit in (Unit.VECTOR, Unit.MATMUL, Unit.STORE):
            put(ctx, dut, unit, unit, wait=bit[unit])
            await ctx.tick()
        ctx.set(dut.queued.valid, 0)
        ctx.set(dut.done, 1)
        await ctx.tick()
        ctx.set(dut.done, 0)
        for _ in range(3):
            seen.append([ctx.get(dut.commands[unit].valid) for unit in QUEUED])
            await ctx.tick()

    simulate(dut, bench)
    assert seen == [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1]]


def test_semaphores_of_others_do_not_count() -> None:
    """A load neither waits for what stores consume nor signals what stores produce."""
    dut = Issue(CONFIG)
    own = sum(1 << semaphore(Unit.LOAD, unit) for unit in QUEUED if unit != Unit.LOAD)
    waited = sum(1 << semaphore(unit, Unit.LOAD) for unit in QUEUED if unit != Unit.LOAD)

    async def bench(ctx) -> None:
        ctx.set(dut.commands[Unit.LOAD].ready, 1)
        put(ctx, dut, Unit.LOAD, 1, wait=0xFFF & ~waited, signal=0xFFF & ~own)
        await ctx.tick()
        put(ctx, dut, Unit.STORE, 2, wait=1 << semaphore(Unit.MATMUL, Unit.STORE))
        await ctx.tick()
        ctx.set(dut.queued.valid, 0)
        assert ctx.get(dut.commands[Unit.LOAD].valid)
        await ctx.tick()
        ctx.set(dut.done, 1 << Unit.LOAD)
        await ctx.tick()
        ctx.set(dut.done, 0)
        await ctx.tick().repeat(3)
        assert ctx.get(dut.unit_idle) == 0b1101 and ctx.get(dut.blocked) == 1 << Unit.STORE

    simulate(dut, bench)


def test_limit_under_way() -> None:
    """A unit that takes commands and never finishes is given so many."""
    dut = Issue(Config(queue_depth=2))
    taken = []

    async def bench(ctx) -> None:
        ctx.set(dut.commands[Unit.STORE].ready, 1)
        for cycle in range(60):
            put(ctx, dut, Unit.STORE, cycle)
            taken.append(ctx.get(dut.commands[Unit.STORE].valid))
            await ctx.tick()
        assert not ctx.get(dut.queued.ready)

    simulate(dut, bench)
    assert sum(taken) == UNDER_WAY


def test_overflow() -> None:
    """Signal number 256 that nobody waits for is an error of its instruction."""
    dut = Issue(CONFIG)
    mask = 1 << semaphore(Unit.VECTOR, Unit.STORE)
    errors = []

    async def bench(ctx) -> None:
        ctx.set(dut.commands[Unit.VECTOR].ready, 1)
        running = finished = pc = 0
        for _ in range(1200):
            put(ctx, dut, Unit.VECTOR, pc, signal=mask)
            finish = running > finished
            ctx.set(dut.done, (1 << Unit.VECTOR) if finish else 0)
            if ctx.get(dut.overflow):
                errors.append((finished, ctx.get(dut.overflow_pc)))
                return
            finished += finish
            running += ctx.get(dut.commands[Unit.VECTOR].valid)
            pc += ctx.get(dut.queued.ready)
            await ctx.tick()

    simulate(dut, bench)
    assert errors == [(256, 255)]  # told a cycle later


def test_stop() -> None:
    """Nothing is granted and nothing taken while ``stop`` is high."""
    dut = Issue(CONFIG)

    async def bench(ctx) -> None:
        put(ctx, dut, Unit.LOAD, 1)
        await ctx.tick()
        put(ctx, dut, Unit.STORE, 2)
        await ctx.tick()
        ctx.set(dut.queued.valid, 0)
        assert ctx.get(dut.commands[Unit.LOAD].valid)
        ctx.set(dut.stop, 1)
        for _ in range(5):
            assert not any(ctx.get(dut.commands[unit].valid) for unit in QUEUED)
            await ctx.tick()
        assert not ctx.get(dut.idle)

    simulate(dut, bench)


@pytest.mark.parametrize("name", PRESETS)
def test_converts(name: str) -> None:
    assert "module issue" in to_verilog(Issue(PRESETS[name]), "issue")
