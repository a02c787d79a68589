# amaranth: UnusedElaboratable=no
import random

import pytest
from amaranth.back import verilog
from amaranth.sim import Simulator

from systolith.hdl.pe import ProcessingElement, sum_bits


def test_terms_must_be_positive():
    with pytest.raises(ValueError, match=r"^Terms must be a positive integer, not 0$"):
        ProcessingElement(0)


@pytest.mark.parametrize("terms", [1, 2, 3, 4, 5, 8, 16, 32])
def test_sum_bits_hold_the_extreme_sums(terms):
    half = 1 << (sum_bits(terms) - 1)
    assert terms * -256 * -128 < half and terms * 255 * -128 >= -half
    assert sum_bits(terms - 1) <= sum_bits(terms)


@pytest.mark.parametrize("terms", [1, 2, 8])
def test_converts(terms):
    assert "module" in verilog.convert(ProcessingElement(terms))


@pytest.mark.parametrize("terms", [1, 4])
def test_behaves_as_its_contract_says(terms, seed):
    """Random tokens every cycle, against a model written from the docstring."""
    rng = random.Random(seed)
    dut = ProcessingElement(terms)
    cycles = 400
    half = 1 << (sum_bits(terms - 1) - 1)
    stimulus = [
        {
            "activation": rng.choice([-256, -128, -1, 0, 127, 255, rng.randrange(-256, 256)]),
            # Keeps the sum in range: the other terms leave room for this product.
            "sum_in": rng.randrange(-half // 2, half // 2) if terms > 1 else 0,
            "weight_row": rng.choice([-128, 127, rng.randrange(-128, 128)]),
            "weight_column": rng.choice([-128, 127, rng.randrange(-128, 128)]),
            "swap": rng.randrange(2),
            **dict(
                zip(
                    ("capture_column", "capture_row"),
                    rng.choice([(0, 0), (0, 1), (1, 0)]),
                    strict=True,
                )
            ),
        }
        for _ in range(cycles)
    ]

    async def bench(ctx):
        shadow = weight = None
        weights = []
        for t, now in enumerate(stimulus):
            for name, value in now.items():
                ctx.set(getattr(dut, name), value)
            weights.append(weight)
            if now["swap"]:
                weight = shadow
            if now["capture_column"]:
                shadow = now["weight_column"]
            elif now["capture_row"]:
                shadow = now["weight_row"]
            if t >= 2 and weights[t - 2] is not None:
                product = stimulus[t - 2]["activation"] * weights[t - 2]
                expected = product + stimulus[t - 1]["sum_in"]
                assert ctx.get(dut.sum_out) == expected, f"cycle {t}"
            if t >= 1:
                before = stimulus[t - 1]
                assert ctx.get(dut.activation_out) == before["activation"], f"cycle {t}"
                for name in ("capture_column", "capture_row", "swap"):
                    assert ctx.get(getattr(dut, f"{name}_out")) == before[name], f"cycle {t}"
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
