"""The timing model against the RTL: predicted cycles beside measured ones."""

import time
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from systolith import isa
from systolith.compiler.decoder import compile_decoder, set_prompt
from systolith.compiler.gemm import Shape, compile_gemm
from systolith.compiler.sequence import compile_sequence
from systolith.compiler.timeline import Timeline
from systolith.compiler.timing import PARAMETERS, Deadlock, Memory, predict, simulate
from systolith.compiler.unroll import unroll, words_of
from systolith.config import PRESETS, Config
from systolith.errors import UserError
from systolith.isa import Instruction, ProgramError, Unit, semaphore
from systolith.program import Program
from systolith.sim.jobs import MachineResult
from systolith.sim.machine_tb import MachineSim
from systolith.sim.profile import prepare
from systolith.sim.random_program import random_program
from tests.compiler.test_decoder import random_graph
from tests.hdl.test_top import CONFIGS, NAMES
from tests.hdl.test_top import MEMORY as SMALL_MEMORY

TOLERANCE = 0.01
"""5 % are promised, 1 % is what the model keeps."""
FENCE, HALT = Instruction("fence"), Instruction("halt")


def program_of(config: Config, code: list[Instruction], size: int = 1 << 16) -> Program:
    return Program(config, isa.assemble(code), len(code), size)


def measure(
    config: Config, program: Program, memory: np.ndarray | None = None, **settings: int
) -> tuple[Timeline, MachineResult]:
    """The predicted and the measured run of a program, which must execute the same."""
    memory = program.memory() if memory is None else memory
    settings = {"latency": 40, **settings}
    size = SMALL_MEMORY if config in CONFIGS.values() else 1 << 25
    result = MachineSim(config, size_bytes=size).run(memory, trace=True, settings=settings)
    stream = unroll(words_of(program.image, program.instructions), memory)
    predicted = simulate(config, stream, memory=Memory(**settings))
    assert result.timeline is not None
    assert [item.pc for item in predicted.executed] == [
        item.pc for item in result.timeline.executed
    ]
    return predicted, result


def demand(predicted: Timeline, result: MachineResult, tolerance: float = TOLERANCE) -> None:
    measured = result.counters
    print(f"predicted {predicted.cycles} cycles, measured {measured['CYCLES']}")
    assert predicted.cycles == pytest.approx(measured["CYCLES"], rel=tolerance)
    for name in ("INSTRUCTIONS", "ARRAY_ROWS", "WRITE_BYTES"):
        assert predicted.counters[name] == measured[name], name
    for name in ("MATMUL_BUSY", "VECTOR_BUSY", "MATMUL_SPAN", "READ_BYTES", "WAIT_WEIGHTS"):
        assert predicted.counters[name] == pytest.approx(measured[name], rel=0.05, abs=256), name


@pytest.mark.parametrize("preset", ["tiny", "bench"])
def test_products_in_the_scratchpad(preset: str) -> None:
    config = PRESETS[preset]
    for shapes in ([Shape(64, 64, 64)], [Shape(16, 16, 16), Shape(31, 66, 30), Shape(1, 64, 96)]):
        predicted, result = measure(config, compile_gemm(config, shapes, "scratchpad"))
        demand(predicted, result, tolerance=0.005)


@pytest.mark.parametrize("bandwidth", [256, 128])
@pytest.mark.parametrize("preset", ["tiny", "bench"])
def test_products_from_memory(preset: str, bandwidth: int) -> None:
    """16 and 8 bytes a cycle on the bus of ``bench``."""
    config = PRESETS[preset]
    shape = Shape(64, 256, 256) if preset == "bench" else Shape(30, 40, 50)
    program = compile_gemm(config, [shape, Shape(17, 33, 64)], "dram")
    predicted, result = measure(config, program, bandwidth=bandwidth)
    demand(predicted, result, tolerance=0.005)
    again = predict(program, bus_bytes_per_cycle=config.bus_bytes * bandwidth / 256)
    assert again == predicted


@pytest.mark.parametrize("resident", [True, False])
def test_a_language_model(resident: bool) -> None:
    from systolith.quant.export import quantize_checkpoint

    config = PRESETS["bench"]
    program = compile_decoder(
        quantize_checkpoint("bundled").artifact().graph, config, resident=resident
    )
    memory = program.memory()
    set_prompt(program, memory, list(range(5, 14)), 13)
    predicted, result = measure(config, program, memory)
    demand(predicted, result)


def test_a_sequence(seed: int) -> None:
    config = PRESETS["tiny"]
    program = compile_sequence(random_graph(seed), config, tokens=24, block=8)
    predicted, result = measure(config, program, prepare(program, tokens=21, new=1))
    demand(predicted, result)


SETTINGS = ({"latency": 0}, {"latency": 40, "write_latency": 10}, {"latency": 90, "bandwidth": 100})


