"""Bench of test_kit_litex.py: a bus master writes a program into the SoC's memory and runs it."""

from typing import Any

import cocotb
from cocotb.triggers import FallingEdge, First, RisingEdge, Timer

from systolith import registers
from systolith.sim.benches.machine import PERIOD_NS, Registers
from systolith.sim.runner import arguments, report, run_directory, start


class Host(Registers):
    """AXI4-Lite master on the ports ``host_*``, by address."""

    def port(self, name: str) -> Any:
        return getattr(self.dut, f"host_{name}")

    async def store(self, address: int, value: int) -> None:
        await FallingEdge(self.dut.clk)
        self.port("awaddr").value, self.port("wdata").value = address, value
        self.port("wstrb").value = 15
        written = cocotb.start_soon(self._transfer("awvalid", "awready"))
        await self._transfer("wvalid", "wready")
        await written
        await self._transfer("bvalid", "bready")
        assert int(self.port("bresp").value) == 0, f"write at {address:#x} was refused"

    async def load(self, address: int) -> int:
        return await self._read(address)


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def soc(dut: Any) -> None:
    given = arguments()
    at, base = given["registers"], given["base"]
    offsets = {register.name: at + register.offset for register in registers.REGISTERS}
    host = Host(dut)
    await start(dut)
    identity = [await host.load(offsets[name]) for name in ("ID", "CONFIG_HASH")]
    image = (run_directory() / "image.bin").read_bytes()
    for index in range(0, len(image), 4):
        word = int.from_bytes(image[index : index + 4], "little")
        await host.store(base + index, word)
    await host.store(offsets["BASE"], base)
    await host.store(offsets["IRQ_ENABLE"], 3)
    await host.store(offsets["CONTROL"], registers.CONTROL_START)
    if not dut.irq.value:
        await First(RisingEdge(dut.irq), Timer(PERIOD_NS * given["max_cycles"], "ns"))
    assert dut.irq.value, "no interrupt came"
    values = {name: await host.load(offsets[name]) for name in ("STATUS", "ERROR", "ERROR_PC")}
    counters = {
        counter.name: await host.load(offsets[counter.name]) for counter in registers.COUNTERS
    }
    first, size = given["result"]
    words = [await host.load(base + first + index) for index in range(0, size + 3, 4)]
    result = b"".join(word.to_bytes(4, "little") for word in words)[:size]
    report({"identity": identity, "result": result.hex(), **values, "counters": counters})
