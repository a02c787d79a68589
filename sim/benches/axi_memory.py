"""Bench of axi_memory.sv: cocotbext-axi as master, and hand-driven signals where cycles count."""

import itertools
import random
from typing import Any

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge
from cocotbext.axi import AxiBus, AxiMaster, AxiResp

from systolith.sim.memory import DECERR, NEVER, SLVERR, AxiMemory
from systolith.sim.runner import arguments, report, start

_IDLE = ("arvalid", "rready", "awvalid", "wvalid", "bready")


async def _set_up(dut: Any) -> AxiMemory:
    for name in _IDLE:
        getattr(dut, f"s_axi_{name}").value = 0
    memory = AxiMemory(dut, "")
    await start(dut)
    return memory


def _bytes_per_beat(dut: Any) -> int:
    return len(dut.s_axi_wdata) // 8


def _drive(dut: Any, channel: str, **values: int) -> None:
    for name, value in values.items():
        getattr(dut, f"s_axi_{channel}{name}").value = value


def _address(dut: Any, channel: str, address: int, beats: int, **other: int) -> None:
    """Drive a whole AR or AW; `other` overrides a field, to break a rule."""
    size = _bytes_per_beat(dut).bit_length() - 1
    fields = {"id": 0, "addr": address, "len": beats - 1, "size": size, "burst": 1, "valid": 1}
    _drive(dut, channel, **{**fields, **other})


async def _reset(dut: Any) -> None:
    dut.rst.value = 1
    await RisingEdge(dut.clk)
    dut.rst.value = 0
    await RisingEdge(dut.clk)


