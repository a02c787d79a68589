"""What the benches of the load and the store unit share: commands, cocotbext-axi with limits.

All of it acts at falling edges of the clock: what a coroutine drives and then reads (after
ReadOnly) is what the next rising edge sees.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cocotb
from cocotb.triggers import FallingEdge, ReadOnly
from cocotbext.axi import AxiBus, AxiRam

from systolith import isa
from systolith.config import Config

PAGE = 4096
IDLES = ("none", "random", "bursty")


def waits(kind: str, rng: random.Random) -> Iterator[bool]:
    """Endless: whether to pause in a cycle. `kind` is one of IDLES."""
    while True:
        if kind == "none":
            yield False
        elif kind == "random":
            yield rng.random() < 0.4
        else:
            pause = rng.random() < 0.5
            for _ in range(rng.randint(1, 30)):
                yield pause


def command_bits(item: isa.Instruction, pc: int) -> int:
    """An instruction as the port `commands__payload` has it: opcode, flags, six words, pc."""
    words = isa.encode(item)
    fields = [(words[0] & 0xFF, 8), (words[1] >> 24, 8), *((w, 32) for w in words[2:]), (pc, 24)]
    bits = low = 0
    for value, width in fields:
        bits |= value << low
        low += width
    return bits


async def issue(dut: Any, program: Sequence[isa.Instruction], idle: Iterator[bool]) -> None:
    """Hand all instructions to the unit; their pc is their index."""
    await FallingEdge(dut.clk)
    for pc, item in enumerate(program):
        while next(idle):
            await FallingEdge(dut.clk)
        dut.commands__payload.value = command_bits(item, pc)
        dut.commands__valid.value = 1
        taken = False
        while not taken:
            await ReadOnly()
            taken = bool(dut.commands__ready.value)
            await FallingEdge(dut.clk)
        dut.commands__valid.value = 0


class Monitor:
    """Watches a unit: cycles, pulses of `done`, `error` (pc, code), `beat`, cycles with `busy`."""

    def __init__(self, dut: Any, on_done: Callable[[int], None] = lambda index: None) -> None:
        self.dut = dut
        self.cycles = self.done = self.beats = 0
        self.errors: list[tuple[int, int]] = []
        self._on_done = on_done
        cocotb.start_soon(self._watch())

    async def _watch(self) -> None:
        dut = self.dut
        while True:
            await FallingEdge(dut.clk)
            await ReadOnly()
            self.cycles += 1
            self.beats += int(dut.beat.value)
            if dut.error.value:
                assert dut.done.value, "an error that does not end its instruction"
                self.errors.append((int(dut.error_pc.value), int(dut.error_code.value)))
            if dut.done.value:
                assert dut.busy.value, f"done {self.done} while not busy"
                self._on_done(self.done)
                self.done += 1

    async def until_done(self, count: int, limit: int = 200_000) -> None:
        """Wait for `count` instructions in all; then the unit must be idle."""
        while self.done < count:
            await FallingEdge(self.dut.clk)
            assert self.cycles < limit, f"{self.done} of {count} instructions done"
        for _ in range(4):
            await FallingEdge(self.dut.clk)
        assert self.done == count, f"{self.done} instructions done instead of {count}"
        assert not self.dut.busy.value, "busy after the last instruction"


class LimitedRam:
    """AxiRam on `m_axi`, sparse 4 GiB, that checks burst lengths and bursts in flight.

    Reads and writes that touch `poison` (a set of page numbers) answer SLVERR. `touched` receives
    the address of every word that is read or partly written, `responses` counts B.
    """

    def __init__(self, dut: Any, config: Config, idle: str, rng: random.Random) -> None:
        self.dut = dut
        self.config = config
        self.poison: set[int] = set()
        self.touched: set[int] = set()
        self.in_flight = {"r": 0, "w": 0}
        self.responses = 0
        self.bursts = {"r": 0, "w": 0}
        self.most_in_flight = {"r": 0, "w": 0}
        self.ram = AxiRam(AxiBus.from_prefix(dut, "m_axi"), dut.clk, dut.rst, size=2**32)
        read, write = self.ram.read_if, self.ram.write_if
        for channel in (
            read.ar_channel, read.r_channel, write.aw_channel, write.w_channel, write.b_channel
        ):  # fmt: skip
            channel.set_pause_generator(waits(idle, random.Random(rng.random())))
        self._wrap(read, "_read")
        self._wrap(write, "_write")
        cocotb.start_soon(self._watch())

    def _wrap(self, side: Any, name: str) -> None:
        plain = getattr(side, name)

        async def checked(address: int, what: Any) -> Any:
            if address // PAGE in self.poison:
                raise PermissionError(hex(address))
            self.touched.add(address - address % self.config.bus_bytes)
            return await plain(address, what)

        setattr(side, name, checked)

    def fill(self, address: int, data: bytes) -> None:
        self.ram.write(address, data)

    def dump(self, address: int, length: int) -> bytes:
        return bytes(self.ram.read(address, length))

    async def _watch(self) -> None:
        """Bursts in flight and their lengths, from the signals."""
        bus = {
            side: [
                getattr(self.dut, f"m_axi_{name}")
                for name in (f"a{side}valid", f"a{side}ready", f"a{side}len", f"a{side}size", *end)
            ]
            for side, end in (("r", ("rvalid", "rready", "rlast")), ("w", ("bvalid", "bready")))
        }
        width = self.config.bus_bytes.bit_length() - 1
        while True:
            await FallingEdge(self.dut.clk)
            await ReadOnly()
            for side, (valid, ready, length, size, *end) in bus.items():
                if valid.value and ready.value:
                    self.in_flight[side] += 1
                    self.bursts[side] += 1
                    assert int(length.value) < self.config.max_burst, "burst too long"
                    assert int(size.value) == width, "narrow burst"
                if all(signal.value for signal in end):
                    self.in_flight[side] -= 1
                    self.responses += side == "w"
                count = self.in_flight[side]
                assert 0 <= count <= self.config.outstanding, f"{count} bursts in flight"
                self.most_in_flight[side] = max(count, self.most_in_flight[side])


async def stops(dut: Any, ram: LimitedRam, side: str, rng: random.Random) -> None:
    """Raises `stop` now and then: bursts in flight are completed, at most one more is sent."""
    while True:
        for _ in range(rng.randint(1, 400)):
            await FallingEdge(dut.clk)
        dut.stop.value = 1
        before = ram.bursts[side]
        for _ in range(5000):  # a burst that waits in the register of AR or AW still goes
            await FallingEdge(dut.clk)
            if not (ram.in_flight[side] or getattr(dut, f"m_axi_a{side}valid").value):
                break
        assert ram.in_flight[side] == 0, "bursts in flight were not completed"
        for _ in range(rng.randint(1, 100)):
            await FallingEdge(dut.clk)
        assert ram.bursts[side] - before <= 1, "bursts were sent while stopped"
        dut.stop.value = 0


def addresses(item: isa.Instruction, base: int, word_bytes: int) -> list[list[int]]:
    """Byte addresses of the words of a load or store, row by row."""
    return [
        [
            (base + item.get("address") + i * item.get("stride") + j * word_bytes) % 2**32
            for j in range(item.get("words"))
        ]
        for i in range(item.get("rows"))
    ]


def count_bursts(address: int, length: int, config: Config) -> int:
    """Bursts of a row of `length` bytes: none crosses a page, none has too many beats."""
    count = 0
    longest = config.max_burst * config.bus_bytes
    while length > 0:
        size = min(length, longest, PAGE - address % PAGE)
        address, length, count = address + size, length - size, count + 1
    return count


def misaligned(item: isa.Instruction, base: int, config: Config) -> bool:
    """Whether a load or store must end in MISALIGNED."""
    offsets = (base + item.get("address")) | (item.get("stride") if item.get("rows") > 1 else 0)
    return bool(offsets % config.bus_bytes)


def draw_shape(rng: random.Random, config: Config, word_bytes: int, span: int) -> dict[str, int]:
    """Address, stride, words, rows of: a long row, short rows, rows around a page boundary, any."""
    bus = config.bus_bytes
    kind = rng.randrange(4)
    rows, words = [
        (1, rng.randint(1, 9000 // word_bytes)),
        (rng.randint(1, 40), rng.randint(1, 2)),
        (rng.randint(1, 3), rng.randint(1, 4 * PAGE // word_bytes // 3)),
        (rng.choice([0, 1, rng.randint(2, 6)]), rng.choice([0, 1, rng.randint(2, 30)])),
    ][kind]
    address = rng.randrange(0, span // 2, bus)
    if kind == 2:
        address = rng.randrange(1, 8) * PAGE + bus * rng.randint(-4, 4)
    stride = rng.choice([word_bytes * words, rng.randrange(0, 4096, bus), 2**32 - bus, 0])
    if rng.random() < 0.1:
        address += rng.randrange(1, bus)
    elif rng.random() < 0.1:
        stride += rng.randrange(1, bus)
    return {"address": address, "stride": stride % 2**32, "words": words, "rows": rows}


def first_difference(got: Sequence[Any], expected: Sequence[Any]) -> str:
    """Index and values where two sequences first differ, or ""."""
    for index, (a, b) in enumerate(zip(got, expected, strict=False)):
        if a != b:
            return f"item {index} is {a}, expected {b}"
    return "" if len(got) == len(expected) else f"{len(got)} items, expected {len(expected)}"
