"""Timelines as a trace that ui.perfetto.dev and chrome://tracing show: a track for each unit.

The format is Chrome's Trace Event Format (JSON): one complete event ("ph": "X") an instruction. A
unit's instructions may overlap where it takes one before the last is done; here one begins when the
one before has ended, and its arguments say when it was taken.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from systolith.compiler.stalls import stalls
from systolith.compiler.timeline import Timeline
from systolith.isa import Instruction, Unit

TRACKS = (Unit.SEQUENCER, Unit.LOAD, Unit.MATMUL, Unit.VECTOR, Unit.STORE)
_OWN_TRACKS = ("softmax", "norm")
"""Instructions of the vector unit with a track of their own."""
_FIELDS = (
    "rows", "blocks", "words", "k_tiles", "n_tiles", "address", "local", "act", "weight", "acc",
    "a", "b", "d", "limit", "length", "x", "y", "rd", "target",
)  # fmt: skip


def trace_events(
    timelines: Mapping[str, Timeline], labels: Sequence[str] = (), clock_mhz: float = 1.0
) -> dict[str, Any]:
    """A trace object. ``timelines``: by the name of their process, for instance "RTL".

    ``labels``: of each instruction of the program, by pc. ``clock_mhz``: cycles for each
    microsecond of the trace; 1 shows a cycle as 1 µs. Needs the timelines' ``items``.
    """
    events: list[dict[str, Any]] = []
    for process, (name, timeline) in enumerate(timelines.items(), start=1):
        events.append(_meta("process_name", process, 0, name))
        tracks = [*(unit.name.lower() for unit in TRACKS), *_OWN_TRACKS]
        events += [
            _meta("thread_name", process, thread, track)
            for thread, track in enumerate(tracks, start=1)
        ]
        events += _spans(timeline, process, tracks, labels, clock_mhz)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ns",
        "otherData": {"cycles_per_us": clock_mhz},
    }


def write_trace(path: Path, *arguments: Any, **options: Any) -> None:
    """Writes ``trace_events(...)`` to a file."""
    path.write_text(json.dumps(trace_events(*arguments, **options)), encoding="utf-8")


def _meta(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}


def _spans(
    timeline: Timeline, process: int, tracks: list[str], labels: Sequence[str], clock: float
) -> list[dict[str, Any]]:
    waits: dict[int, dict[str, int]] = {}
    for stall in stalls(timeline):
        if stall.index >= 0:
            waits.setdefault(stall.index, {})[f"waited for {stall.reason}"] = stall.cycles
    free = dict.fromkeys(Unit, 0)
    events = []
    for index, (item, instruction) in enumerate(
        zip(timeline.executed, timeline.items, strict=True)
    ):
        track = instruction.op if instruction.op in _OWN_TRACKS else item.unit.name.lower()
        start = max(item.start, free[item.unit])
        free[item.unit] = item.end + 1
        label = labels[item.pc] if item.pc < len(labels) else ""
        events.append(
            {
                "ph": "X",
                "name": f"{instruction.op} {label}".strip(),
                "cat": item.unit.name.lower(),
                "pid": process,
                "tid": tracks.index(track) + 1,
                "ts": start / clock,
                "dur": (item.end + 1 - start) / clock,
                "args": {
                    "pc": item.pc,
                    "queued": item.queued,
                    "granted": item.granted,
                    "start": item.start,
                    "end": item.end,
                    **_arguments(instruction),
                    **waits.get(index, {}),
                },
            }
        )
    return events


def _arguments(item: Instruction) -> dict[str, int]:
    return {name: item.fields[name] for name in _FIELDS if item.fields.get(name, 0)}