@pytest.mark.parametrize("settings", SETTINGS, ids=["fast", "slow", "narrow"])
@pytest.mark.parametrize("name", NAMES)
def test_random_programs(name: str, settings: dict[str, int], seed: int) -> None:
    """Registers, loops, fields at their corners, bank conflicts, shared ports."""
    config = CONFIGS[name]
    for number in range(2):
        program = random_program(config, 100, 10 * seed + number)
        predicted, result = measure(config, program, **settings)
        # Of dim8, bursts of four beats, two in flight: each request waits for a last beat.
        demand(predicted, result, tolerance=0.025 if name == "dim8" else TOLERANCE)


VECTORS: tuple[dict[str, int], ...] = (
    {"a_format": 0},
    {"a_format": 1},
    {"a_format": 2},
    {"a_format": 0, "scale": 1},
    {"a_format": 2, "table": 1},
    {"a_format": 0, "scale": 1, "table": 2, "combine": 1},
    {"a_format": 1, "combine": 2},
    {"a_format": 2, "combine": 3},
    {"a_format": 0, "combine": 3, "scale": 1},
    {"a_format": 0, "argmax": 1, "count": 5},
    {"a_format": 0, "scale": 1, "table": 1, "argmax": 1},
)


@pytest.mark.parametrize("name", ["tiny", "bench", "dim4-2"])
def test_single_instructions_to_the_cycle(name: str) -> None:
    config = PRESETS[name] if name in PRESETS else CONFIGS[name]
    code = []
    for rows, blocks in ((1, 1), (1, 4), (3, 1), (5, 2), (9, 3), (1, 12), (40, 1)):
        common = {
            "rows": rows, "blocks": blocks, "a_stride": 2 * blocks, "d": 1024,
            "d_stride": 2 * blocks, "d_wide": 1,
        }  # fmt: skip
        softmax = {"limit": 5, "mult": 300, "shift": 3}
        norm = {"length": blocks * config.dim - 1, "eps": 5}
        matmul = {
            "rows": rows, "k_tiles": blocks, "n_tiles": 2, "acc_stride": 2, "act_stride": blocks,
            "w_stride_n": config.dim, "w_stride_k": config.dim,
        }  # fmt: skip
        for extra in VECTORS:
            code += [Instruction("vector", common | {"b": 512, "b_stride": 8} | extra), FENCE]
        code += [Instruction("softmax", common | softmax), FENCE]
        code += [Instruction("norm", common | norm), FENCE]
        code += [Instruction("matmul", matmul), Instruction("matmul", matmul | {"wide": 1}), FENCE]
        code += [Instruction("store", {"address": 1 << 15, "words": blocks, "rows": rows,
                                       "stride": 1024, "local_stride": 1}), FENCE]  # fmt: skip
    predicted, result = measure(config, program_of(config, [*code, HALT]))
    assert result.timeline is not None
    for ours, theirs in zip(predicted.executed, result.timeline.executed, strict=True):
        assert ours == theirs, code[ours.pc]


KINDS: dict[str, tuple[str, dict[str, int]]] = {
    "requantize": ("vector", {"a_format": 0, "scale": 1}),
    "move": ("vector", {"a_format": 1}),
    "add": ("vector", {"a_format": 2, "combine": 1}),
    "rope": ("vector", {"a_format": 2, "combine": 3}),
    "table": ("vector", {"a_format": 0, "scale": 1, "table": 1}),
    "argmax": ("vector", {"a_format": 0, "argmax": 1, "count": 5}),
    "softmax": ("softmax", {"limit": 5, "mult": 300, "shift": 3}),
    "norm": ("norm", {"eps": 5}),
}


def test_vector_instructions_one_behind_the_other_to_the_cycle() -> None:
    """All pairs of kinds, the second one independent of the first or not."""
    config = PRESETS["tiny"]

    def instruction(kind: str, rows: int, blocks: int, independent: int) -> Instruction:
        op, fields = KINDS[kind]
        more = {"length": blocks * config.dim - 1} if op == "norm" else {}
        more = {"b": 512, "b_stride": 8} if op == "vector" else more
        common = {
            "rows": rows, "blocks": blocks, "a_stride": 2 * blocks, "d": 1024,
            "d_stride": 2 * blocks, "d_wide": 1, "independent": independent,
        }  # fmt: skip
        return Instruction(op, common | fields | more)

    code: list[Instruction] = []
    for first, second, independent in product(KINDS, KINDS, (0, 1)):
        for shape, other in product(((1, 1), (1, 8), (6, 3)), ((1, 2), (4, 4))):
            code.append(instruction(first, *shape, 0))
            code += [instruction(second, *other, independent), FENCE]
    predicted, result = measure(config, program_of(config, [*code, HALT], 1 << 17))
    assert result.timeline is not None
    for ours, theirs in zip(predicted.executed, result.timeline.executed, strict=True):
        assert ours == theirs, code[ours.pc]
    assert predicted.counters["VECTOR_BUSY"] == result.counters["VECTOR_BUSY"]


