"""Bench of the whole machine: loads memory, starts, waits for an interrupt, reads everything.

The top is `memory_systolith` (sim/machine_tb.py). Python wakes up for register accesses and
interrupts only.
"""

import time
from pathlib import Path
from typing import Any

import cocotb
from cocotb.triggers import FallingEdge, First, ReadOnly, RisingEdge, Timer
from cocotb.utils import get_sim_time

from systolith import registers
from systolith.sim.memory import AxiMemory
from systolith.sim.runner import arguments, ask, progress, report, start

PERIOD_NS = 10
_IRQ_DONE, _IRQ_ERROR, _IRQ_MARK = 1, 2, 4


class Registers:
    """The machine's registers over AXI4-Lite, by name."""

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        for name in ("awvalid", "wvalid", "bready", "arvalid", "rready", "awprot", "arprot"):
            self.port(name).value = 0

    def port(self, name: str) -> Any:
        return getattr(self.dut, f"s_axil_{name}")

    async def _transfer(self, valid: str, ready: str) -> None:
        """Returns after the clock edge at which both were high; called while the clock is low."""
        driven, seen = (
            (valid, ready) if valid in ("awvalid", "wvalid", "arvalid") else (ready, valid)
        )
        self.port(driven).value = 1
        while True:
            await ReadOnly()
            taken = bool(self.port(seen).value)
            await FallingEdge(self.dut.clk)
            if taken:
                break
        self.port(driven).value = 0

    async def write(self, name: str, value: int) -> None:
        await FallingEdge(self.dut.clk)
        self.port("awaddr").value = registers.BY_NAME[name].offset
        self.port("wdata").value = value
        self.port("wstrb").value = 15
        address = cocotb.start_soon(self._transfer("awvalid", "awready"))
        await self._transfer("wvalid", "wready")
        await address
        await self._transfer("bvalid", "bready")
        assert int(self.port("bresp").value) == 0, f"write to {name} was refused"

    async def _read(self, offset: int) -> int:
        await FallingEdge(self.dut.clk)
        self.port("araddr").value = offset
        await self._transfer("arvalid", "arready")
        driven = self.port("rready")
        driven.value = 1
        while True:
            await ReadOnly()
            if self.port("rvalid").value:
                value = int(self.port("rdata").value)
                response = int(self.port("rresp").value)
                await FallingEdge(self.dut.clk)
                driven.value = 0
                assert response == 0, f"read at {offset:#x} was refused"
                return value
            await FallingEdge(self.dut.clk)

    async def read(self, name: str) -> int:
        register = registers.BY_NAME[name]
        value = await self._read(register.offset)
        if register.wide:
            value |= await self._read(register.offset + 4) << 32
        return value


async def converse(memory: AxiMemory, job: dict[str, Any], mark: int) -> None:
    """Shows the caller the memory that a mark is about, and writes what he answers."""
    first, size = job["window"]
    raw = await memory.dump(job["base"] + first + (mark >> 16) * size, size)
    for address, data in ask({"mark": mark, "bytes": raw.hex()})["writes"]:
        await memory.load(bytes.fromhex(data), job["base"] + address)


async def wait(dut: Any, control: Registers, memory: AxiMemory, job: dict[str, Any]) -> None:
    """Returns when the program has ended; passes marks on in the meantime."""
    max_cycles = job["max_cycles"]
    limit = get_sim_time("ns") + PERIOD_NS * max_cycles
    while True:
        left = limit - get_sim_time("ns")
        assert left > 0, f"the program has not ended after {max_cycles} cycles"
        if not dut.irq.value:
            await First(RisingEdge(dut.irq), Timer(left, "ns"))
        if not dut.irq.value:
            continue
        # In this order: an end that comes in between raises the interrupt again.
        await control.write("CONTROL", registers.CONTROL_IRQ_CLEAR)
        status = await control.read("STATUS")
        if job["marks"]:
            # Before the status is judged: the last mark comes with the end of the program.
            mark = await control.read("MARK")
            if job["window"] is None:
                progress({"mark": mark})
            elif status & registers.STATUS_BUSY:  # it waits for the answer
                await converse(memory, job, mark)
        if not status & registers.STATUS_BUSY:
            return


async def reset(dut: Any, control: Registers) -> None:
    """The machine's own reset; afterwards it must look like new."""
    await control.write("CONTROL", registers.CONTROL_RESET)
    while await control.read("STATUS"):
        pass
    assert await control.read("ERROR") == 0 and await control.read("ERROR_PC") == 0
    assert not dut.irq.value, "the interrupt outlived the reset"


async def execute(dut: Any, control: Registers, memory: AxiMemory, job: dict[str, Any]) -> dict:
    """One program from start to end; everything that can be read afterwards."""
    memory.configure(**job["settings"])
    if job["image"] is not None:
        await memory.load_file(Path(job["image"]), job["base"])
    for address, data in job["writes"]:
        await memory.load(bytes.fromhex(data), job["base"] + address)
    await control.write("BASE", job["base"])
    await control.write("WATCHDOG", job["watchdog"])
    enabled = _IRQ_DONE | _IRQ_ERROR | (_IRQ_MARK if job["marks"] else 0)
    await control.write("IRQ_ENABLE", enabled)
    begun, at = time.monotonic(), get_sim_time("ns")
    await control.write("CONTROL", registers.CONTROL_START)
    if job["reset_after"]:
        await Timer(PERIOD_NS * job["reset_after"], "ns")
        await reset(dut, control)
    else:
        await wait(dut, control, memory, job)
    seconds, simulated = time.monotonic() - begun, (get_sim_time("ns") - at) / PERIOD_NS

    values = {register.name: await control.read(register.name) for register in registers.REGISTERS}
    after = Path(job["after"]).resolve()
    if len(job["reads"]) == 1:
        (address, size) = job["reads"][0]
        await memory.dump_file(after, job["base"] + address, size)
    else:
        parts = [await memory.dump(job["base"] + at, size) for at, size in job["reads"]]
        after.write_bytes(b"".join(parts))
    return {
        "after": str(after),
        "registers": values,
        "counters": {counter.name: values[counter.name] for counter in registers.COUNTERS},
        "simulated": int(simulated),
        "seconds": seconds,
    }


@cocotb.test()
async def machine(dut: Any) -> None:
    """Executes the programs of the arguments one after another, with a reset behind an error."""
    memory = AxiMemory(dut)
    control = Registers(dut)
    await start(dut)
    identification = await control.read("ID")
    assert identification == registers.IDENTIFICATION, f"ID is {identification:#x}"
    results = []
    for job in arguments()["jobs"]:
        results.append(await execute(dut, control, memory, job))
        progress({"result": results[-1]})
        memory.check_protocol()
        if results[-1]["registers"]["STATUS"] & registers.STATUS_ERROR:
            await reset(dut, control)
    report({"results": len(results)})
