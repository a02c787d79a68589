# amaranth: UnusedElaboratable=no
"""The parts of the vector unit's arithmetic, each against its golden function."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from systolith import golden
from systolith.config import Config
from systolith.fixed import saturate
from systolith.hdl.alu import Alu
from systolith.hdl.argmax import ArgMax
from systolith.hdl.combine import CombineLane
from systolith.hdl.function_table import FunctionTable
from systolith.hdl.verilog import to_verilog
from systolith.isa import Combine, TableMode
from systolith.sim.benches import vector_program
from systolith.sim.benches.vector_program import wide_integers
from systolith.sim.scoreboard import compare


def simulate(dut, bench) -> None:
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("mode", list(Combine)[1:])
def test_combine(mode: Combine) -> None:
    seed = int(mode)
    print("seed", seed)
    rng = np.random.default_rng(seed)
    dut = CombineLane()
    latency = dut.LATENCY_MULTIPLY if mode == Combine.MULTIPLY else dut.LATENCY
    for mult_a, mult_b, shift in [
        (0xFFFF, 0xFFFF, 17), (1, 0xFFFF, 0), (40000, 30000, 16), (0xFFFF, 1, 31), (9, 7, 62),
        (0, 5, 15), (3, 0, 63),
    ]:  # fmt: skip
        y, partner, b, b2 = wide_integers(rng, (4, 150), 16)
        y[:4], partner[:4] = [-32768, -32768, 32767, 32767], -32768
        b[:4] = b2[:4] = [-32768, 32767, -32768, 32767]
        expected = {
            Combine.ADD: golden.add(y, b, mult_a, mult_b, shift, 16),
            Combine.MULTIPLY: golden.multiply(y, b, mult_a, shift, 16),
            Combine.ROPE: golden.rope(
                np.stack([y, partner], axis=-1), np.stack([b, b], axis=-1),
                np.stack([b2, b2], axis=-1), shift, 16,
            )[:, 0],
        }[mode]  # fmt: skip
        found: list[int] = []

        async def bench(ctx, y=y, partner=partner, b=b, b2=b2, found=found, fields=(
            mult_a, mult_b, shift,
        )) -> None:  # fmt: skip
            ctx.set(dut.mode, mode)
            for name, value in zip(("mult_a", "mult_b", "shift"), fields, strict=True):
                ctx.set(getattr(dut, name), value)
            for index in range(len(y) + latency):
                at = min(index, len(y) - 1)
                for port, values in ((dut.y, y), (dut.partner, partner), (dut.b, b), (dut.b2, b2)):
                    ctx.set(port, int(values[at]))
                if index >= latency:
                    found.append(ctx.get(dut.result))
                await ctx.tick()

        simulate(dut, bench)
        what = f"{mode.name} {mult_a} {mult_b} >> {shift}"
        compare(found, expected, what=what, axes=("index",), seed=seed)


@pytest.mark.parametrize("dim, lanes, slots", [(4, 2, 1), (8, 2, 2), (16, 2, 4)])
def test_function_table(dim: int, lanes: int, slots: int) -> None:
    """All slots, both modes."""
    seed = dim
    print("seed", seed)
    rng = np.random.default_rng(seed)
    config = Config(dim=dim, lanes=lanes, bus_bytes=4, table_slots=slots)
    dut = FunctionTable(config)
    words = vector_program.tables(rng, config)
    entries = words.astype(np.uint8).view("<i2").reshape(slots, 256, 2).astype(np.int64)
    expected, found = [], []

    async def bench(ctx) -> None:
        ctx.set(dut.write.en, 1)
        ctx.set(dut.write.mask, 1)
        for address, word in enumerate(words):
            ctx.set(dut.write.addr, address)
            ctx.set(dut.write.data, [int(byte) for byte in word])
            await ctx.tick()
        ctx.set(dut.write.mask, 0)
        ctx.set(dut.write.addr, 0)
        ctx.set(dut.write.data, [0] * dim)
        for slot in range(slots + 1):
            for exact in (0, 1):
                x = wide_integers(rng, (60, lanes), 16)
                x[:6, 0] = [-32768, 32767, -128, 127, -129, 128]
                function = golden.lookup8 if exact else golden.lookup
                expected.append(function(x, entries[slot % slots]))
                ctx.set(dut.exact, exact)
                ctx.set(dut.slot, slot)
                for index in range(len(x) + dut.LATENCY):
                    ctx.set(dut.x, [int(v) for v in x[min(index, len(x) - 1)]])
                    if index >= dut.LATENCY:
                        found.append([ctx.get(value) for value in dut.result])
                    await ctx.tick()

    simulate(dut, bench)
    compare(found, np.concatenate(expected), what="table", axes=("index", "lane"), seed=seed)


@pytest.mark.parametrize("lanes", [2, 4, 16])
def test_argmax(lanes: int) -> None:
    """Rows with ties over several instructions, with and without forgetting."""
    seed = lanes
    print("seed", seed)
    rng = np.random.default_rng(seed)
    dut = ArgMax(lanes, 8)
    best: tuple[int, int] | None = None

    async def bench(ctx) -> None:
        nonlocal best
        assert ctx.get(dut.index) == 0
        for step in range(80):
            forget = bool(rng.random() < 0.4)
            rows, beats = int(rng.integers(1, 4)), int(rng.integers(1, 6))
            count = int(rng.choice([1, lanes * beats, 0xFFFF, rng.integers(1, lanes * beats + 1)]))
            first = int(rng.choice([0, 0xFFFF, rng.integers(0, 1 << 16)]))
            low, high = [(-3, 3), (-32768, 32767), (-32768, -32767), (32766, 32767)][step % 4]
            values = rng.integers(low, high, (rows, beats * lanes), endpoint=True)
            best = None if forget else best
            for row in values[:, :count]:
                index = int(golden.argmax(row))
                if best is None or row[index] > best[0]:
                    best = int(row[index]), first + index
            ctx.set(dut.start, 1)
            ctx.set(dut.forget, forget)
            await ctx.tick()
            ctx.set(dut.start, 0)
            ctx.set(dut.forget, 0)
            ctx.set(dut.beats, beats)
            ctx.set(dut.count, count)
            ctx.set(dut.first, first)
            for beat in values.reshape(-1, lanes):
                while rng.random() < 0.2:
                    ctx.set(dut.values, [0x7FFF] * lanes)
                    await ctx.tick()
                ctx.set(dut.valid, 1)
                ctx.set(dut.values, [int(value) for value in beat])
                await ctx.tick()
                ctx.set(dut.valid, 0)
            while ctx.get(dut.busy):
                await ctx.tick()
            assert ctx.get(dut.index) == best[1], f"step {step}"

    simulate(dut, bench)


def test_alu() -> None:
    """All combinations of the stages, one after another, with gaps between beats."""
    seed = 5
    print("seed", seed)
    rng = np.random.default_rng(seed)
    config = Config(dim=4, lanes=2, bus_bytes=4, table_slots=2)
    dut = Alu(config)
    words = vector_program.tables(rng, config)
    entries = words.astype(np.uint8).view("<i2").reshape(2, 256, 2).astype(np.int64)
    beats = 12
    expected, found, latencies = [], [], set()

    async def bench(ctx) -> None:
        ctx.set(dut.table_write.en, 1)
        ctx.set(dut.table_write.mask, 1)
        for address, word in enumerate(words):
            ctx.set(dut.table_write.addr, address)
            ctx.set(dut.table_write.data, [int(byte) for byte in word])
            await ctx.tick()
        ctx.set(dut.table_write.en, 0)
        modes = [(s, t, c) for s in (0, 1, 2) for t in TableMode for c in Combine]
        for scale, table, combine in modes:
            wide = int(rng.random() < 0.5)
            mult_a, mult_b, shift = 40000, 30000, 17
            a = wide_integers(rng, (beats, 2), 32 if scale else 16)
            b, b2 = wide_integers(rng, (2, beats, 2), 16)
            bias, mult, right = (rng.integers(0, 1 << bits, (beats, 2)) for bits in (20, 16, 5))
            y = golden.scale(a, bias, mult, right) if scale == 1 else saturate(a, 16)
            if table != TableMode.NONE:
                function = golden.lookup if table == TableMode.INTERPOLATE else golden.lookup8
                y = function(y, entries[1])
            bits = 16 if wide else 8
            expected.append({
                Combine.NONE: saturate(y, bits),
                Combine.ADD: golden.add(y, b, mult_a, mult_b, shift, bits),
                Combine.MULTIPLY: golden.multiply(y, b, mult_a, shift, bits),
                Combine.ROPE: golden.rope(y, b, b2, shift, bits),
            }[combine])  # fmt: skip
            operation = {
                "requantize": int(scale > 0), "scale": int(scale == 1), "table": int(table),
                "slot": 3, "combine": int(combine), "mult_a": mult_a, "mult_b": mult_b,
                "shift": shift, "wide": wide,
            }  # fmt: skip
            ctx.set(dut.operation, operation)
            sent, received, waited = 0, 0, 0
            while received < beats:
                at = min(sent, beats - 1)
                send = sent < beats and (sent == 0 or rng.random() < 0.6)
                ctx.set(dut.i.valid, send)
                for name, values in (("a", a), ("b", b), ("b2", b2)):
                    ctx.set(dut.i.payload[name], [int(v) for v in values[at]])
                ctx.set(dut.i.payload.parameters, [
                    {"bias": int(bias[at, k]), "mult": int(mult[at, k]),
                     "shift": int(right[at, k]), "reserved": 0}
                    for k in range(2)
                ])  # fmt: skip
                if ctx.get(dut.o.valid):
                    latencies.add(waited if received == 0 else max(latencies))
                    found.append([ctx.get(value) for value in dut.o.payload])
                    received += 1
                sent += send
                waited += 1
                await ctx.tick()
            ctx.set(dut.i.valid, 0)
            await ctx.tick()

    simulate(dut, bench)
    compare(found, np.concatenate(expected), what="result", axes=("beat", "lane"), seed=seed)
    assert {1, 5, 6, 7, 8, 17} <= latencies <= set(range(18))


def test_converts() -> None:
    assert "module alu" in to_verilog(Alu(Config(dim=4, lanes=2, bus_bytes=4)), "alu")


def test_lanes_are_checked() -> None:
    with pytest.raises(ValueError, match="Lanes must be a power of two of at least 2, not 3"):
        ArgMax(3, 8)
