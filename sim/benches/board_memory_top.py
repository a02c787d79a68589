"""Test tops of a board's memories: flat AXI ports for masters in front of them."""

from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from systolith.config import Config
from systolith.hdl.axi import (
    AXI4Lite,
    AXI4Read,
    AXI4Write,
    attach_flat,
    connect_flat,
    flat_members,
    flat_ports,
)
from systolith.hdl.memory_bus import MemoryBus
from systolith.hdl.top import Systolith


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


class MachineOnBus(wiring.Component):
    """A machine on a ``MemoryBus`` with a host beside it, whose port is ``s0_axi_*``.

    ``memories``: as in ``FlatBus``. The registers are at ``s_axil_*``.
    """

    def __init__(self, config: Config, memories: list) -> None:
        self.config = config
        self.memories = memories
        lite = flat_members("s_axil", AXI4Lite().flip())
        members = {**_ports(config, 0), **lite, "irq": Out(1)}
        for _, _, memory in memories:
            members |= sdram_pins(memory)
        super().__init__(members)

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.machine = machine = Systolith(self.config)
        m.submodules.memories = memories = FlatBus(self.config, 2, self.memories)
        lite = attach_flat(m, machine, "s_axil", AXI4Lite().flip())
        connect_flat(m, self, "s_axil", lite)
        m.d.comb += self.irq.eq(machine.irq)
        for signature in (AXI4Read(self.config), AXI4Write(self.config)):
            for port, inner in zip(
                flat_ports("m_axi", signature), flat_ports("s1_axi", signature), strict=True
            ):
                ours, theirs = getattr(machine, port.name), getattr(memories, inner.name)
                m.d.comb += theirs.eq(ours) if port.flow is Out else ours.eq(theirs)
        for name, member in _ports(self.config, 0).items():
            ours, theirs = getattr(self, name), getattr(memories, name)
            m.d.comb += ours.eq(theirs) if member.flow is Out else theirs.eq(ours)
        connect_pins(m, self, memories)
        return m


def _ports(config: Config, number: int) -> dict[str, wiring.Member]:
    found: dict[str, wiring.Member] = {}
    for signature in (AXI4Read(config), AXI4Write(config)):
        found |= flat_members(f"s{number}_axi", signature.flip())
    return found
