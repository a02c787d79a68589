# amaranth: UnusedElaboratable=no
"""The vector unit: random programs against the golden machine, cycles, conversion."""

from functools import cache

import pytest

from systolith.config import Config
from systolith.hdl.alu import Alu
from systolith.hdl.combine import CombineLane
from systolith.hdl.function_table import FunctionTable
from systolith.hdl.requant import Requantize
from systolith.hdl.vector import VectorUnit
from systolith.hdl.verilog import to_verilog
from systolith.isa import Combine, Format, TableMode
from systolith.sim import runner
from systolith.sim.benches.vector_top import VectorTop
from systolith.sim.build import Build, build

OPS = ["vector", "vector", "vector", "softmax", "norm"]


def config(dim: int, lanes: int, slots: int = 4) -> Config:
    return Config(
        dim=dim,
        lanes=lanes,
        bus_bytes=4,
        activation_rows=256,
        weight_rows=128,
        accumulator_rows=64,
        parameter_rows=16,
        table_slots=slots,
        max_length=128,
        max_features=128,
    )


@cache
def simulator(chosen: Config) -> Build:
    return build(to_verilog(VectorTop(chosen), "vector_top"), "vector_top")


@pytest.mark.parametrize(
    "dim, lanes, slots",
    [
        (4, 2, 4),
        (8, 4, 4),
        pytest.param(4, 4, 1, marks=pytest.mark.slow),
        pytest.param(8, 2, 2, marks=pytest.mark.slow),
        pytest.param(16, 8, 8, marks=pytest.mark.slow),
        pytest.param(16, 2, 2, marks=pytest.mark.slow),
        pytest.param(32, 8, 1, marks=pytest.mark.slow),
    ],
)
def test_random_programs(dim: int, lanes: int, slots: int) -> None:
    chosen = config(dim, lanes, slots)
    seed = 100 * dim + lanes
    print("seed", seed)
    given = {"config": chosen.to_json(), "mode": "random"}
    given |= {"programs": 80, "longest": 5, "ops": OPS}
    drawn = runner.run(simulator(chosen), "vector", given, seed=seed)["drawn"]
    assert all(drawn.get(name, 0) >= 20 for name in OPS), drawn
    assert all(drawn.get(f"combine {mode}", 0) >= 10 for mode in map(int, Combine)), drawn
    assert all(drawn.get(f"table {mode}", 0) >= 10 for mode in map(int, TableMode)), drawn
    assert all(drawn.get(f"format {mode}", 0) >= 10 for mode in map(int, Format)), drawn


NONE = Alu.AS_IT_IS
SCALE, TABLE, ADD = Requantize.LATENCY, FunctionTable.LATENCY, CombineLane.LATENCY
MULTIPLY = CombineLane.LATENCY_MULTIPLY
B = {"b": 200, "b_wide": 1, "b_period": 2, "mult_a": 300, "mult_b": 400, "shift": 9}

# Fields, latency of the ALU, reads of the activation memory a block.
CASES = [
    ({"a_format": Format.ACC32}, SCALE, 0),
    ({"a_format": Format.ACC32, "scale": 1}, SCALE, 0),
    ({"a_format": Format.INT16}, NONE, 1),
    ({"a_format": Format.INT8, "table": TableMode.EXACT}, NONE + TABLE, 1),
    ({"scale": 1, "table": TableMode.INTERPOLATE, "d_weight": 1}, SCALE + TABLE, 0),
    ({"scale": 1, "combine": Combine.ADD, **B}, SCALE + ADD, 1),
    ({"a_format": Format.INT16, "combine": Combine.ADD, "d_wide": 1, **B}, NONE + ADD, 2),
    (
        {"scale": 1, "table": TableMode.INTERPOLATE, "combine": Combine.MULTIPLY, **B},
        SCALE + TABLE + MULTIPLY,
        1,
    ),
    ({"scale": 1, "combine": Combine.ROPE, **B}, SCALE + ADD, 2),
    ({"a_format": Format.INT16, "combine": Combine.ROPE, **B}, NONE + ADD, 3),
]


