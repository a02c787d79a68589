"""The whole machine: random programs on the RTL against the golden machine, errors, recovery."""

import re

import numpy as np
import pytest

from systolith import isa
from systolith.config import Config
from systolith.hdl.verilog import ports
from systolith.isa import Instruction, LoadSpace, Unit, semaphore
from systolith.program import Program
from systolith.registers import Error
from systolith.sim.jobs import Job, MachineResult
from systolith.sim.machine import GoldenMachine
from systolith.sim.machine_tb import MachineSim
from systolith.sim.random_program import random_program
from systolith.sim.scoreboard import compare

MEMORY = 1 << 20
SMALL = {
    "activation_rows": 256,
    "weight_rows": 128,
    "accumulator_rows": 64,
    "parameter_rows": 8,
    "max_length": 64,
    "max_features": 64,
}
CONFIGS = {
    "dim4": Config(dim=4, lanes=2, bus_bytes=4, **SMALL),
    "dim8": Config(dim=8, lanes=8, bus_bytes=4, max_burst=4, outstanding=2, **SMALL),
    "dim16": Config(dim=16, lanes=4, bus_bytes=16, **SMALL),
    "dim4-2": Config(
        dim=4, lanes=2, bus_bytes=4, weight_ports=2, instruction_rows=256, **SMALL
    ),
    "dim16-4": Config(dim=16, lanes=8, bus_bytes=16, weight_ports=4, **SMALL),
}
SETTINGS = [
    {},
    {"latency": 40, "write_latency": 10},
    {"latency": 5, "stall_ar": 100, "stall_r": 150, "stall_aw": 100, "stall_w": 150, "stall_b": 90},
    {"latency": 90, "bandwidth": 100},
]
FAST = ("dim4", "dim4-2")
NAMES = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in CONFIGS]


def expected(program: Program) -> tuple[GoldenMachine, np.ndarray, list[int]]:
    marks: list[int] = []
    memory = program.memory()
    golden = GoldenMachine(program.config, memory, marks.append)
    golden.run(1 << 20)
    return golden, memory, marks


@pytest.mark.parametrize("name", NAMES)
def test_random_programs(name: str, seed: int) -> None:
    """Every opcode, overlapping under semaphores, under several kinds of memory."""
    config = CONFIGS[name]
    machine = MachineSim(config, size_bytes=MEMORY)
    programs = [random_program(config, 60, 1000 * seed + i) for i in range(12)]
    jobs = [
        Job(program, base=32 * i, watchdog=20000, settings=SETTINGS[i % len(SETTINGS)])
        for i, program in enumerate(programs)
    ]
    results = machine.run_all(jobs)
    for program, result in zip(programs, results, strict=True):
        golden, memory, marks = expected(program)
        where = f"program {program.metadata['seed']}"
        assert result.done, f"{where}: {result.error.name} at {result.error_pc}"
        for region in ("scratch", "activation", "accumulator", "weight"):
            compare(
                program.read(result.memory, region),
                program.read(memory, region),
                what=f"{where}: {region}",
                axes=("row", "lane"),
            )
        assert result.counters["INSTRUCTIONS"] == golden.executed, where
        assert result.mark == (marks[-1] if marks else 0), where


def program_of(code: list[Instruction], size: int = 4096) -> np.ndarray:
    memory = np.zeros(size, np.uint8)
    raw = isa.assemble(code)
    memory[: len(raw)] = np.frombuffer(raw, np.uint8)
    return memory


def transfer(op: str = "load", **fields: int) -> Instruction:
    return Instruction(op, {"words": 4, "rows": 1, "address": 2048, **fields})


