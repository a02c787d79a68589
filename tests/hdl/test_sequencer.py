"""The sequencer with its fetch against the golden machine, on random control programs."""

from dataclasses import replace

import numpy as np
import pytest
from amaranth import Module
from amaranth.lib.wiring import connect
from amaranth.sim import Simulator

from systolith import isa
from systolith.config import Config
from systolith.hdl.instruction_fetch import InstructionFetch
from systolith.hdl.sequencer import Sequencer
from systolith.hdl.verilog import to_verilog
from systolith.isa import AluOp, Condition, Instruction
from systolith.registers import Error
from systolith.sim.machine import GoldenMachine

from .bus_model import BusModel

CONFIG = Config(dim=4, lanes=2, bus_bytes=4)
LOOPING = replace(CONFIG, instruction_rows=64)
BASE = 0x460
DATA = 0x1800
"""Offset of the words that programs load."""
WORD = (1 << 32) - 1


class Recorder(GoldenMachine):
    """Executes control and writes down what it would hand to the units."""

    def __init__(self, memory: np.ndarray) -> None:
        self.handed: list[tuple] = []
        self.marks: list[int] = []
        super().__init__(CONFIG, memory, self.marks.append)
        self.best = (0, 0xDEAD_BEEF)

    def _step(self, item: Instruction, pc: int) -> int:
        if item.unit not in isa.QUEUED:
            return super()._step(item, pc)
        words = self.memory[32 * pc : 32 * pc + 32].view("<u4")
        added = [int(words[i]) + self.registers[int(words[0]) >> 4 * i & 15] for i in range(2, 8)]
        self.handed.append((pc, item.op, *words[:2].tolist(), *(word & WORD for word in added)))
        return pc + 1


def run(
    program: bytes,
    seed: int,
    *,
    gap: float = 0.3,
    bad: range = range(0),
    limit: int = 20000,
    config: Config = CONFIG,
    requests: list[tuple[int, int]] | None = None,
):
    """Executes on the hardware: (handed on, marks, outcome, pc, number retired, cycles).

    ``requests``: becomes the addresses and beats that were read.
    """
    rng = np.random.default_rng(seed)
    memory = np.frombuffer(bytes(BASE) + program, np.uint8)
    sequencer, fetch = Sequencer(), InstructionFetch(config)
    m = Module()
    m.submodules.sequencer, m.submodules.fetch = sequencer, fetch
    connect(m, sequencer.words, fetch.words)
    connect(m, sequencer.addresses, fetch.addresses)
    connect(m, sequencer.loaded, fetch.loaded)
    m.d.comb += [fetch.restart.eq(sequencer.restart), fetch.pc.eq(sequencer.pc)]
    m.d.comb += fetch.flush.eq(sequencer.begins)
    bus = BusModel(fetch.bus, memory, CONFIG.bus_bytes, rng, latency=6, gap=gap)
    bus.bad = bad
    handed: list[tuple] = []
    marks: list[int] = []
    result: list[int] = []

    async def bench(ctx) -> None:
        retired = 0
        ctx.set(fetch.base, BASE)
        ctx.set(sequencer.misaligned, BASE % 32 != 0)
        ctx.set(sequencer.maximum, 0xDEAD_BEEF)
        ctx.set(sequencer.start, 1)
        for cycle in range(limit):
            bus.drive(ctx)
            was_idle = ctx.get(sequencer.idle)  # what it goes by is in a register
            ctx.set(sequencer.idle, rng.random() >= gap)
            ctx.set(sequencer.vector_idle, rng.random() >= gap)
            ctx.set(sequencer.queued.ready, rng.random() >= gap)
            if ctx.get(sequencer.queued.valid) and ctx.get(sequencer.queued.ready):
                item = ctx.get(sequencer.queued.payload)
                command = item.command
                opcode = isa.BY_CODE[command.opcode]
                assert opcode.unit == item.unit
                second = item.wait | item.signal << 12 | command.flags << 24
                words = [command.words[i] for i in range(6)]
                handed.append((command.pc, opcode.name, second, *words))
            if ctx.get(sequencer.marked):
                assert was_idle
                marks.append(ctx.get(sequencer.mark))
            retired += ctx.get(sequencer.retired)
            if ctx.get(sequencer.error) or ctx.get(sequencer.halted):
                code = ctx.get(sequencer.error_code) if ctx.get(sequencer.error) else 0
                result[:] = code, ctx.get(sequencer.pc), retired, cycle
                return
            bus.sample(ctx)
            await ctx.tick()
            ctx.set(sequencer.start, 0)
        raise AssertionError(f"no end within {limit} cycles")

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    if requests is not None:
        requests[:] = bus.requests
    return handed, marks, *result


