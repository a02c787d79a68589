"""Bench of test_kit_driver.py: the C driver, compiled for this computer, drives the machine.

Its register accesses become AXI4-Lite transfers, and its cache hooks copy between the CPU's memory
(an array here) and the machine's (in the simulated design): without them, neither sees what the
other writes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.task import bridge, resume
from cocotb.triggers import First, RisingEdge, Timer
from cocotb.utils import get_sim_time

from systolith import registers
from systolith.config import PRESETS
from systolith.registers import Error
from systolith.sim.benches.machine import PERIOD_NS, Registers
from systolith.sim.memory import AxiMemory
from systolith.sim.runner import arguments, report, run_directory, start
from tests.boards.c_driver import (
    BAD_ARGUMENT,
    BUSY,
    DIFFERENT,
    NOT_STARTED,
    OK,
    STOPPED,
    TIMEOUT,
    WRONG_CONFIGURATION,
    Driver,
)

CONFIG = PRESETS["tiny"]
BASE = 0x2000
CYCLES = registers.BY_NAME["CYCLES"].offset
DONE, ERROR, MARK = 1, 2, 4
LONGEST_SLEEP = 2000
"""Cycles after which a timer wakes the CPU."""


class Rig:
    """The machine with what a CPU needs beside it, all of it callable from a bridge's thread."""

    def __init__(self, dut: Any, memory: AxiMemory) -> None:
        self.dut, self.memory = dut, memory
        self.control = Registers(dut)
        self.accesses = 0
        self.sleeps = self.interrupts = 0
        self.spoiled: int | None = None
        """Where a bit flips on the way to memory."""
        self.driver: Driver

    def make(self, library: str, *, clean: bool = True, invalidate: bool = True) -> Driver:
        self.driver = Driver(
            Path(library), self.read, self.write, sleep=self.sleep,
            clean=self.clean if clean else None, invalidate=self.invalidate if invalidate else None,
        )  # fmt: skip
        return self.driver

    def read(self, address: int) -> int:
        self.accesses += 1
        return resume(self.control._read)(address - Driver.REGISTERS)

    def write(self, address: int, value: int) -> None:
        self.accesses += 1
        names = {r.offset: r.name for r in registers.REGISTERS}
        resume(self.control.write)(names[address - Driver.REGISTERS], value)

    def clean(self, offset: int, size: int) -> None:
        if self.spoiled is not None:
            self.driver.cpu[self.spoiled] ^= 0x80
        data = self.driver.cpu[offset : offset + size].tobytes()
        assert len(data) == size
        resume(self.memory.load)(data, BASE + offset)

    def invalidate(self, offset: int, size: int) -> None:
        data = resume(self.memory.dump)(BASE + offset, size)
        self.driver.cpu[offset : offset + size] = np.frombuffer(data, np.uint8)

    def sleep(self) -> None:
        """Waits for the interrupt or the timer, and calls the handler."""
        self.sleeps += 1

        async def doze() -> bool:
            if not self.dut.irq.value:
                await First(RisingEdge(self.dut.irq), Timer(PERIOD_NS * LONGEST_SLEEP, "ns"))
            return bool(self.dut.irq.value)

        if resume(doze)():
            self.interrupts += 1
            self.driver.call("interrupt")

    def now(self) -> int:
        return int(get_sim_time("ns")) // PERIOD_NS

    @contextmanager
    def line_is_low_afterwards(self) -> Iterator[None]:
        yield
        assert not self.dut.irq.value, "the interrupt is still there"


async def ready(dut: Any) -> Rig:
    memory = AxiMemory(dut)
    rig = Rig(dut, memory)
    memory.configure(latency=10)
    await start(dut)
    return rig


def image(name: str) -> bytes:
    return (run_directory() / f"{name}.bin").read_bytes()


async def run_bridged(rig: Rig, function: Any) -> None:
    await bridge(function)(rig)
    rig.memory.check_protocol()


@cocotb.test()
async def example(dut: Any) -> None:
    """The generated example: right, with results that are not, and without the cache hooks."""
    rig = await ready(dut)

    def body(rig: Rig) -> None:
        library = arguments()["library"]
        driver = rig.make(library)
        assert driver.run_example(BASE) == OK
        cycles = driver.counter(CYCLES)
        instructions = driver.counter(registers.BY_NAME["INSTRUCTIONS"].offset)
        result = driver.read(*arguments()["result"])
        report({"cycles": cycles, "instructions": instructions, "result": result.hex()})
        assert driver.run_example(BASE) == OK, "the second time"

        rig.spoiled = arguments()["operand"]
        assert rig.make(library).run_example(BASE) == DIFFERENT
        rig.spoiled = None

        assert rig.make(library, invalidate=False).run_example(BASE) == DIFFERENT

    await run_bridged(rig, body)


@cocotb.test()
async def whole_example(dut: Any) -> None:
    rig = await ready(dut)

    def body(rig: Rig) -> None:
        status = rig.make(arguments()["library"]).run_example(BASE)
        assert status == OK, (status, rig.driver.error())

    await run_bridged(rig, body)


