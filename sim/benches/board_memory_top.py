"""Test tops of a board's memories: flat AXI ports for masters in front of them."""

from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from systolith.config import Config
from systolith.hdl.axi import AXI4Read, AXI4Write, connect_flat, flat_members
from systolith.hdl.memory_bus import MemoryBus


def sdram_pins(memory) -> dict[str, wiring.Member]:
    """The pins of an ``Sdram``, as members of what is around it."""
    return {
        name: member
        for name, member in memory.signature.members.items()
        if name.startswith("sdram_")
    }


def connect_pins(m: Module, top: wiring.Component, memory) -> None:
    for name, member in sdram_pins(memory).items():
        inside, outside = getattr(memory, name), getattr(top, name)
        m.d.comb += outside.eq(inside) if member.flow is Out else inside.eq(outside)


class FlatSlave(wiring.Component):
    """One memory behind flat ports ``s0_axi_*``; an ``Sdram`` has its pins, too."""

    def __init__(self, config: Config, memory: wiring.Component) -> None:
        self.config = config
        self.memory = memory
        super().__init__({**_ports(config, 0), **sdram_pins(memory)})

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.memory = self.memory
        connect_flat(m, self, "s0_axi", self.memory.read)
        connect_flat(m, self, "s0_axi", self.memory.write)
        connect_pins(m, self, self.memory)
        return m


class FlatBus(wiring.Component):
    """Masters at ``s0_axi_*``, ``s1_axi_*``, ..., a ``MemoryBus``, and memories behind it.

    ``memories``: (base, size of the region, memory); one of them may be an ``Sdram``.
    """

    def __init__(self, config: Config, masters: int, memories: list) -> None:
        self.config = config
        self.masters = masters
        self.memories = memories
        members: dict = {}
        for number in range(masters):
            members |= _ports(config, number)
        for _, _, memory in memories:
            members |= sdram_pins(memory)
        super().__init__(members)

    def elaborate(self, platform) -> Module:
        m = Module()
        regions = [(base, size) for base, size, _ in self.memories]
        m.submodules.bus = bus = MemoryBus(self.config, self.masters, regions)
        for number in range(self.masters):
            connect_flat(m, self, f"s{number}_axi", bus.read_masters[number])
            connect_flat(m, self, f"s{number}_axi", bus.write_masters[number])
        for number, (_, _, memory) in enumerate(self.memories):
            m.submodules[f"memory_{number}"] = memory
            wiring.connect(m, bus.read_slaves[number], memory.read)
            wiring.connect(m, bus.write_slaves[number], memory.write)
            connect_pins(m, self, memory)
        return m


def _ports(config: Config, number: int) -> dict[str, wiring.Member]:
    found: dict[str, wiring.Member] = {}
    for signature in (AXI4Read(config), AXI4Write(config)):
        found |= flat_members(f"s{number}_axi", signature.flip())
    return found
