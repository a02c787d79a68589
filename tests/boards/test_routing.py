import sys

import pytest

from systolith.boards.routing import slower, stalls
from systolith.boards.tools import Stalled, run


def rounds(*pairs: tuple[int, int]) -> str:
    """A log as router2 writes it."""
    return "Info: Running router2...\n" + "".join(
        f"Info:     iter={i} wires=5{i:05} overused={overused} overuse={overused} tmgfail={late} "
        "archfail=NA\n"
        for i, (overused, late) in enumerate(pairs, 1)
    )


def test_routing_that_gets_on_does_not_stall():
    assert not stalls("")
    assert not stalls("Info: Running main analytical placer\n")
    long = [(4000 // i, 9) for i in range(1, 80)]
    assert not stalls(rounds(*long))
    # A plateau that ends; and an end, after which nothing is written for a while.
    assert not stalls(rounds(*long, *[(2, 0)] * 99, (1, 0), *[(2, 0)] * 99, (0, 0)))


def test_routing_that_gets_nowhere_stalls():
    turns = [(0, 56 + 14 * (i % 2)) for i in range(200)]
    assert not stalls(rounds((900, 60), *turns[:50]))
    assert stalls(rounds((900, 60), *turns))
    assert stalls(rounds((900, 60), *turns, (0, 0)))


def test_the_next_clock():
    assert slower(80, "") == pytest.approx(74.4)
    placed = "Info: Max frequency for clock '$glbnet$clk': {} MHz (FAIL at 80.00 MHz)\n"
    assert slower(80, placed.format("72.00")) == pytest.approx(74.4)
    assert slower(80, placed.format("50.00") + placed.format("20.00")) == pytest.approx(60)


def test_a_tool_that_stalls_is_stopped(tmp_path):
    script = "import time; print('on and on', flush=True); time.sleep(60)"
    with pytest.raises(Stalled, match="gets nowhere: on and on"):
        run([sys.executable, "-c", script], tmp_path / "log", stalls=lambda log: "on" in log)
    run([sys.executable, "-c", "print('on')"], tmp_path / "log", stalls=lambda log: len(log) > 9)
    # Fast or slow, the same comes out: it had stalled before it ended.
    with pytest.raises(Stalled, match="gets nowhere: on"):
        run([sys.executable, "-c", "print('on')"], tmp_path / "log", stalls=lambda log: "on" in log)
