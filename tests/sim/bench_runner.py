"""Bench of test_runner.py and test_build.py, on a counter."""

import os
import random
import time
from typing import Any

import cocotb
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge, Timer
from cocotb.utils import get_sim_time

from systolith.sim.runner import arguments, ask, progress, report, run_directory, seed, start


@cocotb.test()
async def counts(dut: Any) -> None:
    await start(dut)
    await ReadOnly()
    first = int(dut.count.value)
    await ClockCycles(dut.clk, arguments()["cycles"])
    await ReadOnly()
    report({"count": int(dut.count.value) - first})


@cocotb.test()
async def names(dut: Any) -> None:
    known = ("clk", "rst", "count", "next", "self_clocked")
    report({"names": sorted(name for name in known if hasattr(dut, name))})
    await Timer(1, "ns")


@cocotb.test()
async def edges(dut: Any) -> None:
    """What is read just after an edge, against what is read at the end of that time step."""
    await start(dut)
    await ClockCycles(dut.clk, 3)
    at_edge = int(dut.count.value)
    await ReadOnly()
    report({"step": int(dut.count.value) - at_edge})


@cocotb.test()
async def echoes(dut: Any) -> None:
    await Timer(1, "ns")
    report({"arguments": arguments(), "seed": seed()})
    report({"random": random.random(), "file": (run_directory() / "extra.bin").read_bytes().hex()})


@cocotb.test()
async def tells(dut: Any) -> None:
    for index in range(3):
        progress({"index": index, "text": "zwölf\n", "pid": os.getpid()})
        time.sleep(0.1)
    await Timer(1, "ns")


@cocotb.test()
async def questions(dut: Any) -> None:
    at = get_sim_time("ns")
    answers = [ask({"number": number, "text": "zwölf\n"})["answer"] for number in range(50)]
    await ReadOnly()
    report({"answers": answers, "stood_still": get_sim_time("ns") == at})


@cocotb.test()
async def fails(dut: Any) -> None:
    report({"ignored": 1})
    await Timer(1, "ns")
    assert int(dut.count.value) == 77, "row 3, column 4 differs"


@cocotb.test()
async def fails_in_a_task(dut: Any) -> None:
    async def task() -> None:
        await Timer(1, "ns")
        raise RuntimeError("in the background")

    await start(dut)
    cocotb.start_soon(task())
    await RisingEdge(dut.clk)


@cocotb.test()
async def crashes(dut: Any) -> None:
    await Timer(1, "ns")
    os.abort()


@cocotb.test()
async def leaves(dut: Any) -> None:
    await Timer(1, "ns")
    os._exit(0)


@cocotb.test()
async def hangs(dut: Any) -> None:
    await start(dut)
    await Timer(1000, "sec")
