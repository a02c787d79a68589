"""Bench of the registers: cocotbext-axi as the host, the machine's side driven by hand."""

import random
from typing import Any

import cocotb
from cocotb.triggers import FallingEdge, ReadOnly
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiResp

from systolith import registers
from systolith.config import Config
from systolith.registers import BY_NAME, Access
from systolith.sim.benches.dma import waits
from systolith.sim.runner import arguments, report, seed, start

_BYTE_COUNTERS = ("READ_BYTES", "WRITE_BYTES", "FETCH_BYTES")
_PULSES = ("start", "soft_reset")
_INPUTS = (
    "busy", "done", "error", "error_code", "error_pc", "mark", "marked", "clear",
    "matmul_started", "matmul_wrote",
)  # fmt: skip


def counted() -> list[str]:
    return [c.name for c in registers.COUNTERS if c.name not in ("CYCLES", "MATMUL_SPAN")]


class Host:
    """Register reads and writes, with waits on all channels; counts the command pulses."""

    def __init__(self, dut: Any, idle: str) -> None:
        self.dut = dut
        self.pulses = dict.fromkeys(_PULSES, 0)
        for name in _INPUTS:
            getattr(dut, name).value = 0
        for name in counted():
            getattr(dut, f"count_{name.lower()}").value = 0
        bus = AxiLiteBus.from_prefix(dut, "s_axil")
        self.master = AxiLiteMaster(bus, dut.clk, dut.rst)
        read, write = self.master.read_if, self.master.write_if
        for number, channel in enumerate(
            (write.aw_channel, write.w_channel, write.b_channel, read.ar_channel, read.r_channel)
        ):
            channel.set_pause_generator(waits(idle, random.Random(seed() + number)))
        cocotb.start_soon(self._watch())

    async def _watch(self) -> None:
        while True:
            await FallingEdge(self.dut.clk)
            await ReadOnly()
            for name in _PULSES:
                self.pulses[name] += int(getattr(self.dut, name).value)

    async def read(self, name: str | int) -> int:
        address = name if isinstance(name, int) else BY_NAME[name].offset
        answer = await self.master.read(address, 4)
        assert answer.resp == AxiResp.OKAY
        return int.from_bytes(answer.data, "little")

    async def read_wide(self, name: str) -> int:
        low = await self.read(name)
        return low | await self.read(BY_NAME[name].offset + 4) << 32

    async def write(self, name: str | int, value: int, size: int = 4, offset: int = 0) -> None:
        address = (name if isinstance(name, int) else BY_NAME[name].offset) + offset
        answer = await self.master.write(address, value.to_bytes(size, "little"))
        assert answer.resp == AxiResp.OKAY

    async def pulse(self, **values: int) -> None:
        """Drive inputs for one cycle, then 0."""
        await FallingEdge(self.dut.clk)
        for name, value in values.items():
            getattr(self.dut, name).value = value
        await FallingEdge(self.dut.clk)
        for name in values:
            getattr(self.dut, name).value = 0

    async def level(self, **values: int) -> None:
        await FallingEdge(self.dut.clk)
        for name, value in values.items():
            getattr(self.dut, name).value = value
        for _ in range(3):
            await FallingEdge(self.dut.clk)


@cocotb.test()
async def table(dut: Any) -> None:
    """Every register after reset; writes of any byte; everything else reads 0."""
    config = Config.from_json(arguments()["config"])
    rng = random.Random(seed())
    host = Host(dut, arguments()["idle"])
    await start(dut)
    fixed = {
        "CONFIG": config.dim | config.lanes << 8 | config.bus_bytes << 16,
        "CONFIG_HASH": config.hash,
    }
    mapped: set[int] = set()
    model: dict[str, int] = {}
    for register in registers.REGISTERS:
        expected = fixed.get(register.name, register.reset)
        got = await (host.read_wide if register.wide else host.read)(register.name)
        assert got == expected, f"{register.name} is {got:#x} after reset, expected {expected:#x}"
        mapped |= {register.offset, register.offset + 4 * register.wide}
        if register.access == Access.READ_WRITE:
            model[register.name] = register.reset
    for address in range(0, 4096, 4):
        if address not in mapped and (address < 0x200 or rng.random() < 0.02):
            await host.write(address, 0xFFFF_FFFF)
            assert await host.read(address) == 0, f"{address:#x} is no register"
    for register in registers.REGISTERS:
        if register.access == Access.READ:
            before = await host.read(register.name)
            await host.write(register.name, before ^ 0xFFFF_FFFF)
            assert await host.read(register.name) == before, f"{register.name} could be written"
    for step in range(60):
        name = rng.choice(list(model))
        offset = rng.randrange(4)
        size = rng.randint(1, 4 - offset)
        value = rng.randrange(1 << 8 * size)
        await host.write(name, value, size, offset)
        mask = ((1 << 8 * size) - 1) << 8 * offset
        model[name] = model[name] & ~mask | value << 8 * offset
        for other, expected in model.items():
            got = await host.read(other)
            assert got == expected, f"step {step}: {other} is {got:#x}, expected {expected:#x}"
    await FallingEdge(dut.clk)
    assert int(dut.base.value) == model["BASE"]
    assert int(dut.watchdog.value) == model["WATCHDOG"]
    assert host.pulses == {"start": 0, "soft_reset": 0}
    report({"writes": 60})


