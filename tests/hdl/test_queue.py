# amaranth: UnusedElaboratable=no
import random
from collections import deque

import pytest
from amaranth import unsigned
from amaranth.sim import Simulator

from systolith.hdl.queue import Queue
from systolith.hdl.verilog import to_verilog


@pytest.mark.parametrize("registered, least", [(0, 1), (3, 2)])
def test_a_queue_needs_places(registered, least):
    with pytest.raises(ValueError, match=rf"^Depth must be at least {least}, not {least - 1}$"):
        Queue(unsigned(8), least - 1, registered=registered)


@pytest.mark.parametrize("registered", [0, 3, 8])
def test_converts(registered):
    assert "module part" in to_verilog(Queue(unsigned(8), 6, registered=registered), "part")


@pytest.mark.parametrize(
    "depth, registered", [(1, 0), *((d, r) for d in (2, 3, 4, 6, 16) for r in (0, 3, 8))]
)
@pytest.mark.parametrize(("fill", "drain"), [(0.3, 0.7), (0.7, 0.3), (0.5, 0.5), (1, 1)])
def test_words_come_out_in_order_a_cycle_later(depth, registered, fill, drain, seed):
    """Every flag and word of every cycle; writes without room and reads without words are tried."""
    dut = Queue(unsigned(8), depth, registered=registered)
    rng = random.Random(f"{seed} {depth} {fill}")

    async def bench(ctx):
        model, levels = deque(), set()
        for cycle in range(600):
            where = f"cycle {cycle}, seed {seed}"
            levels.add(len(model))
            assert ctx.get(dut.r_rdy) == bool(model), where
            assert ctx.get(dut.w_rdy) == (len(model) < depth), where
            if model:
                assert ctx.get(dut.r_data) == model[0], where
            # Now and then nothing leaves for a while, then nothing enters.
            w_en = rng.random() < fill and cycle % 100 < 80
            r_en = rng.random() < drain and cycle % 100 > 20
            word = rng.randrange(256)
            ctx.set(dut.w_en, w_en)
            ctx.set(dut.w_data, word)
            ctx.set(dut.r_en, r_en)
            enters, leaves = w_en and len(model) < depth, r_en and bool(model)
            if leaves:
                model.popleft()
            if enters:
                model.append(word)
            await ctx.tick()
        assert {0, depth} <= levels or fill < drain

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
