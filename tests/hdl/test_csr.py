# amaranth: UnusedElaboratable=no
"""The registers, with cocotbext-axi's AXI4-Lite master as the host."""

import functools
from typing import Any

import pytest
from amaranth import Module
from amaranth.back import verilog
from amaranth.lib import wiring
from amaranth.lib.wiring import Out
from amaranth.sim import Simulator

from systolith import registers
from systolith.config import PRESETS, Config
from systolith.hdl import axi
from systolith.hdl.csr import Counters, Csr
from systolith.sim.build import Build, amaranth_verilog, build
from systolith.sim.runner import run

CONFIG = PRESETS["bench"]


class Top(wiring.Component):
    """The registers with flat AXI ports."""

    def __init__(self, config: Config) -> None:
        self.unit = Csr(config)
        outer = {name: m for name, m in self.unit.signature.members.items() if name != "bus"}
        super().__init__({**outer, **axi.flat_members("s_axil", axi.AXI4Lite().flip())})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.unit = unit = self.unit
        axi.connect_flat(m, self, "s_axil", unit.bus)
        for name, member in unit.signature.members.items():
            if member.is_port:
                a, b = getattr(self, name), getattr(unit, name)
                m.d.comb += a.eq(b) if member.flow is Out else b.eq(a)
        return m


@functools.cache
def _build(config: Config) -> Build:
    return build(amaranth_verilog(Top(config), "csr"), "csr")


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_converts(config: Config) -> None:
    assert "module" in verilog.convert(Csr(config))


@pytest.mark.parametrize("idle", ["none", "random", "bursty"])
@pytest.mark.parametrize("test", ["table", "commands_and_status", "counts"])
def test_with_a_host(test: str, idle: str, seed: int) -> None:
    arguments = {"config": CONFIG.to_json(), "idle": idle}
    assert run(_build(CONFIG), "csr", arguments, seed=seed, test=test)


def test_reading_the_low_half_latches_the_high_one() -> None:
    """A counter that is about to pass 2**32 is read as one value, before and after."""
    dut = Csr(CONFIG)
    index = next(i for i, c in enumerate(registers.COUNTERS) if c.name == "CYCLES")
    offset = registers.COUNTERS[index].offset

    async def read(ctx: Any, address: int) -> int:
        ctx.set(dut.bus.ar.payload.addr, address)
        ctx.set(dut.bus.ar.valid, 1)
        await ctx.tick().until(dut.bus.ar.ready)
        ctx.set(dut.bus.ar.valid, 0)
        (value,) = await ctx.tick().sample(dut.bus.r.payload.data).until(dut.bus.r.valid)
        return value

    async def testbench(ctx: Any) -> None:
        ctx.set(dut.bus.r.ready, 1)
        await ctx.tick().repeat(40)  # every slot has been visited since the reset
        ctx.set(dut.totals[index], 2**32 - 100)
        ctx.set(dut.busy, 1)
        before = await read(ctx, offset) + (await read(ctx, offset + 4) << 32)
        assert 2**32 - 100 <= before < 2**32
        low = await read(ctx, offset)
        while low > 2**31:
            await ctx.tick().repeat(40)
            stale = low + (await read(ctx, offset + 4) << 32)
            assert stale < 2**32, "the latch moved on without a read of the low half"
            low = await read(ctx, offset)
        after = low + (await read(ctx, offset + 4) << 32)
        assert 2**32 <= after < 2**32 + 200

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(testbench)
    simulator.run()


@pytest.mark.parametrize("count", [0, 17])
def test_number_of_counters(count: int) -> None:
    with pytest.raises(ValueError, match=f"Counters must be from 1 to 16, not {count}"):
        Counters(count, Csr(CONFIG).totals)