@cocotb.test()
async def example_without_clean(dut: Any) -> None:
    """What the CPU wrote stays in its cache, and the machine executes zeros."""
    rig = await ready(dut)

    def body(rig: Rig) -> None:
        driver = rig.make(arguments()["library"], clean=False)
        assert driver.run_example(BASE) == STOPPED
        assert driver.error() == (Error.ILLEGAL_OPCODE, 0)

    await run_bridged(rig, body)


@cocotb.test()
async def polling(dut: Any) -> None:
    """Every outcome of a program, one after another on the same device."""
    rig = await ready(dut)

    def body(rig: Rig) -> None:
        driver = rig.make(arguments()["library"])
        assert driver.open() == OK
        assert driver.call("poll") == NOT_STARTED and driver.wait() == NOT_STARTED
        assert driver.error() == (Error.NONE, 0) and driver.counter(CYCLES) == 0
        wrong = driver.program(image("marks"), CONFIG.hash ^ 1)
        assert driver.load(wrong, BASE) == WRONG_CONFIGURATION
        marks = driver.program(image("marks"), CONFIG.hash)
        assert driver.load(marks, BASE + 16) == BAD_ARGUMENT
        assert driver.load(marks, BASE, 100) == BAD_ARGUMENT

        for _ in range(2):  # a mark of the run before must not be taken for one of this
            driver.marks.clear()
            assert driver.load(marks, BASE) == OK and driver.call("start") == OK
            assert driver.wait() == OK
            assert driver.marks == arguments()["marks"]
            assert driver.error() == (Error.NONE, 0)

        for name, (code, pc) in arguments()["failing"].items():
            driver.call("set_watchdog", 500)
            assert driver.load(driver.program(image(name), CONFIG.hash), BASE) == OK
            assert driver.call("start") == OK and driver.wait() == STOPPED, name
            assert driver.error() == (code, pc), name
            assert driver.library.systolith_error_text(code).decode() == Error(code).name

        endless = driver.program(image("endless"), CONFIG.hash)
        assert driver.load(endless, BASE) == OK and driver.call("start") == OK
        assert driver.call("start") == BUSY and driver.load(marks, BASE) == BUSY
        assert driver.call("poll") == BUSY
        assert driver.counter(CYCLES) < 3000
        assert driver.call("reset") == OK and driver.call("poll") == NOT_STARTED
        begun = rig.now()
        assert driver.call("start") == OK and driver.wait(3000) == TIMEOUT
        assert 3000 < rig.now() - begun < 4000
        assert driver.call("poll") == NOT_STARTED and driver.counter(CYCLES) == 0

        driver.marks.clear()
        assert driver.load(marks, BASE) == OK and driver.call("start") == OK
        assert driver.wait(100000) == OK and driver.marks == arguments()["marks"]

    await run_bridged(rig, body)


@cocotb.test()
async def interrupts(dut: Any) -> None:
    """The same, asleep; and a program that asks the host for something at a mark."""
    rig = await ready(dut)

    def body(rig: Rig) -> None:
        driver = rig.make(arguments()["library"])
        assert driver.open() == OK
        marks = driver.program(image("marks"), CONFIG.hash)
        assert driver.load(marks, BASE) == OK and driver.call("start") == OK
        assert driver.wait_interrupt() == BAD_ARGUMENT, "no interrupt is enabled"
        assert driver.wait() == OK

        driver.call("enable_interrupts", DONE | ERROR | MARK)
        driver.marks.clear()
        for run in range(2):
            with rig.line_is_low_afterwards():
                rig.interrupts, before = 0, rig.accesses
                assert driver.call("start") == OK and not driver.call("finished")
                assert driver.wait_interrupt() == OK and driver.call("finished")
            assert driver.marks == (run + 1) * arguments()["marks"]
            assert 1 < rig.interrupts <= len(arguments()["marks"]) + 1
            # A look at the status for each time of sleep, beside start, handler and end.
            assert rig.accesses - before < 30 * len(arguments()["marks"])

        with rig.line_is_low_afterwards():
            driver.call("enable_interrupts", DONE | ERROR)
            name, (code, pc) = next(iter(arguments()["failing"].items()))
            assert driver.load(driver.program(image(name), CONFIG.hash), BASE) == OK
            assert driver.call("start") == OK and driver.wait_interrupt() == STOPPED
            assert driver.error() == (code, pc)

        with rig.line_is_low_afterwards():
            assert driver.load(driver.program(image("endless"), CONFIG.hash), BASE) == OK
            rig.sleeps = 0
            assert driver.call("start") == OK and driver.wait_interrupt(5000) == TIMEOUT
            assert rig.sleeps == 3, "2000 cycles each"

        driver.call("enable_interrupts", DONE | ERROR | MARK)
        question, answer, echo = arguments()["question"]
        driver.marks.clear()
        driver.on_mark = lambda value: _expect(driver.call("write_word", question, answer + value))
        assert driver.load(driver.program(image("asks"), CONFIG.hash), BASE) == OK
        with rig.line_is_low_afterwards():
            assert driver.call("start") == OK and driver.wait_interrupt(100000) == OK
        asked = driver.marks[0]
        assert driver.marks == [asked]
        found = driver.read(echo, 4)
        assert found == (answer + asked).to_bytes(4, "little"), found

    await run_bridged(rig, body)


def _expect(status: int) -> None:
    assert status == OK, status
