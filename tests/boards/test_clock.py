"""The dividers of every PLL: against all settings there are, and the limits of the data sheets."""

import itertools
import random
import re
from fractions import Fraction

import pytest

from systolith.boards.family import Clock, exact_hz
from systolith.boards.family_ecp5 import Ecp5
from systolith.boards.family_gatemate import GateMate
from systolith.boards.family_gowin import Gowin
from systolith.boards.family_ice40 import Ice40
from systolith.boards.family_nexus import Nexus
from systolith.boards.tools import run, tool
from systolith.errors import UserError

MHZ = 10**6


def ecp5_outputs(given: Fraction) -> set[Fraction]:
    """Every clock of CLKOS, CLKOP being fed back. FPGA-TN-02200: the oscillator is input / CLKI_DIV
    · CLKFB_DIV · CLKOP_DIV; FPGA-DS-02012: 400 to 800 MHz, phase detector 10 to 400 MHz."""
    found = set()
    for clki in range(1, 129):
        if not 10 * MHZ <= given / clki <= 400 * MHZ:
            continue
        # CLKFB_DIV · CLKOP_DIV, each up to 128, with CLKOP (the oscillator over CLKOP_DIV) in range
        products = {
            fb * op
            for fb, op in itertools.product(range(1, 129), repeat=2)
            if fb * op <= 80 and 3.125 * MHZ <= given / clki * fb <= 400 * MHZ
        }
        for product in products:
            vco = given / clki * product
            if 400 * MHZ <= vco <= 800 * MHZ:
                found |= {vco / clkos for clkos in range(1, 129)}
    return {hz for hz in found if 3.125 * MHZ <= hz <= 400 * MHZ}


def ice40_outputs(given: Fraction) -> set[Fraction]:
    """FPGA-TN-02052, simple feedback; FPGA-DS-02008."""
    found = set()
    for divr, divf, divq in itertools.product(range(16), range(128), range(1, 7)):
        pfd = given / (divr + 1)
        vco = pfd * (divf + 1)
        out = vco / (1 << divq)
        if 10 * MHZ <= pfd <= 133 * MHZ and 533 * MHZ <= vco <= 1066 * MHZ:
            found.add(out)
    return {hz for hz in found if 16 * MHZ <= hz <= 275 * MHZ}


def gowin_outputs(given: Fraction) -> set[Fraction]:
    """UG286; DS226 for speed C8/I7."""
    found = set()
    for idiv, fbdiv in itertools.product(range(1, 65), repeat=2):
        out = given * fbdiv / idiv
        dividers = [2, 4, 8, *range(16, 129, 16)]
        if 3 * MHZ <= given / idiv <= 500 * MHZ and any(
            500 * MHZ <= out * odiv <= 1250 * MHZ for odiv in dividers
        ):
            found.add(out)
    return {hz for hz in found if 3.90625 * MHZ <= hz <= 625 * MHZ}


CASES = [
    (Ecp5(), ecp5_outputs, [25, 48, 100, 12, 14.7456]),
    (Ice40(), ice40_outputs, [12, 16, 48, 100]),
    (Gowin(), gowin_outputs, [27, 50, 12.288]),
]


@pytest.mark.parametrize(
    ("family", "outputs", "inputs"), CASES, ids=lambda x: getattr(x, "name", "")
)
def test_no_setting_is_better(family, outputs, inputs, seed) -> None:
    """Never above what is wanted, and nothing legal lies between."""
    random.seed(seed)
    for given in inputs:
        all_outputs = outputs(exact_hz(given))
        for wanted in [*(random.uniform(16, 250) for _ in range(10)), 24, 60, 80, 100, given]:
            clock = family.clock(given, wanted)
            assert clock.hz <= exact_hz(wanted)
            best = max(hz for hz in all_outputs | {exact_hz(given)} if hz <= exact_hz(wanted))
            assert clock.hz == best, (given, wanted)


def test_ecp5_settings_are_legal() -> None:
    for given, wanted in [(25, 80), (25, 61.3), (48, 73), (100, 399), (400, 400), (8.5, 3)]:
        for clock in Ecp5().pll_settings(exact_hz(given), exact_hz(wanted)):
            p = clock.parameters
            assert all(1 <= value <= 128 for value in p.values())
            feedback = clock.input_hz / p["CLKI_DIV"]
            assert feedback == clock.pfd_hz and 10 * MHZ <= feedback <= 400 * MHZ
            vco = feedback * p["CLKFB_DIV"] * p["CLKOP_DIV"]
            assert vco == clock.vco_hz and 400 * MHZ <= vco <= 800 * MHZ
            # What is fed back has the phase detector's frequency.
            assert vco / p["CLKOP_DIV"] / p["CLKFB_DIV"] == feedback
            assert clock.hz == vco / p["CLKOS_DIV"] <= exact_hz(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [61.25, 77.5, 50, 40])