HALT = Instruction("halt")
FENCE = Instruction("fence")
LOAD_MATMUL = 1 << semaphore(Unit.LOAD, Unit.MATMUL)
BUS_ERROR = {"error_mode": 2, "error_base": 2048, "error_size": 64}
FAILING = {
    "opcode": ([FENCE, FENCE, Instruction("load", {}), HALT], {}, Error.ILLEGAL_OPCODE, 1),
    "load address": ([FENCE, transfer(address=2050), HALT], {}, Error.MISALIGNED, 1),
    "store stride": (
        [FENCE, FENCE, transfer("store", rows=2, stride=2), HALT],
        {},
        Error.MISALIGNED,
        2,
    ),
    "ldr address": ([Instruction("ldr", {"address": 2}), HALT], {}, Error.MISALIGNED, 0),
    "load": ([FENCE, transfer(), transfer(address=1024), HALT], BUS_ERROR, Error.BUS_READ, 1),
    "ldr": ([FENCE, Instruction("ldr", {"address": 2052}), HALT], BUS_ERROR, Error.BUS_READ, 1),
    "fetch": (
        [Instruction("branch", {"target": 2048 // 32 + 1}), HALT],
        BUS_ERROR,
        Error.BUS_READ,
        65,
    ),
    "store": ([transfer("store"), HALT], BUS_ERROR, Error.BUS_WRITE, 0),
    "storew": (
        [FENCE, Instruction("storew", {"address": 2052}), HALT],
        BUS_ERROR,
        Error.BUS_WRITE,
        1,
    ),
    "semaphore that never comes": (
        [FENCE, Instruction("matmul", {}, wait=LOAD_MATMUL), transfer(), HALT],
        {},
        Error.WATCHDOG,
        1,
    ),
    "semaphore overflow": (
        [
            Instruction("alu", {"y": 1, "rd": 1}, {2: 1}),
            Instruction("load", {"words": 1, "rows": 1}, signal=LOAD_MATMUL),
            Instruction("branch", {"y": 300, "condition": 3}, {2: 1}),
            HALT,
        ],
        {},
        Error.SEMAPHORE,
        1,
    ),
}


def test_errors_and_recovery(seed: int) -> None:
    """Each error by code and instruction; after a reset a program runs as if nothing happened."""
    config = CONFIGS["dim4"]
    machine = MachineSim(config, size_bytes=MEMORY)
    good = random_program(config, 30, seed)
    jobs = []
    for name, (code, settings, _, _) in FAILING.items():
        memory = program_of(code)
        if name == "opcode":
            memory[32] = 0x7F
        jobs.append(Job(memory, base=4096, watchdog=3000, settings=_shifted(settings)))
        jobs.append(Job(good, settings={"latency": 30}))
    results = machine.run_all(jobs)
    _, wanted, _ = expected(good)
    for index, (name, (_, _, error, pc)) in enumerate(FAILING.items()):
        failed, after = results[2 * index : 2 * index + 2]
        assert not failed.done and (failed.error, failed.error_pc) == (error, pc), (
            f"{name}: {failed.error.name} at {failed.error_pc}"
        )
        assert after.done, f"after {name}: {after.error.name} at {after.error_pc}"
        compare(after.memory, wanted, what=f"memory after {name}")


def _shifted(settings: dict[str, int]) -> dict[str, int]:
    """Addresses of errors relative to the base of the failing programs."""
    moved = {"error_base": settings["error_base"] + 4096} if settings else {}
    return {"latency": 10, **settings, **moved}


def test_reset_in_the_middle(seed: int) -> None:
    """The host resets at any moment: bursts end properly, and the next program runs well."""
    machine = MachineSim(CONFIGS["dim4"], size_bytes=MEMORY)
    rng = np.random.default_rng(seed)
    good = random_program(CONFIGS["dim4"], 20, seed)
    jobs = []
    for i in range(12):
        program = random_program(CONFIGS["dim4"], 40, 100 * seed + i)
        settings = SETTINGS[i % len(SETTINGS)]
        jobs.append(Job(program, reset_after=int(rng.integers(1, 5000)), settings=settings))
        jobs.append(Job(good, base=1 << 16, settings=settings))
    results = machine.run_all(jobs)  # which checks the protocol, too
    _, wanted, _ = expected(good)
    for index, (stopped, after) in enumerate(zip(results[::2], results[1::2], strict=True)):
        assert not stopped.done and stopped.error == Error.NONE
        assert after.done, f"after reset {index}: {after.error.name} at {after.error_pc}"
        compare(after.memory, wanted, what=f"memory after reset {index}")


@pytest.mark.parametrize("which", ["fetch", "load", "store"])
def test_bus_that_never_answers(which: str) -> None:
    machine = MachineSim(CONFIGS["dim4"], size_bytes=MEMORY)
    code = [FENCE, transfer("store" if which == "store" else "load"), HALT]
    start = 0 if which == "fetch" else 2048
    settings = {"error_mode": 1, "error_base": start, "error_size": 64}
    result = machine.run(
        program_of(code), watchdog=500, settings=settings, check=False, max_cycles=20000
    )
    wanted = 0 if which == "fetch" else 1
    assert (result.error, result.error_pc) == (Error.WATCHDOG, wanted)


def test_misaligned_base() -> None:
    machine = MachineSim(CONFIGS["dim4"], size_bytes=MEMORY)
    result = machine.run(program_of([HALT]), base=16, check=False)
    assert (result.error, result.error_pc) == (Error.MISALIGNED, 0)


def test_marks_while_running() -> None:
    """A callback sees each mark; the counters say what happened."""
    config = CONFIGS["dim4"]
    code = [Instruction("alu", {"x": 40, "rd": 2})]
    loop = len(code)
    code += [
        transfer(words=256, space=LoadSpace.ACTIVATION),
        Instruction("mark", {"x": 1000}, {2: 2}),
        Instruction("alu", {"y": 1, "rd": 2}, {2: 2}),
        Instruction("branch", {"y": 44, "target": loop, "condition": 3}, {2: 2}),
        HALT,
    ]
    seen: list[int] = []
    result: MachineResult = MachineSim(config, size_bytes=MEMORY).run(
        program_of(code), on_mark=seen.append
    )
    assert [value for value in seen if value != 1043] == [1040, 1041, 1042]
    assert result.mark == seen[-1] == 1043
    counters = result.counters
    assert counters["INSTRUCTIONS"] == 1 + 4 * 4 + 1
    assert counters["READ_BYTES"] == counters["FETCH_BYTES"] + 4 * 256 * config.dim
    assert counters["FETCH_BYTES"] >= 32 * len(code)
    assert counters["WRITE_BYTES"] == 0 and counters["ARRAY_ROWS"] == 0
    assert 0 <= result.simulated - counters["CYCLES"] < 100


def test_port_names() -> None:
    """What integrators look for, and nothing else."""
    names = {port["name"] for port in ports(CONFIGS["dim4"])}
    channels = {
        "aw": "addr prot", "w": "data strb", "b": "resp", "ar": "addr prot", "r": "data resp",
    }  # fmt: skip
    wanted = {"clk", "rst", "irq"}
    for channel, fields in channels.items():
        for field in [*fields.split(), "valid", "ready"]:
            wanted.add(f"s_axil_{channel}{field}")
    burst = "id addr len size burst lock cache prot qos"
    channels = {"aw": burst, "w": "data strb last", "b": "id resp", "ar": burst,
                "r": "id data resp last"}  # fmt: skip
    for channel, fields in channels.items():
        for field in [*fields.split(), "valid", "ready"]:
            wanted.add(f"m_axi_{channel}{field}")
    assert names == wanted
    assert all(re.fullmatch("[a-z_]+", name) for name in names)
