"""The store unit on two memories: cocotbext-axi for the protocol, axi_memory for the cycles."""

import functools
from dataclasses import replace
from typing import Any

import pytest
from amaranth import Module
from amaranth.back import verilog
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from systolith.config import PRESETS, Config
from systolith.hdl import axi
from systolith.hdl.store import StoreUnit
from systolith.sim.build import Build, amaranth_verilog, build
from systolith.sim.memory import AXI_MEMORY, memory_top
from systolith.sim.runner import run

SPAN = 1 << 17
MACHINES = {
    f"{dim}x{bus}": Config(dim=dim, lanes=max(2, dim // 4), bus_bytes=bus, outstanding=8)
    for dim, bus in ((4, 4), (8, 4), (8, 8), (16, 4), (16, 8), (16, 16))
}
MEASURED = ("4x4", "8x8", "16x4", "16x16")
ODD = {
    "short bursts": replace(MACHINES["16x8"], max_burst=7, outstanding=3),
    "single": replace(MACHINES["8x8"], max_burst=1, outstanding=1),
    "long bursts": replace(MACHINES["16x16"], max_burst=256, outstanding=2),
}
RUNS = [(name, "random") for name in MACHINES] + [
    (name, idle) for name in ("8x8", *ODD) for idle in ("none", "bursty")
]


class Top(wiring.Component):
    """Store unit with flat AXI ports; the read channels are idle."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.unit = StoreUnit(config)
        outer = {name: m for name, m in self.unit.signature.members.items() if name != "bus"}
        super().__init__(
            {
                **outer,
                **axi.flat_members("m_axi", axi.AXI4Read(config)),
                **axi.flat_members("m_axi", axi.AXI4Write(config)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.unit = unit = self.unit
        axi.connect_flat(m, self, "m_axi", unit.bus)
        for name, member in unit.signature.members.items():
            if member.is_signature and name != "bus":
                wiring.connect(m, wiring.flipped(getattr(self, name)), getattr(unit, name))
            elif member.is_port:
                a, b = getattr(self, name), getattr(unit, name)
                m.d.comb += a.eq(b) if member.flow is Out else b.eq(a)
        return m


@functools.cache
def _on_pins(config: Config) -> Build:
    return build(amaranth_verilog(Top(config), "store"), "store")


@functools.cache
def _on_memory(config: Config) -> Build:
    text, top = memory_top(amaranth_verilog(Top(config), "store"), "store", size_bytes=SPAN)
    return build(text, top, sources=[AXI_MEMORY])


def _cycles(config: Config, program: list[dict[str, int]], **memory: int) -> dict[str, int]:
    arguments = {
        "config": config.to_json(),
        "program": [("store" if "words" in item else "storew", item) for item in program],
        "memory": memory,
    }
    return run(_on_memory(config), "store", arguments, seed=3, test="on_memory")


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_converts(config: Config) -> None:
    assert "module" in verilog.convert(StoreUnit(config))


@pytest.mark.parametrize(("name", "idle"), RUNS)
def test_random_programs(name: str, idle: str, seed: int) -> None:
    config = {**MACHINES, **ODD}[name]
    arguments = {
        "config": config.to_json(),
        "idle": idle,
        "instructions": 10 if name == "single" else 30,
    }
    arguments["stops"] = idle == "bursty"
    result = run(_on_pins(config), "store", arguments, seed=seed, test="random_programs")
    assert result["beats"] > 100 and result["errors"] > 0


@pytest.mark.parametrize("space", [0, 1], ids=["activation", "accumulator"])
@pytest.mark.parametrize("name", MEASURED)
def test_contiguous_store_runs_at_bus_rate(name: str, space: int) -> None:
    config = MACHINES[name]
    size = (4 if space else 1) * config.dim
    program = [{"address": 0, "words": 32768 // size, "rows": 1, "space": space}]
    result = _cycles(config, program, write_latency=40)
    assert result["beats"] == 32768 // config.bus_bytes
    assert result["cycles"] <= result["beats"] + 60


@pytest.mark.parametrize("name", MEASURED)
def test_no_bubble_between_rows_and_stores(name: str) -> None:
    """Strided rows that cross pages, both sources in turn: still one beat a cycle."""
    config = MACHINES[name]
    program = []
    for index in range(4):
        words = 512 // config.dim // (4 if index % 2 else 1)
        shape = {"address": 64 + 10240 * index, "stride": 528, "words": words, "rows": 12}
        program.append({**shape, "local_stride": words, "space": index % 2})
    result = _cycles(config, program, write_latency=20)
    assert result["beats"] == 4 * 12 * 512 // config.bus_bytes
    assert result["cycles"] <= result["beats"] + 50


def test_single_word_rows_cost_a_cycle_each() -> None:
    config = MACHINES["16x16"]
    rows = {"address": 0, "stride": 48, "words": 1, "rows": 1000}
    result = _cycles(config, [rows], write_latency=2)
    assert result["cycles"] <= 1000 + 30


def test_single_words_do_not_wait_for_responses() -> None:
    """Eight in flight, and a response after 16 cycles: four cycles each, not twenty."""
    config = MACHINES["16x8"]
    program = [{"address": 4 * i, "value": i} for i in range(64)]
    result = _cycles(config, program, write_latency=16)
    assert result["cycles"] <= 4 * 64


def test_random_stalls_on_the_checking_memory() -> None:
    """axi_memory checks that valid holds and payloads are stable, which AxiRam does not."""
    config = ODD["short bursts"]
    rows = {"address": 40, "stride": 1000, "words": 30, "rows": 9, "local_stride": 30}
    stalls = {"write_latency": 7, "stall_aw": 200, "stall_w": 100, "stall_b": 90, "stall_seed": 5}
    result = _cycles(config, [rows, {"address": 20, "value": 7}, rows], **stalls)
    assert result["beats"] == 2 * 9 * 60 + 1
