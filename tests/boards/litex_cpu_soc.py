"""Makes a LiteX SoC whose CPU runs a firmware: python litex_cpu_soc.py KIT FIRMWARE OUT.

PicoRV32 with the firmware in its ROM at 0, 64 kB of memory at 0x40000000, the machine's registers
at 0x90000000. Ports: `written` with `address` and `value` (the CPU's writes), `trap`. Writes
soc.v and the ROM's contents to the folder OUT, and prints the names of further Verilog files.
"""

import sys
from pathlib import Path

kit, firmware, output = (Path(argument) for argument in sys.argv[1:])
sys.path.insert(0, str(kit))

from litex.build.generic_platform import Pins  # noqa: E402
from litex.build.sim.platform import SimPlatform  # noqa: E402
from litex.gen import LiteXModule  # noqa: E402
from litex.soc.integration.soc_core import SoCCore  # noqa: E402
from migen import ClockDomain  # noqa: E402
from systolith_litex import add_systolith  # noqa: E402


class ClockAndReset(LiteXModule):
    def __init__(self, platform):
        self.cd_sys = ClockDomain()
        self.comb += [
            self.cd_sys.clk.eq(platform.request("clk")),
            self.cd_sys.rst.eq(platform.request("rst")),
        ]


image = firmware.read_bytes()
words = [
    int.from_bytes(image[at : at + 4].ljust(4, b"\0"), "little") for at in range(0, len(image), 4)
]
ports = {"clk": 1, "rst": 1, "written": 1, "address": 32, "value": 32, "trap": 1}
platform = SimPlatform("SIM", [(name, 0, Pins(width)) for name, width in ports.items()])
soc = SoCCore(
    platform, 100e6, cpu_type="picorv32", ident="", with_uart=False, with_timer=False,
    integrated_rom_size=32 << 10, integrated_rom_init=words, integrated_sram_size=4096,
    integrated_main_ram_size=64 << 10,
)  # fmt: skip
soc.crg = ClockAndReset(platform)
add_systolith(soc, 0x9000_0000)
bus = soc.cpu.idbus
soc.comb += [
    platform.request("written").eq(bus.stb & bus.we & bus.ack),
    platform.request("address").eq(bus.adr),
    platform.request("value").eq(bus.dat_w),
    platform.request("trap").eq(soc.cpu.trap),
]
soc.finalize()
made = platform.get_verilog(soc, name="soc")
(output / "soc.v").write_text(made.main_source)
(output / "soc_rom.init").write_text(made.data_files["soc_rom.init"])
print(*(source for source, *_ in platform.sources))
