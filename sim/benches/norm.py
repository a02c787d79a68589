"""Bench of `systolith.hdl.norm.Norm`: rows and parameters in, results and cycle counts out.

Arguments: `x` (rows of any lengths), and for all rows or as a list with one value for each row
`eps`, `eps_shift`, `center`, `bits` (8 or 16); `gain`, `bias`, `shift`: lists with a value for each
channel, as many as the longest row has; `idle`, `back_pressure`: patterns of
`systolith.sim.stimulus.pauses`, by default "none". Result: `y` (rows as long as those of `x`),
`cycles` (first beat in to last beat out, both included), `latency` (first beat in to first beat
out). Results in lanes beyond a row must be 0.
"""

from typing import Any

import cocotb
from cocotb.triggers import ClockCycles

from systolith.hdl.layouts import PARAMETER
from systolith.hdl.norm import ROW
from systolith.sim.runner import arguments, report, seed, start
from systolith.sim.stimulus import StreamSink, StreamSource, pack, pauses, unpack

_DRAIN = 100


@cocotb.test()
async def norm(dut: Any) -> None:
    """Streams all rows through the unit."""
    given = arguments()
    x = given["x"]
    settings = {name: given[name] for name in ("eps", "eps_shift", "center", "bits")}
    lanes = len(dut.i__payload) // 16
    channels = [
        PARAMETER.const({"bias": bias, "mult": gain, "shift": shift, "reserved": 0xA5}).as_bits()
        for gain, bias, shift in zip(given["gain"], given["bias"], given["shift"], strict=True)
    ]
    descriptors, beats, parameters = [], [], []
    for index, row in enumerate(x):
        own = {k: v[index] if isinstance(v, list) else v for k, v in settings.items()}
        own["wide"] = int(own.pop("bits") == 16)
        own["center"] = int(own["center"])
        count = -(-len(row) // lanes)
        missing = count * lanes - len(row)
        descriptors.append(ROW.const({"length": len(row), "beats": count, **own}).as_bits())
        # Lanes beyond the row hold what would spoil its sums.
        padded = [*row, *[-(2**15)] * missing]
        own_channels = [*channels[: len(row)], *[(1 << 64) - 1] * missing]
        for at in range(0, len(padded), lanes):
            beats.append(pack(padded[at : at + lanes], 16))
            parameters.append(pack(own_channels[at : at + lanes], 64))

    await start(dut)
    idle, back_pressure = given.get("idle", "none"), given.get("back_pressure", "none")
    rows = StreamSource(dut, "rows", pauses=pauses(idle, seed()))
    source = StreamSource(dut, "i", pauses=pauses(idle, seed() + 1))
    params = StreamSource(dut, "params", pauses=pauses(idle, seed() + 2))
    sink = StreamSink(dut, "o", pauses=pauses(back_pressure, seed() + 3))
    rows.offer(descriptors)
    source.offer(beats)
    params.offer(parameters)
    words = list(await sink.receive(len(beats), timeout_cycles=2000 + 20 * len(beats)))
    await ClockCycles(dut.clk, _DRAIN)
    assert len(sink.items) == len(beats), f"{len(sink.items) - len(beats)} beats too many came out"
    assert len(params.items) == len(beats), f"{len(params.items)} beats of parameters were taken"

    y = []
    for index, row in enumerate(x):
        count = -(-len(row) // lanes)
        values = [p for word in words[:count] for p in unpack(word, 16, lanes, signed=True)]
        del words[:count]
        assert not any(values[len(row) :]), f"row {index}: lanes beyond the row are not 0"
        y.append(values[: len(row)])
    report(
        {
            "y": y,
            "cycles": sink.cycles[-1] - source.cycles[0] + 1,
            "latency": sink.cycles[0] - source.cycles[0],
        }
    )
