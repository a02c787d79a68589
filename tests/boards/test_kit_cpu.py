"""The C driver on a RISC-V CPU beside the machine, in a LiteX SoC: bare metal, simulated.

Needs LiteX, `pythondata-cpu-picorv32`, and a C compiler for RISC-V: riscv64-unknown-elf-gcc, or
Zig's (`pip install ziglang`, 400 MB).
"""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from systolith.boards.kit import make_kit
from systolith.sim import machine_tb
from systolith.sim.build import build
from systolith.sim.ports import clocked_top
from systolith.sim.runner import run
from tests.boards.c_driver import DIFFERENT, OK
from tests.boards.kit_case import CONFIG, product_case

HERE = Path(__file__).resolve().parent
VERDICT, MARK = 0x4000_0000, 0x400
NEEDED = ("litex", "pythondata_cpu_picorv32")
GCC = "riscv64-unknown-elf-gcc"


def cross_compiler() -> list[str] | None:
    if shutil.which(GCC):
        return [GCC, "-march=rv32im", "-mabi=ilp32"]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc", "-target", "riscv32-freestanding-none",
                "-mcpu=generic_rv32+i+m", "-fno-sanitize=undefined"]  # fmt: skip
    return None


def objcopy() -> list[str]:
    if shutil.which(GCC):
        return [GCC.replace("gcc", "objcopy")]
    return [sys.executable, "-m", "ziglang", "objcopy"]


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in NEEDED) or cross_compiler() is None,
        reason="needs litex, pythondata-cpu-picorv32, and riscv64-unknown-elf-gcc or ziglang",
    ),
]


def compile_firmware(kit: Path, output: Path) -> None:
    """The kit's example with its own main(), for the addresses of the SoC."""
    sources = [kit / n for n in ("example.c", "systolith_driver.c", "program_product.c")]
    sources += [HERE / "firmware" / name for name in ("start.S", "memory.c")]
    command = [
        *(cross_compiler() or []), "-std=c99", "-Os", "-ffreestanding", "-nostdlib", "-Wall",
        "-Wextra", "-Werror", "-pedantic", "-DSYSTOLITH_REGISTERS=0x90000000",
        "-DSYSTOLITH_MEMORY=0x40004000", *sources, f"-Wl,-T,{HERE / 'firmware' / 'link.ld'}",
        "-o", output.with_suffix(".elf"),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    command = [*objcopy(), "-O", "binary", output.with_suffix(".elf"), output]
    subprocess.run(command, check=True)


@pytest.mark.parametrize("spoiled", [False, True])
def test_the_driver_on_risc_v(tmp_path: Path, spoiled: bool) -> None:
    """The example finds the golden machine's bytes; and does not, where one operand differs."""
    kit = tmp_path / "kit"
    packed, _ = product_case(2)
    if spoiled:
        assert packed.memory is not None
        packed.memory[packed.program.symbols["a0"].address + 1] ^= 0x80
    make_kit(CONFIG, kit, program=packed, verilog=machine_tb.verilog(CONFIG))
    compile_firmware(kit, tmp_path / "firmware.bin")
    command = [sys.executable, HERE / "litex_cpu_soc.py", kit, tmp_path / "firmware.bin", tmp_path]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    soc = (tmp_path / "soc.v").read_text().splitlines()
    # What differs from run to run, and memories that start as zeros: the cache is keyed by text.
    skipped = ("//", '$readmemh("soc_sram', '$readmemh("soc_main')
    text = [line for line in soc if not line.lstrip().startswith(skipped)]
    cpu, machine = (Path(name).read_text() for name in answer.stdout.split()[-2:])
    # PicoRV32 leaves ports open and mixes widths.
    styles = [f"/* verilator lint_off {rule} */" for rule in ("PINMISSING", "WIDTHEXPAND")]
    made = build(*clocked_top("\n".join([*styles, *text, cpu, machine]), "soc"))
    result = run(
        made,
        "tests.boards.bench_kit_cpu",
        {"verdict": VERDICT},
        files={"soc_rom.init": (tmp_path / "soc_rom.init").read_bytes()},
    )
    assert result["verdict"] == MARK | (DIFFERENT if spoiled else OK)
    print(f"{result['cycles']} cycles")
