"""The C driver: it compiles everywhere, and runs programs on the RTL and on a register model."""

import ctypes
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from systolith import isa, registers
from systolith.boards.kit import make_kit
from systolith.isa import Condition, Instruction, LoadSpace, Unit, semaphore
from systolith.registers import Error
from systolith.sim import machine_tb
from systolith.sim.machine import GoldenMachine
from systolith.sim.machine_tb import MachineSim
from systolith.sim.runner import run
from tests.boards.c_driver import (
    BAD_ARGUMENT,
    NO_DEVICE,
    OK,
    TIMEOUT,
    WRONG_CONFIGURATION,
    WRONG_VERSION,
    Driver,
    compile_library,
    compiler,
)
from tests.boards.kit_case import CONFIG, SHAPE, product_case

SOURCES = ("systolith_driver.c", "program_product.c", "example.c")
OFFSETS = {register.name: register.offset for register in registers.REGISTERS}

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit of the tiny machine with a program, and ``driver.so``."""
    path = tmp_path_factory.mktemp("kit")
    make_kit(CONFIG, path, program=product_case(1)[0], verilog=machine_tb.verilog(CONFIG))
    compile_library(path, SOURCES, path / "driver.so")
    return path


@pytest.mark.parametrize(
    "flags",
    [
        ("-std=c99", "-ffreestanding", "-O2"),
        ("-std=c99", "-ffreestanding", "-Os", "-DSYSTOLITH_CUSTOM_IO"),
        ("-std=c11", "-O0"),
        pytest.param(
            ("-std=c99", "-ffreestanding", "-m32"),
            marks=pytest.mark.skipif(
                platform.machine() != "x86_64", reason="-m32 belongs to x86"
            ),
        ),
        ("-std=c99", "-DSYSTOLITH_REGISTERS=0x43C00000", "-DSYSTOLITH_MEMORY=0x10000000"),
    ],
)
def test_compiles_without_a_warning(folder: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    for name in SOURCES:
        command = [
            compiler(), *flags, "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion",
            "-Wshadow", "-Wstrict-prototypes", "-Wmissing-prototypes", "-c", folder / name,
            "-o", tmp_path / f"{name}.o",
        ]  # fmt: skip
        subprocess.run(command, check=True)


def test_uses_no_library(folder: Path, tmp_path: Path) -> None:
    """Nothing stays undefined but the functions that a freestanding GCC may call."""
    command = [compiler(), "-std=c99", "-ffreestanding", "-O2", "-fno-stack-protector", "-nostdlib",
               "-r", *(folder / name for name in SOURCES), "-o", tmp_path / "all.o"]  # fmt: skip
    subprocess.run(command, check=True)
    answer = subprocess.run(
        ["nm", "-u", tmp_path / "all.o"], capture_output=True, text=True, check=True
    )
    undefined = set(answer.stdout.replace("U ", " ").split())
    assert undefined <= {"memcpy", "memset", "memmove", "memcmp", "_GLOBAL_OFFSET_TABLE_"}


def test_as_cpp(folder: Path, tmp_path: Path) -> None:
    """The header is C++, too."""
    (tmp_path / "main.cpp").write_text(
        '#include "systolith_driver.h"\n#include "program_product.h"\n'
        "int main() { systolith device; return systolith_open(&device, 0, nullptr); }\n"
    )
    command = ["g++", "-Wall", "-Wextra", "-Werror", f"-I{folder}", "-c", tmp_path / "main.cpp",
               "-o", tmp_path / "main.o"]  # fmt: skip
    subprocess.run(command, check=True)


# On the RTL -----------------------------------------------------------------------------------


def code_of(code: list[Instruction], size: int = 1024) -> bytes:
    return isa.assemble(code).ljust(size, b"\0")


MARKS = [1040, 1041, 1042, 1043]
QUESTION, ANSWER, ECHO, ASKED = 512, 5_000, 516, 7
HALT, FENCE = Instruction("halt"), Instruction("fence")
PROGRAMS = {
    "marks": [
        Instruction("alu", {"x": 40, "rd": 2}),
        Instruction("load", {"words": 256, "rows": 1, "space": LoadSpace.ACTIVATION}),
        Instruction("mark", {"x": 1000}, {2: 2}),
        Instruction("alu", {"y": 1, "rd": 2}, {2: 2}),
        Instruction("branch", {"y": 44, "target": 1, "condition": Condition.LT}, {2: 2}),
        HALT,
    ],
    "endless": [Instruction("branch", {"target": 0, "condition": Condition.ALWAYS})],
    "asks": [
        Instruction("mark", {"x": ASKED}),
        Instruction("ldr", {"address": QUESTION, "rd": 1}),
        Instruction("branch", {"y": 0, "target": 1, "condition": Condition.EQ}, {2: 1}),
        Instruction("storew", {"address": ECHO}, {3: 1}),
        HALT,
    ],
    "misaligned": [FENCE, Instruction("ldr", {"address": 2}), HALT],
    "opcode": [FENCE, FENCE, HALT],
    "watchdog": [
        FENCE, Instruction("matmul", {}, wait=1 << semaphore(Unit.LOAD, Unit.MATMUL)), HALT,
    ],
}  # fmt: skip
FAILING = {
    "misaligned": (Error.MISALIGNED, 1),
    "opcode": (Error.ILLEGAL_OPCODE, 2),
    "watchdog": (Error.WATCHDOG, 1),
}


def images() -> dict[str, bytes]:
    found = {f"{name}.bin": code_of(code) for name, code in PROGRAMS.items()}
    spoiled = bytearray(found["opcode.bin"])
    spoiled[64] = 0x7F
    return found | {"opcode.bin": bytes(spoiled)}


def simulate(folder: Path, test: str, **arguments: object) -> dict:
    build = MachineSim(CONFIG, size_bytes=1 << 16).build
    values = {
        "library": str(folder / "driver.so"),
        "marks": MARKS,
        "failing": {name: [int(code), pc] for name, (code, pc) in FAILING.items()},
        "question": [QUESTION, ANSWER, ECHO],
        **arguments,
    }
    return run(build, "tests.boards.bench_kit_driver", values, files=images(), test=test)


def test_the_example_on_the_rtl(folder: Path) -> None:
    """A real program: the result is numpy's and the golden machine's, the counters make sense."""
    packed, wanted = product_case(1)
    program = packed.program
    symbols = program.symbols
    result = simulate(
        folder,
        "example",
        result=[symbols["c0"].address, symbols["c0"].size],
        operand=symbols["a0"].address + 1,
    )
    assert packed.memory is not None
    memory = packed.memory.copy()
    golden = GoldenMachine(CONFIG, memory)
    golden.run()
    found = bytes.fromhex(result["result"])
    assert found == program.read(memory, "c0").tobytes()
    values = np.frombuffer(found, np.int8).reshape(symbols["c0"].shape)[:, : SHAPE.n]
    assert (values == wanted).all()
    assert result["instructions"] == golden.executed
    assert 100 < result["cycles"] < 10_000


def test_the_machine_needs_the_cpu_to_write_back_its_caches(folder: Path) -> None:
    simulate(folder, "example_without_clean")


def test_outcomes_by_polling(folder: Path) -> None:
    simulate(folder, "polling")


def test_interrupts_and_a_program_that_asks(folder: Path) -> None:
    simulate(folder, "interrupts")


# On a model of the registers ------------------------------------------------------------------


class Model:
    """A machine that answers; ``reads`` are the registers that were read, in order."""

    def __init__(self, **values: int) -> None:
        self.values = {
            "ID": registers.IDENTIFICATION,
            "VERSION": registers.VERSION,
            "CONFIG_HASH": CONFIG.hash,
            "STATUS": 0,
            **values,
        }
        self.reads: list[int] = []
        self.writes: list[tuple[int, int]] = []
        self.latch = 0

    def read(self, address: int) -> int:
        offset = address - Driver.REGISTERS
        self.reads.append(offset)
        for register in registers.REGISTERS:
            value = self.values.get(register.name, 0)
            if offset == register.offset:
                self.latch = value >> 32 if register.wide else self.latch
                return value & 0xFFFFFFFF
            if register.wide and offset == register.offset + 4:
                return self.latch
        raise AssertionError(f"There is no register at {offset:#x}")

    def write(self, address: int, value: int) -> None:
        self.writes.append((address - Driver.REGISTERS, value))


Make = Callable[..., tuple[Driver, Model]]


@pytest.fixture
def make(folder: Path) -> Make:
    def made(**values: int) -> tuple[Driver, Model]:
        model = Model(**values)
        return Driver(folder / "driver.so", model.read, model.write), model

    return made


@pytest.mark.parametrize(
    "values, status",
    [
        ({}, OK),
        ({"ID": 0xFFFFFFFF}, NO_DEVICE),
        ({"VERSION": registers.VERSION + 1}, OK),
        ({"VERSION": registers.VERSION + 0x10000}, WRONG_VERSION),
        ({"VERSION": registers.VERSION - 1}, WRONG_VERSION),
        ({"CONFIG_HASH": CONFIG.hash ^ 1}, WRONG_CONFIGURATION),
    ],
)
def test_identification(make: Make, values: dict[str, int], status: int) -> None:
    driver, model = make(**values)
    assert driver.open() == status
    assert not model.writes, "a program that runs is left alone"
    text = driver.library.systolith_status_text(status).decode()
    assert text and text != "unknown status"


def test_misaligned_registers(make: Make) -> None:
    driver, model = make()
    driver.REGISTERS = 0x4002
    assert driver.open() == BAD_ARGUMENT and not model.reads


def test_every_error_has_its_name(make: Make) -> None:
    driver, _ = make()
    for error in Error:
        assert driver.library.systolith_error_text(int(error)).decode() == error.name
    assert driver.library.systolith_error_text(99) == b"UNKNOWN"
    texts = {driver.library.systolith_status_text(status) for status in range(9)}
    assert len(texts) == 9 and driver.library.systolith_status_text(9) == b"unknown status"


def test_counters_are_read_lower_half_first(make: Make) -> None:
    value = 0xFEDC_BA98_7654_3210
    driver, model = make(READ_BYTES=value, CYCLES=1 << 40)
    assert driver.open() == OK
    model.reads.clear()
    assert driver.counter(OFFSETS["READ_BYTES"]) == value
    assert model.reads == [OFFSETS["READ_BYTES"], OFFSETS["READ_BYTES"] + 4]


def test_a_machine_that_stays_busy(make: Make) -> None:
    """A bus that never answers: reset and start end, too."""
    driver, _ = make(STATUS=registers.STATUS_BUSY)
    assert driver.open() == OK
    assert driver.call("reset") == TIMEOUT


def test_memory_bounds(make: Make) -> None:
    driver, model = make()
    assert driver.open() == OK
    assert driver.read(0, 1) == BAD_ARGUMENT, "nothing is loaded"
    program = driver.program(b"\1\2\3\4", CONFIG.hash, 64)
    assert driver.load(program, 1 << 20, 63) == BAD_ARGUMENT
    assert driver.load(program, 33) == BAD_ARGUMENT
    assert driver.load(program, 0xFFFF_FFE0) == BAD_ARGUMENT, "it would end beyond 32 bits"
    assert not model.writes
    assert driver.load(program, 0xFFFF_FFC0) == OK
    assert model.writes == [(OFFSETS["BASE"], 0xFFFF_FFC0)]
    assert driver.read(0, 64) == b"\1\2\3\4" + bytes(60)
    assert driver.cpu[64] == 0xA5, "the memory behind the program is not touched"
    assert driver.write(60, b"abcd") == OK and driver.read(60, 4) == b"abcd"
    for offset, size in ((61, 4), (64, 1), (65, 0), (0, 65), (0xFFFF_FFFF, 2)):
        assert driver.read(offset, size) == BAD_ARGUMENT, (offset, size)
        assert driver.write(offset, bytes(size)) == BAD_ARGUMENT, (offset, size)
    nothing = ctypes.create_string_buffer(1)
    wraps = ctypes.c_size_t(-1)
    assert driver.call("read", 2, nothing, wraps) == BAD_ARGUMENT, "offset + bytes is 1"
    assert driver.read(64, 0) == b"" and driver.cpu[64] == 0xA5


def test_symbols(folder: Path, tmp_path: Path) -> None:
    """By name and by macro, in a program that knows only the generated files."""
    packed = product_case(1)[0]
    symbols = packed.program.symbols
    (tmp_path / "main.c").write_text(
        '#include "program_product.h"\n#include <stdio.h>\nint main(int n, char **names) {\n'
        "  for (int i = 1; i < n; i++) {\n"
        "    const struct systolith_symbol *s = systolith_find(&program_product, names[i]);\n"
        '    if (s == NULL) printf("none ");\n'
        '    else printf("%u:%u:%u ", s->offset, s->bytes, s->element_bytes);\n  }\n'
        '  printf("%u:%u", PROGRAM_PRODUCT_C0_OFFSET, PROGRAM_PRODUCT_C0_BYTES);\n'
        "  return 0;\n}\n"
    )
    sources = [tmp_path / "main.c", folder / SOURCES[0], folder / SOURCES[1]]
    command = [compiler(), "-std=c99", f"-I{folder}", *sources, "-o", tmp_path / "main"]
    subprocess.run(command, check=True)
    names = [*symbols, "c", "c00", ""]
    answer = subprocess.run(
        [tmp_path / "main", *names], capture_output=True, text=True, check=True
    )
    wanted = [
        f"{s.address}:{s.size}:{np.dtype(s.dtype).itemsize}" for s in symbols.values()
    ] + ["none"] * 3 + [f"{symbols['c0'].address}:{symbols['c0'].size}"]  # fmt: skip
    assert answer.stdout.split() == wanted


def test_plain_memory_mapped_registers(folder: Path, tmp_path: Path) -> None:
    """Without SYSTOLITH_CUSTOM_IO: registers are words in memory at their offsets."""
    (tmp_path / "main.c").write_text(
        '#include "systolith_driver.h"\nstatic uint32_t words[1024];\nint main(void) {\n'
        "  struct systolith device;\n"
        "  words[SYSTOLITH_REG_ID / 4] = SYSTOLITH_ID;\n"
        "  words[SYSTOLITH_REG_VERSION / 4] = SYSTOLITH_VERSION;\n"
        "  words[SYSTOLITH_REG_CONFIG_HASH / 4] = SYSTOLITH_CONFIG_HASH;\n"
        "  words[SYSTOLITH_REG_CYCLES / 4 + 1] = 3;\n"
        "  if (systolith_open(&device, (uintptr_t)words, NULL) != SYSTOLITH_OK) return 1;\n"
        "  systolith_set_watchdog(&device, 77);\n"
        "  if (words[SYSTOLITH_REG_WATCHDOG / 4] != 77) return 2;\n"
        "  if (systolith_counter(&device, SYSTOLITH_REG_CYCLES) != (uint64_t)3 << 32) return 3;\n"
        "  return 0;\n}\n"
    )
    sources = [tmp_path / "main.c", folder / SOURCES[0]]
    command = [compiler(), "-std=c99", f"-I{folder}", *sources, "-o", tmp_path / "main"]
    subprocess.run(command, check=True)
    assert subprocess.run([tmp_path / "main"], check=False).returncode == 0


def test_a_header_of_another_configuration_is_refused(folder: Path, tmp_path: Path) -> None:
    text = (folder / "systolith.h").read_text()
    for name in ("systolith_driver.h", "program_product.h", "program_product.c"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "systolith.h").write_text(
        text.replace(f"{CONFIG.hash:#010x}u", f"{CONFIG.hash ^ 1:#010x}u")
    )
    command = [compiler(), "-std=c99", "-c", tmp_path / "program_product.c", "-o",
               tmp_path / "x.o"]  # fmt: skip
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode != 0 and "was compiled for another configuration" in answer.stderr