@cocotb.test()
async def commands_and_status(dut: Any) -> None:
    """Command pulses, STATUS, ERROR, MARK, and the interrupt with its causes."""
    host = Host(dut, arguments()["idle"])
    await start(dut)

    async def irq() -> int:
        await FallingEdge(dut.clk)
        await ReadOnly()
        return int(dut.irq.value)

    await host.write("CONTROL", registers.CONTROL_START)
    assert host.pulses == {"start": 1, "soft_reset": 0}
    await host.write("CONTROL", registers.CONTROL_RESET)
    assert host.pulses == {"start": 1, "soft_reset": 1}
    await host.write("CONTROL", 0xFF, size=1, offset=1)  # other bytes hold no commands
    await host.write("CONTROL", registers.CONTROL_START | registers.CONTROL_RESET, size=1)
    assert host.pulses == {"start": 2, "soft_reset": 2}
    assert await host.read("CONTROL") == 0

    await host.level(busy=1)
    assert await host.read("STATUS") == registers.STATUS_BUSY
    await host.pulse(marked=1, mark=0xCAFE_F00D)
    assert await host.read("MARK") == 0xCAFE_F00D
    assert not await irq(), "interrupts are off after reset"
    await host.write("IRQ_ENABLE", 0b100)
    assert await irq(), "mark"
    await host.write("CONTROL", registers.CONTROL_START)  # ignored while busy
    assert await irq(), "still the mark"
    await host.write("CONTROL", registers.CONTROL_IRQ_CLEAR)
    assert not await irq()
    await host.pulse(marked=1, mark=7)
    assert await irq()
    await host.write("IRQ_ENABLE", 0b011)
    assert not await irq(), "mark is masked"
    await host.level(done=1)
    assert await host.read("STATUS") == registers.STATUS_BUSY, "busy hides done"
    await host.level(busy=0)
    assert await host.read("STATUS") == registers.STATUS_DONE
    assert await irq(), "done"
    await host.write("CONTROL", registers.CONTROL_START)
    assert not await irq(), "a start forgets the causes"
    await host.pulse(clear=1)
    assert await host.read("MARK") == 0
    await host.level(done=0, error=1, error_code=5, error_pc=0x123456)
    assert await irq(), "error"
    assert await host.read("STATUS") == registers.STATUS_ERROR
    assert await host.read("ERROR") == 5
    assert await host.read("ERROR_PC") == 0x123456
    await host.write("CONTROL", registers.CONTROL_IRQ_CLEAR)
    assert not await irq() and await host.read("STATUS") == registers.STATUS_ERROR
    await host.write("IRQ_ENABLE", 0)
    await host.level(error=0)
    await host.level(error=1)
    assert not await irq()
    await host.write("IRQ_ENABLE", 0b010)
    assert await irq(), "enabling shows a cause that was there"
    report({"pulses": host.pulses["start"]})


@cocotb.test()
async def counts(dut: Any) -> None:
    """Random events against a model; clear; reads while counting are monotonic."""
    config = Config.from_json(arguments()["config"])
    rng = random.Random(seed())
    host = Host(dut, arguments()["idle"])
    await start(dut)
    names = [*counted(), "CYCLES"]

    async def run(cycles: int) -> dict[str, int]:
        model = dict.fromkeys([*names, "MATMUL_SPAN"], 0)
        density = {name: rng.choice([0.0, 0.1, 0.9, 1.0]) for name in names}
        first = -1
        await host.pulse(clear=1, busy=1)
        for cycle in range(cycles):
            for name in names:
                event = int(rng.random() < density[name])
                port = "busy" if name == "CYCLES" else f"count_{name.lower()}"
                getattr(dut, port).value = event
                model[name] += event * (config.bus_bytes if name in _BYTE_COUNTERS else 1)
            started, wrote = int(rng.random() < 0.02), int(rng.random() < 0.02)
            dut.matmul_started.value, dut.matmul_wrote.value = started, wrote
            if started and first < 0:
                first = cycle
            if wrote and first >= 0:
                model["MATMUL_SPAN"] = cycle - first + 1
            await FallingEdge(dut.clk)
        dut.matmul_started.value = dut.matmul_wrote.value = dut.busy.value = 0
        for name in counted():
            getattr(dut, f"count_{name.lower()}").value = 0
        for _ in range(20):
            await FallingEdge(dut.clk)
        return model

    for cycles in (1, 5, 300, 700):
        model = await run(cycles)
        for name, expected in model.items():
            got = await host.read_wide(name)
            assert got == expected, f"{name} is {got} after {cycles} cycles, expected {expected}"
    await host.pulse(clear=1)
    for name in model:
        assert await host.read_wide(name) == 0, f"{name} was not cleared"
    await host.level(busy=1)
    seen = [await host.read_wide("CYCLES") for _ in range(20)]
    assert seen == sorted(set(seen)) and seen[0] > 0
    report({"last": seen[-1]})
