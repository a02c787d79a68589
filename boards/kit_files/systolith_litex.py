"""The systolith machine in a LiteX SoC.

    from systolith_litex import add_systolith

    soc = SoCCore(platform, clk_freq, ...)
    add_systolith(soc, origin=0x9000_0000)      # registers there, memory: the SoC's bus

The Verilog and what it is like are read from ``systolith.v`` and ``manifest.json`` in the folder of
this file, or in ``directory``. Needs LiteX (``pip install litex``) and nothing else.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from litex.gen import LiteXModule
from litex.soc.integration.soc import SoCRegion
from litex.soc.interconnect import axi
from migen import ClockSignal, Instance, ResetSignal, Signal

REGISTER_BYTES = 4096


class Systolith(LiteXModule):
    """The machine with LiteX's interfaces.

    ``registers``: AXI4-Lite slave, 32 bits of data, 12 bits of address count. ``memory``: AXI4
    master, 32 bits of address, data as wide as the configuration's bus; its bursts increment, do
    not cross 4 KiB and have full-width beats. ``irq``: level. ``ev.irq``: the same, where LiteX's
    interrupt controller looks for it. Everything is in the clock domain ``sys``.
    """

    def __init__(self, platform: Any, directory: Path | None = None) -> None:
        folder = Path(__file__).resolve().parent if directory is None else Path(directory)
        manifest = json.loads((folder / "manifest.json").read_text())
        width = 8 * manifest["configuration"]["bus_bytes"]
        self.registers = axi.AXILiteInterface(data_width=32, address_width=32, bursting=False)
        self.memory = axi.AXIInterface(
            data_width=width, address_width=32, id_width=1, bursting=True
        )
        self.irq = Signal()
        self.ev = SimpleNamespace(irq=self.irq)

        connections: dict[str, Any] = {}
        for port in manifest["ports"]:
            name = port["name"]
            prefix = {"input": "i_", "output": "o_"}[port["direction"]]
            signal = self._signal(name)
            # The machine looks at the last 12 bits of a register's address.
            narrower = name.endswith("addr") and port["width"] < len(signal)
            connections[prefix + name] = signal[: port["width"]] if narrower else signal
        self.specials += Instance(manifest["top"], **connections)
        platform.add_source(str(folder / manifest["verilog"]["file"]))

    def _signal(self, name: str) -> Any:
        """LiteX's signal of a port of the Verilog."""
        if name in ("clk", "rst"):
            return {"clk": ClockSignal, "rst": ResetSignal}[name]("sys")
        if name == "irq":
            return self.irq
        for prefix, bus in (("s_axil_", self.registers), ("m_axi_", self.memory)):
            if name.startswith(prefix):
                short = name.removeprefix(prefix)
                channel = "aw" if short.startswith("aw") else "ar" if short.startswith("ar") else ""
                channel = channel or short[0]
                return getattr(getattr(bus, channel), short.removeprefix(channel))
        raise ValueError(f"The manifest has the port {name!r}, which this wrapper does not know")


def add_systolith(
    soc: Any, origin: int, directory: Path | None = None, name: str = "systolith"
) -> Systolith:
    """Adds the machine to a SoC: ``soc.<name>``.

    Its registers are a slave of the SoC's bus at ``origin``: a multiple of 4096, in an I/O region
    of the CPU. Its memory port is a master of the CPU's coherent bus (``dma_bus``) if there is one,
    else of the SoC's, through LiteX's adapters where that is no AXI of the same width. With a CPU
    that has interrupts, the machine's gets the next free number.
    """
    if origin % REGISTER_BYTES:
        raise ValueError(f"The origin must be a multiple of {REGISTER_BYTES}, not {origin:#x}")
    machine = Systolith(soc.platform, directory)
    setattr(soc, name, machine)
    region = SoCRegion(origin=origin, size=REGISTER_BYTES, cached=False)
    soc.bus.add_slave(name, machine.registers, region)
    getattr(soc, "dma_bus", soc.bus).add_master(name, machine.memory)
    if soc.irq.enabled:
        soc.irq.add(name, use_loc_if_exists=True)
    return machine
