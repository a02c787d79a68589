"""The behavioural SDRAM: it gives back what was written, and sees every rule broken on purpose."""

from pathlib import Path

import pytest

from systolith.sim.build import Build, build
from systolith.sim.runner import run
from systolith.sim.sdram import RULES, SDRAM_CHIP

BENCH = Path(__file__).with_name("bench_sdram_chip.py")
ALL = 1 << 10
MODE = 2 << 4 | 1  # CAS latency 2, bursts of 2
PARAMETERS = {
    "ROW_BITS": 5, "COLUMN_BITS": 4, "ADDRESS_BITS": 11, "PERIOD_PS": 10000, "T_RCD": 20000,
    "T_RP": 20000, "T_RAS": 44000, "T_RAS_MAX": 3000000, "T_RC": 75000, "T_RRD": 25000,
    "T_RFC": 66000, "T_WR": 15000, "T_REFI": 1000000, "T_POWER_UP": 500000, "INIT_REFRESHES": 2,
    "MOST_OWED": 2, "T_CK2": 10000, "T_CK3": 7500,
}  # fmt: skip


def _build(**parameters: int) -> Build:
    return build(
        "", "sdram_chip", sources=[SDRAM_CHIP], parameters={**PARAMETERS, **parameters}
    )


def step(command: str, bank=0, address=0, data=None, mask=0, cycles=10) -> tuple:
    """A command, and the cycles to the next one; ``data``: words driven from its edge on."""
    return command, bank, address, data, mask, cycles


START = [
    step("nop", cycles=60), step("pre", address=ALL), step("ref"), step("ref"),
    step("mode", address=MODE),
]  # fmt: skip
OPEN = [*START, step("act", 0, 3)]


def _play(steps: list[tuple], **parameters: int) -> dict:
    return run(_build(**parameters), BENCH, {"steps": steps})


def test_words_come_back_after_the_cas_latency() -> None:
    """At the shortest legal distances; a masked byte stays; another bank holds its own."""
    steps = [
        *START,
        step("act", 0, 3, cycles=3), step("act", 2, 5, cycles=2),
        step("write", 0, 6, [0x1111, 0x2222], cycles=2),
        step("write", 2, 6, [0x3333, 0x4444], cycles=2),
        step("write", 0, 7, [0x5566, 0x7788], 0b01, cycles=2),  # wraps: words 7 and 6
        step("read", 0, 6, cycles=2), step("read", 2, 7, cycles=2),
        step("pre", 0, cycles=2), step("act", 0, 4),
        step("pre", address=ALL, cycles=2), step("ref", cycles=7), step("nop", cycles=1),
    ]  # fmt: skip
    result = _play(steps)
    assert result["error"] == 0, RULES.get(result["error"])
    at = sum(s[-1] for s in steps[: len(START) + 5])  # the cycle of the first READ
    words = result["sampled"][at + 2 : at + 6]
    assert words == [0x7788, 0x5522, 0x4444, 0x3333], [hex(word) for word in words]
    assert (result["words_read"], result["words_written"]) == (4, 6)
    assert (result["activations"], result["refreshes"]) == (3, 3)


def test_a_read_can_be_masked_and_stopped() -> None:
    steps = [
        *OPEN, step("write", 0, 0, [0xABCD, 0x1234]), step("read", 0, 0, cycles=1),
        step("nop", mask=3, cycles=9), step("read", 0, 0, cycles=1), step("stop", cycles=9),
    ]  # fmt: skip
    result = _play(steps)
    assert result["error"] == 0
    at = sum(s[-1] for s in steps[: len(OPEN) + 1])
    first, stopped = result["sampled"][at + 2 : at + 4], result["sampled"][at + 12 : at + 14]
    assert first[0] == 0xABCD and first[1] != 0x1234
    assert stopped[0] == 0xABCD and stopped[1] != 0x1234


