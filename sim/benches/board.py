"""Bench of a simulated board: its serial line is a pseudo-terminal, where any program is the host.

While the line is quiet and the machine idle, the board's time stands still and costs nothing.
"""

import os
import select
import tty
from pathlib import Path
from typing import Any

import cocotb
from cocotb.triggers import FallingEdge, RisingEdge, Timer

from systolith.sim.runner import arguments, progress, report, run_directory

HANDFUL = 64
STOP = "stop"
"""The file in the run's folder that ends the simulation."""
_PERIOD_NS = 10
_WAIT_S = 0.05
_UNREAD_S = 1.0
"""Then what nobody reads is dropped, as a real line would."""


class Line:
    """The ports of ``uart_port``, as bytes."""

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        for name in ("push_go", "push_count", "push_octets", "pull_go"):
            getattr(dut, name).value = 0

    async def _strobe(self, name: str) -> None:
        await FallingEdge(self.dut.clk)
        getattr(self.dut, name).value = 1
        await FallingEdge(self.dut.clk)
        getattr(self.dut, name).value = 0

    async def push(self, octets: bytes) -> None:
        """At most HANDFUL."""
        self.dut.push_octets.value = int.from_bytes(octets, "little")
        self.dut.push_count.value = len(octets)
        await self._strobe("push_go")

    async def pull(self) -> bytes:
        """At most HANDFUL."""
        await self._strobe("pull_go")
        await RisingEdge(self.dut.clk)
        count = int(self.dut.pull_count.value)
        return int(self.dut.pull_octets.value).to_bytes(HANDFUL, "little")[:count]


@cocotb.test()
async def board(dut: Any) -> None:
    settings = arguments()
    line = Line(dut)
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    stop = Path(run_directory(), STOP)
    # Ten bits an octet: the line is looked after twice a handful.
    turn = Timer(_PERIOD_NS * 10 * settings["bit_cycles"] * HANDFUL // 2, "ns")
    await Timer(_PERIOD_NS * settings["reset_cycles"], "ns")
    progress({"port": os.ttyname(slave)})
    octets = [0, 0]
    while not stop.exists():
        if dut.quiet.value and not dut.busy.value:
            ready, _, _ = select.select([master], [], [], _WAIT_S)
            if not ready:
                continue
        if int(dut.waiting.value) < HANDFUL:
            try:
                data = os.read(master, HANDFUL)
            except BlockingIOError:
                data = b""
            if data:
                await line.push(data)
                octets[0] += len(data)
        while int(dut.received.value):
            data = await line.pull()
            octets[1] += len(data)
            while data and select.select([], [master], [], _UNREAD_S)[1]:
                data = data[os.write(master, data) :]
        await turn
    report({"to board": octets[0], "from board": octets[1]})
