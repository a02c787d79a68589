"""Programs on a board: a model of one whose machine is the golden one, good or broken."""

from xml.etree import ElementTree

import numpy as np
import pytest

from systolith.boards.device import Device
from systolith.boards.link import Link
from systolith.boards.locate import first_difference
from systolith.boards.selftest import Result, _blocks, _only, junit, selftest
from systolith.boards.serial_line import LinkError
from systolith.compiler.decoder import compile_decoder, set_prompt
from systolith.config import PRESETS, Config
from systolith.errors import UserError
from systolith.graph import Graph
from systolith.isa import Instruction
from systolith.program import Symbol
from systolith.sim.generate import Mismatch, compare, integer_text, machine_text
from systolith.sim.jobs import Job, MachineError, demand_done
from systolith.sim.machine import GoldenMachine
from systolith.sim.random_program import random_program
from systolith.sim.workloads import llama
from systolith.sim.writer import Request
from tests.boards.link_model import MachineBoard, model_line

SMALL = Config(
    dim=4, lanes=2, bus_bytes=4, activation_rows=512, weight_rows=1024, accumulator_rows=128,
    parameter_rows=64, max_length=64, max_features=64,
)  # fmt: skip


class WrongNorm(GoldenMachine):
    """The third norm leaves one element too large."""

    norms = 0

    def _norm(self, item: Instruction) -> None:
        super()._norm(item)
        self.norms += 1
        if self.norms >= 3:
            self.activation[item.get("d") % len(self.activation), 1] ^= 1


@pytest.fixture(scope="module")
def model() -> Graph:
    return llama(
        16, hidden=16, heads=4, kv_heads=2, ffn=24, layers=2, vocabulary=40, context=24
    )


def _device(board: MachineBoard, config: Config | None = SMALL, **faults: float) -> Device:
    return Device(Link(model_line(board, **faults)), config)


def test_a_program_with_everything() -> None:
    program = random_program(SMALL, 20, 1)
    expected = program.memory()
    GoldenMachine(SMALL, expected).run()
    for base in (0, 4096):
        (result,) = _device(MachineBoard(SMALL)).run_all([Job(program, base=base)])
        demand_done(result)
        np.testing.assert_array_equal(result.memory, expected)


def test_constants_are_sent_once(model: Graph) -> None:
    board = MachineBoard(SMALL)
    device = _device(board)
    program = compile_decoder(model, SMALL, context=16)
    request = Request(prompt=[1, 2, 3], tokens=4)
    sent = []
    for _ in range(2):
        before = device.link.line.line.sent
        made = machine_text(program, request, device)
        compare(made, integer_text(model, request, context=16))
        sent.append(device.link.line.line.sent - before)
    assert sent[0] > len(program.image) > 10 * sent[1]


def test_what_buffers_hold_does_not_matter(model: Graph) -> None:
    """Compiled programs write what they read: a board's memory is full of old things."""
    program = compile_decoder(model, SMALL, context=16)
    board = MachineBoard(SMALL)
    rng = np.random.default_rng(3)
    board.memory[:] = rng.bytes(len(board.memory))
    request = Request(prompt=[5, 6], tokens=9)
    compare(
        machine_text(program, request, _device(board)), integer_text(model, request, context=16)
    )


def test_text_token_by_token(model: Graph) -> None:
    """Marks that were missed are read from the memory."""
    program = compile_decoder(model, SMALL, context=16)
    told: list[int] = []
    request = Request(prompt=[1, 2], tokens=5)
    made = machine_text(program, request, _device(MachineBoard(SMALL)), told.append)
    assert made.tokens[2:] == told and len(told) == 5


