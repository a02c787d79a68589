"""Bench of the store unit: random programs on cocotbext-axi, cycle counts on axi_memory."""

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


class LocalMemory:
    """A local memory on a read port: random content, `ready` with waits, garbage between reads."""

    def __init__(self, dut: Any, port: str, rows: int, row_bytes: int, idle: Any) -> None:
        self.rng = random.Random(seed() + rows)
        self.rows = [self.rng.randbytes(row_bytes) for _ in range(rows)]
        self.row_bytes = row_bytes
        self.dut, self.idle = dut, idle
        self.addr, self.en, self.ready, self.data = (
            getattr(dut, f"{port}__{name}") for name in ("addr", "en", "ready", "data")
        )
        cocotb.start_soon(self._serve())

    def __getitem__(self, address: int) -> bytes:
        return self.rows[address % len(self.rows)]

    async def _serve(self) -> None:
        garbage = int.from_bytes(self.rng.randbytes(self.row_bytes), "little")
        answer = garbage
        while True:
            await FallingEdge(self.dut.clk)
            self.data.value = answer
            self.ready.value = int(not next(self.idle))
            await ReadOnly()
            answer = garbage
            if self.en.value and self.ready.value:
                answer = int.from_bytes(self[int(self.addr.value)], "little")


class Locals:
    """Both local memories of the unit."""

    def __init__(self, dut: Any, config: Config, idle: str) -> None:
        waits = (dma.waits(idle, random.Random(seed() + 10 + i)) for i in range(2))
        dim = config.dim
        self.of = {
            isa.StoreSpace.ACTIVATION: LocalMemory(
                dut, "activation", config.activation_rows, dim, next(waits)
            ),
            isa.StoreSpace.ACCUMULATOR: LocalMemory(
                dut, "accumulator", config.accumulator_rows, 4 * dim, next(waits)
            ),
        }

    def writes(self, item: isa.Instruction, base: int) -> list[tuple[int, bytes]]:
        """What an instruction writes: (address, bytes) in order."""
        if item.op == "storew":
            return [((base + item.get("address")) % 2**32, item.get("value").to_bytes(4, "little"))]
        memory = self.of[isa.StoreSpace(item.get("space"))]
        return [
            (address, memory[item.get("local") + i * item.get("local_stride") + j])
            for i, row in enumerate(dma.addresses(item, base, memory.row_bytes))
            for j, address in enumerate(row)
        ]

    def bursts(self, item: isa.Instruction, base: int, config: Config) -> int:
        if item.op == "storew":
            return 1
        size = self.of[isa.StoreSpace(item.get("space"))].row_bytes
        rows = dma.addresses(item, base, size)
        return sum(dma.count_bursts(row[0], len(row) * size, config) for row in rows if row)


def _draw(rng: random.Random, config: Config) -> isa.Instruction:
    if rng.random() < 0.3:
        address = rng.randrange(0, SPAN, 4) + rng.choice([0] * 9 + [1, 2, 3])
        return isa.Instruction("storew", {"address": address, "value": rng.randrange(1 << 32)})
    space = rng.choice(list(isa.StoreSpace))
    size = config.dim if space == isa.StoreSpace.ACTIVATION else 4 * config.dim
    fields = dma.draw_shape(rng, config, size, SPAN)
    fields |= {"local": rng.randrange(1 << 20), "local_stride": rng.randrange(1 << 16)}
    return isa.Instruction("store", {**fields, "space": int(space)})


