# amaranth: UnusedElaboratable=no
import random
from dataclasses import replace

import pytest
from amaranth import signed, unsigned
from amaranth.sim import Simulator

from systolith.config import Config
from systolith.hdl.accumulator import Accumulator, minimum_pass
from systolith.hdl.verilog import to_verilog

CONFIG = Config(dim=4, lanes=2, bus_bytes=4, accumulator_rows=32)
FORWARDING = replace(CONFIG, weight_ports=2)
CONFIGS = [pytest.param(CONFIG, id="ports1"), pytest.param(FORWARDING, id="ports2")]
SUM_BITS = 19


def test_sums_must_be_signed():
    with pytest.raises(ValueError, match=r"^Sum shape must be signed, of at most 32 bits, not uns"):
        Accumulator(CONFIG, unsigned(19))


def test_converts():
    text = to_verilog(Accumulator(CONFIG, signed(SUM_BITS)), "accumulator")
    assert text.count("no_rw_check") == 2  # else Yosys builds collision logic from registers


def wrap(value: int) -> int:
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


def draw_updates(
    rng: random.Random, cycles: int, idle: float, distance: int
) -> list[dict | None]:
    """At most one update a cycle; none reads a row that one of the last few wrote."""
    half = 1 << (SUM_BITS - 1)
    updates: list[dict | None] = []
    for _ in range(cycles):
        if rng.random() < idle:
            updates.append(None)
            continue
        recent = {u["address"] for u in updates[-(distance - 1) :] if u}
        overwrite = rng.random() < 0.3
        rows = range(CONFIG.accumulator_rows) if rng.random() < 0.5 else range(4, 9)
        rows = [row for row in rows if overwrite or row not in recent]
        updates.append(
            {
                "address": rng.choice(rows),
                "overwrite": overwrite,
                "shift": rng.randrange(2),
                "lanes": rng.choice([15, rng.randrange(16)]),
                "sums": [rng.choice([-half, half - 1, rng.randrange(-half, half)]) for _ in "1234"],
            }
        )
    return updates


def run(
    updates: list[dict | None], seed: int, reading: float, config: Config = CONFIG
) -> tuple[int, int]:
    """Checks writes and reads against a model; returns reads accepted and refused."""
    rng = random.Random(seed)
    dut = Accumulator(config, signed(SUM_BITS))
    model = [[0] * 4 for _ in range(CONFIG.accumulator_rows)]
    counts = [0, 0]
    top = CONFIG.accumulator_rows // 2

    async def bench(ctx):
        expected = None
        for t in range(len(updates) + 5):
            now, arriving, writing = (
                updates[t - back] if 0 <= t - back < len(updates) else None
                for back in (0, dut.LEAD, dut.WRITE)
            )
            ctx.set(dut.valid, now is not None)
            for name in ("address", "overwrite", "shift", "lanes"):
                ctx.set(getattr(dut, name), now[name] if now else rng.randrange(2))
            for i in range(4):
                ctx.set(dut.sums[i], arriving["sums"][i] if arriving else rng.randrange(100))
            en, addr = rng.random() < reading, rng.randrange(CONFIG.accumulator_rows)
            ctx.set(dut.read.en, en)
            ctx.set(dut.read.addr, addr)
            if expected is not None:
                got = [ctx.get(dut.read.data[i]) for i in range(4)]
                assert got == expected, f"seed {seed}, cycle {t}: read {got}, not {expected}"
            taken = bool(now) and not now["overwrite"] and now["address"] // top == addr // top
            assert ctx.get(dut.read.ready) == (not taken), f"seed {seed}, cycle {t}"
            assert ctx.get(dut.wrote) == (writing is not None), f"seed {seed}, cycle {t}"
            collides = writing is not None and writing["address"] == addr
            expected = None
            if en:
                counts[taken] += 1
                if not taken and not collides:
                    expected = list(model[addr])
            if writing:
                row = model[writing["address"]]
                for i in range(4):
                    if writing["lanes"] >> i & 1:
                        old = 0 if writing["overwrite"] else row[i]
                        row[i] = wrap(old + (writing["sums"][i] << 8 * writing["shift"]))
            await ctx.tick()
        for addr, row in enumerate(model):
            ctx.set(dut.read.en, 1)
            ctx.set(dut.read.addr, addr)
            await ctx.tick()
            got = [ctx.get(dut.read.data[i]) for i in range(4)]
            assert got == row, f"seed {seed}, row {addr}: {got}, not {row}"

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return counts[0], counts[1]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("idle", [0.0, 0.5])
def test_random_updates_and_reads(idle, config, seed):
    updates = draw_updates(random.Random(seed), 1500, idle, minimum_pass(config))
    accepted, refused = run(updates, seed, 0.7, config)
    assert accepted > 300 and refused > 100


@pytest.mark.parametrize("config", CONFIGS)
def test_the_same_row_as_often_as_allowed(config, seed):
    """The tightest program: a few rows, around and around, with wrapping sums."""
    top = (1 << (SUM_BITS - 1)) - 1
    distance = Accumulator(config, signed(SUM_BITS)).distance
    assert distance == (4 if config is CONFIG else 2)
    every = {"shift": 1, "lanes": 15, "sums": [top] * 4}
    updates = [
        {"address": 14 + t % distance, "overwrite": t < distance, **every} for t in range(200)
    ]
    run(updates, seed, 0.5, config)


def test_overwriting_never_refuses_the_reader(seed):
    """Nor does an update of the other bank."""
    rng = random.Random(seed)
    updates = [
        {"address": t % 32, "overwrite": True, "shift": 0, "lanes": 15, "sums": [t, -t, 0, 1]}
        for t in range(64)
    ]
    assert run(updates, rng.randrange(1000), 1.0) == (69, 0)
