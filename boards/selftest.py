"""Hardware CI: does this board compute what the golden machine computes?

    results = selftest(device, build=0x…, model=graph)
    junit(results, "ulx3s")

Every check gives a result; after one that shows that nothing else makes sense the rest is skipped,
and says so.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from systolith import registers
from systolith.boards.device import Device
from systolith.boards.locate import first_difference
from systolith.compiler.allocate import DoesNotFit
from systolith.compiler.decoder import compile_for, set_prompt
from systolith.graph import Graph
from systolith.program import Program, Symbol
from systolith.sim.generate import Mismatch, compare, integer_text, machine_text
from systolith.sim.jobs import Job, MachineError, demand_done
from systolith.sim.machine import GoldenMachine
from systolith.sim.random_program import KINDS, random_program
from systolith.sim.writer import Request

UNITS = {
    "load and store": ("load", "store", "storew"),
    "matmul": ("matmul",),
    "vector": ("vector",),
    "softmax": ("softmax",),
    "norm": ("norm",),
    "sequencer": ("sequencer", "storew"),
    "all units together": KINDS,
}
"""Known-answer tests, and the instructions that each is made of."""
_INSTRUCTIONS = 24
_BLOCK = 512
_READ_BACK = 1 << 16
"""Bytes of a region that are read back after a known-answer program, at most: a line is slow, and a
large weight memory is a megabyte of int32."""
_PROMPT = (1, 2, 3, 4)


@dataclass(frozen=True)
class Result:
    """``problem``: "" for success. ``skipped``: why the check was not made, else ""."""

    name: str
    seconds: float
    problem: str = ""
    skipped: str = ""
    detail: str = ""

    @property
    def good(self) -> bool:
        return not self.problem


class _Skip(Exception):
    """A check that makes no sense on this board; its text says why."""


class _Wrong(Exception):
    """A check that found something wrong; its text says what."""


def selftest(
    device: Device,
    *,
    build: int | None = None,
    model: Graph | None = None,
    tokens: int = 8,
    seed: int = 1,
    whole_memory: bool = False,
    told: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Makes all checks; ``told`` hears of each result when it is there.

    ``build``: the fingerprint that the bitstream must have. ``model``: a language model that writes
    ``tokens`` tokens, every logit compared with the integer forward. ``whole_memory``: every byte
    instead of blocks all over. A line that breaks raises ``LinkError``.
    """
    results: list[Result] = []
    broken = ""
    for name, check in _checks(device, build, model, tokens, seed, whole_memory):
        started = time.monotonic()
        problem = detail = ""
        skipped = f"{broken} failed" if broken else ""
        if not broken:
            try:
                detail = check()
            except _Skip as why:
                skipped = str(why)
            except (_Wrong, Mismatch, MachineError) as wrong:
                problem = str(wrong)
                broken = name if name in _VITAL else ""
        results.append(Result(name, time.monotonic() - started, problem, skipped, detail))
        told(results[-1])
    return results


_VITAL = ("identification", "memory")
"""Without these nothing else makes sense."""


def _checks(
    device: Device,
    build: int | None,
    model: Graph | None,
    tokens: int,
    seed: int,
    whole_memory: bool,
) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "identification", partial(_identification, device, build)
    yield "memory", partial(_memory, device, seed, whole_memory)
    for number, (name, kinds) in enumerate(UNITS.items()):
        program = random_program(device.config, _INSTRUCTIONS, seed + number, kinds)
        yield name, partial(_known_answer, device, program)
    if model is not None:
        yield "model", partial(_model, device, model, tokens)


def _identification(device: Device, build: int | None) -> str:
    identity = device.link.identity
    for name, expected in (
        ("ID", registers.IDENTIFICATION),
        ("VERSION", registers.VERSION),
        ("CONFIG_HASH", device.config.hash),
    ):
        found = device.register(name)
        if found != expected:
            raise _Wrong(f"register {name} is {found:#010x} and should be {expected:#010x}")
    if build is not None and identity.build != build:
        raise _Wrong(
            f"the bitstream is build {identity.build:016x} and should be {build:016x}: load it"
        )
    return (
        f"{identity.board}, D = {device.config.dim}, {identity.clock_hz / 1e6:g} MHz, "
        f"{identity.memory_bytes:,} bytes of memory, build {identity.build:016x}"
    )