@pytest.mark.parametrize("dim, lanes", [(8, 4), pytest.param(4, 4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rows, blocks", [(1, 4), (12, 5)])
def test_cycles(dim: int, lanes: int, rows: int, blocks: int) -> None:
    """A beat every cycle, or a read of the activation memory: to the cycle, as documented."""
    chosen = config(dim, lanes)
    shape = {"rows": rows, "blocks": blocks, "a": 2, "d_stride": 0, "d": 100}
    program = [{**shape, "a_stride": blocks, **fields} for fields, _, _ in CASES]
    for fields in program:
        if fields.get("a_format") == Format.INT16:
            fields["a_stride"] = 0
    given = {"config": chosen.to_json(), "mode": "speed"}
    given |= {"programs": [[{name: int(v) for name, v in fields.items()}] for fields in program]}
    cycles = runner.run(simulator(chosen), "vector", given, seed=1)["cycles"]
    print(cycles)
    for (fields, latency, reads), found in zip(CASES, cycles, strict=True):
        beats = dim // lanes
        # The bench has just read what the last one wrote: the port has to change hands once. That
        # of the writers does so for the first program in either memory: what follows the first
        # block makes up for it, unless each block takes but a cycle.
        changes = fields is CASES[0][0] or "d_weight" in fields
        first = 7 + reads + (beats == 1 and changes)
        expected = first + latency + (rows * blocks - 1) * max(beats, reads) + beats
        assert found == expected, f"{fields}: {found} cycles, expected {expected}"


FROM_ACC = {"a_format": Format.ACC32}
COPY = {"a_format": Format.INT8, "d_weight": 1}
SOFTMAX = {"op": "softmax", "limit": 20, "mult": 40000, "shift": 20}
NORM = {"op": "norm", "length": 30, "eps": 1}
# Two instructions, and the cycles between their ``done`` beyond N, the beats of the second.
PAIRS = [
    (COPY, COPY, 5),
    (FROM_ACC, FROM_ACC, 5),
    (FROM_ACC, {**FROM_ACC, "table": TableMode.EXACT}, SCALE + TABLE + 1),
    ({**FROM_ACC, "table": TableMode.EXACT}, COPY, NONE + 1),
    (COPY, FROM_ACC, SCALE + 4),
    (SOFTMAX, FROM_ACC, 2),
    (NORM, FROM_ACC, 2),
]


def test_independent_instructions_overlap() -> None:
    """The next one's results are there, or in the pipeline, when the one before is finished."""
    chosen = config(8, 4)
    n = 8
    shape = {"rows": 1, "blocks": 4, "a": 2, "a_stride": 4}
    programs = []
    for independent in (1, 0):
        for first, second, _ in PAIRS:
            one, two = {**shape, **first, "d": 100}, {**shape, **second, "d": 110}
            programs.append([one, {**two, "independent": independent}])
    programs = [
        [{k: v if k == "op" else int(v) for k, v in item.items()} for item in program]
        for program in programs
    ]
    given = {"config": chosen.to_json(), "mode": "speed", "programs": programs}
    gaps = runner.run(simulator(chosen), "vector", given, seed=1)["gaps"]
    print(gaps)
    latency = {id(FROM_ACC): SCALE, id(COPY): NONE}
    for (first, second, beyond), found, alone in zip(
        PAIRS, gaps, gaps[len(PAIRS) :], strict=False
    ):
        assert found == n + beyond, f"{first}, then {second}"
        # Where the first one read no activations, the port has to change hands from the bench.
        turn = second is COPY and first is not COPY
        assert alone == n + 7 + latency.get(id(second), SCALE + TABLE) + turn


@pytest.mark.parametrize("blocks", [1, 4])
def test_cycles_of_a_softmax_and_of_a_norm(blocks: int) -> None:
    """Of one row of n beats, from the acceptance to ``done``."""
    n, log_v = 2 * blocks, 2
    shape = {"rows": 1, "blocks": blocks, "a": 2, "a_stride": 4, "d": 100}
    programs = [
        [{**shape, **SOFTMAX, "limit": 7}],
        [{**shape, **NORM, "length": 7}],
    ]
    given = {"config": config(8, 4).to_json(), "mode": "speed", "programs": programs}
    softmax, norm = runner.run(simulator(config(8, 4)), "vector", given, seed=1)["cycles"]
    # The bench has just written, and a single block has to wait for the port.
    assert softmax == 3 * n + 35 + log_v + (blocks == 1)
    assert norm == 2 * n + 40 + log_v + 1  # the port has to change hands from the bench


def test_converts() -> None:
    text = to_verilog(VectorUnit(config(4, 2)), "vector")
    assert "module vector" in text
    assert "commands__payload" in text
