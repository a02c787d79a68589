# amaranth: UnusedElaboratable=no
"""The UART against octets on a line that the test draws bit by bit."""

import random
from itertools import pairwise

import pytest
from amaranth.sim import Simulator

from systolith.hdl.uart import SHORTEST_BIT, UartReceiver, UartTransmitter, bit_cycles


def _line(octets: list[int], cycles: float, rng: random.Random | None = None) -> list[int]:
    """Levels of the line, cycle by cycle, with pauses between some octets."""
    levels = [1] * 20
    for octet in octets:
        bits = [0, *(octet >> i & 1 for i in range(8)), 1]
        start = len(levels)
        for i, bit in enumerate(bits):
            levels += [bit] * (start + round((i + 1) * cycles) - len(levels))
        if rng is not None and rng.random() < 0.5:
            levels += [1] * rng.randrange(100)
    return levels + [1] * 20


def _received(levels: list[int], cycles: int) -> list[int]:
    dut = UartReceiver(cycles)
    found = []

    async def bench(ctx) -> None:
        for level in levels:
            ctx.set(dut.rx, level)
            if ctx.get(dut.octets.valid):
                found.append(ctx.get(dut.octets.payload))
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return found


@pytest.mark.parametrize("cycles", [4, 5, 16, 63])
@pytest.mark.parametrize("pauses", [False, True])
def test_receives(cycles: int, pauses: bool, seed: int) -> None:
    rng = random.Random(seed)
    octets = [0x00, 0xFF, 0x55, 0xAA, *rng.randbytes(30)]
    assert _received(_line(octets, cycles, rng if pauses else None), cycles) == octets


@pytest.mark.parametrize("speed", [0.97, 1.03])
def test_receives_from_a_sender_that_is_off(speed: float, seed: int) -> None:
    octets = list(random.Random(seed).randbytes(40))
    assert _received(_line(octets, 50 * speed), 50) == octets


def test_glitches_and_breaks_give_nothing() -> None:
    glitch = [1] * 30 + [0] * 3 + [1] * 200
    pause = [0] * 400 + [1] * 30
    assert _received(glitch + _line([0x42], 16), 16) == [0x42]
    assert _received(pause + _line([0x42], 16), 16) == [0x42]


@pytest.mark.parametrize("cycles", [4, 7, 16])
@pytest.mark.parametrize("idle", [0.0, 0.5])
def test_sends(cycles: int, idle: float, seed: int) -> None:
    """Without waits an octet takes exactly ten bits."""
    rng = random.Random(seed)
    octets = [0x00, 0xFF, *rng.randbytes(12)]
    dut = UartTransmitter(cycles)
    levels = []

    async def drive(ctx) -> None:
        for octet in octets:
            while rng.random() < idle:
                await ctx.tick()
            ctx.set(dut.octets.payload, octet)
            ctx.set(dut.octets.valid, 1)
            await ctx.tick().until(dut.octets.ready)
            ctx.set(dut.octets.valid, 0)

    async def listen(ctx) -> None:
        for _ in range(len(octets) * 10 * cycles + 100):
            levels.append(ctx.get(dut.tx))
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(drive)
    simulator.add_testbench(listen)
    simulator.run()
    found, at = [], 0
    starts = []
    while 0 in levels[at:]:
        at = levels.index(0, at)
        starts.append(at)
        bits = [levels[at + i * cycles : at + (i + 1) * cycles] for i in range(10)]
        assert all(len(set(bit)) == 1 for bit in bits), f"a bit of octet {len(found)} is short"
        assert bits[9][0] == 1
        found.append(sum(bit[0] << i for i, bit in enumerate(bits[1:9])))
        at += 10 * cycles
    assert found == octets
    if not idle:
        assert {b - a for a, b in pairwise(starts)} == {10 * cycles}


def test_settings() -> None:
    assert bit_cycles(60_000_000, 1_000_000) == 60
    assert bit_cycles(62_500_000, 1_000_000) in (62, 63)
    with pytest.raises(ValueError, match="cannot make 3000000 baud"):
        bit_cycles(10_000_000, 3_000_000)
    with pytest.raises(ValueError, match="at least 4 cycles, not 3"):
        UartReceiver(SHORTEST_BIT - 1)
    with pytest.raises(ValueError, match="at least 4 cycles, not 3"):
        UartTransmitter(SHORTEST_BIT - 1)
