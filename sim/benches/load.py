"""Bench of the load unit: random programs on cocotbext-axi, cycle counts on axi_memory."""

import random
from typing import Any

import cocotb
from cocotb.triggers import FallingEdge, ReadOnly

from systolith import isa
from systolith.config import Config
from systolith.registers import Error
from systolith.sim.benches import dma
from systolith.sim.memory import AxiMemory
from systolith.sim.runner import arguments, report, seed, start

SPAN = 1 << 16  # bytes of memory that programs use


class Words:
    """Takes words from `writes`, with waits: list of (space, address, data)."""

    def __init__(self, dut: Any, config: Config, idle: Any) -> None:
        self.taken: list[tuple[int, int, bytes]] = []
        self.dut, self.config, self.idle = dut, config, idle
        cocotb.start_soon(self._take())

    async def _take(self) -> None:
        dut = self.dut
        held = None
        while True:
            await FallingEdge(dut.clk)
            dut.writes__ready.value = int(not next(self.idle))
            await ReadOnly()
            valid, bits = int(dut.writes__valid.value), int(dut.writes__payload.value)
            assert held is None or (valid and bits == held), "a word changed while it waited"
            held = bits if valid else None
            if valid and dut.writes__ready.value:
                data = (bits >> 22).to_bytes(self.config.dim, "little")
                self.taken.append((bits & 3, bits >> 2 & 0xFFFFF, data))
                held = None


def _expected(item: isa.Instruction, base: int, config: Config, read: Any) -> list[Any]:
    """What `writes` must carry for an instruction without address errors."""
    return [
        (
            item.get("space"),
            (item.get("local") + i * item.get("local_stride") + j) & 0xFFFFF,
            read(address, config.dim),
        )
        for i, row in enumerate(dma.addresses(item, base, config.dim))
        for j, address in enumerate(row)
    ]


def _draw(rng: random.Random, config: Config) -> isa.Instruction:
    fields = dma.draw_shape(rng, config, config.dim, SPAN)
    fields |= {"local": rng.randrange(1 << 20), "local_stride": rng.randrange(1 << 16)}
    return isa.Instruction("load", {**fields, "space": rng.randrange(4)})


@cocotb.test()
async def random_programs(dut: Any) -> None:
    """Random loads against AxiRam with waits everywhere: words in order, errors, no stray reads."""
    settings = arguments()
    config = Config.from_json(settings["config"])
    rng = random.Random(seed())
    base = rng.choice([0, 0x1234_5000, 2**32 - SPAN, 16 * rng.randrange(1 << 20)])
    dut.base.value = base
    dut.commands__valid.value = dut.stop.value = 0
    ram = dma.LimitedRam(dut, config, settings["idle"], rng)
    memory = rng.randbytes(2 * SPAN)
    for offset in range(0, 2 * SPAN, dma.PAGE):  # the program's addresses may wrap around
        ram.fill((base - SPAN // 2 + offset) % 2**32 // 4 * 4, memory[offset : offset + dma.PAGE])
    await start(dut)
    program = [_draw(rng, config) for _ in range(settings["instructions"])]
    ram.poison = {(base >> 12) + rng.randrange(1, 15)}
    words = Words(dut, config, dma.waits(settings["idle"], random.Random(seed() + 1)))

    expected: list[Any] = []
    errors: list[tuple[int, int]] = []
    ends: list[int] = []
    reads: set[int] = set()
    beats = bursts = 0

    def read(address: int, count: int) -> bytes:
        return b"".join(
            bytes(config.bus_bytes)
            if part >> 12 in ram.poison
            else ram.dump(part, config.bus_bytes)
            for part in range(address, address + count, config.bus_bytes)
        )

    for pc, item in enumerate(program):
        if dma.misaligned(item, base, config):
            errors.append((pc, Error.MISALIGNED))
        else:
            expected += _expected(item, base, config, read)
            touched = {
                part
                for row in dma.addresses(item, base, config.dim)
                for address in row
                for part in range(address, address + config.dim, config.bus_bytes)
            }
            reads |= touched
            beats += item.get("rows") * item.get("words") * config.dim // config.bus_bytes
            bursts += sum(
                dma.count_bursts(row[0], len(row) * config.dim, config)
                for row in dma.addresses(item, base, config.dim)
                if row
            )
            if any(part >> 12 in ram.poison for part in touched):
                errors.append((pc, Error.BUS_READ))
        ends.append(len(expected))

    def on_done(index: int) -> None:
        assert len(words.taken) >= ends[index], f"load {index} done before its last word"

    if settings["stops"]:
        cocotb.start_soon(dma.stops(dut, ram, "r", random.Random(seed() + 3)))
    monitor = dma.Monitor(dut, on_done)
    cocotb.start_soon(
        dma.issue(dut, program, dma.waits(settings["idle"], random.Random(seed() + 2)))
    )
    await monitor.until_done(len(program))
    different = dma.first_difference(words.taken, expected)
    assert not different, f"seed {seed()}, base {base:#x}: {different}"
    assert monitor.errors == errors, f"errors {monitor.errors}, expected {errors}"
    assert monitor.beats == beats, f"{monitor.beats} beats, expected {beats}"
    assert ram.bursts["r"] == bursts, f"{ram.bursts['r']} bursts, expected {bursts}"
    wanted = {address for address in reads if address >> 12 not in ram.poison}
    assert ram.touched == wanted, f"{len(ram.touched ^ wanted)} words read or left out by mistake"
    report({"words": len(expected), "errors": len(errors), "flight": ram.most_in_flight["r"]})


@cocotb.test()
async def on_memory(dut: Any) -> None:
    """A given program on axi_memory: checks the words, reports cycles from command to last done."""
    settings = arguments()
    config = Config.from_json(settings["config"])
    dut.base.value = 0
    dut.commands__valid.value = dut.stop.value = 0
    memory = AxiMemory(dut)
    memory.configure(**settings["memory"])
    await start(dut)
    content = random.Random(seed()).randbytes(2 * SPAN)
    await memory.load(content, 0)
    program = [isa.Instruction("load", fields) for fields in settings["program"]]
    words = Words(dut, config, dma.waits("none", random.Random(0)))
    await FallingEdge(dut.clk)
    monitor = dma.Monitor(dut)
    waiting = 0

    async def count_waiting() -> None:
        nonlocal waiting
        while True:
            await FallingEdge(dut.clk)
            await ReadOnly()
            waiting += int(dut.waiting.value)

    cocotb.start_soon(count_waiting())
    cocotb.start_soon(dma.issue(dut, program, dma.waits("none", random.Random(0))))
    while monitor.done < len(program):
        await FallingEdge(dut.clk)
    cycles = monitor.cycles
    expected: list[Any] = []
    for item in program:
        expected += _expected(item, 0, config, lambda address, n: content[address : address + n])
    different = dma.first_difference(words.taken, expected)
    assert not different, different
    memory.check_protocol()
    report({"cycles": cycles, "beats": monitor.beats, "waiting": waiting})
