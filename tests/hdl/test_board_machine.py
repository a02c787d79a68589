# amaranth: UnusedElaboratable=no
"""The whole machine on interconnect, block memory and SDRAM, against the golden machine."""

from pathlib import Path

import numpy as np
import pytest

from systolith.config import Config
from systolith.hdl.axi import PAGE_BYTES
from systolith.hdl.block_memory import BlockMemory
from systolith.hdl.sdram import Sdram
from systolith.hdl.sdram_chip import TANG_NANO_20K_SDRAM, ULX3S_SDRAM
from systolith.sim.benches.board_memory_top import MachineOnBus
from systolith.sim.build import amaranth_verilog, build
from systolith.sim.machine import GoldenMachine
from systolith.sim.random_program import random_program
from systolith.sim.runner import run
from systolith.sim.scoreboard import compare
from systolith.sim.sdram import SDRAM_CHIP, sdram_top

SMALL = {
    "activation_rows": 256, "weight_rows": 128, "accumulator_rows": 64, "parameter_rows": 8,
    "max_length": 64, "max_features": 64,
}  # fmt: skip
BLOCK = 2 * PAGE_BYTES
CASES = {
    "ulx3s": (Config(dim=8, lanes=4, bus_bytes=8, **SMALL), ULX3S_SDRAM, 80e6),
    "tang": (Config(dim=4, lanes=2, bus_bytes=4, **SMALL), TANG_NANO_20K_SDRAM, 54e6),
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case == "ulx3s" else pytest.mark.slow) for case in CASES],
)
def test_random_programs(case: str, tmp_path: Path, seed: int) -> None:
    """In block RAM and SDRAM at once, and in SDRAM alone; the host reads beside the machine."""
    config, chip, clock_hz = CASES[case]
    memories = [
        (0, BLOCK, BlockMemory(config, BLOCK)),
        (BLOCK, chip.size_bytes, Sdram(config, chip, clock_hz)),
    ]
    text = amaranth_verilog(MachineOnBus(config, memories), "board")
    made = build(*sdram_top(text, "board", chip, clock_hz), sources=[SDRAM_CHIP])
    jobs, wanted = [], []
    bases = (BLOCK // 4, BLOCK, BLOCK + chip.size_bytes // 2)
    for number, base in enumerate(bases):
        program = random_program(config, 40, 50 * seed + number)
        memory = program.memory()
        (tmp_path / f"image{number}.bin").write_bytes(memory.tobytes())
        GoldenMachine(config, memory).run(1 << 20)
        wanted.append(memory)
        jobs.append(
            {
                "image": str(tmp_path / f"image{number}.bin"),
                "after": str(tmp_path / f"after{number}.bin"),
                "base": base, "constant": program.symbols["scratch"].address, "size": len(memory),
            }
        )  # fmt: skip
    result = run(
        made, "board_machine", {"jobs": jobs, "idle": "random"}, seed=seed, timeout_s=900
    )
    for number, memory in enumerate(wanted):
        after = np.frombuffer((tmp_path / f"after{number}.bin").read_bytes(), np.uint8)
        compare(after, memory, what=f"memory of program {number}", axes=("byte",), seed=seed)
    print(f"{case}: {result}")
    assert result["words_written"] and result["refreshes"] > 8
