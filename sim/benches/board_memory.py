"""Bench of the memories of a board: random traffic of cocotbext-axi, and throughput without waits.

The top has masters' ports ``s0_axi_*``, ``s1_axi_*``, ... and, if there is an SDRAM, the controls
of its chip (sim/sdram.py). All of it acts at falling edges of the clock.
"""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import cocotb
from cocotb.triggers import FallingEdge, ReadOnly
from cocotbext.axi import AxiBus, AxiMaster, AxiResp

from systolith.sim.benches import dma
from systolith.sim.runner import arguments, report, seed, start
from systolith.sim.sdram import Chip

_PAYLOADS = {"r": ("id", "data", "resp", "last"), "b": ("id", "resp")}


async def set_up(dut: Any) -> Chip | None:
    """Resets, waits for the SDRAM's initialisation, and watches what the slaves answer."""
    settings = arguments()
    for number in range(settings["masters"]):
        for port in ("arvalid", "awvalid", "wvalid", "rready", "bready"):
            getattr(dut, f"s{number}_axi_{port}").value = 0
    chip = Chip(dut) if settings["sdram"] else None
    await start(dut)
    for number, channel in itertools.product(range(settings["masters"]), _PAYLOADS):
        cocotb.start_soon(hold(dut, f"s{number}_axi_{channel}", _PAYLOADS[channel]))
    return chip


async def hold(dut: Any, prefix: str, fields: tuple[str, ...]) -> None:
    """Fails where an answer is withdrawn or changed before it was taken."""
    waiting: list[int] | None = None
    ports = [getattr(dut, prefix + field) for field in fields]
    valid, ready = getattr(dut, f"{prefix}valid"), getattr(dut, f"{prefix}ready")
    while True:
        await FallingEdge(dut.clk)
        await ReadOnly()
        offered = bool(valid.value)
        now = [int(port.value) for port in ports] if offered else None
        assert waiting is None or now == waiting, f"{prefix} changed from {waiting} to {now}"
        waiting = now if offered and not ready.value else None


def pause(master: AxiMaster, idle: str, rng: random.Random) -> None:
    """Random pauses on all five channels."""
    write, read = master.write_if, master.read_if
    for channel in (
        write.aw_channel, write.w_channel, write.b_channel, read.ar_channel, read.r_channel,
    ):  # fmt: skip
        generator: Iterator[bool] = dma.waits(idle, random.Random(rng.random()))
        channel.set_pause_generator(generator)


