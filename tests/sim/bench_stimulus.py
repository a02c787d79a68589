"""Bench of test_stimulus.py: a stream buffer between a source and a sink."""

import random
from typing import Any

import cocotb
from cocotb.triggers import RisingEdge

from systolith.sim.runner import arguments, report, seed, start
from systolith.sim.stimulus import StreamMonitor, StreamSink, StreamSource, pauses


@cocotb.test()
async def passes_everything(dut: Any) -> None:
    settings = arguments()
    await start(dut)
    source = StreamSource(dut, "i", pauses=pauses(settings["idle"], seed()))
    sink = StreamSink(dut, "o", pauses=pauses(settings["back_pressure"], seed() + 1))
    items = [random.getrandbits(16) for _ in range(200)]
    await source.send(items[:100])
    source.offer(items[100:])
    received = [*await sink.receive(150), *await sink.receive(50)]
    assert received == items
    assert source.items == items
    report({"gaps": sink.gaps(), "cycles": sink.cycles[-1] - sink.cycles[0] + 1})


@cocotb.test()
async def times_out(dut: Any) -> None:
    """More is asked for than was sent."""
    await start(dut)
    source = StreamSource(dut, "i")
    sink = StreamSink(dut, "o")
    await source.send([1, 2, 3])
    await sink.receive(4, timeout_cycles=50)


@cocotb.test()
async def is_not_taken(dut: Any) -> None:
    """Nobody takes from the far side."""
    await start(dut)
    dut.o__ready.value = 0
    await StreamSource(dut, "i").send([1, 2, 3], timeout_cycles=50)


@cocotb.test()
async def breaks_the_promise(dut: Any) -> None:
    """Drives a stream badly by hand, under a monitor."""
    await start(dut)
    dut.o__ready.value = 0
    dut.i__valid.value = 0
    monitor = StreamMonitor(dut, "i")
    for payload, valid in [(1, 1), (2, 1), (3, 1), *arguments()["last"]]:
        dut.i__payload.value = payload
        dut.i__valid.value = valid
        await RisingEdge(dut.clk)
    assert len(monitor.items) < 100
