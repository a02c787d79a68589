"""Everything of a board but its pins and its PLL: machine, host link and memories.

uart ◀─▶ link ─▶ s_axil of the machine
         link ─┐
               ├─▶ memory bus ─▶ block memory, SDRAM
      machine ─┘
"""

from amaranth import Cat, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect

from systolith.config import Config
from systolith.hdl.axi import AXI4Lite, AXI4Read, AXI4Write, attach_flat
from systolith.hdl.block_memory import BlockMemory
from systolith.hdl.link import HostLink
from systolith.hdl.memory_bus import MemoryBus
from systolith.hdl.sdram import Sdram
from systolith.hdl.sdram_chip import SdramChip
from systolith.hdl.spram_memory import SpramMemory
from systolith.hdl.top import Systolith
from systolith.host_link import Identity

_MACHINE, _HOST = range(2)
"""Masters of the memory bus."""


class BoardCore(wiring.Component):
    """A machine with memory and a host at a serial line.

    Parameters
    ----------
    config : Config
    identity : Identity
        What the board tells of itself; its ``build`` comes by the port ``build_hash``. Block memory
        is as large as it says, at address 0.
    bit_cycles : int
        Clock cycles of a bit on the serial line.
    chip : SdramChip or None
        An SDRAM, whose bytes follow those of the block memory.
    single_port : bool
        Block memory with one port, as the large ones of an iCE40 UP5K have it.

    Members
    -------
    uart_rx : in, 1; uart_tx : out, 1
    build_hash : in, 64
    leds : out, 3
        Ready (not in reset), machine busy, machine in error.
    sdram_* : of ``Sdram``
        If there is one.
    """

    def __init__(
        self,
        config: Config,
        identity: Identity,
        bit_cycles: int,
        chip: SdramChip | None = None,
        *,
        single_port: bool = False,
    ) -> None:
        self.config, self.identity, self.bit_cycles = config, identity, bit_cycles
        self.single_port = single_port
        self.sdram = None if chip is None else Sdram(config, chip, identity.clock_hz)
        super().__init__(
            {
                "uart_rx": In(1, init=1),
                "uart_tx": Out(1),
                "build_hash": In(64),
                "leds": Out(3),
                **self._pins(),
            }
        )

    def _pins(self) -> dict[str, wiring.Member]:
        """Of the SDRAM."""
        members = {} if self.sdram is None else self.sdram.signature.members
        return {name: item for name, item in members.items() if name.startswith("sdram_")}

    def elaborate(self, platform) -> Module:
        m = Module()
        config, identity = self.config, self.identity
        m.submodules.machine = machine = Systolith(config)
        m.submodules.link = link = HostLink(config, identity, self.bit_cycles)
        kind = SpramMemory if self.single_port else BlockMemory
        m.submodules.block = block = kind(config, identity.block_bytes)
        memories: list = [block]
        regions = [(0, identity.block_bytes)]
        if self.sdram is not None:
            m.submodules.sdram = self.sdram
            memories.append(self.sdram)
            regions.append((identity.block_bytes, self.sdram.chip.size_bytes))
            for name, item in self._pins().items():
                outer, inner = getattr(self, name), getattr(self.sdram, name)
                m.d.comb += outer.eq(inner) if item.flow is Out else inner.eq(outer)
        m.submodules.bus = bus = MemoryBus(config, 2, regions)
        m.d.comb += [
            link.rx.eq(self.uart_rx),
            link.build.eq(self.build_hash),
            self.uart_tx.eq(link.tx),
        ]
        connect(m, link.lite, attach_flat(m, machine, "s_axil", AXI4Lite().flip()))
        connect(m, attach_flat(m, machine, "m_axi", AXI4Read(config)), bus.read_masters[_MACHINE])
        connect(m, attach_flat(m, machine, "m_axi", AXI4Write(config)), bus.write_masters[_MACHINE])
        connect(m, link.read, bus.read_masters[_HOST])
        connect(m, link.write, bus.write_masters[_HOST])
        for number, memory in enumerate(memories):
            connect(m, bus.read_slaves[number], memory.read)
            connect(m, bus.write_slaves[number], memory.write)
        m.d.comb += self.leds.eq(Cat(1, machine.busy, machine.error))
        return m
