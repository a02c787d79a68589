# amaranth: UnusedElaboratable=no
"""The interconnect: two masters on block RAM and SDRAM, errors, order, throughput."""

import functools
import random

import pytest

from systolith.config import PRESETS
from systolith.hdl.axi import PAGE_BYTES
from systolith.hdl.block_memory import BlockMemory
from systolith.hdl.memory_bus import IN_FLIGHT, MemoryBus
from systolith.hdl.sdram import Sdram
from systolith.hdl.sdram_chip import ULX3S_SDRAM
from systolith.hdl.verilog import to_verilog
from systolith.sim.benches.board_memory_top import FlatBus
from systolith.sim.build import Build, amaranth_verilog, build
from systolith.sim.runner import run
from systolith.sim.sdram import SDRAM_CHIP, sdram_top

CONFIG = PRESETS["small"]
CLOCK = 80e6
FIRST, SECOND = 3 * PAGE_BYTES, 2 * PAGE_BYTES
GAP = 0x10000


@functools.cache
def _blocks() -> Build:
    """Two block memories, one behind the other at 12 KiB, two masters."""
    memories = [
        (0, FIRST, BlockMemory(CONFIG, FIRST)),
        (FIRST, SECOND, BlockMemory(CONFIG, SECOND)),
    ]
    return build(amaranth_verilog(FlatBus(CONFIG, 2, memories), "core"), "core")


@functools.cache
def _mixed() -> Build:
    """Block RAM at 0, an SDRAM behind a gap, two masters."""
    memories = [
        (0, FIRST, BlockMemory(CONFIG, FIRST)),
        (GAP, ULX3S_SDRAM.size_bytes, Sdram(CONFIG, ULX3S_SDRAM, CLOCK)),
    ]
    text = amaranth_verilog(FlatBus(CONFIG, 2, memories), "core")
    text, top = sdram_top(text, "core", ULX3S_SDRAM, CLOCK)
    return build(text, top, sources=[SDRAM_CHIP])


@pytest.mark.parametrize("idle", ["none", "random", "bursty"])
def test_random_traffic(idle: str, seed: int) -> None:
    """Both masters on both memories and beside them; areas reach over the border of memories."""
    sdram_end = GAP + ULX3S_SDRAM.size_bytes
    arguments = {
        "masters": 2, "sdram": True, "sdram_base": GAP, "transfers": 12, "idle": idle,
        "max_burst": 256,
        "areas": [
            (0, 2000), (GAP, 3000), (GAP + (1 << 20), 5000), (FIRST - 700, 700),
            (2500, 400), (sdram_end - 1500, 1500),
        ],
        "outside": [(FIRST, GAP - FIRST), (sdram_end, 1 << 20), ((1 << 32) - 4096, 4096)],
    }  # fmt: skip
    result = run(_mixed(), "board_memory", arguments, seed=seed, test="random_traffic")
    assert result["read"] and result["written"]


def _cut(base: int, lengths: list[int]) -> list[tuple[int, int, int]]:
    found = []
    for number, beats in enumerate(lengths):
        found.append((base, beats, number % 2))
        base += beats * CONFIG.bus_bytes
    return found


def _streams(plan: list, fill: list, **more: object) -> dict:
    arguments = {
        "masters": 2, "sdram": False, "bus_bytes": CONFIG.bus_bytes, "idle": "none",
        "span": FIRST + SECOND, "fill": fill, "plan": plan, **more,
    }  # fmt: skip
    return run(_blocks(), "board_memory", arguments, test="streams")


LENGTHS = [64, 1, 1, 5, 64, 2, 1, 3, 1, 40]


def test_one_master_streams_without_a_gap() -> None:
    """A beat every cycle in both directions, over bursts of any length."""
    reads, writes = _cut(0, LENGTHS), _cut(4096, LENGTHS)
    result = _streams([[reads, writes], [[], []]], reads)
    total = sum(LENGTHS)
    assert result["read_span"] == result["reads"] == total
    # The address of the third burst behind a long one comes late if those between are short.
    assert result["writes"] == total and result["write_span"] <= total + 1
    # Two cycles to the memory, six in it, one back.
    assert result["latency"] == 2 + 6 + 1


def test_two_masters_share_without_a_gap() -> None:
    """In turn, on both memories; together a beat every cycle, and nobody waits for long."""
    mine, yours = _cut(0, LENGTHS), _cut(FIRST, LENGTHS)
    writes = _cut(4096, LENGTHS), _cut(FIRST + 4096, LENGTHS)
    result = _streams([[mine, writes[0]], [yours, writes[1]]], mine + yours)
    total = 2 * sum(LENGTHS)
    assert result["read_span"] == result["reads"] == total
    # Of both masters' W, one has just been taken when the other's turn comes.
    assert result["writes"] == total and result["write_span"] <= total + 2


@pytest.mark.parametrize("idle", ["none", "random", "bursty"])
def test_order_and_errors(idle: str, seed: int) -> None:
    """Random bursts of both masters here, there and nowhere: IDs, LAST, responses, data, order."""
    rng = random.Random(seed)
    end = FIRST + SECOND
    plan: list[list[list]] = []
    fill = [(at, 64, 0) for at in range(0, end, 64 * CONFIG.bus_bytes)]
    for number in range(2):
        # Each master writes in a half of every page, and reads in the other.
        reads, writes = [], []
        for bursts, half in ((reads, 2048), (writes, 0)):
            for _ in range(40):
                beats = rng.choice([1, 1, 2, rng.randint(1, 64)])
                page = rng.randrange(0, end + 3 * PAGE_BYTES, PAGE_BYTES)
                place = half + number * 1024
                place += rng.randrange(0, 1024 - 8 * beats + 1, 8) if beats < 64 else 0
                bursts.append((page + place, beats, rng.randrange(2)))
        plan.append([reads, writes])
    result = _streams(plan, fill, idle=idle)
    assert result["reads"] > 40 and result["writes"] > 40


def test_bursts_that_memories_do_not_know(seed: int) -> None:
    """FIXED, WRAP and narrow bursts are errors, instead of wrong bytes."""
    arguments = {"masters": 2, "sdram": False, "bus_bytes": CONFIG.bus_bytes}
    run(_blocks(), "board_memory", arguments, seed=seed, test="refused")


def test_errors() -> None:
    for regions, message in (
        ([], "Regions must be one at least"),
        ([(0, 100)], "multiples of 4096, the size not 0, not 0x0 and 0x64"),
        ([(0, 0)], "multiples of 4096"),
        ([(1 << 31, 1 << 32)], "must end within 4 GiB, not at 0x180000000"),
        ([(4096, 8192), (0, 8192)], "must not overlap, as those at 0x0 and 0x1000 do"),
    ):
        with pytest.raises(ValueError, match=message):
            MemoryBus(CONFIG, 2, regions)
    with pytest.raises(ValueError, match="Masters must be at least 1, not 0"):
        MemoryBus(CONFIG, 0, [(0, 4096)])


@pytest.mark.parametrize("masters", [1, 2, 3])
@pytest.mark.parametrize("preset", ["tiny", "bench"])
def test_converts(preset: str, masters: int) -> None:
    regions = [(0, 4096), (1 << 31, 1 << 31)]
    assert "module" in to_verilog(MemoryBus(PRESETS[preset], masters, regions), "bus")
    assert PRESETS[preset].outstanding <= IN_FLIGHT
