"""Stream drivers and monitors, on a two-place buffer with registered outputs."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from systolith.sim.build import Build, build
from systolith.sim.ports import clocked_top
from systolith.sim.runner import BenchFailure, run
from systolith.sim.scoreboard import compare
from systolith.sim.stimulus import PATTERNS, pack, pauses, unpack

BENCH = Path(__file__).with_name("bench_stimulus.py")
BUFFER = """
module buffer(
  input wire clk, input wire rst,
  input wire [15:0] i__payload, input wire i__valid, output wire i__ready,
  output wire [15:0] o__payload, output wire o__valid, input wire o__ready);
  reg [15:0] place[0:1];
  reg [1:0] filled;
  assign i__ready = filled != 2;
  assign o__valid = filled != 0;
  assign o__payload = place[0];
  wire put = i__valid && i__ready;
  wire get = o__valid && o__ready;
  always @(posedge clk) begin
    if (get) place[0] <= place[1];
    if (put) place[1'(filled - {1'b0, get})] <= i__payload;
    filled <= filled + {1'b0, put} - {1'b0, get};
    if (rst) filled <= 0;
  end
endmodule
"""


@pytest.fixture(params=["driven", "self-clocked"])
def buffer(request: pytest.FixtureRequest) -> Build:
    return build(
        *(clocked_top(BUFFER, "buffer") if request.param != "driven" else (BUFFER, "buffer"))
    )


@pytest.mark.parametrize(("idle", "back_pressure"), [*itertools.product(PATTERNS, PATTERNS)])
def test_buffer(buffer: Build, idle: str, back_pressure: str, seed: int) -> None:
    arguments = {"idle": idle, "back_pressure": back_pressure}
    result = run(buffer, BENCH, arguments, seed=seed, test="passes_everything")
    if idle == back_pressure == "none":
        assert result["cycles"] <= 202  # a gap between the first and the second hundred
    else:
        assert len(result["gaps"]) > 1


def test_receive_times_out(buffer: Build) -> None:
    with pytest.raises(BenchFailure, match="stream o: 3 of 4 items came in 50 cycles"):
        run(buffer, BENCH, {}, test="times_out")


def test_send_times_out(buffer: Build) -> None:
    with pytest.raises(BenchFailure, match="stream i: 2 of 3 items were taken in 50 cycles"):
        run(buffer, BENCH, {}, test="is_not_taken")


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ([[4, 1], [4, 1]], "stream i, cycle 3, item 2: payload 0x3 became 0x4"),
        ([[3, 0], [3, 0]], "stream i, cycle 3, item 2: valid was dropped before the transfer"),
    ],
)
def test_monitor_sees_a_broken_promise(buffer: Build, last: list[list[int]], message: str) -> None:
    with pytest.raises(BenchFailure, match=message):
        run(buffer, BENCH, {"last": last}, test="breaks_the_promise")


def test_patterns_are_reproducible_and_differ() -> None:
    drawn = {name: list(itertools.islice(pauses(name, 3), 1000)) for name in PATTERNS}
    assert drawn["random"] == list(itertools.islice(pauses("random", 3), 1000))
    assert drawn["random"] != list(itertools.islice(pauses("random", 4), 1000))
    assert not any(drawn["none"])
    assert 400 < sum(drawn["random"]) < 600
    assert 300 < sum(drawn["bursty"]) < 700
    runs = {name: len(list(itertools.groupby(drawn[name]))) for name in PATTERNS}
    assert runs["none"] == 1 and runs["bursty"] < 150 < runs["random"]
    with pytest.raises(ValueError, match="Pattern must be one of none, random, bursty, not 'x'"):
        pauses("x", 0)


def test_pack_and_unpack(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lanes = rng.integers(-128, 128, 16)
    assert unpack(pack(lanes, 8), 8, 16, signed=True) == lanes.tolist()
    assert unpack(pack([0, 255, 7], 8), 8, 3, signed=False) == [0, 255, 7]
    assert pack([-1, 1], 4) == 0x1F
    with pytest.raises(ValueError, match="Lane 1 must fit in 8 bits, not 256"):
        pack([0, 256], 8)


def test_scoreboard_names_the_first_mismatch() -> None:
    want = np.arange(64).reshape(4, 16)
    compare(want, want.tolist())
    compare(b"abc", [97, 98, 99])
    got = want.copy()
    got[1, 7] = -4
    got[3, 0] = 0
    with pytest.raises(AssertionError) as failure:
        compare(got, want, what="scores", axes=("row", "column"), seed=5)
    assert str(failure.value) == (
        "scores differs in 2 of 64 elements, first at row 1, column 7: got -4, expected 23\n"
        "column 4 to 10: got [20 21 22 -4 24 25 26], expected [20 21 22 23 24 25 26] (seed 5)"
    )
    with pytest.raises(AssertionError, match=r"result has shape \(3,\), expected \(4,\)"):
        compare([1, 2, 3], [1, 2, 3, 4])
    with pytest.raises(AssertionError, match="result is 3, expected 4"):
        compare(3, 4)
