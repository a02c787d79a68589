"""What integrators get: files that agree with each other and with the tables they come from."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from amaranth import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from systolith import isa, registers
from systolith.config import PRESETS, Config
from systolith.errors import UserError
from systolith.hdl.verilog import export, header, machine_verilog, to_verilog
from systolith.isa import Instruction
from systolith.sim.ports import parse_ports

CONFIG = Config(
    dim=4,
    lanes=2,
    bus_bytes=4,
    activation_rows=256,
    weight_rows=128,
    accumulator_rows=64,
    parameter_rows=8,
    max_length=64,
    max_features=64,
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("export") / "new" / "folder"
    paths = export(CONFIG, directory)
    assert sorted(path.name for path in paths) == ["manifest.json", "systolith.h", "systolith.v"]
    assert sorted(path.name for path in directory.iterdir()) == sorted(p.name for p in paths)
    return directory


def test_manifest_describes_the_verilog(exported: Path) -> None:
    text = (exported / "systolith.v").read_text()
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["verilog"]["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert Config(**manifest["configuration"]) == CONFIG
    assert int(manifest["configuration_hash"], 16) == CONFIG.hash
    described = {(p["name"], p["direction"], p["width"]) for p in manifest["ports"]}
    there = {(p.name, p.direction, p.width) for p in parse_ports(text, manifest["top"])}
    assert described == there
    assert {r["name"]: r["offset"] for r in manifest["registers"]} == {
        register.name: register.offset for register in registers.REGISTERS
    }


def test_same_again(exported: Path, tmp_path: Path) -> None:
    """Equal in every run and in another folder; other files there are left alone."""
    (tmp_path / "mine.txt").write_text("kept")
    (tmp_path / "systolith.v").write_text("old")
    export(CONFIG, tmp_path)
    for path in exported.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
    assert (tmp_path / "mine.txt").read_text() == "kept"
    assert len(list(tmp_path.iterdir())) == 4
    assert "/home" not in (tmp_path / "systolith.v").read_text()


def test_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write to .*file"):
        export(CONFIG, tmp_path / "file")


def test_header_compiles_and_agrees(tmp_path: Path) -> None:
    """A C program encodes an instruction with nothing but the header, as the assembler does."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler")
    (tmp_path / "systolith.h").write_text(header(PRESETS["small"]))
    fields = {"act": 77, "k_tiles": 3, "acc_stride": 0x1234, "group": 200, "accumulate": 1}
    puts = "".join(
        f"  w[SYSTOLITH_MATMUL_{name.upper()}_WORD] |= {value}u << "
        f"SYSTOLITH_MATMUL_{name.upper()}_LOW;\n"
        for name, value in fields.items()
    )
    (tmp_path / "main.c").write_text(
        '#include "systolith.h"\n#include "systolith.h"\n#include <stdio.h>\nint main(void) {\n'
        "  unsigned w[8] = {SYSTOLITH_OP_MATMUL};\n"
        f"{puts}  w[1] |= 1u << SYSTOLITH_SEM_LOAD_MATMUL;\n"
        '  for (int i = 0; i < 8; i++) printf("%u ", w[i]);\n'
        '  printf("%u %u %u %u\\n", SYSTOLITH_REG_STATUS, SYSTOLITH_STATUS_DONE,\n'
        "         SYSTOLITH_CONFIG_HASH, SYSTOLITH_DIM);\n  return 0;\n}\n"
    )
    command = [compiler, "-Wall", "-Werror", "-o", tmp_path / "main", tmp_path / "main.c"]
    subprocess.run(command, check=True)
    answer = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True)
    wait = 1 << isa.semaphore(isa.Unit.LOAD, isa.Unit.MATMUL)
    wanted = isa.encode(Instruction("matmul", fields, wait=wait))
    wanted += [registers.BY_NAME["STATUS"].offset, 2, PRESETS["small"].hash, 8]
    assert [int(word) for word in answer.stdout.split()] == wanted


class Remembers(wiring.Component):
    """A memory that starts as zeros, and one that does not."""

    address: In(2)
    zeros: Out(8)
    others: Out(8)

    def elaborate(self, platform) -> Module:
        m = Module()
        for name, init in (("zeros", []), ("others", [1, 2, 3, 5])):
            m.submodules[name] = memory = Memory(shape=8, depth=4, init=init)
            port = memory.read_port()
            m.d.comb += [port.addr.eq(self.address), getattr(self, name).eq(port.data)]
        m.d.sync += Signal(name="kept").eq(1)
        return m


def test_only_zeros_are_left_out() -> None:
    text = to_verilog(Remembers(), "remembers")
    assert text.count("initial begin") == 1
    for value in (1, 2, 3, 5):
        assert f"8'h{value:02x}" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    assert "module systolith(" in machine_verilog(PRESETS[name])
