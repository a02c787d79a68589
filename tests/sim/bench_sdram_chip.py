"""Bench of test_sdram_chip.py: plays a list of commands to the chip, one at a falling edge each."""

from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, ReadOnly

from systolith.sim.runner import arguments, report
from systolith.sim.sdram import COUNTERS

CODES = {"mode": 0, "ref": 1, "pre": 2, "act": 3, "write": 4, "read": 5, "stop": 6, "nop": 7}


@cocotb.test()
async def plays(dut: Any) -> None:
    """``steps``: [command, bank, address, data or None, mask, cycles until the next]."""
    Clock(dut.clk, 10, "ns").start()
    dut.load_go.value = dut.dump_go.value = 0
    for name, value in {"cke": 1, "cs_n": 0, "dq_driven": 0, "dqm": 0, "dq_i": 0}.items():
        getattr(dut, name).value = value
    _command(dut, "nop", 0, 0)
    sampled = []
    for command, bank, address, data, mask, cycles in arguments()["steps"]:
        for cycle in range(cycles):
            await FallingEdge(dut.clk)
            _command(dut, command if cycle == 0 else "nop", bank, address)
            dut.dqm.value = mask if cycle == 0 else 0
            dut.dq_driven.value = int(data is not None and cycle < len(data))
            if data is not None and cycle < len(data):
                dut.dq_i.value = data[cycle]
            await ReadOnly()  # what the next rising edge samples
            sampled.append(int(dut.dq_o.value))
    await FallingEdge(dut.clk)
    await FallingEdge(dut.clk)
    counts = {name: int(getattr(dut, name).value) for name in COUNTERS}
    report({"error": int(dut.error.value), "sampled": sampled, **counts})


def _command(dut: Any, name: str, bank: int, address: int) -> None:
    code = CODES[name]
    dut.ras_n.value, dut.cas_n.value, dut.we_n.value = code >> 2, code >> 1 & 1, code & 1
    dut.ba.value, dut.a.value = bank, address

