"""The words of instructions in order, across restarts, and words for ldr between them."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from systolith.config import PRESETS, Config
from systolith.hdl.instruction_fetch import AHEAD, InstructionFetch
from systolith.hdl.verilog import to_verilog

from .bus_model import BusModel

BASE = 4096 - 32 * 5  # programs cross a 4 KiB boundary
CONFIGS = {
    "bus4": Config(dim=4, lanes=2, bus_bytes=4),
    "bus4-burst1": Config(dim=4, lanes=2, bus_bytes=4, max_burst=1),
    "bus8-burst3": Config(dim=8, bus_bytes=8, max_burst=3),
    "bus16": Config(dim=16, bus_bytes=16),
    "bus32": Config(dim=32, lanes=4, bus_bytes=32),
    "bus4-kept": Config(dim=4, lanes=2, bus_bytes=4, instruction_rows=32),
    "bus16-kept": Config(dim=16, bus_bytes=16, instruction_rows=128),
    "bus32-kept": Config(dim=32, lanes=4, bus_bytes=32, instruction_rows=64),
}


def simulate(dut, bench) -> None:
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("gap", [0.0, 0.5])
@pytest.mark.parametrize("name", CONFIGS)
def test_words(name: str, gap: float, seed: int) -> None:
    config = CONFIGS[name]
    rng = np.random.default_rng(seed)
    memory = rng.integers(0, 256, 16384, dtype=np.uint8)
    words = memory.view("<u4")
    dut = InstructionFetch(config)
    bus = BusModel(
        dut.bus, memory, config.bus_bytes, rng, latency=int(rng.integers(1, 12)), gap=gap
    )
    consumed = restarts = loads = 0

    async def bench(ctx) -> None:
        nonlocal consumed, restarts, loads
        ctx.set(dut.base, BASE)
        expected = None
        load = None
        sent = False
        for cycle in range(4000):
            bus.drive(ctx)
            restart = load is None and rng.random() < 0.06
            ctx.set(dut.restart, restart)
            ctx.set(dut.flush, restarts == 0 or rng.random() < 0.1)
            if restart:
                here = (expected or 0) // 8
                pc = int(rng.choice([here, here + 1, *rng.integers(0, 200, 2), *(
                    np.clip(here - rng.integers(0, 40, 4), 0, 200)
                )]))
                ctx.set(dut.pc, pc)
            elif load is None and rng.random() < 0.03:
                load, sent = 4 * int(rng.integers(0, 2000)), False
                ctx.set(dut.addresses.payload, load)
            ctx.set(dut.addresses.valid, load is not None and not sent)
            ctx.set(dut.words.ready, rng.random() < 0.8)
            ctx.set(dut.loaded.ready, rng.random() < 0.5)
            # Between the edges.
            if ctx.get(dut.words.valid):
                word = ctx.get(dut.words.payload)
                where = f"cycle {cycle}, word {expected}"
                assert expected is not None and not word.error, where
                assert word.data == words[BASE // 4 + expected], where
                if ctx.get(dut.words.ready) and not restart:
                    expected += 1
                    consumed += 1
            if restart:
                expected = 8 * pc
                restarts += 1
            if ctx.get(dut.loaded.valid) and ctx.get(dut.loaded.ready):
                answer = ctx.get(dut.loaded.payload)
                assert load is not None and sent
                assert answer.data == words[(BASE + load) // 4] and not answer.error
                load = None
                loads += 1
            if load is not None and ctx.get(dut.addresses.ready):
                sent = True
            assert ctx.get(dut.bus.data.ready), "a beat must never wait"
            bus.sample(ctx)
            await ctx.tick()

    simulate(dut, bench)
    assert consumed > 200 and min(restarts, loads) > 3, (consumed, restarts, loads)
    assert all(beats <= config.max_burst for _, beats in bus.requests)


@pytest.mark.parametrize("name", ["bus4", "bus16"])
def test_throughput(name: str, seed: int) -> None:
    """A word a cycle behind a memory with 40 cycles of latency, and never too much in flight."""
    config = CONFIGS[name]
    rng = np.random.default_rng(seed)
    memory = rng.integers(0, 256, 16384, dtype=np.uint8)
    dut = InstructionFetch(config)
    bus = BusModel(dut.bus, memory, config.bus_bytes, rng, latency=40)
    taken = []

    async def bench(ctx) -> None:
        ctx.set(dut.base, BASE)
        ctx.set(dut.restart, 1)
        ctx.set(dut.words.ready, 1)
        for cycle in range(600):
            bus.drive(ctx)
            if ctx.get(dut.words.valid):
                taken.append(cycle)
            bus.sample(ctx)
            await ctx.tick()
            ctx.set(dut.restart, 0)

    simulate(dut, bench)
    assert taken[0] <= 40 + 8, taken[0]
    assert len(taken) >= 0.98 * (600 - taken[0]), len(taken)


def test_stops(seed: int) -> None:
    """Without a consumer it fills its buffer; after ``stop`` it asks for nothing more."""
    config = CONFIGS["bus8-burst3"]
    rng = np.random.default_rng(seed)
    memory = rng.integers(0, 256, 16384, dtype=np.uint8)
    dut = InstructionFetch(config)
    bus = BusModel(dut.bus, memory, config.bus_bytes, rng, latency=5)
    beats = []

    async def bench(ctx) -> None:
        ctx.set(dut.base, BASE)
        ctx.set(dut.restart, 1)
        for cycle in range(400):
            bus.drive(ctx)
            ctx.set(dut.stop, cycle > 200)
            beats.append(ctx.get(dut.beat))
            bus.sample(ctx)
            await ctx.tick()
            ctx.set(dut.restart, cycle == 200)

    simulate(dut, bench)
    # 2 of 3 beats: bursts are a power of two. At 201 everything is dropped, and nothing follows.
    assert sum(beats) == AHEAD * 32 // 8
    assert all(beats == 2 for _, beats in bus.requests)


def test_error(seed: int) -> None:
    """A bus error travels with its words, and an error of an ldr with its answer."""
    config = CONFIGS["bus16"]
    rng = np.random.default_rng(seed)
    memory = rng.integers(0, 256, 16384, dtype=np.uint8)
    dut = InstructionFetch(config)
    bus = BusModel(dut.bus, memory, config.bus_bytes, rng, latency=5)
    bus.bad = range(BASE + 64, BASE + 80)
    errors = []

    async def bench(ctx) -> None:
        ctx.set(dut.base, BASE)
        ctx.set(dut.restart, 1)
        ctx.set(dut.words.ready, 1)
        for _ in range(100):
            bus.drive(ctx)
            if ctx.get(dut.words.valid):
                errors.append(ctx.get(dut.words.payload.error))
            bus.sample(ctx)
            await ctx.tick()
            ctx.set(dut.restart, 0)
        ctx.set(dut.words.ready, 0)
        for address, wanted in ((68, 1), (80, 0)):
            ctx.set(dut.addresses.payload, address)
            ctx.set(dut.addresses.valid, 1)
            while not ctx.get(dut.loaded.valid):
                bus.drive(ctx)
                taken = ctx.get(dut.addresses.ready)
                bus.sample(ctx)
                await ctx.tick()
                if taken:
                    ctx.set(dut.addresses.valid, 0)
            assert ctx.get(dut.loaded.payload.error) == wanted, address
            ctx.set(dut.loaded.ready, 1)
            bus.drive(ctx)
            bus.sample(ctx)
            await ctx.tick()
            ctx.set(dut.loaded.ready, 0)

    simulate(dut, bench)
    assert errors[:24] == [0] * 16 + [1] * 4 + [0] * 4


@pytest.mark.parametrize("name", PRESETS)
def test_converts(name: str) -> None:
    assert "module fetch" in to_verilog(InstructionFetch(PRESETS[name]), "fetch")
