# amaranth: UnusedElaboratable=no
"""The board's end of the line against the model of a board: the same answers to any requests."""

import random
from typing import Any

import pytest
from amaranth import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.sim import Simulator

from systolith.config import PRESETS, Config
from systolith.hdl.axi import AXI4Lite, AXI4Read, AXI4Write
from systolith.hdl.framing import Deframer, Framer
from systolith.hdl.link import Executor, HostLink
from systolith.hdl.verilog import to_verilog
from tests.boards.link_model import ModelBoard, framed, identity, unframed

MEMORY = 4096
REGISTERS = 64


class Pipe(wiring.Component):
    """Octets in and out, without the line."""

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "octets": In(stream.Signature(8)),
                "build": In(64),
                "answers": Out(stream.Signature(8)),
                "lite": Out(AXI4Lite()),
                "read": Out(AXI4Read(config)),
                "write": Out(AXI4Write(config)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.deframer = deframer = Deframer()
        m.submodules.executor = executor = Executor(self.config, identity(build=0))
        m.submodules.framer = framer = Framer()
        m.d.comb += executor.build.eq(self.build)
        connect(m, flipped(self.octets), deframer.octets)
        connect(m, deframer.contents, executor.contents)
        connect(m, executor.answers, framer.contents)
        connect(m, framer.octets, flipped(self.answers))
        for name in ("lite", "read", "write"):
            connect(m, getattr(executor, name), flipped(getattr(self, name)))
        return m


class Slaves:
    """Memory and registers behind the ports of ``dut``; every channel waits as ``rng`` wants."""

    def __init__(self, dut: Any, config: Config, rng: random.Random, idle: float) -> None:
        self.dut, self.config, self.rng, self.idle = dut, config, rng, idle
        self.memory = bytearray(MEMORY)
        self.registers: dict[int, int] = {}

    async def _pause(self, ctx: Any) -> None:
        while self.rng.random() < self.idle:
            await ctx.tick()

    async def _take(self, ctx: Any, channel: Any) -> Any:
        await self._pause(ctx)
        ctx.set(channel.ready, 1)
        valid = False
        while not valid:
            _, _, valid, payload = await ctx.tick().sample(channel.valid, channel.payload)
        ctx.set(channel.ready, 0)
        return payload

    async def _give(self, ctx: Any, channel: Any, **values: int) -> None:
        await self._pause(ctx)
        for name, value in values.items():
            ctx.set(channel.payload[name], value)
        ctx.set(channel.valid, 1)
        while not (await ctx.tick().sample(channel.ready))[2]:
            pass
        ctx.set(channel.valid, 0)

    async def reads(self, ctx: Any) -> None:
        size = self.config.bus_bytes
        while True:
            asked = await self._take(ctx, self.dut.read.ar)
            assert asked.len == 0 and asked.addr % size == 0 and 1 << asked.size == size
            data = bytes(self.memory[asked.addr : asked.addr + size])
            value, wrong = int.from_bytes(data, "little"), 3 * (len(data) < size)
            await self._give(ctx, self.dut.read.r, data=value, resp=wrong, last=1)

    async def writes(self, ctx: Any) -> None:
        while True:
            asked = await self._take(ctx, self.dut.write.aw)
            beat = await self._take(ctx, self.dut.write.w)
            assert beat.last
            wrong = 3 * (asked.addr >= MEMORY)
            for lane in range(self.config.bus_bytes):
                if beat.strb >> lane & 1 and not wrong:
                    self.memory[asked.addr + lane] = beat.data >> 8 * lane & 0xFF
            await self._give(ctx, self.dut.write.b, resp=wrong)

    async def register_reads(self, ctx: Any) -> None:
        while True:
            asked = await self._take(ctx, self.dut.lite.ar)
            value = self.registers.get(asked.addr, 0)
            await self._give(ctx, self.dut.lite.r, data=value, resp=0)

    async def register_writes(self, ctx: Any) -> None:
        while True:
            asked = await self._take(ctx, self.dut.lite.aw)
            beat = await self._take(ctx, self.dut.lite.w)
            assert beat.strb == 0b1111
            self.registers[asked.addr] = beat.data
            await self._give(ctx, self.dut.lite.b, resp=0)

    def add_to(self, simulator: Simulator) -> None:
        for work in (self.reads, self.writes, self.register_reads, self.register_writes):
            simulator.add_testbench(work, background=True)


def _requests(rng: random.Random, count: int) -> list[bytes]:
    """Frames of all kinds: in order, again, too early, damaged, senseless, too long, empty."""
    number = rng.randrange(256)
    frames = [framed(bytes([0, number, 0, 0, 0, 0, 0, 0]))]
    number += 1
    for _ in range(count):
        operation = rng.choice([1, 2, 2, 3, 4])
        memory = operation in (1, 2)
        length = 4 * rng.choice([1, 2, 3, rng.randrange(1, 129)] if memory else [1, 2, 3])
        limit = MEMORY + 256 if memory else 4 * REGISTERS - 16
        address = 4 * rng.randrange(limit // 4)
        if memory and length > 12:
            address -= address % 512
        what = rng.random()
        other = number
        if what < 0.15:  # an old one, or one too early
            other = number + rng.randrange(-3, 4)
        elif what < 0.2:
            operation = rng.choice([5, 0x7F, 0x81])
        elif what < 0.23:
            length += rng.choice([1, 2, 4, 516])
        elif what < 0.26:
            address += rng.choice([1, 2])
        payload = rng.randbytes(length) if operation in (2, 4) else b""
        if rng.random() < 0.03:
            payload += rng.randbytes(4)
        content = bytes([operation, other % 256, *length.to_bytes(2, "little")])
        content += address.to_bytes(4, "little") + payload
        octets = framed(content)
        fate = rng.random()
        if fate < 0.06:
            at = rng.randrange(1, len(octets) - 1)
            octets = octets[:at] + bytes([octets[at] ^ 1 << rng.randrange(8)]) + octets[at + 1 :]
        elif fate < 0.1:
            at = rng.randrange(len(octets))
            octets = octets[:at] + octets[at + 1 :]
        elif fate < 0.12:
            octets += b"\x7e\x7d\x7e"
        frames.append(octets)
        if fate >= 0.1 and what >= 0.26 and other == number:
            number = (number + 1) % 256
    return frames


@pytest.mark.parametrize("preset, idle", [("tiny", 0.4), ("lean", 0.0), ("bench", 0.4)])
def test_answers_like_the_model(preset: str, idle: float, seed: int) -> None:
    config = PRESETS[preset]
    rng = random.Random(seed)
    frames = _requests(rng, 120)
    model = ModelBoard()
    expected = unframed(b"".join(model.octets(octets) for octets in frames))
    kinds = {bytes([c[0], c[-1]]) for c in expected}
    assert {b"\xff\x02", b"\xff\x03", b"\xff\x04", b"\x81\x01", b"\x82\x01", b"\x82\x00"} <= kinds
    dut = Pipe(config)
    slaves = Slaves(dut, config, rng, idle)
    found = bytearray()

    async def drive(ctx: Any) -> None:
        ctx.set(dut.build, identity().build)
        for octet in b"".join(frames):
            while rng.random() < idle:
                await ctx.tick()
            ctx.set(dut.octets.payload, octet)
            ctx.set(dut.octets.valid, 1)
            await ctx.tick().until(dut.octets.ready)
            ctx.set(dut.octets.valid, 0)
        await ctx.tick().repeat(2000)  # for the last answer

    async def listen(ctx: Any) -> None:
        while True:
            ready = rng.random() >= idle
            ctx.set(dut.answers.ready, ready)
            _, _, valid, octet = await ctx.tick().sample(dut.answers.valid, dut.answers.payload)
            if ready and valid:
                found.append(octet)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(drive)
    simulator.add_testbench(listen, background=True)
    slaves.add_to(simulator)
    simulator.run()
    answers = unframed(bytes(found))
    for index, (answer, wanted) in enumerate(zip(answers, expected, strict=False)):
        assert _same(answer, wanted), f"answer {index} is {answer!r} and should be {wanted!r}"
    assert len(answers) == len(expected)
    assert slaves.memory == model.memory
    assert slaves.registers == model.registers


def _same(answer: bytes | None, wanted: bytes | None) -> bool:
    """What was read at addresses without memory is anything."""
    if answer and wanted and wanted[0] == 0x81 and wanted[-1]:
        return (answer[:2], answer[-1], len(answer)) == (wanted[:2], wanted[-1], len(wanted))
    return answer == wanted


def test_over_the_line(seed: int) -> None:
    """A few requests on the UART, answers checked octet by octet."""
    config = PRESETS["lean"]
    cycles = 4
    dut = HostLink(config, identity(build=0), cycles)
    rng = random.Random(seed)
    slaves = Slaves(dut, config, rng, 0.2)
    data = rng.randbytes(32) + b"\x7e\x7d\x7e\x7d"
    requests = [
        bytes([0, 7, 0, 0, 0, 0, 0, 0]),
        bytes([2, 8, len(data), 0, 0, 1, 0, 0]) + data,
        bytes([1, 9, len(data), 0, 0, 1, 0, 0]),
        bytes([4, 10, 4, 0, 0x20, 0, 0, 0, 1, 2, 3, 4]),
        bytes([3, 11, 8, 0, 0x1C, 0, 0, 0]),
    ]
    model = ModelBoard()
    octets = b"".join(map(framed, requests))
    expected = model.octets(octets)
    found = []

    async def drive(ctx: Any) -> None:
        ctx.set(dut.build, identity().build)
        for octet in octets:
            for bit in [0, *(octet >> i & 1 for i in range(8)), 1]:
                ctx.set(dut.rx, bit)
                await ctx.tick().repeat(cycles)
        await ctx.tick().repeat(10 * cycles * (len(expected) + 60))

    async def listen(ctx: Any) -> None:
        while True:
            while ctx.get(dut.tx):
                await ctx.tick()
            await ctx.tick().repeat(cycles + cycles // 2)
            octet = 0
            for i in range(8):
                octet |= ctx.get(dut.tx) << i
                await ctx.tick().repeat(cycles)
            assert ctx.get(dut.tx) == 1
            found.append(octet)

    async def never_lost(ctx: Any) -> None:
        while True:
            assert not ctx.get(dut.lost)
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(drive)
    simulator.add_testbench(listen, background=True)
    simulator.add_testbench(never_lost, background=True)
    slaves.add_to(simulator)
    simulator.run()
    assert bytes(found) == expected


@pytest.mark.parametrize("preset", list(PRESETS))
def test_converts(preset: str) -> None:
    config = PRESETS[preset]
    assert "module" in to_verilog(HostLink(config, identity(), 4), "link")
