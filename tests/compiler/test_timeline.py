"""What is read out of timelines: stalls, layers, traces for Perfetto."""

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from systolith.compiler.gemm import Shape, compile_gemm
from systolith.compiler.layers import NO_LABEL, per_layer
from systolith.compiler.perfetto import trace_events, write_trace
from systolith.compiler.stalls import END, HANDOVER, SEQUENCER, by_reason, stalls
from systolith.compiler.timeline import Executed, Timeline
from systolith.compiler.timing import predict
from systolith.config import PRESETS
from systolith.isa import Instruction, Unit, semaphore
from systolith.sim.machine_tb import MachineSim

TINY = PRESETS["tiny"]


def signal(producer: Unit, consumer: Unit) -> int:
    return 1 << semaphore(producer, consumer)


def two_units() -> Timeline:
    """A load, a matmul that waits for it, one that comes late, and the end."""
    executed = [
        Executed(0, Unit.LOAD, 10, 11, 12, 50),
        Executed(1, Unit.MATMUL, 18, 51, 52, 70),
        Executed(2, Unit.MATMUL, 90, 91, 92, 99),
        Executed(3, Unit.SEQUENCER, 91, 91, 91, 119),
    ]
    load_matmul = signal(Unit.LOAD, Unit.MATMUL)
    items = [
        Instruction("load", {"rows": 2, "words": 3}, signal=load_matmul),
        Instruction("matmul", {"rows": 6, "k_tiles": 2, "n_tiles": 1}, wait=load_matmul),
        Instruction("matmul", {"rows": 1, "k_tiles": 1, "n_tiles": 1, "wide": 1}),
        Instruction("halt"),
    ]
    return Timeline(executed, 120, {}, items)


def test_stalls_say_what_was_missing() -> None:
    found = [(s.unit, s.start, s.stop, s.reason, s.index) for s in stalls(two_units())]
    assert found == [
        (Unit.LOAD, 0, 11, SEQUENCER, 0),
        (Unit.LOAD, 11, 12, HANDOVER, 0),
        (Unit.LOAD, 51, 120, END, -1),
        (Unit.MATMUL, 0, 19, SEQUENCER, 1),
        (Unit.MATMUL, 19, 51, "load", 1),
        (Unit.MATMUL, 51, 52, HANDOVER, 1),
        (Unit.MATMUL, 71, 91, SEQUENCER, 2),
        (Unit.MATMUL, 91, 92, HANDOVER, 2),
        (Unit.MATMUL, 100, 120, END, -1),
    ]
    assert by_reason(stalls(two_units()))[Unit.MATMUL] == {
        SEQUENCER: 39, "load": 32, HANDOVER: 2, END: 20,
    }  # fmt: skip


def test_layers_share_all_cycles() -> None:
    layers = per_layer(two_units(), ["a", "a", "b"], TINY)
    assert [layer.label for layer in layers] == ["a", "b", NO_LABEL]
    a, b, other = layers
    assert a.instructions == 2
    # The load and the matmul with all before; in cycles 51 and 71 to 90 the sequencer is at b.
    assert (a.cycles, b.cycles, other.cycles) == (51 + 19, 21 + 8, 1 + 20)
    assert a.busy == {Unit.LOAD: 39, Unit.STORE: 0, Unit.MATMUL: 19, Unit.VECTOR: 0}
    assert (a.passes, a.macs, a.read_bytes, a.write_bytes) == (12, 12 * 16, 24, 0)
    assert (b.passes, b.use) == (2, 2 / b.cycles)


@pytest.fixture(scope="module")
def gemm() -> tuple[Timeline, Timeline, list[str]]:
    """Predicted and measured, and labels."""
    program = compile_gemm(TINY, [Shape(30, 40, 50), Shape(4, 12, 8)], "dram")
    predicted = predict(program)
    measured = MachineSim(TINY, latency=40).run(program, trace=True).timeline
    assert measured is not None
    labels = [f"layer {index // 6}" for index in range(program.instructions)]
    return predicted, measured.with_items(predicted), labels


def test_predicted_and_measured_layers_agree(gemm: tuple[Timeline, Timeline, list[str]]) -> None:
    predicted, measured, labels = gemm
    for ours, theirs in zip(
        per_layer(predicted, labels, TINY), per_layer(measured, labels, TINY), strict=True
    ):
        assert ours.cycles == pytest.approx(theirs.cycles, rel=0.02, abs=10)
        assert ours.macs == theirs.macs and ours.read_bytes == theirs.read_bytes
    # What a unit did not idle it worked, or one of its instructions was under way.
    for unit, reasons in by_reason(stalls(measured)).items():
        works = sum(layer.busy[unit] for layer in per_layer(measured, labels, TINY))
        assert sum(reasons.values()) + works == measured.cycles, unit


def test_the_trace_is_one_that_perfetto_reads(
    gemm: tuple[Timeline, Timeline, list[str]], tmp_path: Path
) -> None:
    predicted, measured, labels = gemm
    path = tmp_path / "trace.json"
    write_trace(path, {"RTL": measured, "predicted": predicted}, labels, clock_mhz=2.0)
    trace = json.loads(path.read_text())
    assert trace["displayTimeUnit"] in ("ns", "ms")
    names: dict[tuple[int, int], str] = {}
    tracks: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for event in trace["traceEvents"]:
        assert {"ph", "name", "pid", "tid", "args"} <= event.keys()
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        track = event["pid"], event["tid"]
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name")
            names[track] = event["args"]["name"]
            continue
        assert event["ph"] == "X" and {"ts", "dur", "cat"} <= event.keys()
        assert event["dur"] > 0 and event["ts"] >= 0
        tracks[track].append((event["ts"], event["ts"] + event["dur"]))
    assert {names[track] for track in tracks} == {"sequencer", "load", "matmul", "vector", "store"}
    assert (names[1, 0], names[2, 0]) == ("RTL", "predicted")
    for spans in tracks.values():
        for (_, end), (start, _) in pairwise(spans):
            assert end <= start
    spans_of = {pid: sum(len(s) for (p, _), s in tracks.items() if p == pid) for pid in (1, 2)}
    assert spans_of == {1: len(measured.executed), 2: len(predicted.executed)}
    last = max(end for spans in tracks.values() for _, end in spans)
    assert last == max(measured.cycles, predicted.cycles) / 2
    matmul = next(e for e in trace["traceEvents"] if e["name"].startswith("matmul"))
    first = next(item for item in measured.items if item.op == "matmul")
    assert matmul["name"].startswith("matmul layer ")
    assert matmul["args"]["rows"] == first.get("rows") and matmul["args"]["waited for load"] > 0


def test_softmax_and_norm_have_tracks_of_their_own() -> None:
    executed = [Executed(i, Unit.VECTOR, 8 * i, 8 * i + 1, 8 * i + 2, 8 * i + 6) for i in range(3)]
    items = [Instruction(op, {"rows": 1}) for op in ("vector", "softmax", "norm")]
    events = trace_events({"predicted": Timeline(executed, 30, {}, items)})["traceEvents"]
    tracks = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    spans = [(tracks[e["tid"]], e["name"]) for e in events if e["ph"] == "X"]
    assert spans == [("vector", "vector"), ("softmax", "softmax"), ("norm", "norm")]


def test_items_of_another_run_are_not_taken_over() -> None:
    line = two_units()
    bare = Timeline(line.executed, 120)
    assert bare.with_items(line).items == line.items
    assert Timeline(line.executed[:2], 120).with_items(line).items == ()