@cocotb.test()
async def random_traffic(dut: Any) -> None:
    """Reads and writes of any address and length, several at once, against a bytearray."""
    settings = arguments()
    memory = await _set_up(dut)
    memory.configure(**settings["memory"])
    await _reset(dut)
    master = AxiMaster(
        AxiBus.from_prefix(dut, "s_axi"), dut.clk, dut.rst, max_burst_len=settings["max_burst"]
    )
    size = settings["size_bytes"]
    model = bytearray(random.randbytes(size))
    await memory.load(bytes(model), 0)
    region = size // 4  # each of four tasks has its own, so that the order between them is free

    async def traffic(base: int) -> None:
        for step in range(settings["transfers"]):
            length = random.choice([1, 2, 7, 64, 257, random.randint(1, region // 2)])
            address = base + random.randint(0, region - length)
            if random.random() < 0.5:
                data = random.randbytes(length)
                answer = await master.write(address, data)
                model[address : address + length] = data
                assert answer.resp == AxiResp.OKAY
            else:
                read = await master.read(address, length)
                expected = model[address : address + length]
                wrong = [i for i in range(length) if read.data[i] != expected[i]]
                assert not wrong, f"step {step}: byte {address + wrong[0]:#x} differs"

    tasks = [cocotb.start_soon(traffic(index * region)) for index in range(4)]
    for task in tasks:
        await task
    dumped = await memory.dump(0, size)
    wrong = [i for i in range(size) if dumped[i] != model[i]]
    assert not wrong, f"memory differs at {wrong[0]:#x}"
    memory.check_protocol()
    reads, writes = memory.beats()
    report({"reads": reads, "writes": writes})


@cocotb.test()
async def latency_and_throughput(dut: Any) -> None:
    """Cycles from AR to the first beat, then a beat every cycle across bursts, or as limited."""
    settings = arguments()
    memory = await _set_up(dut)
    bursts, beats = 4, 8
    width = _bytes_per_beat(dut)
    await memory.load(bytes(i % 251 for i in range(bursts * beats * width)), 0)
    memory.configure(latency=settings["latency"], bandwidth=settings["bandwidth"])
    await RisingEdge(dut.clk)
    dut.s_axi_rready.value = 1
    arrived: list[int] = []
    accepted, sent = -1, 0
    _address(dut, "ar", 0, beats)
    for cycle in range(4000):
        await ReadOnly()
        taken = int(dut.s_axi_arvalid.value) and int(dut.s_axi_arready.value)
        if taken and accepted < 0:
            accepted = cycle
        if int(dut.s_axi_rvalid.value):
            index = len(arrived)
            data = int(dut.s_axi_rdata.value).to_bytes(width, "little")
            assert data == bytes((index * width + i) % 251 for i in range(width)), f"beat {index}"
            assert int(dut.s_axi_rlast.value) == (index % beats == beats - 1), f"beat {index}"
            arrived.append(cycle)
        await RisingEdge(dut.clk)
        if taken:
            sent += 1
            if sent < bursts:
                _address(dut, "ar", sent * beats * width, beats)
            else:
                dut.s_axi_arvalid.value = 0
        if len(arrived) == bursts * beats:
            break
    gaps = sorted({b - a for a, b in itertools.pairwise(arrived)})
    report({"latency": arrived[0] - accepted, "cycles": arrived[-1] - arrived[0] + 1, "gaps": gaps})
    memory.check_protocol()


@cocotb.test()
async def write_throughput(dut: Any) -> None:
    """A beat every cycle across bursts, and the time from the last W to B."""
    settings = arguments()
    memory = await _set_up(dut)
    bursts, beats = 4, 8
    width = _bytes_per_beat(dut)
    memory.configure(write_latency=settings["latency"], bandwidth=settings["bandwidth"])
    await RisingEdge(dut.clk)
    dut.s_axi_bready.value = 1
    addresses = data = answers = 0
    times: list[int] = []
    first_answer = 0
    for cycle in range(4000):
        if addresses < bursts:
            _address(dut, "aw", addresses * beats * width, beats)
        last = int(data % beats == beats - 1)
        strobe = (1 << width) - 1
        _drive(dut, "w", data=data, strb=strobe, last=last, valid=int(data < bursts * beats))
        await ReadOnly()
        addresses += int(dut.s_axi_awvalid.value) and int(dut.s_axi_awready.value)
        if int(dut.s_axi_wvalid.value) and int(dut.s_axi_wready.value):
            times.append(cycle)
            data += 1
        if int(dut.s_axi_bvalid.value):
            first_answer = first_answer or cycle
            answers += 1
        await RisingEdge(dut.clk)
        if addresses == bursts:
            dut.s_axi_awvalid.value = 0
        if answers == bursts:
            break
    assert answers == bursts, f"{answers} of {bursts} answers"
    written = await memory.dump(0, bursts * beats * width)
    expected = b"".join(i.to_bytes(width, "little") for i in range(bursts * beats))
    assert written == expected
    memory.check_protocol()
    report({"cycles": times[-1] - times[0] + 1, "latency": first_answer - times[beats - 1]})


@cocotb.test()
async def errors(dut: Any) -> None:
    """SLVERR and DECERR in a range and beyond the end, nothing written there; then silence."""
    memory = await _set_up(dut)
    master = AxiMaster(AxiBus.from_prefix(dut, "s_axi"), dut.clk, dut.rst)
    size, width = arguments()["size_bytes"], _bytes_per_beat(dut)
    await memory.load(bytes(size), 0)
    base = 0x200
    for mode, expected in ((SLVERR, AxiResp.SLVERR), (DECERR, AxiResp.DECERR)):
        memory.configure(error_mode=mode, error_base=base, error_size=width)
        assert (await master.read(base - width, width)).resp == AxiResp.OKAY
        assert (await master.read(base - width, 3 * width)).resp == expected
        assert (await master.write(base - width, b"\xff" * 3 * width)).resp == expected
        assert (await master.read(base + width, width)).resp == AxiResp.OKAY
    assert (await master.read(size, width)).resp == AxiResp.DECERR
    assert (await master.write(size, b"\xff" * width)).resp == AxiResp.DECERR
    assert await memory.dump(base - width, 3 * width) == (
        b"\xff" * width + bytes(width) + b"\xff" * width
    )
    assert await memory.dump(0, width) == bytes(width)
    memory.check_protocol()
    memory.configure(error_mode=NEVER)
    read = cocotb.start_soon(master.read(base, width))
    write = cocotb.start_soon(master.write(base, bytes(width)))
    for _ in range(200):
        await RisingEdge(dut.clk)
    assert not read.done() and not write.done(), "a burst that should hang was answered"


@cocotb.test()
async def protocol(dut: Any) -> None:
    """Every rule, broken on purpose, is reported with its code and address; and nothing else is."""
    memory = await _set_up(dut)
    width = _bytes_per_beat(dut)
    size = width.bit_length() - 1
    seen = {}

    async def broken(name: str, *steps: Any) -> None:
        await _reset(dut)
        for step in steps:
            step()
            await RisingEdge(dut.clk)
        await RisingEdge(dut.clk)
        await ReadOnly()
        seen[name] = f"{int(dut.protocol_error.value):02x}"
        await RisingEdge(dut.clk)
        for port in _IDLE:
            getattr(dut, f"s_axi_{port}").value = 0
        memory.configure(stall_ar=0, stall_aw=0, stall_w=0)
        await RisingEdge(dut.clk)

    def never_ready() -> None:
        memory.configure(stall_ar=255, stall_aw=255, stall_w=255)

    for channel in ("ar", "aw"):
        await broken(f"{channel} fine", lambda c=channel: _address(dut, c, 4096 - width, 1))
        await broken(f"{channel} cross", lambda c=channel: _address(dut, c, 4096 - width, 2))
        await broken(f"{channel} size", lambda c=channel: _address(dut, c, 0, 1, size=size + 1))
        await broken(f"{channel} wrap", lambda c=channel: _address(dut, c, 0, 2, burst=2))
        await broken(f"{channel} narrow", lambda c=channel: _address(dut, c, 0, 2, size=0))
        await broken(
            f"{channel} drop",
            never_ready,
            lambda c=channel: _address(dut, c, 0, 1),
            lambda c=channel: _drive(dut, c, valid=0),
        )
        await broken(
            f"{channel} change",
            never_ready,
            lambda c=channel: _address(dut, c, 0, 1),
            lambda c=channel: _address(dut, c, 0, 2),
        )

    def beat(last: int, strobe: int, valid: int = 1) -> None:
        dut.s_axi_awvalid.value = 0
        _drive(dut, "w", data=0, strb=strobe, last=last, valid=valid)

    await broken("w early last", lambda: _address(dut, "aw", 0, 2), lambda: beat(1, 1))
    await broken("w late last", lambda: _address(dut, "aw", 0, 1), lambda: beat(0, 1))
    await broken("w fine", lambda: _address(dut, "aw", 1, 1), lambda: beat(1, 2))
    await broken("w strobe", lambda: _address(dut, "aw", 1, 1), lambda: beat(1, 1))
    await broken("w drop", lambda: beat(1, 1), lambda: beat(1, 1, 0))
    await broken("w change", lambda: beat(1, 1), lambda: beat(0, 1))
    report({"codes": seen})