@pytest.mark.parametrize("length", [3, 17, 40, 70])
def test_loops_on_chip_to_the_cycle(length: int) -> None:
    """Loops that stay in the instruction buffer, that do so with their end only, that do not."""
    config = replace(CONFIGS["dim4"], instruction_rows=64)
    body = [
        Instruction("vector", {"rows": 2, "blocks": 2, "d": 64}),
        Instruction("alu", {"x": 5, "y": 11, "rd": 2, "op": isa.AluOp.SHL}),
    ]
    count = Instruction("alu", {"y": 1, "rd": 1}, {2: 1})
    back = Instruction("branch", {"y": 4, "target": 1, "condition": isa.Condition.LT}, {2: 1})
    code = [FENCE, *(body * length)[:length], count, back, HALT]
    predicted, result = measure(config, program_of(config, code))
    assert result.timeline is not None
    assert predicted.executed == result.timeline.executed
    assert predicted.counters["FETCH_BYTES"] == pytest.approx(
        result.counters["FETCH_BYTES"], abs=512
    )


def test_a_matmul_in_the_way_of_the_vector_unit(seed: int) -> None:
    """A product that adds to the bank that the vector unit reads holds it up; others do not."""
    config = PRESETS["tiny"]
    half = config.accumulator_rows // 2
    lengths = []
    for bank in (0, 1):
        matmul = {"rows": 40, "k_tiles": 6, "n_tiles": 1, "acc": bank * half, "acc_stride": 1,
                  "act_stride": 1, "accumulate": 1}  # fmt: skip
        vector = {"rows": 1, "blocks": 40, "d": 512}
        code = [Instruction("matmul", matmul), Instruction("vector", vector), HALT]
        predicted, result = measure(config, program_of(config, code))
        demand(predicted, result, tolerance=0.02)
        assert result.timeline is not None
        (measured,) = result.timeline.of(Unit.VECTOR)
        lengths.append(measured.end - measured.start)
        (ours,) = predicted.of(Unit.VECTOR)
        assert ours.end - ours.start == pytest.approx(lengths[-1], abs=4)
    assert lengths[0] > lengths[1] + 100


def test_a_schedule_without_a_program() -> None:
    """Instructions alone cost what their program costs, but for its halt."""
    config = PRESETS["small"]
    code = [
        Instruction("load", {"address": 4096, "words": 64, "rows": 1}, signal=LOAD_MATMUL),
        Instruction("matmul", {"rows": 4, "k_tiles": 4, "n_tiles": 2}, wait=LOAD_MATMUL),
    ]
    alone = simulate(config, code)
    whole = predict(program_of(config, [*code, HALT]))
    assert alone.executed == whole.executed[:-1]
    assert alone.cycles == alone.executed[-1].end + 1
    done = PARAMETERS.matmul_done + 5
    later = simulate(config, code, parameters=replace(PARAMETERS, matmul_done=done))
    assert later.cycles == alone.cycles + 5
    wider = simulate(replace(config, weight_ports=4), code)
    assert wider.cycles < alone.cycles


LOAD_MATMUL = 1 << semaphore(Unit.LOAD, Unit.MATMUL)


def test_programs_that_do_not_end() -> None:
    config = PRESETS["tiny"]
    matmul = Instruction("matmul", {"rows": 1, "k_tiles": 1, "n_tiles": 1}, wait=LOAD_MATMUL)
    with pytest.raises(Deadlock, match=r"Instruction 0 \(matmul\) never gets"):
        predict(program_of(config, [matmul, HALT]))
    with pytest.raises(ProgramError, match="goes on at instruction 1, where there is none"):
        predict(program_of(config, [FENCE]))
    forever = Instruction("branch", {"target": 0})
    with pytest.raises(ProgramError, match="has not halted after 100 instructions"):
        unroll([isa.encode(forever)], limit=100)


def test_memories_that_cannot_be() -> None:
    program = program_of(PRESETS["tiny"], [HALT])
    with pytest.raises(UserError, match="latency must be at least 0 cycles, not -1"):
        predict(program, latency=-1)
    with pytest.raises(UserError, match=r"at least 0\.015625 bytes per cycle, not 0\.001"):
        predict(program, bus_bytes_per_cycle=0.001)


def test_ten_thousand_instructions_in_seconds() -> None:
    config = PRESETS["small"]
    vector = Instruction("vector", {"rows": 2, "blocks": 2, "d": 64})
    load = Instruction("load", {"words": 16, "rows": 1, "address": 4096})
    code = [vector, load, Instruction("alu", {"op": 0, "rd": 3}, {2: 3})] * 3333 + [HALT]
    begun = time.process_time()
    timing = predict(program_of(config, code, 1 << 20))
    assert len(timing.executed) == 10_000
    assert time.process_time() - begun < 4