def image(program: list[Instruction], rng) -> bytes:
    code = isa.assemble(program)
    return code.ljust(DATA, b"\0") + rng.integers(0, 256, 1024, dtype=np.uint8).tobytes()


def random_program(rng) -> list[Instruction]:
    """Two nested loops around every kind of instruction, with forward branches over some."""

    def registers(*words: int) -> dict[int, int]:
        return {word: int(rng.integers(1, 13)) for word in words if rng.random() < 0.6}

    def value() -> int:
        edge = int(rng.choice([0, 1, 0x7FFF_FFFF, 0x8000_0000, WORD]))
        return edge if rng.random() < 0.4 else int(rng.integers(0, 1 << 32))

    def anything(position: int) -> Instruction:
        kind = rng.choice(["alu", "ldr", "branch", "unit", "unit", "argmax", "fence", "mark"])
        rd = int(rng.integers(0, 13))
        if kind == "alu":
            fields = {"x": value(), "y": value(), "rd": rd, "op": int(rng.integers(len(AluOp)))}
            return Instruction("alu", fields, registers(2, 3))
        if kind == "ldr":
            return Instruction("ldr", {"address": DATA + 4 * int(rng.integers(256)), "rd": rd})
        if kind == "branch":
            fields = {"x": value(), "y": value(), "condition": int(rng.integers(len(Condition)))}
            if rng.random() < 0.3:
                fields["y"] = fields["x"]
            fields["target"] = position + int(rng.integers(1, 4))
            return Instruction("branch", fields, registers(2, 3))
        if kind == "argmax":
            return Instruction("argmax", {"rd": rd})
        if kind == "mark":
            return Instruction("mark", {"x": value()}, registers(2))
        if kind == "fence":
            return Instruction("fence")
        opcode = rng.choice([entry for entry in isa.OPCODES if entry.unit in isa.QUEUED])
        fields = {}
        for spec in opcode.fields:
            if not any(  # count and first share a word with mult_a and mult_b
                other.word == spec.word and other.low == spec.low and other.name in fields
                for other in opcode.fields
            ):
                fields[spec.name] = int(rng.integers(0, 1 << spec.width))
        masks = rng.integers(0, 1 << 12, 2)
        return Instruction(opcode.name, fields, registers(*range(2, 8)), *map(int, masks))

    program = [
        Instruction("alu", {"x": value(), "y": value(), "rd": rd, "op": AluOp.ADD})
        for rd in range(1, 10)
    ]
    loop = len(program)
    program += [anything(loop + i) for i in range(25)]
    program += [Instruction("fence")] * 4  # where forward branches may land
    # r13 counts rounds; the last instruction but the halt goes back.
    program.append(Instruction("alu", {"y": 1, "rd": 13, "op": AluOp.ADD}, {2: 13}))
    back = {"y": 3, "target": loop, "condition": Condition.LT}
    program += [Instruction("branch", back, {2: 13}), Instruction("halt")]
    return program


@pytest.mark.parametrize("config", [CONFIG, LOOPING], ids=["", "looping"])
@pytest.mark.parametrize("number", range(6))
def test_programs(number: int, config: Config, seed: int) -> None:
    rng = np.random.default_rng([seed, number])
    program = image(random_program(rng), rng)
    memory = np.frombuffer(program, np.uint8).copy()
    golden = Recorder(memory)
    golden.run(10000)
    handed, marks, code, _, retired, _ = run(program, seed, config=config)
    assert code == Error.NONE
    for index, (got, want) in enumerate(zip(handed, golden.handed, strict=False)):
        pc, op, _, second, *words = want
        assert got == (pc, op, second, *words), f"instruction {index} of those handed on"
    assert len(handed) == len(golden.handed)
    assert marks == golden.marks
    assert retired == golden.executed


def test_eight_cycles(seed: int) -> None:
    """A queued instruction takes eight cycles when nothing waits."""
    program = [Instruction("load", {"words": 1, "rows": 1})] * 50 + [Instruction("halt")]
    *_, cycles = run(isa.assemble(program) + bytes(256), seed, gap=0.0)
    assert 8 * 51 <= cycles <= 8 * 51 + 20


def loop_of(length: int, rounds: int) -> list[Instruction]:
    body = [Instruction("load", {"words": 1, "rows": 1})] * (length - 2)
    count = Instruction("alu", {"y": 1, "rd": 1, "op": AluOp.ADD}, {2: 1})
    back = Instruction("branch", {"y": rounds, "target": 0, "condition": Condition.LT}, {2: 1})
    return [*body, count, back, Instruction("halt")]


