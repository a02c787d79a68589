"""When the machine queued, started and finished each instruction, written by the simulation itself.

The lines of `INSIDE` go into the test top of `sim/memory.py`. They watch the sequencer and the
issue block, and write a line for each cycle in which something happened, but only if the plusarg
`+systolith_trace=FILE` asks for it. Units work in order, so a line needs no index but the
sequencer's: the rest is counted off.
"""

from collections import deque
from collections.abc import Iterable
from pathlib import Path

from systolith.compiler.timeline import Executed
from systolith.isa import QUEUED, Unit

PLUSARG = "systolith_trace"
INSIDE = (
    "  integer trace_file = 0;",
    "  longint trace_cycle = 0;",
    "  string trace_name;",
    f'  initial if ($value$plusargs("{PLUSARG}=%s", trace_name))',
    '    trace_file = $fopen(trace_name, "w");',
    "  always @(posedge clk) if (trace_file != 0) begin",
    "    trace_cycle <= dut.supervisor.machine_reset ? 0 : trace_cycle + 1;",
    '    if (dut.supervisor.machine_reset) $fwrite(trace_file, "reset\\n");',
    "    else if (dut.sequencer.retired || dut.issue.grants != 0 || dut.issue.taken != 0",
    "        || dut.issue.done != 0)",
    '      $fwrite(trace_file, "%0d %0d %0d %0d %0d %0d %0d %0d\\n", trace_cycle,',
    "        dut.sequencer.retired, dut.sequencer.pc,",
    "        dut.issue.queued__valid && dut.issue.queued__ready, dut.issue.queued__payload[1:0],",
    "        dut.issue.grants, dut.issue.taken, dut.issue.done);",
    "  end",
    "  final if (trace_file != 0) $fclose(trace_file);",
)
"""Lines for a module in which `dut` is the machine."""


def read_trace(path: Path) -> list[Executed]:
    """The instructions of the first program in a trace, in the order of the sequencer.

    An instruction that had not finished when the program stopped is left out.
    """
    with path.open() as lines:
        return _match(_first_program(lines))


def _first_program(lines: Iterable[str]) -> list[list[int]]:
    """The events between the first reset that something follows, and the next one."""
    events: list[list[int]] = []
    for line in lines:
        if line.startswith("reset"):
            if events:
                break
            continue
        events.append([int(word) for word in line.split()])
    return events


def _match(events: list[list[int]]) -> list[Executed]:
    waiting: dict[Unit, deque[tuple[int, int, int]]] = {unit: deque() for unit in QUEUED}
    granted: dict[Unit, deque[int]] = {unit: deque() for unit in QUEUED}
    started: dict[Unit, deque[int]] = {unit: deque() for unit in QUEUED}
    finished: list[tuple[int, Executed]] = []
    order, left = 0, -1  # instructions that left the sequencer, and when the last one did
    for cycle, retired, pc, queued, queue, grants, taken, done in events:
        for unit in QUEUED:
            if grants >> unit & 1:
                granted[unit].append(cycle)
            if taken >> unit & 1:
                started[unit].append(cycle)
            if done >> unit & 1:
                place, since, index = waiting[unit].popleft()
                item = Executed(
                    index, unit, since, granted[unit].popleft(), started[unit].popleft(), cycle
                )
                finished.append((place, item))
        if queued:
            waiting[Unit(queue)].append((order, cycle, pc))
        elif retired:
            since = left + 1
            finished.append((order, Executed(pc, Unit.SEQUENCER, since, since, since, cycle)))
        if retired:
            order, left = order + 1, cycle
    return [item for _, item in sorted(finished, key=lambda pair: pair[0])]
