"""The host's end of the line against a model of a board, on lines of every quality."""

import pytest

from systolith.boards.link import Link
from systolith.boards.serial_line import LinkError, SerialLine
from systolith.host_link import IDENTITY_BYTES, Deframer, Identity, frame
from tests.boards.link_model import ModelBoard, PlainLine, identity, model_line, unframed


def test_identity_there_and_back() -> None:
    told = identity(board="ulx3s", build=1 << 63, memory_bytes=1 << 25)
    assert len(told.to_bytes()) == IDENTITY_BYTES == 64
    assert Identity.from_bytes(told.to_bytes()) == told
    with pytest.raises(ValueError, match="no identity"):
        Identity.from_bytes(b"x" * 64)


def test_frames_agree_with_the_model(seed: int) -> None:
    import random

    rng = random.Random(seed)
    contents = [bytes([0x7E, 0x7D, 0x20, 0x5E]), b"\x7d" * 9]
    contents += [rng.randbytes(rng.randrange(1, 40)) for _ in range(200)]
    line = b"".join(map(frame, contents))
    assert unframed(line) == contents
    deframer = Deframer()
    assert [c for i in range(0, len(line), 7) for c in deframer.push(line[i : i + 7])] == contents
    assert deframer.damaged == 0
    assert deframer.push(b"\x7e\x7e\x01\x02\x03\x04\x05\x7e\x31\x7d\x7e") == []
    assert deframer.damaged == 2


def test_a_good_line() -> None:
    board = ModelBoard()
    line = model_line(board)
    link = Link(line)
    assert link.identity == board.identity
    data = bytes(range(256)) * 13 + b"last"
    steps: list[int] = []
    link.write_memory(60, data, steps.append)
    assert steps[-1] == len(data) and steps == sorted(steps)
    assert link.read_memory(60, len(data)) == data
    assert link.read_memory(61, 7) == data[1:8]
    link.write_register(0x20, 0xDEADBEEF)
    assert link.read_registers(0x1C, 3) == [0, 0xDEADBEEF, 0]
    assert link.resent == 0
    # Six per cent beyond the bytes themselves, escapes included, is what 1 Mbaud can afford.
    before = line.line.sent
    link.write_memory(0, b"\x55" * 4096)
    assert line.line.sent - before <= 4096 * 1.04


@pytest.mark.parametrize(
    "faults",
    [{"flips": 0.001}, {"drops": 0.001}, {"doubles": 0.001},
     {"flips": 0.0005, "drops": 0.0005, "doubles": 0.0005}],
    ids=["flips", "drops", "doubles", "all"],
)  # fmt: skip
def test_a_bad_line(faults: dict[str, float], seed: int) -> None:
    """Everything arrives, and each write is executed once and in order."""
    import random

    rng = random.Random(seed)
    board = ModelBoard()
    link = Link(model_line(board, seed=seed, **faults), patience=60)
    memory = bytearray(4096)
    asked = []
    for number in range(60):
        at, size = 4 * rng.randrange(500), 4 * rng.randrange(1, 500)
        data = rng.randbytes(size)
        link.write_memory(at, data)
        memory[at : at + size] = data
        link.write_register(4 * (number % 8), number)
        asked.append(number)
        at = rng.randrange(3000)
        assert link.read_memory(at, 600) == memory[at : at + 600]
    assert board.memory == memory
    done = [int.from_bytes(data, "little") for kind, _, data in board.writes if kind == 4]
    assert done == asked
    assert link.resent > 0


def test_a_cable_pulled_in_the_middle() -> None:
    board = ModelBoard()
    link = Link(model_line(board, cut=3000), patience=0.3)
    with pytest.raises(LinkError, match=r"stopped answering \(\d of 8 requests done\)"):
        link.write_memory(0, b"\x11" * 4096)


def test_no_board_another_device_and_another_protocol() -> None:
    with pytest.raises(LinkError, match="No board answers"):
        Link(model_line(ModelBoard(), cut=0), patience=0.1)

    class Echo(PlainLine):
        def write(self, octets: bytes) -> None:
            self.waiting += octets

    with pytest.raises(LinkError, match="No board answers"):
        Link(Echo(ModelBoard()), patience=0.1)
    with pytest.raises(LinkError, match="speaks protocol 9"):
        Link(model_line(ModelBoard(identity(protocol=9))))


def test_addresses_without_memory() -> None:
    """The link goes on after the error."""
    board = ModelBoard()
    link = Link(model_line(board))
    with pytest.raises(LinkError, match=r"nothing at 0x1000 \(read memory of 512 bytes"):
        link.read_memory(0x1000, 4096)
    with pytest.raises(LinkError, match="nothing at 0x1000"):
        link.write_memory(0xFFC, bytes(512))
    link.write_memory(8, b"go on...")
    assert link.read_memory(8, 8) == b"go on..."
    with pytest.raises(ValueError, match="words of 4 bytes"):
        link.write_memory(2, b"1234")


def test_ports_that_cannot_be_opened() -> None:
    with pytest.raises(LinkError, match="Cannot open the port /dev/nowhere"):
        SerialLine("/dev/nowhere")
