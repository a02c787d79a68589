# amaranth: UnusedElaboratable=no
"""Port names, the read arbiter, and the burst splitter."""

import random
from functools import partial
from typing import Any

import pytest
from amaranth.back import verilog
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from systolith.config import PRESETS, Config
from systolith.hdl import axi
from systolith.hdl.axi import BurstSplitter, ReadArbiter

CONFIG = Config(dim=8, lanes=4, bus_bytes=8)
PAGE = axi.PAGE_BYTES


def _simulate(dut: Any, *testbenches: Any) -> None:
    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    for testbench in testbenches:
        simulator.add_testbench(testbench)
    simulator.run()


async def _send(ctx: Any, stream: Any, payload: Any, rng: random.Random, idle: float) -> None:
    while rng.random() < idle:
        await ctx.tick()
    ctx.set(stream.payload, payload)
    ctx.set(stream.valid, 1)
    await ctx.tick().until(stream.ready)
    ctx.set(stream.valid, 0)


async def _receive(ctx: Any, stream: Any, rng: random.Random, idle: float) -> Any:
    while rng.random() < idle:
        await ctx.tick()
    ctx.set(stream.ready, 1)
    (payload,) = await ctx.tick().sample(stream.payload).until(stream.valid)
    ctx.set(stream.ready, 0)
    return payload


MASTER = {
    "araddr": (Out, 32), "arlen": (Out, 8), "arsize": (Out, 3), "arburst": (Out, 2),
    "arid": (Out, 1), "arlock": (Out, 1), "arcache": (Out, 4), "arprot": (Out, 3),
    "arqos": (Out, 4), "arvalid": (Out, 1), "arready": (In, 1), "rid": (In, 1), "rdata": (In, 64),
    "rresp": (In, 2), "rlast": (In, 1), "rvalid": (In, 1), "rready": (Out, 1),
}  # fmt: skip
WRITE = {
    **{name.replace("ar", "aw", 1): port for name, port in MASTER.items() if name[0] == "a"},
    "wdata": (Out, 64), "wstrb": (Out, 8), "wlast": (Out, 1), "wvalid": (Out, 1),
    "wready": (In, 1), "bid": (In, 1), "bresp": (In, 2), "bvalid": (In, 1), "bready": (Out, 1),
}  # fmt: skip
SLAVE = {
    "awaddr": (In, 12), "awprot": (In, 3), "awvalid": (In, 1), "awready": (Out, 1),
    "wdata": (In, 32), "wstrb": (In, 4), "wvalid": (In, 1), "wready": (Out, 1),
    "bresp": (Out, 2), "bvalid": (Out, 1), "bready": (In, 1),
    "araddr": (In, 12), "arprot": (In, 3), "arvalid": (In, 1), "arready": (Out, 1),
    "rdata": (Out, 32), "rresp": (Out, 2), "rvalid": (Out, 1), "rready": (In, 1),
}  # fmt: skip


@pytest.mark.parametrize(
    ("prefix", "signature", "expected"),
    [
        ("m_axi", axi.AXI4Read(CONFIG), MASTER),
        ("m_axi", axi.AXI4Write(CONFIG), WRITE),
        ("s_axil", axi.AXI4Lite().flip(), SLAVE),
    ],
)
def test_flat_ports(prefix: str, signature: wiring.Signature, expected: dict[str, Any]) -> None:
    ports = axi.flat_ports(prefix, signature)
    assert {p.name: (p.flow, p.width) for p in ports} == {
        f"{prefix}_{name}": port for name, port in expected.items()
    }
    members = axi.flat_members(prefix, signature)
    assert list(members) == [port.name for port in ports]


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_converts(config: Config) -> None:
    assert "module" in verilog.convert(ReadArbiter(config))
    assert "module" in verilog.convert(ReadArbiter(config, clients=1))
    assert "module" in verilog.convert(BurstSplitter(config, 18, 4))


def test_number_of_clients() -> None:
    with pytest.raises(ValueError, match="Clients must be from 1 to 2, not 3"):
        ReadArbiter(CONFIG, clients=3)


