"""Makes the Verilog of a LiteX SoC with the machine: python litex_soc.py KIT BUS CPU OUT.

CPU is `None`, or `Shell`: one without an inside. The ports `host_*` are an AXI4-Lite master of the
SoC's bus, the CPU's if there is one, and `irq` is the machine's line, or what reaches the CPU as
interrupt 0. 64 kB of memory at 0x40000000, the machine's registers at 0x90000000.
"""

import sys
from pathlib import Path

kit, standard, cpu, output = Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])
sys.path.insert(0, str(kit))

from litex.build.generic_platform import Pins  # noqa: E402
from litex.build.sim.platform import SimPlatform  # noqa: E402
from litex.gen import LiteXModule  # noqa: E402
from litex.soc.cores.cpu import CPU, CPUS  # noqa: E402
from litex.soc.integration.soc_core import SoCCore  # noqa: E402
from litex.soc.interconnect import axi  # noqa: E402
from migen import ClockDomain, Signal  # noqa: E402
from systolith_litex import add_systolith  # noqa: E402

REGISTERS = 0x9000_0000


class ClockAndReset(LiteXModule):
    def __init__(self, platform):
        self.cd_sys = ClockDomain()
        self.comb += [
            self.cd_sys.clk.eq(platform.request("clk")),
            self.cd_sys.rst.eq(platform.request("rst")),
        ]


host = axi.AXILiteInterface(data_width=32, address_width=32)


class Shell(CPU):
    name = human_name = "shell"
    variants = ("standard",)
    data_width, endianness = 32, "little"
    mem_map = {"csr": 0xF000_0000, "main_ram": 0x4000_0000, "rom": 0}  # noqa: RUF012
    io_regions = {0x8000_0000: 0x8000_0000}  # noqa: RUF012
    reset_address = 0x4000_0000
    reset_address_check = False

    def __init__(self, platform, variant):
        self.reset = Signal()
        self.interrupt = Signal(32)
        self.periph_buses, self.memory_buses = [host], []


CPUS["Shell"] = Shell
pins = [(name, 0, Pins(1)) for name in ("clk", "rst", "irq")]
platform = SimPlatform("SIM", [*pins, *host.get_ios("host")])
soc = SoCCore(
    platform, 100e6, cpu_type=None if cpu == "None" else cpu, ident="", with_uart=False,
    with_timer=False, integrated_rom_size=0, integrated_sram_size=0,
    integrated_main_ram_size=1 << 16, bus_standard=standard,
)  # fmt: skip
soc.crg = ClockAndReset(platform)
soc.comb += host.connect_to_pads(platform.request("host"), mode="slave")
if cpu == "None":
    soc.bus.add_master("host", host)
machine = add_systolith(soc, REGISTERS)
soc.comb += platform.request("irq").eq(
    machine.irq if cpu == "None" else soc.cpu.interrupt[0]
)
soc.finalize()
output.write_text(platform.get_verilog(soc, name="soc").main_source)
print(*(source for source, *_ in platform.sources))