@cocotb.test()
async def random_traffic(dut: Any) -> None:
    """Every master reads and writes in parts of its own, several at once, against bytearrays."""
    settings = arguments()
    rng = random.Random(seed())
    chip = await set_up(dut)
    tasks = []
    written = [0, 0]
    models: dict[int, bytearray] = {}

    async def traffic(master: AxiMaster, base: int, size: int, rng: random.Random) -> None:
        # What is there at first is not known: it is written.
        model = models[base] = bytearray(rng.randbytes(size))
        assert (await master.write(base, bytes(model))).resp == AxiResp.OKAY
        for step in range(settings["transfers"]):
            length = min(size, rng.choice([1, 2, 7, 64, 257, rng.randint(1, size)]))
            address = base + rng.randint(0, size - length)
            place = address - base
            where = f"seed {seed()}, step {step}, {length} bytes at {address:#x}"
            if rng.random() < 0.5:
                data = rng.randbytes(length)
                answer = await master.write(address, data)
                assert answer.resp == AxiResp.OKAY, where
                model[place : place + length] = data
                written[0] += length
            else:
                read = await master.read(address, length)
                assert read.resp == AxiResp.OKAY, where
                wrong = [i for i in range(length) if read.data[i] != model[place + i]]
                assert not wrong, f"{where}: byte {address + wrong[0]:#x} differs"
                written[1] += length

    async def outside(master: AxiMaster, base: int, size: int, rng: random.Random) -> None:
        for _ in range(settings["transfers"] // 4):
            length = rng.randint(1, min(size, 600))
            address = base + rng.randint(0, size - length)
            where = f"seed {seed()}, {length} bytes at {address:#x}"
            assert (await master.read(address, length)).resp == AxiResp.DECERR, where
            answer = await master.write(address, rng.randbytes(length))
            assert answer.resp == AxiResp.DECERR, where

    areas = list(settings["areas"])
    for number in range(settings["masters"]):
        master = AxiMaster(
            AxiBus.from_prefix(dut, f"s{number}_axi"), dut.clk, dut.rst,
            max_burst_len=settings["max_burst"],
        )  # fmt: skip
        pause(master, settings["idle"], rng)
        for base, size in areas[number :: settings["masters"]]:
            tasks.append(traffic(master, base, size, random.Random(rng.random())))
        for base, size in settings["outside"]:
            tasks.append(outside(master, base, size, random.Random(rng.random())))
    for task in [cocotb.start_soon(task) for task in tasks]:
        await task
    result: dict[str, Any] = {"written": written[0], "read": written[1]}
    if chip is not None:
        chip.check()
        result |= chip.counters()
        for base, model in models.items():
            if base >= settings["sdram_base"]:
                # A byte of the memory map has the same place in the chip's files.
                got = await chip.dump(base - settings["sdram_base"], len(model))
                wrong = [i for i in range(len(model)) if got[i] != model[i]]
                assert not wrong, f"seed {seed()}: the chip differs at {base + wrong[0]:#x}"
    report(result)


class Raw:
    """A master that waits for nothing but ``ready``: cycles of beats, and beats against ``model``.

    ``reads``: (address, beats, id). ``writes``: (address, beats, id, data of the burst).
    """

    def __init__(self, dut: Any, number: int, width: int, idle: str = "none") -> None:
        self.dut, self.prefix, self.width = dut, f"s{number}_axi_", width
        self.rng = random.Random(seed() + number)
        self.idle = idle
        self.cycle = 0
        self.ask_cycles: list[int] = []
        self.read_cycles: list[int] = []
        self.beats: list[dict[str, int]] = []
        self.write_cycles: list[int] = []
        self.answers: list[tuple[int, int]] = []
        for name, value in {"arburst": 1, "awburst": 1, "arlock": 0, "awlock": 0}.items():
            self.port(name).value = value
        for channel in ("ar", "aw"):
            self.port(f"{channel}size").value = width.bit_length() - 1
        cocotb.start_soon(self._count())

    def port(self, name: str) -> Any:
        return getattr(self.dut, self.prefix + name)

    async def _count(self) -> None:
        while True:
            await FallingEdge(self.dut.clk)
            self.cycle += 1

    async def _send(self, channel: str, items: list[dict[str, int]], cycles: list[int]) -> None:
        valid, ready = self.port(f"{channel}valid"), self.port(f"{channel}ready")
        pauses = dma.waits(self.idle, random.Random(self.rng.random()))
        await FallingEdge(self.dut.clk)
        for item in items:
            while next(pauses):
                await FallingEdge(self.dut.clk)
            for name, value in item.items():
                self.port(channel + name).value = value
            valid.value = 1
            taken = False
            while not taken:
                await ReadOnly()
                taken = bool(ready.value)
                if taken:
                    cycles.append(self.cycle)
                await FallingEdge(self.dut.clk)
            valid.value = 0

    async def read(self, bursts: list[tuple[int, int, int]]) -> None:
        """Returns when the last beat has come."""
        asked = [{"addr": a, "len": n - 1, "id": i} for a, n, i in bursts]
        cocotb.start_soon(self._send("ar", asked, self.ask_cycles))
        total = len(self.beats) + sum(beats for _, beats, _ in bursts)
        pauses = dma.waits(self.idle, random.Random(self.rng.random()))
        for _ in range(200_000):
            await FallingEdge(self.dut.clk)
            ready = not next(pauses)
            self.port("rready").value = int(ready)
            await ReadOnly()
            if ready and self.port("rvalid").value:
                self.read_cycles.append(self.cycle)
                names = ("id", "data", "resp", "last")
                self.beats.append({name: int(self.port(f"r{name}").value) for name in names})
            if len(self.beats) == total:
                await FallingEdge(self.dut.clk)
                self.port("rready").value = 0
                return
        raise AssertionError(f"{len(self.beats)} of {total} beats came")

    async def write(self, bursts: list[tuple[int, int, int, bytes]]) -> None:
        """Returns when the last answer has come."""
        asked = [{"addr": a, "len": n - 1, "id": i} for a, n, i, _ in bursts]
        words = [
            {
                "data": int.from_bytes(data[k * self.width : (k + 1) * self.width], "little"),
                "strb": (1 << self.width) - 1,
                "last": int(k == beats - 1),
            }
            for _, beats, _, data in bursts
            for k in range(beats)
        ]
        cocotb.start_soon(self._send("aw", asked, []))
        cocotb.start_soon(self._send("w", words, self.write_cycles))
        total = len(self.answers) + len(bursts)
        pauses = dma.waits(self.idle, random.Random(self.rng.random()))
        for _ in range(200_000):
            await FallingEdge(self.dut.clk)
            ready = not next(pauses)
            self.port("bready").value = int(ready)
            await ReadOnly()
            if ready and self.port("bvalid").value:
                self.answers.append((int(self.port("bid").value), int(self.port("bresp").value)))
            if len(self.answers) == total:
                await FallingEdge(self.dut.clk)
                self.port("bready").value = 0
                return
        raise AssertionError(f"{len(self.answers)} of {total} answers came")

    def check(self, reads: list, writes: list, model: bytearray, outside: range) -> None:
        """IDs, LAST, data and responses of everything, in order."""
        expected = [
            (i, address + k * self.width, k == beats - 1)
            for address, beats, i in reads
            for k in range(beats)
        ]
        for (i, address, last), beat in zip(expected, self.beats, strict=True):
            bad = address in outside
            word = 0 if bad else int.from_bytes(model[address : address + self.width], "little")
            wanted = {"id": i, "data": word, "resp": 3 if bad else 0, "last": int(last)}
            assert beat == wanted, f"seed {seed()}, beat at {address:#x}: {beat}, not {wanted}"
        for (address, _, i, _), answer in zip(writes, self.answers, strict=True):
            wanted = (i, 3 if address in outside else 0)
            assert answer == wanted, f"seed {seed()}, write at {address:#x}: {answer}"


@cocotb.test()
async def refused(dut: Any) -> None:
    """Bursts that the memories do not know: DECERR for every beat, and nothing is written."""
    settings = arguments()
    width = settings["bus_bytes"]
    await set_up(dut)
    full = width.bit_length() - 1
    data = bytes(range(64)) * (3 * width // 64 + 1)
    for burst, size in ((0, full), (2, full), (1, full - 1), (1, 0)):
        master = Raw(dut, 0, width)
        await master.write([(0, 3, 1, data)])
        assert master.answers == [(1, 0)]
        for channel in ("ar", "aw"):
            master.port(f"{channel}burst").value = burst
            master.port(f"{channel}size").value = size
        await master.write([(0, 3, 0, bytes(3 * width))])
        await master.read([(0, 3, 1)])
        what = f"burst type {burst}, size {size}"
        assert master.answers[1] == (0, 3), what
        assert [(b["resp"], b["last"], b["id"]) for b in master.beats] == [
            (3, 0, 1), (3, 0, 1), (3, 1, 1)
        ], what  # fmt: skip
        last = Raw(dut, 0, width)
        await last.read([(0, 3, 0)])
        last.check([(0, 3, 0)], [], bytearray(data), range(1 << 31, 1 << 32))


@cocotb.test()
async def streams(dut: Any) -> None:
    """Bursts of all masters, each in a half of every area that it has written before.

    ``plan``: for each master, its reads and its writes: (address, beats, id). First everything is
    written with ``fill`` (bursts of one master), then the plans run at once and are measured.
    """
    settings = arguments()
    width, idle = settings["bus_bytes"], settings["idle"]
    rng = random.Random(seed())
    chip = await set_up(dut)
    masters = [Raw(dut, number, width, idle) for number in range(settings["masters"])]
    model = bytearray(settings["span"])
    outside = range(settings["span"], 1 << 32)
    fill = []
    for address, beats, i in settings["fill"]:
        data = rng.randbytes(beats * width)
        model[address : address + len(data)] = data
        fill.append((address, beats, i, data))
    if fill:
        await masters[0].write(fill)
        assert masters[0].answers == [(i, 0) for _, _, i, _ in fill]
        masters[0].answers.clear()
        masters[0].write_cycles.clear()
    before = chip.counters() if chip is not None else {}
    begun = masters[0].cycle
    plans, tasks = [], []
    for master, (reads, writes) in zip(masters, settings["plan"], strict=True):
        bursts = [(a, n, i, rng.randbytes(n * width)) for a, n, i in writes]
        plans.append((reads, bursts))
        tasks.append(cocotb.start_soon(master.read([tuple(r) for r in reads])))
        tasks.append(cocotb.start_soon(master.write(bursts)))
    for task in tasks:
        await task
    for master, (reads, bursts) in zip(masters, plans, strict=True):
        master.check(reads, bursts, model, outside)
    for _, bursts in plans:
        for address, _, _, data in bursts:
            if address not in outside:
                model[address : address + len(data)] = data
    reads = sorted(cycle for master in masters for cycle in master.read_cycles)
    writes = sorted(cycle for master in masters for cycle in master.write_cycles)
    ends = max(reads[-1:] + writes[-1:], default=begun)
    result: dict[str, Any] = {
        "reads": len(reads), "writes": len(writes), "cycles": ends - begun,
        "read_span": reads[-1] - reads[0] + 1 if reads else 0,
        "write_span": writes[-1] - writes[0] + 1 if writes else 0,
        "latency": masters[0].read_cycles[0] - masters[0].ask_cycles[0] if reads else 0,
    }  # fmt: skip
    # What was written, read back.
    last = Raw(dut, 0, width)
    again = [(a, n, i) for _, bursts in plans for a, n, i, _ in bursts]
    if again:
        await last.read(again)
        last.check(again, [], model, outside)
    if chip is not None:
        chip.check()
        after = chip.counters()
        result |= {name: after[name] - before[name] for name in before if name != "owed_most"}
        result["owed_most"] = after["owed_most"]
    report(result)
