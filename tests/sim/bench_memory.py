"""Bench of test_memory.py: lets the design copy, waits for `done`, compares through files."""

import random
from typing import Any

import cocotb
from cocotb.triggers import RisingEdge, with_timeout

from systolith.sim.memory import AxiMemory
from systolith.sim.runner import arguments, report, start


@cocotb.test()
async def copies(dut: Any) -> None:
    source, target = arguments()["source"], arguments()["target"]
    dut.start.value = 0
    dut.source.value = source
    dut.target.value = target
    memory = AxiMemory(dut)
    memory.configure(latency=20, stall_w=60, stall_seed=3)
    await start(dut)
    data = random.randbytes(4096)
    await memory.load(data, source)
    dut.start.value = 1
    await with_timeout(RisingEdge(dut.done), 100, "us")
    assert await memory.dump(target, 4096) == data
    read, written = memory.beats()
    memory.check_protocol()
    report({"read": read, "written": written})
