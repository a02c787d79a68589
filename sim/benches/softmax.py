"""Bench of `systolith.hdl.softmax.Softmax`: rows in, probabilities and cycle counts out.

Arguments: `scores` (rows of any lengths), and for all rows or as a list with one value for each row
`mult`, `shift`, `limits`, `bits` (8 or 16); `idle`, `back_pressure`: patterns of
`systolith.sim.stimulus.pauses`, by default "none". Result: `probabilities` (rows as long as the
scores), `cycles` (first beat in to last beat out, both included), `latency` (first beat in to first
beat out). Results at and beyond a row's limit must be 0, in the lanes beyond the row too.
"""

from typing import Any

import cocotb
from cocotb.triggers import ClockCycles

from systolith.hdl.softmax import ROW
from systolith.sim.runner import arguments, report, seed, start
from systolith.sim.stimulus import StreamSink, StreamSource, pack, pauses, unpack

_DRAIN = 100


@cocotb.test()
async def softmax(dut: Any) -> None:
    """Streams all rows through the unit."""
    given = arguments()
    scores = given["scores"]
    settings = {name: given[name] for name in ("mult", "shift", "limits", "bits")}
    lanes = len(dut.i__payload) // 32
    descriptors, beats = [], []
    for index, row in enumerate(scores):
        own = {k: v[index] if isinstance(v, list) else v for k, v in settings.items()}
        own["wide"], own["limit"] = int(own.pop("bits") == 16), own.pop("limits")
        count = -(-len(row) // lanes)
        descriptors.append(ROW.const({"beats": count, **own}).as_bits())
        # Lanes beyond the row hold what would win the row.
        padded = [*row, *[2**31 - 1] * (count * lanes - len(row))]
        beats += [pack(padded[at : at + lanes], 32) for at in range(0, len(padded), lanes)]

    await start(dut)
    idle, back_pressure = given.get("idle", "none"), given.get("back_pressure", "none")
    rows = StreamSource(dut, "rows", pauses=pauses(idle, seed()))
    source = StreamSource(dut, "i", pauses=pauses(idle, seed() + 1))
    sink = StreamSink(dut, "o", pauses=pauses(back_pressure, seed() + 2))
    rows.offer(descriptors)
    source.offer(beats)
    words = list(await sink.receive(len(beats), timeout_cycles=2000 + 20 * len(beats)))
    await ClockCycles(dut.clk, _DRAIN)
    assert len(sink.items) == len(beats), f"{len(sink.items) - len(beats)} beats too many came out"

    probabilities = []
    for index, row in enumerate(scores):
        count = -(-len(row) // lanes)
        values = [p for word in words[:count] for p in unpack(word, 16, lanes, signed=False)]
        del words[:count]
        assert not any(values[len(row) :]), f"row {index}: lanes beyond the row are not 0"
        probabilities.append(values[: len(row)])
    report(
        {
            "probabilities": probabilities,
            "cycles": sink.cycles[-1] - source.cycles[0] + 1,
            "latency": sink.cycles[0] - source.cycles[0],
        }
    )
