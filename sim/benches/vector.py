"""Programs of the vector unit on RTL and on the golden machine, memories compared row by row.

Arguments: ``config`` (JSON text) and ``mode``. "random" runs ``programs`` programs of up to
``longest`` instructions drawn from ``ops``, and reports how often what was ``drawn``. "speed" runs
each of ``programs`` (lists of dictionaries of fields, with ``op``) while no port waits and reports
``cycles``, of the last instruction of each, and ``gaps`` between the last two.
"""

from collections import Counter
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge

from systolith.config import Config
from systolith.isa import Instruction, LoadSpace, decode, encode
from systolith.sim.benches import vector_program
from systolith.sim.machine import GoldenMachine
from systolith.sim.runner import arguments, report, seed, start
from systolith.sim.scoreboard import compare
from systolith.sim.stimulus import pack

TIMEOUT_CYCLES = 100_000


class Driver:
    """Loads and reads the memories of ``VectorTop`` and runs instructions, in step with a model."""

    def __init__(self, dut: Any, config: Config) -> None:
        self.dut = dut
        self.config = config
        self.model = GoldenMachine(config, np.zeros(64, dtype=np.uint8))
        self.executed = 0
        for name in ("commands__valid", "writes__valid", "acc_write__en", "go"):
            getattr(dut, name).value = 0
        for name in ("activation__en", "weight__en"):
            getattr(dut, name).value = 0
        dut.acc_write__mask.value = 1
        self.wait([0, 0, 0, 0])

    def wait(self, probabilities: list[int]) -> None:
        """How often each port waits, in 1/256."""
        for index, probability in enumerate(probabilities):
            getattr(self.dut, f"waits__{index}").value = probability

    async def load(self, space: LoadSpace, words: np.ndarray) -> None:
        """Fills a local memory from word 0 on."""
        model = self.model
        target = (model.activation, model.weight.view(np.uint8), model.parameter, model.table)
        target[space][: len(words)] = words
        dut, dim = self.dut, self.config.dim
        dut.writes__valid.value = 1
        for address, word in enumerate(words.tolist()):
            dut.writes__payload.value = space | address << 2 | pack_bytes(word, dim) << 22
            await RisingEdge(dut.clk)
            while not int(dut.writes__ready.value):  # the port may have to change hands
                await RisingEdge(dut.clk)
        dut.writes__valid.value = 0

    async def load_accumulator(self, rows: np.ndarray) -> None:
        self.model.accumulator[: len(rows)] = rows
        dut = self.dut
        dut.acc_write__en.value = 1
        for address, row in enumerate(rows.tolist()):
            dut.acc_write__addr.value = address
            dut.acc_write__data.value = pack(row, 32)
            await RisingEdge(dut.clk)
        dut.acc_write__en.value = 0

    async def read(self, port: str, rows: int) -> np.ndarray:
        """The rows of a local memory as bytes."""
        dut, found = self.dut, []
        address, data = getattr(dut, f"{port}__addr"), getattr(dut, f"{port}__data")
        ready = getattr(dut, f"{port}__ready")
        getattr(dut, f"{port}__en").value = 1
        for index in range(rows + 1):
            address.value = index % rows
            await RisingEdge(dut.clk)
            while index == 0 and not int(ready.value):  # the port may have to change hands
                await RisingEdge(dut.clk)
            if index > 0:  # what was before the edge
                found.append(int(data.value).to_bytes(self.config.dim, "little"))
        getattr(dut, f"{port}__en").value = 0
        return np.frombuffer(b"".join(found), np.uint8).reshape(rows, -1)

    async def run(self, program: list[Instruction]) -> None:
        """Lets the instructions follow each other without a pause, on both."""
        dut = self.dut
        dut.commands__valid.value = 1
        for item in program:
            words = encode(item)
            flags = words[1] >> 24
            operands = sum(word << (32 * index) for index, word in enumerate(words[2:]))
            dut.commands__payload.value = words[0] & 0xFF | flags << 8 | operands << 16
            await RisingEdge(dut.clk)
            self.model._step(decode(words), 0)  # fields that share bits
        dut.commands__valid.value = 0
        self.executed += len(program)
        dut.go.value = 1
        for _ in range(TIMEOUT_CYCLES):
            await RisingEdge(dut.clk)
            if int(dut.finished.value) == self.executed & 0xFFFF_FFFF:
                break
        else:
            raise AssertionError(f"not done after {TIMEOUT_CYCLES} cycles: {program}")
        dut.go.value = 0
        await RisingEdge(dut.clk)
        assert int(dut.busy.value) == 0

    async def check(self, program: list[Instruction]) -> None:
        """Compares everything that instructions can change."""
        what = "\n".join(map(str, program))
        memories = {"activation": self.model.activation, "weight": self.model.weight}
        for name, expected in memories.items():
            found = await self.read(name, len(expected))
            compare(
                found,
                expected.view(np.uint8),
                what=f"{name} memory after\n{what}\n",
                axes=("row", "lane"),
                seed=seed(),
            )
        best = self.model.best[1] if self.model.best else 0
        assert int(self.dut.result.value) == best, f"arg-max, seed {seed()}, after\n{what}"


def pack_bytes(word: list[int], dim: int) -> int:
    return int.from_bytes(bytes(word[:dim]), "little")


async def fill(driver: Driver, rng: np.random.Generator) -> None:
    """New contents for everything that instructions read."""
    config = driver.config
    shape = (config.accumulator_rows, config.dim)
    await driver.load(LoadSpace.ACTIVATION, vector_program.activations(rng, config))
    await driver.load(LoadSpace.PARAMETER, vector_program.parameters(rng, config))
    await driver.load_accumulator(vector_program.wide_integers(rng, shape, 32))


@cocotb.test()
async def vector(dut: Any) -> None:
    given = arguments()
    config = Config.from_json(given["config"])
    rng = np.random.default_rng(seed())
    driver = Driver(dut, config)
    await start(dut)
    await driver.load(LoadSpace.TABLE, vector_program.tables(rng, config))
    if given["mode"] == "speed":
        await fill(driver, rng)
        cycles, gaps = [], []
        for items in given["programs"]:
            program = [Instruction(fields.pop("op", "vector"), fields) for fields in items]
            await driver.run(program)
            await driver.check(program)
            cycles.append(int(dut.cycles.value))
            gaps.append(int(dut.gap.value))
        report({"cycles": cycles, "gaps": gaps})
        return
    dice = vector_program.ProgramDice(rng, config)
    drawn: Counter[str] = Counter()
    for index in range(given["programs"]):
        if index % 8 == 0:
            await fill(driver, rng)
        driver.wait([int(w) for w in rng.choice([0, 0, 60, 160, 230], 4)])
        if index % 3 == 0:
            driver.wait([0, 0, 0, 0])
        ops = rng.choice(given["ops"], rng.integers(1, given["longest"] + 1))
        program = [dice.draw(str(op)) for op in ops]
        await driver.run(program)
        await driver.check(program)
        for item in program:
            drawn[item.op] += 1
            drawn[f"combine {item.fields.get('combine')}"] += 1
            drawn[f"table {item.fields.get('table')}"] += 1
            drawn[f"format {item.fields.get('a_format')}"] += 1
    report({"drawn": dict(drawn)})