def test_ecppll_finds_the_same(wanted: float, tmp_path) -> None:
    """Project Trellis's own tool, for clocks that can be met exactly."""
    log = run([tool("yowasp-ecppll"), "-i", "25", "-o", str(wanted), "--highres"], tmp_path / "log")
    theirs = {
        name: int(re.search(rf"{text} divisor: (\d+)", log)[1])
        for name, text in {"CLKI_DIV": "Refclk", "CLKFB_DIV": "Feedback", "CLKOS_DIV": "clkout1",
                           "CLKOP_DIV": "clkout0"}.items()
    }  # fmt: skip
    ours = Ecp5().clock(25, wanted)
    vco = 25 * theirs["CLKFB_DIV"] * theirs["CLKOP_DIV"] / Fraction(theirs["CLKI_DIV"])
    assert ours.hz == vco / theirs["CLKOS_DIV"] * MHZ


def test_ice40_filter_follows_the_phase_detector() -> None:
    """The ranges of icepll: below 17 MHz 1, below 26 MHz 2, … from 101 MHz 6."""
    expected = {12: 1, 16.9: 1, 17: 2, 25: 2, 26: 3, 43: 3, 44: 4, 65: 4, 66: 5, 100: 5, 101: 6}
    for given, filter_range in expected.items():
        clock = next(c for c in Ice40().pll_settings(exact_hz(given), exact_hz(275)))
        assert clock.parameters["DIVR"] == 0 and clock.parameters["FILTER_RANGE"] == filter_range


def test_gowin_parameters_are_the_dividers_less_one() -> None:
    clock = Gowin().clock(27, 33)
    p = clock.parameters
    out = Fraction(27) * (p["FBDIV_SEL"] + 1) / (p["IDIV_SEL"] + 1)
    assert clock.hz == out * MHZ == 33 * MHZ
    assert 500 <= out * p["ODIV_SEL"] <= 1250


def test_gatemate_frequencies_can_be_met_exactly(seed) -> None:
    """nextpnr's formula: K = 1, oscillator = input · PDIV1 · N1 · N2, output = oscillator / 2 PDIV1
    M1 M2, M1 M2 even or 1; at 1.0 V the oscillator takes 1000 to 2000 MHz."""
    random.seed(seed)
    n_products = {a * b for a in range(1, 65) for b in range(1, 101) if a * b <= 2000}
    m_products = {a * b for a in range(1, 65) for b in range(1, 1025)}
    m_products = {m for m in m_products if m == 1 or m % 2 == 0}
    for given in (10, 12.5, 25):
        for wanted in [random.uniform(11, 150) for _ in range(10)]:
            clock = GateMate().clock(given, wanted)
            assert clock.hz <= exact_hz(wanted)
            assert clock.hz >= exact_hz(wanted) * Fraction(9, 10), (given, wanted)
            if not clock.cell:
                continue
            assert exact_hz(float(clock.parameters["OUT_CLK"])) == clock.hz
            ways = [
                (n, m)
                for n in n_products
                if 1000 < given * 2 * n <= 2000
                and (m := exact_hz(given) * n / 2 / clock.hz).denominator == 1
                and m in m_products
            ]
            assert ways, (given, wanted, clock)


def test_gatemate_believes_the_log_alone() -> None:
    clock = GateMate().clock(10, 25)
    GateMate().check_place_and_route("Info:  PLL fout= 25.0000 MHz (fout error ...", clock)
    with pytest.raises(UserError, match=r"PLL makes 25\.1000 MHz of the 25 MHz"):
        GateMate().check_place_and_route("Info:  PLL fout= 25.1000 MHz", clock)
    with pytest.raises(UserError, match="no frequency"):
        GateMate().check_place_and_route("nothing", clock)


def test_the_input_clock_serves_where_the_pll_cannot() -> None:
    assert Ice40().clock(12, 14) == Clock(Fraction(12 * MHZ), Fraction(12 * MHZ))
    assert Nexus().clock(12, 50).hz == 12 * MHZ


@pytest.mark.parametrize(("family", "given", "wanted"), [(Ice40(), 48, 11), (Nexus(), 12, 11.9)])
def test_no_clock_slow_enough(family, given, wanted) -> None:
    with pytest.raises(UserError, match=r"makes no clock of .* MHz or less from .*too slow"):
        family.clock(given, wanted)