BROKEN = {
    "power-up": (1, [step("nop", cycles=40), step("pre", address=ALL)]),
    "no refresh at first": (2, [*START[:3], START[4], step("act", 0, 3)]),
    "no mode": (2, [*START[:4], step("act", 0, 3)]),
    "refresh first": (2, [START[0], step("ref")]),
    "twice active": (3, [*OPEN, step("act", 0, 4)]),
    "idle read": (4, [*OPEN, step("read", 1, 0)]),
    "idle write": (4, [*OPEN, step("pre", 0), step("write", 0, 0, [1, 2])]),
    "tRCD": (5, [*START, step("act", 0, 3, cycles=1), step("read", 0, 0)]),
    "tRP": (6, [*OPEN, step("pre", 0, cycles=1), step("act", 0, 4)]),
    "tRP refresh": (6, [*OPEN, step("pre", 0, cycles=1), step("ref")]),
    "tRAS": (7, [*START, step("act", 0, 3, cycles=4), step("pre", 0)]),
    "tRC": (8, [*START, step("act", 0, 3, cycles=5), step("pre", 0, cycles=2), step("act", 0, 4)]),
    "tRRD": (9, [*START, step("act", 0, 3, cycles=2), step("act", 1, 3)]),
    "tRFC": (10, [*START, step("ref", cycles=6), step("act", 0, 3)]),
    "tWR": (11, [*OPEN, step("write", 0, 0, [1, 2], cycles=2), step("pre", 0)]),
    "tWR all": (11, [*OPEN, step("write", 0, 0, [1, 2], cycles=2), step("pre", address=ALL)]),
    "refresh while open": (12, [*OPEN, step("ref")]),
    "mode while open": (12, [*OPEN, step("mode", address=MODE)]),
    "tMRD": (13, [*START[:4], step("mode", address=MODE, cycles=1), step("act", 0, 3)]),
    "refresh late": (14, [*START, step("nop", cycles=320)]),
    "both drive": (16, [*OPEN, step("read", 0, 0, cycles=2), step("write", 0, 0, [1, 2])]),
    "not driven": (17, [*OPEN, step("write", 0, 0, [1])]),
    "interleaved": (18, [*START[:4], step("mode", address=MODE | 8)]),
    "automatic precharge": (18, [*OPEN, step("read", 0, ALL)]),
    "column": (19, [*OPEN, step("read", 0, 16)]),
    "row": (19, [*START, step("act", 0, 32)]),
    "no turnaround": (20, [*OPEN, step("read", 0, 0, cycles=4), step("write", 0, 0, [1, 2])]),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rules(name: str) -> None:
    rule, steps = BROKEN[name]
    error = _play(steps)["error"]
    assert error == rule, f"{RULES.get(error, 'nothing')} instead of {RULES[rule]}"


def test_the_same_a_cycle_later_is_legal() -> None:
    """The rules above at their limits: what is one cycle longer breaks none."""
    later = {
        "tRCD": [*START, step("act", 0, 3, cycles=2), step("read", 0, 0)],
        "tRP": [*OPEN, step("pre", 0, cycles=2), step("act", 0, 4)],
        "tRAS": [*START, step("act", 0, 3, cycles=5), step("pre", 0)],
        "tRC": [*START, step("act", 0, 3, cycles=5), step("pre", 0, cycles=3), step("act", 0, 4)],
        "tRRD": [*START, step("act", 0, 3, cycles=3), step("act", 1, 3)],
        "tRFC": [*START, step("ref", cycles=7), step("act", 0, 3)],
        "tWR": [*OPEN, step("write", 0, 0, [1, 2], cycles=3), step("pre", 0)],
        "tMRD": [*START[:4], step("mode", address=MODE, cycles=2), step("act", 0, 3)],
        "turnaround": [*OPEN, step("read", 0, 0, cycles=5), step("write", 0, 0, [1, 2])],
    }
    for name, steps in later.items():
        error = _play(steps)["error"]
        assert error == 0, f"{name}: {RULES[error]}"


def test_rules_of_the_clock_and_of_open_rows() -> None:
    assert _play(START, PERIOD_PS=9000)["error"] == 15
    fast = [*START[:4], step("mode", address=3 << 4 | 1)]
    assert _play(fast, PERIOD_PS=9000)["error"] == 0
    long = [*OPEN, step("nop", cycles=305), step("pre", 0)]
    assert _play(long, T_REFI=100000000)["error"] == 21
