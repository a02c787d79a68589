# amaranth: UnusedElaboratable=no
"""The SDRAM controller on a chip that checks every rule: traffic, bandwidth, clocks, refresh."""

import functools
from dataclasses import replace

import pytest

from systolith.config import PRESETS, Config
from systolith.hdl.sdram import Sdram
from systolith.hdl.sdram_chip import TANG_NANO_20K_SDRAM, ULX3S_SDRAM, SdramChip, SdramCycles
from systolith.sim.benches.board_memory_top import FlatSlave
from systolith.sim.build import Build, amaranth_verilog, build
from systolith.sim.runner import BenchFailure, run
from systolith.sim.sdram import SDRAM_CHIP, sdram_top

# (preset, chip, clock, capture, chip's clock inverted): words of a beat 4, 1, 2 and 8; CL 2 and 3.
CASES = {
    "ulx3s": ("small", ULX3S_SDRAM, 80e6, 1, False),
    "ulx3s_fast_inverted": ("small", ULX3S_SDRAM, 125e6, 0, True),
    "tang": ("tiny", TANG_NANO_20K_SDRAM, 54e6, 1, False),
    "tang_wide": ("small", TANG_NANO_20K_SDRAM, 80e6, 0, True),
    "wide_bus": ("bench", ULX3S_SDRAM, 60e6, 1, False),
}

FAST = ("ulx3s", "tang")
NAMES = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in CASES]


@functools.cache
def _build(case: str) -> Build:
    preset, chip, clock_hz, capture, inverted = CASES[case]
    memory = Sdram(PRESETS[preset], chip, clock_hz, capture=capture)
    text = amaranth_verilog(FlatSlave(PRESETS[preset], memory), "core")
    text, top = sdram_top(text, "core", chip, clock_hz, inverted=inverted)
    return build(text, top, sources=[SDRAM_CHIP])


@pytest.mark.parametrize("idle", ["none", "random", "bursty"])
@pytest.mark.parametrize("case", NAMES)
def test_random_traffic(case: str, idle: str, seed: int) -> None:
    """Rows, banks and both ends of the chip; what cocotbext-axi wrote is in the chip afterwards."""
    chip = CASES[case][1]
    row_bytes = chip.columns * chip.data_bits // 8
    last = chip.size_bytes - 3 * row_bytes
    areas = [(0, 3 * row_bytes), (5 * row_bytes - 64, 200), (last, 3 * row_bytes)]
    areas += [(chip.size_bytes // 2 + i * chip.banks * row_bytes, 96) for i in range(4)]
    arguments = {
        "masters": 1, "sdram": True, "sdram_base": 0, "areas": areas, "outside": [],
        "transfers": 12, "idle": idle, "max_burst": 256,
    }  # fmt: skip
    result = run(_build(case), "board_memory", arguments, seed=seed, test="random_traffic")
    assert result["read"] and result["written"] and result["owed_most"] <= 2


def _decode(config: Config, chip: SdramChip, beats: int) -> dict:
    """A decode stream: reads of 64 beats in order; for each 16 of them a write elsewhere."""
    step = 64 * config.bus_bytes
    reads = [(i * step, 64, 1) for i in range(beats // 64)]
    apart = chip.size_bytes // 2
    writes = [(apart + i * step, 16, 0) for i in range(len(reads) // 16)]
    return {
        "masters": 1, "sdram": True, "bus_bytes": config.bus_bytes, "idle": "none",
        "span": chip.size_bytes, "fill": [(a, n, 0) for a, n, _ in reads],
        "plan": [[reads, writes]],
    }  # fmt: skip


@pytest.mark.parametrize("case", NAMES)
def test_bandwidth(case: str, seed: int) -> None:
    """At least 90 % of the peak, a word a cycle, refresh included."""
    preset, chip, clock_hz, _, _ = CASES[case]
    config = PRESETS[preset]
    words = 8 * config.bus_bytes // chip.data_bits
    beats = 6144 // words * 2  # some refresh intervals
    arguments = _decode(config, chip, beats)
    result = run(_build(case), "board_memory", arguments, seed=seed, test="streams")
    share = (result["reads"] + result["writes"]) * words / result["cycles"]
    print(
        f"{case}: {100 * share:.1f} % of {clock_hz * chip.data_bits / 8e6:.0f} MB/s: "
        f"{result['reads']} beats read, {result['writes']} written in {result['cycles']} cycles, "
        f"{result['refreshes']} refreshes"
    )
    assert result["refreshes"] >= result["cycles"] // SdramCycles.of(chip, clock_hz).refi
    assert share >= 0.90


@pytest.mark.parametrize("case", ["ulx3s", "tang"])
def test_latency_of_an_idle_controller(case: str) -> None:
    """From AR to the first beat of a row that is not open."""
    preset, chip, clock_hz, capture, _ = CASES[case]
    config = PRESETS[preset]
    cycles = SdramCycles.of(chip, clock_hz)
    row_bytes = chip.columns * chip.data_bits // 8
    arguments = {
        "masters": 1, "sdram": True, "bus_bytes": config.bus_bytes, "idle": "none",
        "span": chip.size_bytes, "fill": [(0, 1, 0)], "plan": [[[(row_bytes, 1, 0)], []]],
    }  # fmt: skip
    result = run(_build(case), "board_memory", arguments, test="streams")
    words = 8 * config.bus_bytes // chip.data_bits
    assert result["latency"] == max(cycles.rcd, 2) + cycles.cas + capture + words + 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hurry", "rule"),
    [({"t_rp": 10.0}, "tRP"), ({"t_rfc": 40.0}, "tRFC"), ({"t_refi": 40000.0}, "too late")],
)
def test_a_controller_for_another_chip_is_seen(hurry: dict, rule: str, seed: int) -> None:
    """Made for a faster chip than is there, the controller breaks that very rule."""
    config = PRESETS["small"]
    memory = Sdram(config, replace(ULX3S_SDRAM, **hurry), 80e6)
    text = amaranth_verilog(FlatSlave(config, memory), "core")
    made = build(*sdram_top(text, "core", ULX3S_SDRAM, 80e6), sources=[SDRAM_CHIP])
    arguments = _decode(config, ULX3S_SDRAM, 3072)
    with pytest.raises(BenchFailure, match=f"SDRAM: .*{rule}"):
        run(made, "board_memory", arguments, seed=seed, test="streams")


def test_errors() -> None:
    config = PRESETS["small"]
    with pytest.raises(ValueError, match="at most 133 MHz, not 150"):
        Sdram(config, ULX3S_SDRAM, 150e6)
    with pytest.raises(ValueError, match="Capture must be from 0 to 3, not 4"):
        Sdram(config, ULX3S_SDRAM, 80e6, capture=4)
    with pytest.raises(ValueError, match="as wide as the 8 bits of GW2AR-18, not 256 bits"):
        wide = replace(TANG_NANO_20K_SDRAM, data_bits=8)
        Sdram(Config(dim=32, lanes=8, bus_bytes=32), wide, 80e6)
    with pytest.raises(ValueError, match="too slow to refresh"):
        Sdram(config, ULX3S_SDRAM, 1e6)
    with pytest.raises(ValueError, match="rows must be a power of two of at least 2, not 3000"):
        replace(ULX3S_SDRAM, rows=3000)
