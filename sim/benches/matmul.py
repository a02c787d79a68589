"""Bench of the matmul unit: fills the memories, lets a queue of instructions run, dumps the result.

The top (tests/hdl/test_matmul.py) holds the memories, the queue and the counters, so Python wakes
up for a row that goes in or out, and not while the unit works.
"""

from typing import Any

import cocotb
from cocotb.triggers import RisingEdge, with_timeout

from systolith.sim.runner import arguments, report, run_directory, start

ACTIVATION, WEIGHT, COMMAND = range(3)
LIMIT_US = 100_000


async def fill(dut: Any, space: int, image: bytes, width: int) -> None:
    """Write an image, ``width`` bytes a row, from row 0 of a memory on."""
    dut.fill_space.value = space
    dut.fill_en.value = 1
    for at in range(0, len(image), width):
        dut.fill_addr.value = at // width
        dut.fill_data.value = int.from_bytes(image[at : at + width], "little")
        await RisingEdge(dut.clk)
    dut.fill_en.value = 0


async def dump(dut: Any, rows: int, width: int) -> bytes:
    """The accumulator, through the unit's second read port."""
    image = bytearray()
    for row in range(rows + 1):  # an edge takes the address, data are there before the next one
        dut.read_addr.value = min(row, rows - 1)
        await RisingEdge(dut.clk)
        if row >= 1:
            image += int(dut.read_data.value).to_bytes(width, "little")
    return bytes(image)


@cocotb.test()
async def matmul(dut: Any) -> None:
    """Each program: files ``<name>.act``, ``.weight``, ``.queue``; leaves ``<name>.acc``."""
    given = arguments()
    dim, folder = given["dim"], run_directory()
    for port in ("fill_en", "fill_space", "fill_addr", "fill_data", "run", "hammer", "read_addr"):
        getattr(dut, port).value = 0
    dut.log_addr.value = 0
    dut.count.value = 0
    await start(dut)
    results = {}
    for program in given["programs"]:
        name = program["name"]
        await fill(dut, ACTIVATION, (folder / f"{name}.act").read_bytes(), dim)
        await fill(dut, WEIGHT, (folder / f"{name}.weight").read_bytes(), dim)
        await fill(dut, COMMAND, (folder / f"{name}.queue").read_bytes(), given["queue_bytes"])
        dut.count.value = program["count"]
        dut.hammer.value = program["hammer"]
        dut.run.value = 1
        await with_timeout(RisingEdge(dut.finished), LIMIT_US, "us")
        counters = ("accepted", "written", "rows", "waited", "writes", "refused", "worked")
        results[name] = {port: int(getattr(dut, port).value) for port in counters}
        assert int(dut.busy.value) == 0, f"{name}: busy after the last done"
        done = []
        for index in range(program["count"]):
            dut.log_addr.value = index
            await RisingEdge(dut.clk)
            await RisingEdge(dut.clk)
            done.append(int(dut.log_data.value))
        results[name]["done"] = done
        dut.hammer.value = 0
        (folder / f"{name}.acc").write_bytes(await dump(dut, given["acc_rows"], 4 * dim))
        dut.run.value = 0
        await RisingEdge(dut.clk)
    report(results)
