"""The LiteX module: a SoC with the machine, its memory and a bus master executes a program."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from systolith import registers
from systolith.boards.kit import make_kit
from systolith.config import Config
from systolith.registers import STATUS_DONE, Error
from systolith.sim import machine_tb
from systolith.sim.build import build
from systolith.sim.ports import clocked_top
from systolith.sim.runner import run
from tests.boards.kit_case import CONFIG, WIDE, product_case

HERE = Path(__file__).resolve().parent
REGISTERS, MEMORY = 0x9000_0000, 0x4000_0000

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("litex") is None, reason="LiteX is not installed: pip install litex"
)


CASES = [
    pytest.param("wishbone", "Shell", CONFIG, id="wishbone"),
    pytest.param("wishbone", "None", CONFIG, id="wishbone, no CPU", marks=pytest.mark.slow),
    pytest.param("axi-lite", "None", CONFIG, id="axi-lite", marks=pytest.mark.slow),
    pytest.param("axi", "None", CONFIG, id="axi", marks=pytest.mark.slow),
    pytest.param("wishbone", "Shell", WIDE, id="64 bits on wishbone", marks=pytest.mark.slow),
    pytest.param("axi", "None", WIDE, id="64 bits on axi", marks=pytest.mark.slow),
]


def soc_verilog(kit: Path, standard: str, cpu: str, output: Path) -> str:
    """Of the SoC and the machine; LiteX runs in a process and a folder of its own."""
    command = [sys.executable, HERE / "litex_soc.py", kit, standard, cpu, output / "soc.v"]
    answer = subprocess.run(command, cwd=output, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split()[-1] == str(kit / "systolith.v"), "the SoC knows its source"
    text = (output / "soc.v").read_text()
    # What would differ from run to run, and the contents of a memory that start as zeros.
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("//", "$readmem"))]
    return "\n".join([*lines, (kit / "systolith.v").read_text()])


@pytest.mark.parametrize("standard, cpu, config", CASES)
def test_a_program_in_a_soc(
    tmp_path: Path, standard: str, cpu: str, config: Config
) -> None:
    """The bus has 32 bits; LiteX converts what is wider."""
    kit = tmp_path / "kit"
    make_kit(config, kit, verilog=machine_tb.verilog(config))
    text, top = clocked_top(soc_verilog(kit, standard, cpu, tmp_path), "soc")
    packed, _ = product_case(2, config)
    program = packed.program
    where = program.symbols["c0"]
    result = run(
        build(text, top),
        "tests.boards.bench_kit_litex",
        {
            "registers": REGISTERS,
            "base": MEMORY + 0x100,
            "result": [where.address, where.size],
            "max_cycles": 200_000,
        },
        files={"image.bin": packed.image + bytes(-len(packed.image) % 4)},
    )
    assert result["identity"] == [registers.IDENTIFICATION, config.hash]
    assert (result["STATUS"], result["ERROR"]) == (STATUS_DONE, Error.NONE), result
    assert bytes.fromhex(result["result"]) == packed.expected["c0"]
    assert result["counters"]["WRITE_BYTES"] == where.size
    print(f"{standard}: {result['counters']['CYCLES']} cycles")


def test_the_manifest_must_match(tmp_path: Path) -> None:
    """Ports that the module does not know, and origins that are none."""
    kit = tmp_path / "kit"
    make_kit(CONFIG, kit, verilog=machine_tb.verilog(CONFIG))
    described = json.loads((kit / "manifest.json").read_text())
    described["ports"].append({"name": "extra", "direction": "input", "width": 1})
    (tmp_path / "manifest.json").write_text(json.dumps(described))
    code = (
        f"import sys; sys.path.insert(0, {str(kit)!r})\n"
        "from types import SimpleNamespace as N\nimport systolith_litex as s\n"
        "soc = N(platform=N(add_source=lambda path: None))\n"
        f"for call in (lambda: s.Systolith(soc.platform, {str(tmp_path)!r}),\n"
        "             lambda: s.add_systolith(soc, 0x9000_0100)):\n"
        "    try: call()\n    except ValueError as error: print(error)\n"
    )
    answer = subprocess.run(
        # Not here, where a folder has the name of a package that LiteX looks for.
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    first, second = answer.stdout.strip().splitlines()
    assert first.startswith("The manifest has the port 'extra'")
    assert second == "The origin must be a multiple of 4096, not 0x90000100"