@pytest.mark.parametrize("length, once", [(48, True), (50, False)])
def test_a_loop_is_fetched_once(length: int, once: bool, seed: int) -> None:
    """If the buffer of 64 holds it and the 16 behind it; a taken branch then takes 13 cycles."""
    requests: list[tuple[int, int]] = []
    program = isa.assemble(loop_of(length, 5)) + bytes(2048)
    cycles = [
        run(program, seed, gap=0.0, config=config, requests=requests)[-1]
        for config in (CONFIG, LOOPING)
    ]
    fetched = sum(beats for _, beats in requests) * CONFIG.bus_bytes // 32
    assert (fetched < length + 20) == once
    if once:
        # Ten cycles of alu, eight of each load, and 8 + 2 + 1 + 2 of the branch.
        lap = 8 * (length - 2) + 10 + 13
        assert cycles[1] <= 5 * lap + 40
        assert cycles[0] - cycles[1] >= 4 * 6  # the bus model's latency


@pytest.mark.parametrize("distance", [0, 1, 3, 4, 5, 7, 16, 31])
def test_shifts(distance: int, seed: int) -> None:
    """Four bits a cycle, and the rest one by one; both directions, against the golden machine."""
    values = {"x": 0x8765_4321, "y": distance}
    programs = [
        [
            Instruction("alu", {**values, "rd": 1, "op": operation}),
            Instruction("storew", {"value": 0}, {3: 1}),
            Instruction("halt"),
        ]
        for operation in (AluOp.ADD, AluOp.SHL, AluOp.SHR)
    ]
    results = [run(isa.assemble(program) + bytes(256), seed, gap=0.0) for program in programs]
    written = [result[0][0][4] for result in results]
    assert written[1] == 0x8765_4321 << distance & WORD and written[2] == 0x8765_4321 >> distance
    plain, left, right = (result[-1] for result in results)
    assert left == right == plain + 1 + distance // 4 + distance % 4


ERRORS = {
    "opcode": (lambda: _patched(2, 0, 0x7F), Error.ILLEGAL_OPCODE, 2),
    "alu operation": (
        lambda: _patched(1, 4, 7 << 4, Instruction("alu")),
        Error.ILLEGAL_OPCODE,
        1,
    ),
    "condition": (
        lambda: _patched(3, 4, 5 << 24, Instruction("branch")),
        Error.ILLEGAL_OPCODE,
        3,
    ),
    "ldr": (
        lambda: [Instruction("fence"), Instruction("ldr", {"address": 6})],
        Error.MISALIGNED,
        1,
    ),
}


def _patched(pc: int, word: int, value: int, instead: Instruction | None = None) -> bytes:
    """Five fences, one replaced, and one of its words overwritten."""
    program = [Instruction("fence")] * 5
    program[pc] = instead or program[pc]
    code = bytearray(isa.assemble(program))
    code[32 * pc + 4 * word : 32 * pc + 4 * word + 4] = value.to_bytes(4, "little")
    return bytes(code)


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str, seed: int) -> None:
    make, error, where = ERRORS[name]
    program = make()
    program = program if isinstance(program, bytes) else isa.assemble(program)
    _, _, code, pc, retired, _ = run(program + bytes(64), seed)
    assert (Error(code), pc, retired) == (error, where, where)


@pytest.mark.parametrize("what", ["fetch", "ldr"])
def test_bus_error(what: str, seed: int) -> None:
    at = DATA if what == "ldr" else 3 * 32
    program = [Instruction("fence")] * 2 + [Instruction("ldr", {"address": DATA, "rd": 1})]
    program += [Instruction("halt")]
    rng = np.random.default_rng(seed)
    bad = range(BASE + at, BASE + at + 4)
    _, _, code, pc, _, _ = run(image(program, rng), seed, bad=bad)
    assert (Error(code), pc) == (Error.BUS_READ, 2 if what == "ldr" else 3)


def test_stop_and_misaligned_base() -> None:
    """``stop`` ends anything; a base that is no multiple of 32 is refused at once."""
    dut = Sequencer()

    async def bench(ctx) -> None:
        async def start() -> None:
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)

        await start()
        assert ctx.get(dut.restart) and not ctx.get(dut.error)
        await ctx.tick()
        assert ctx.get(dut.words.ready) and ctx.get(dut.starved)
        ctx.set(dut.stop, 1)
        await ctx.tick()
        ctx.set(dut.stop, 0)
        assert not ctx.get(dut.words.ready)
        ctx.set(dut.misaligned, 1)
        await start()
        assert ctx.get(dut.error) and ctx.get(dut.error_code) == Error.MISALIGNED
        await ctx.tick()
        assert not ctx.get(dut.words.ready)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


def test_converts() -> None:
    assert "module sequencer" in to_verilog(Sequencer(), "sequencer")
