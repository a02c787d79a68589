"""Bench of a machine on the memories of a board: a host writes, starts, looks on, and reads back.

The top is ``MachineOnBus`` with an SDRAM chip. Nothing goes through a back door: programs and
results pass the interconnect.
"""

import random
from pathlib import Path
from typing import Any

import cocotb
from cocotb.triggers import ClockCycles, RisingEdge, with_timeout
from cocotbext.axi import AxiBus, AxiMaster, AxiResp

from systolith import registers
from systolith.sim.benches.board_memory import pause
from systolith.sim.benches.machine import Registers
from systolith.sim.runner import arguments, report, seed, start
from systolith.sim.sdram import Chip


async def look_on(host: AxiMaster, base: int, image: bytes, rng: random.Random) -> None:
    """Reads constants of the running program again and again, and finds them as they were."""
    while True:
        length = rng.randint(1, 300)
        address = rng.randint(0, len(image) - length)
        read = await host.read(base + address, length)
        assert read.resp == AxiResp.OKAY
        assert read.data == image[address : address + length], f"{length} bytes at {address:#x}"


@cocotb.test()
async def programs(dut: Any) -> None:
    """Each of ``jobs``: image (a file), base, bytes to read back to the file ``after``."""
    settings = arguments()
    rng = random.Random(seed())
    host = AxiMaster(AxiBus.from_prefix(dut, "s0_axi"), dut.clk, dut.rst, max_burst_len=64)
    pause(host, settings["idle"], rng)
    control = Registers(dut)
    chip = Chip(dut)
    await start(dut)
    cycles = []
    for job in settings["jobs"]:
        image = Path(job["image"]).read_bytes()
        answer = await host.write(job["base"], image)
        assert answer.resp == AxiResp.OKAY
        await control.write("BASE", job["base"])
        await control.write("WATCHDOG", 20000)
        await control.write("IRQ_ENABLE", 3)
        await control.write("CONTROL", registers.CONTROL_START)
        # The instructions and constants: what the program itself does not write.
        looks = cocotb.start_soon(look_on(host, job["base"], image[: job["constant"]], rng))
        await with_timeout(RisingEdge(dut.irq), 10, "ms")
        looks.cancel()
        await ClockCycles(dut.clk, 2000)  # what the host has asked for comes
        status = await control.read("STATUS")
        where = f"error {await control.read('ERROR')} at {await control.read('ERROR_PC')}"
        assert status & registers.STATUS_DONE, where
        await control.write("CONTROL", registers.CONTROL_IRQ_CLEAR)
        cycles.append(await control.read("CYCLES"))
        read = await host.read(job["base"], job["size"])
        assert read.resp == AxiResp.OKAY
        Path(job["after"]).write_bytes(bytes(read.data))
    chip.check()
    report({"cycles": cycles, **chip.counters()})