def test_sessions_and_bad_lines(model: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session of a board gives the bits of the integer forward, over a line with noise."""
    from types import SimpleNamespace

    from systolith.session import Session

    board = MachineBoard(SMALL)
    line = model_line(board, flips=2e-4, drops=2e-4, doubles=2e-4, seed=5)
    monkeypatch.setattr("systolith.boards.device.SerialLine", lambda port, baud: line)
    artifact = SimpleNamespace(graph=model, tokenizer=b"")
    session = Session(artifact, SMALL, "board", port="/dev/board")
    tokens = list(session.generate([3, 1, 4], 6))
    golden = Session(artifact, SMALL, "golden")
    assert tokens == list(golden.generate([3, 1, 4], 6))
    assert session.counters["CYCLES"] > 0
    assert session.backend.link.resent > 0
    with pytest.raises(UserError, match="A port goes with the backend board"):
        Session(artifact, SMALL, "board")


def test_other_machines_are_refused() -> None:
    board = MachineBoard(SMALL)
    with pytest.raises(LinkError, match=r"no preset .configuration 0x[0-9a-f]{8}.: give its file"):
        _device(board, None)
    with pytest.raises(LinkError, match="a machine of another configuration"):
        _device(board, PRESETS["tiny"])
    assert _device(MachineBoard(PRESETS["lean"]), None).config == PRESETS["lean"]
    with pytest.raises(UserError, match="compiled for another configuration"):
        _device(board).run_all([Job(random_program(PRESETS["tiny"], 1, 1))])


def test_programs_that_do_not_fit_and_errors() -> None:
    board = MachineBoard(SMALL, memory_bytes=8192)
    program = random_program(SMALL, 4, 1)
    with pytest.raises(UserError, match=r"needs [\d,]+ bytes of memory, and the board has 8,192"):
        _device(board).run_all([Job(program)])
    wrong = np.zeros(64, np.uint8)
    wrong[0] = 0xFF
    (result,) = _device(board).run_all([Job(wrong)])
    with pytest.raises(MachineError, match="error ILLEGAL_OPCODE at instruction 0"):
        demand_done(result)


class _Endless(MachineBoard):
    """Its program goes on: CYCLES grow with each look."""

    def _run(self) -> None:
        self.registers |= {0x14: 1, 0x18: 0, 0x1C: 0, 0x2C: 0, 0x80: 0, 0x84: 0}

    def _read(self, operation: int, address: int, length: int) -> tuple[bytes, bool]:
        if operation == 3 and address == 0x80:
            self.registers[0x80] += 600
        return super()._read(operation, address, length)


def test_a_program_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the machine's count of cycles, not by the host's clock."""
    monkeypatch.setattr("systolith.boards.device._LOOK_S", 0.0)
    board = _Endless(SMALL)
    with pytest.raises(LinkError, match="not ended after 1,000 cycles, and was stopped"):
        _device(board).run_all([Job(random_program(SMALL, 1, 1), max_cycles=1000)])
    assert board.registers[0x80] == 1200
    assert board.registers[0x10] == 2  # CONTROL: reset


def test_selftest_of_a_good_board(model: Graph) -> None:
    device = _device(MachineBoard(SMALL))
    told: list[Result] = []
    results = selftest(device, build=0xABCD, model=model, tokens=3, told=told.append)
    assert results == told
    assert [r.name for r in results if r.problem or r.skipped] == []
    assert [r.name for r in results][:3] == ["identification", "memory", "load and store"]
    assert "3 tokens" in results[-1].detail
    suite = ElementTree.fromstring(junit(results, "model"))
    assert suite.get("failures") == "0" and len(suite) == len(results) == 10


def test_of_a_large_memory_blocks_are_read_back_from_its_first_byte_to_its_last(seed: int) -> None:
    assert _blocks(Symbol(64, "uint8", (1 << 16,))) == [(64, 1 << 16)]
    large = Symbol(4096, "int32", (8192, 8))
    blocks = _blocks(large)
    assert blocks[0] == (4096, 512) and sum(blocks[-1]) == 4096 + large.size
    assert len(blocks) == 128 and all(address % 4 == 0 for address, _ in blocks)
    memory = np.random.default_rng(seed).integers(1, 256, 4096 + large.size).astype(np.uint8)
    assert np.count_nonzero(_only(memory, blocks)) == sum(size for _, size in blocks)


def test_selftest_of_another_bitstream() -> None:
    results = selftest(_device(MachineBoard(SMALL)), build=0xABCE)
    first, *others = results
    assert first.problem == (
        "the bitstream is build 000000000000abcd and should be 000000000000abce: load it"
    )
    assert {r.skipped for r in others} == {"identification failed"}
    suite = ElementTree.fromstring(junit(results, "x"))
    assert suite.find("testcase/failure").get("message") == first.problem
    assert suite.get("skipped") == str(len(others))


class _StuckBit(MachineBoard):
    """Bit 3 of byte 0x2000 of the memory is always 1."""

    def _write(self, operation: int, address: int, data: bytes) -> bool:
        good = super()._write(operation, address, data)
        self.memory[0x2000] |= 8
        return good


def test_selftest_of_a_board_with_bad_memory() -> None:
    results = selftest(_device(_StuckBit(SMALL)), whole_memory=True)
    assert results[1].name == "memory" and "memory at 0x2000 is " in results[1].problem
    assert results[2].skipped == "memory failed"


def test_selftest_names_what_is_wrong_first(model: Graph) -> None:
    """A norm unit that fails the third time: instruction and tensor are named."""
    device = _device(MachineBoard(SMALL, machine=WrongNorm))
    results = {r.name: r for r in selftest(device, model=model, tokens=3)}
    bad = {name for name, result in results.items() if result.problem}
    assert bad == {"norm", "all units together", "model"} or bad == {"norm", "model"}
    program = compile_decoder(model, SMALL)
    code, labels = program.code(), program.metadata["labels"]
    norms = [pc for pc in GoldenMachine(SMALL, _prompted(program)).run() if code[pc].op == "norm"]
    pc = norms[2]
    expected = f"instruction {pc} (norm for {labels[pc]}): activation row {code[pc].get('d')}, "
    assert expected in results["model"].problem
    assert f"{labels[pc]}" and "lane 1 is" in results["model"].problem


def _prompted(program) -> np.ndarray:
    memory = program.memory()
    set_prompt(program, memory, [1, 2, 3, 4], 7)
    return memory


def test_the_search_says_when_it_finds_nothing(model: Graph) -> None:
    device = _device(MachineBoard(SMALL))
    program = compile_decoder(model, SMALL)
    memory = _prompted(program)
    writes = [program.region(memory, name) for name in ("control", "tokens")]
    assert "right the first time" in str(first_difference(device, program, writes))


def test_a_wrong_logit_is_a_mismatch(model: Graph) -> None:
    from systolith.sim.generate import generate

    with pytest.raises(Mismatch, match="Logit"):
        generate(
            model, SMALL, Request(prompt=[1, 2], tokens=3),
            _device(MachineBoard(SMALL, machine=WrongNorm)),
        )  # fmt: skip
