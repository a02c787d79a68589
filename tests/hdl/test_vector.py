"""The vector unit: random programs against the golden machine, cycles, conversion."""

import pytest

from systolith.config import Config
from systolith.hdl.verilog import to_verilog
from systolith.isa import Combine, Format, TableMode
from systolith.sim import runner
from systolith.sim.build import Build, build

OPS = ["vector", "vector", "vector"]


def made(dim: int, lanes: int, slots: int = 4) -> tuple[Config, Build]:
    from systolith.sim.benches.vector_top import VectorTop

    config = Config(
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
    return config, build(to_verilog(VectorTop(config), "vector_top"), "vector_top")


@pytest.mark.parametrize(
    "dim, lanes, slots", [(4, 2, 4), (4, 4, 1), (8, 2, 2), (8, 4, 4), (16, 8, 8), (16, 2, 2)]
)
def test_random_programs(dim: int, lanes: int, slots: int) -> None:
    config, simulator = made(dim, lanes, slots)
    seed = 100 * dim + lanes
    print("seed", seed)
    given = {"config": config.to_json(), "mode": "random", "programs": 60, "longest": 5, "ops": OPS}
    drawn = runner.run(simulator, "vector", given, seed=seed)["drawn"]
    assert all(drawn.get(f"combine {mode}", 0) >= 10 for mode in map(int, Combine)), drawn
    assert all(drawn.get(f"table {mode}", 0) >= 10 for mode in map(int, TableMode)), drawn
    assert all(drawn.get(f"format {mode}", 0) >= 10 for mode in map(int, Format)), drawn