def _memory(device: Device, seed: int, whole: bool) -> str:
    """Each data line, each address line, and random contents of blocks, or of all of it."""
    link, size = device.link, device.link.identity.memory_bytes
    rng = np.random.default_rng(seed)
    walking = np.array([1 << bit for bit in range(32)], "<u4")
    for pattern in (walking.tobytes(), (~walking).tobytes()):
        link.write_memory(0, pattern)
        _same_bytes(link.read_memory(0, len(pattern)), pattern, 0)
    places = [0, *(1 << bit for bit in range(2, size.bit_length()) if 1 << bit <= size - 4)]
    for place in places:
        link.write_memory(place, (place ^ 0xA5A5_A5A5).to_bytes(4, "little"))
    for place in places:
        _same_bytes(link.read_memory(place, 4), (place ^ 0xA5A5_A5A5).to_bytes(4, "little"), place)
    blocks = size // _BLOCK
    some = np.unique([0, blocks - 1, *rng.integers(0, blocks, 30)])
    chosen = np.arange(blocks) if whole else some
    contents = {int(block) * _BLOCK: rng.bytes(_BLOCK) for block in chosen}
    for place, data in contents.items():
        link.write_memory(place, data)
    for place, data in contents.items():
        _same_bytes(link.read_memory(place, _BLOCK), data, place)
    return f"{len(contents) * _BLOCK:,} of {size:,} bytes, {len(places)} address lines"


def _same_bytes(found: bytes, expected: bytes, address: int) -> None:
    for offset, (a, b) in enumerate(zip(found, expected, strict=True)):
        if a != b:
            raise _Wrong(f"memory at {address + offset:#x} is {a:#04x} and should be {b:#04x}")


def _demand_room(device: Device, program: Program) -> None:
    there = device.link.identity.memory_bytes
    if program.memory_bytes > there:
        raise _Skip(f"needs {program.memory_bytes:,} bytes of memory, the board has {there:,}")


def _known_answer(device: Device, program: Program) -> str:
    """A program of one unit, what it leaves compared with the golden machine."""
    _demand_room(device, program)
    memory = program.memory()
    GoldenMachine(device.config, memory).run()
    names = ("activation", "weight", "accumulator", "scratch")
    reads = [block for name in names for block in _blocks(program.symbols[name])]
    memory = _only(memory, reads)
    zeros = program.region(program.memory(), "scratch")
    (result,) = device.run_all([Job(program, writes=[zeros], reads=reads)])
    demand_done(result)
    for name in names:
        found, expected = program.read(result.memory, name), program.read(memory, name)
        wrong = np.argwhere(found != expected)
        if len(wrong):
            at = tuple(int(x) for x in wrong[0])
            where = first_difference(device, program, [zeros])
            raise _Wrong(
                f"{name} {list(at)} is {found[at]} and should be {expected[at]} "
                f"({len(wrong)} differ); {where}"
            )
    return f"{program.instructions} instructions, {result.counters['CYCLES']:,} cycles"


def _blocks(symbol: Symbol) -> list[tuple[int, int]]:
    """Addresses and sizes of what is read back of a region: all of it, or blocks from its first
    byte to its last."""
    if symbol.size <= _READ_BACK:
        return [(symbol.address, symbol.size)]
    count = _READ_BACK // _BLOCK
    starts = np.linspace(0, symbol.size - _BLOCK, count).astype(int) // 4 * 4
    return [(symbol.address + int(start), _BLOCK) for start in starts]


def _only(memory: NDArray[np.uint8], blocks: list[tuple[int, int]]) -> NDArray[np.uint8]:
    """Memory that is 0 but in these blocks, as a device returns it."""
    found = np.zeros_like(memory)
    for address, size in blocks:
        found[address : address + size] = memory[address : address + size]
    return found


def _model(device: Device, graph: Graph, tokens: int) -> str:
    try:
        program = compile_for(graph, device.config, device.memory_bytes)
    except DoesNotFit as why:
        raise _Skip(str(why)) from None
    request = Request(prompt=[t % graph.vocabulary for t in _PROMPT], tokens=tokens)
    reference = integer_text(graph, request, context=program.metadata["context"])
    made = machine_text(program, request, device)
    try:
        compare(made, reference)
    except Mismatch as wrong:
        memory = program.memory()
        set_prompt(program, memory, list(request.prompt), len(request.prompt) + tokens)
        writes = [program.region(memory, name) for name in ("control", "tokens")]
        raise _Wrong(f"{wrong}; {first_difference(device, program, writes)}") from None
    cycles = made.counters["CYCLES"] / (len(request.prompt) + made.new - 1)
    speed = device.link.identity.clock_hz / cycles
    return f"{made.new} tokens, {cycles:,.0f} cycles and {speed:,.0f} tokens/s"


def junit(results: list[Result], name: str) -> str:
    """The results as JUnit's XML, which CI systems read."""
    suite = ElementTree.Element(
        "testsuite",
        name=name,
        tests=str(len(results)),
        failures=str(sum(not r.good for r in results)),
        skipped=str(sum(bool(r.skipped) for r in results)),
        time=f"{sum(r.seconds for r in results):.3f}",
    )
    for result in results:
        case = ElementTree.SubElement(
            suite, "testcase", classname=name, name=result.name, time=f"{result.seconds:.3f}"
        )
        if result.problem:
            ElementTree.SubElement(case, "failure", message=result.problem)
        if result.skipped:
            ElementTree.SubElement(case, "skipped", message=result.skipped)
        if result.detail:
            ElementTree.SubElement(case, "system-out").text = result.detail
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
