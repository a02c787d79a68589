"""Makes the Verilog of a LiteX SoC with the kit's module in it: python litex_soc.py KIT BUS OUT.

No CPU: the ports `host_*` are an AXI4-Lite master of the SoC's bus. 64 kB of memory at 0x40000000,
the machine's registers at 0x30000000, `irq` the machine's.
"""

import sys
from pathlib import Path

kit, standard, output = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
sys.path.insert(0, str(kit))

from litex.build.generic_platform import Pins  # noqa: E402
from litex.build.sim.platform import SimPlatform  # noqa: E402
from litex.gen import LiteXModule  # noqa: E402
from litex.soc.integration.soc_core import SoCCore  # noqa: E402
from litex.soc.interconnect import axi  # noqa: E402
from migen import ClockDomain  # noqa: E402
from systolith_litex import add_systolith  # noqa: E402

REGISTERS = 0x3000_0000


class ClockAndReset(LiteXModule):
    def __init__(self, platform):
        self.cd_sys = ClockDomain()
        self.comb += [
            self.cd_sys.clk.eq(platform.request("clk")),
            self.cd_sys.rst.eq(platform.request("rst")),
        ]


host = axi.AXILiteInterface(data_width=32, address_width=32)
pins = [(name, 0, Pins(1)) for name in ("clk", "rst", "irq")]
platform = SimPlatform("SIM", [*pins, *host.get_ios("host")])
soc = SoCCore(
    platform, 100e6, cpu_type=None, ident="", with_uart=False, with_timer=False,
    integrated_rom_size=0, integrated_sram_size=0, integrated_main_ram_size=1 << 16,
    bus_standard=standard,
)  # fmt: skip
soc.crg = ClockAndReset(platform)
soc.comb += host.connect_to_pads(platform.request("host"), mode="slave")
soc.bus.add_master("host", host)
machine = add_systolith(soc, REGISTERS)
soc.comb += platform.request("irq").eq(machine.irq)
soc.finalize()
output.write_text(platform.get_verilog(soc, name="soc").main_source)
print(*(source for source, *_ in platform.sources))