@pytest.mark.parametrize("idle", [0.0, 0.6])
def test_arbiter_routes_interleaved_bursts(idle: float, seed: int) -> None:
    """Each client's data in its own order, whatever the memory interleaves between IDs."""
    rng = random.Random(seed)
    dut = ReadArbiter(CONFIG)
    count = 40
    asked = [
        [{"addr": rng.randrange(0, 1 << 32, 8), "beats": rng.randint(1, 5)} for _ in range(count)]
        for _ in range(2)
    ]
    pending: list[list[Any]] = [[], []]
    seen: list[list[Any]] = [[], []]
    answered = 0

    async def ask(ctx: Any, client: int) -> None:
        for request in asked[client]:
            await _send(ctx, dut.clients[client].requests, request, rng, idle)

    async def accept(ctx: Any) -> None:
        for _ in range(2 * count):
            ar = await _receive(ctx, dut.axi.ar, rng, idle)
            assert (ar.size, ar.burst) == (3, 1)
            beats = ar.len + 1
            pending[ar.id] += [(ar.addr + 8 * i, i == beats - 1) for i in range(beats)]

    async def answer(ctx: Any) -> None:
        nonlocal answered
        while answered < sum(r["beats"] for client in asked for r in client):
            if not any(pending):
                await ctx.tick()
                continue
            client = rng.choice([i for i in range(2) if pending[i]])
            address, last = pending[client].pop(0)
            error = rng.random() < 0.1
            word = {
                "id": client, "data": address << 1 | error, "resp": 2 + client if error else 0,
                "last": last,
            }  # fmt: skip
            await _send(ctx, dut.axi.r, word, rng, idle)
            answered += 1

    async def take(ctx: Any, client: int) -> None:
        for request in asked[client]:
            for beat in range(request["beats"]):
                got = await _receive(ctx, dut.clients[client].data, rng, idle)
                address = request["addr"] + 8 * beat
                where = f"seed {seed}, client {client}, beat at {address:#x}"
                assert got.data >> 1 == address, where
                assert got.error == got.data & 1, where
                assert got.last == (beat == request["beats"] - 1), where
                seen[client].append(address)

    clients = [partial(part, client=i) for part in (ask, take) for i in range(2)]
    _simulate(dut, accept, answer, *clients)
    assert [len(s) for s in seen] == [sum(r["beats"] for r in client) for client in asked]


def test_arbiter_takes_a_request_each_cycle_first_client_first() -> None:
    dut = ReadArbiter(CONFIG)
    order: list[tuple[int, int]] = []

    async def drive(ctx: Any) -> None:
        ctx.set(dut.axi.ar.ready, 1)
        sent = [0, 0]
        for _ in range(12):
            for client, limit in ((0, 4), (1, 6)):
                requests = dut.clients[client].requests
                ctx.set(requests.payload, {"addr": 8 * sent[client], "beats": 1})
                ctx.set(requests.valid, sent[client] < limit)
            for client in range(2):
                requests = dut.clients[client].requests
                sent[client] += ctx.get(requests.valid) & ctx.get(requests.ready)
            if ctx.get(dut.axi.ar.valid):
                order.append((ctx.get(dut.axi.ar.payload.id), ctx.get(dut.axi.ar.payload.addr)))
            await ctx.tick()

    _simulate(dut, drive)
    assert order == [(0, 8 * i) for i in range(4)] + [(1, 8 * i) for i in range(6)]


def _bursts(job: dict[str, int], config: Config) -> list[tuple[int, int, int]]:
    """Address, beats, final of the bursts of a job, the simple way."""
    bursts = []
    for row in range(job["rows"]):
        address, left = job["addr"] + row * job["stride"], job["beats"]
        while left:
            address %= 1 << 32
            beats = min(left, config.max_burst, (PAGE - address % PAGE) // config.bus_bytes)
            bursts.append((address, beats, 0))
            address, left = address + beats * config.bus_bytes, left - beats
    return [*bursts[:-1], (*bursts[-1][:2], 1)]


@pytest.mark.parametrize("max_burst", [1, 3, 16, 64, 256])
@pytest.mark.parametrize("bus_bytes", [4, 16, 32])
def test_splitter(max_burst: int, bus_bytes: int, seed: int) -> None:
    """Random jobs around page boundaries; every burst in the cycle after the one before."""
    config = Config(dim=32, lanes=8, bus_bytes=bus_bytes, max_burst=max_burst)
    rng = random.Random(seed)
    dut = BurstSplitter(config, 12, 5)
    jobs = []
    for tag in range(30):
        page = rng.choice([0, 1, 7, 0xFFFFF]) * PAGE
        address = (page + bus_bytes * rng.randint(-6, 6)) % (1 << 32)
        stride = bus_bytes * rng.choice([0, 1, rng.randrange(2000), (1 << 32) // bus_bytes - 3])
        beats = rng.choice([1, 2, rng.randint(1, 20), rng.randint(1, 1500)])
        rows = rng.randint(1, 4)
        jobs.append({"addr": address, "stride": stride, "beats": beats, "rows": rows, "tag": tag})
    expected = [(*burst, job["tag"]) for job in jobs for burst in _bursts(job, config)]
    got: list[tuple[int, int, int, int]] = []
    cycles = 0

    async def send(ctx: Any) -> None:
        for job in jobs:
            await _send(ctx, dut.jobs, job, rng, 0.0)

    async def take(ctx: Any) -> None:
        nonlocal cycles
        ctx.set(dut.bursts.ready, 1)
        while len(got) < len(expected):
            if ctx.get(dut.bursts.valid):
                burst = ctx.get(dut.bursts.payload)
                got.append((burst.addr, burst.len + 1, burst.final, burst.tag))
            await ctx.tick()
            cycles += 1

    _simulate(dut, send, take)
    for index, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a == b, f"seed {seed}: burst {index} is {a}, expected {b}"
    assert cycles <= len(expected) + 1