@cocotb.test()
async def random_programs(dut: Any) -> None:
    """Random stores against AxiRam with waits everywhere: all memory compared, errors."""
    settings = arguments()
    config = Config.from_json(settings["config"])
    rng = random.Random(seed())
    base = rng.choice([0, 0x1234_5000, 2**32 - SPAN, 16 * rng.randrange(1 << 20)])
    dut.base.value = base
    dut.commands__valid.value = dut.stop.value = 0
    ram = dma.LimitedRam(dut, config, settings["idle"], rng)
    local = Locals(dut, config, settings["idle"])
    # The model of memory: bytes before `origin` and after the span are guards.
    origin = base - SPAN // 2
    model = bytearray(rng.randbytes(2 * SPAN))
    pieces = range(0, 2 * SPAN, 4)
    for offset in pieces:
        ram.fill((origin + offset) % 2**32, model[offset : offset + 4])
    await start(dut)
    program = [_draw(rng, config) for _ in range(settings["instructions"])]
    ram.poison = {(base >> 12) + rng.randrange(1, 15)}
    errors: list[tuple[int, int]] = []
    bursts: list[int] = []
    touched: set[int] = set()
    beats = count = 0
    for pc, item in enumerate(program):
        single = item.op == "storew"
        bad = (base + item.get("address")) % 4 if single else dma.misaligned(item, base, config)
        if bad:
            errors.append((pc, Error.MISALIGNED))
        else:
            failed = False
            for address, data in local.writes(item, base):
                parts = range(address, address + len(data), 4)
                for i, part in enumerate(parts):
                    if part % 2**32 >> 12 in ram.poison:
                        failed = True
                    else:
                        touched.add(part % 2**32 // config.bus_bytes * config.bus_bytes)
                        offset = (part - origin) % 2**32
                        model[offset : offset + 4] = data[4 * i : 4 * i + 4]
                beats += 1 if single else len(data) // config.bus_bytes
            if failed:
                errors.append((pc, Error.BUS_WRITE))
            count += local.bursts(item, base, config)
        bursts.append(count)

    def on_done(index: int) -> None:
        assert ram.responses >= bursts[index], f"store {index} done before its last response"

    if settings["stops"]:
        cocotb.start_soon(dma.stops(dut, ram, "w", random.Random(seed() + 3)))
    monitor = dma.Monitor(dut, on_done)
    cocotb.start_soon(
        dma.issue(dut, program, dma.waits(settings["idle"], random.Random(seed() + 2)))
    )
    await monitor.until_done(len(program))
    for offset in pieces:
        got = ram.dump((origin + offset) % 2**32, 4)
        expected = model[offset : offset + 4]
        where = f"seed {seed()}, base {base:#x}: memory at {(origin + offset) % 2**32:#x}"
        assert got == expected, f"{where} is {got.hex()}, expected {expected.hex()}"
    assert monitor.errors == errors, f"errors {monitor.errors}, expected {errors}"
    assert monitor.beats == beats, f"{monitor.beats} beats, expected {beats}"
    assert ram.bursts["w"] == count, f"{ram.bursts['w']} bursts, expected {count}"
    assert ram.touched == touched, f"{len(ram.touched ^ touched)} words written by mistake or not"
    report({"beats": beats, "errors": len(errors), "flight": ram.most_in_flight["w"]})


@cocotb.test()
async def on_memory(dut: Any) -> None:
    """A given program on axi_memory: checks memory, reports cycles from command to last done."""
    settings = arguments()
    config = Config.from_json(settings["config"])
    dut.base.value = 0
    dut.commands__valid.value = dut.stop.value = 0
    local = Locals(dut, config, "none")
    memory = AxiMemory(dut)
    memory.configure(**settings["memory"])
    await start(dut)
    model = bytearray(random.Random(seed()).randbytes(2 * SPAN))
    await memory.load(bytes(model), 0)
    program = [isa.Instruction(op, fields) for op, fields in settings["program"]]
    await FallingEdge(dut.clk)
    monitor = dma.Monitor(dut)
    cocotb.start_soon(dma.issue(dut, program, dma.waits("none", random.Random(0))))
    while monitor.done < len(program):
        await FallingEdge(dut.clk)
    cycles = monitor.cycles
    for item in program:
        for address, data in local.writes(item, 0):
            model[address : address + len(data)] = data
    got = await memory.dump(0, len(model))
    different = dma.first_difference(got, model)
    assert not different, f"memory: {different}"
    memory.check_protocol()
    report({"cycles": cycles, "beats": monitor.beats})
