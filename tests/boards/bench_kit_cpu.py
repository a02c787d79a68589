"""Bench of test_kit_cpu.py: waits for the firmware's verdict."""

from typing import Any

import cocotb
from cocotb.triggers import FallingEdge, First, ReadOnly, RisingEdge
from cocotb.utils import get_sim_time

from systolith.sim.benches.machine import PERIOD_NS
from systolith.sim.runner import arguments, report, start


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def cpu(dut: Any) -> None:
    await start(dut)
    while True:
        await First(RisingEdge(dut.written), RisingEdge(dut.trap))
        await ReadOnly()
        assert not dut.trap.value, "the CPU has met an illegal instruction"
        if int(dut.address.value) == arguments()["verdict"]:
            cycles = int(get_sim_time("ns")) // PERIOD_NS
            report({"verdict": int(dut.value.value), "cycles": cycles})
            return
        await FallingEdge(dut.clk)
