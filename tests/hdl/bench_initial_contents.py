"""Bench of test_block_memory.py: everything is read before anything was written."""

from typing import Any

import cocotb
from cocotbext.axi import AxiBus, AxiMaster

from systolith.sim.runner import arguments, start


@cocotb.test()
async def initial_contents(dut: Any) -> None:
    master = AxiMaster(AxiBus.from_prefix(dut, "s0_axi"), dut.clk, dut.rst)
    await start(dut)
    expected = bytes.fromhex(arguments()["contents"])
    got = (await master.read(0, len(expected))).data
    wrong = [i for i in range(len(expected)) if got[i] != expected[i]]
    assert not wrong, f"byte {wrong[0]:#x} is {got[wrong[0]]}, not {expected[wrong[0]]}"
