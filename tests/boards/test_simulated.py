"""The simulated board is the board: its top with its pins, PLL, SDRAM chip and serial line.

A small machine, so that loading and building take seconds; the same commands take any.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from systolith.boards.device import Device
from systolith.boards.link import Link
from systolith.boards.serial_line import LinkError, SerialLine
from systolith.boards.simulated import SIMULATED_BUILD, simulated_board
from systolith.cli import main
from systolith.compiler.decoder import compile_decoder
from systolith.config import Config
from systolith.graph import Graph
from systolith.sampling import Sampler
from systolith.sim.generate import compare, integer_text, machine_text
from systolith.sim.workloads import llama
from systolith.sim.writer import Request
from tests.boards.noisy_line import NoisyLine

SMALL = Config(
    dim=4, lanes=2, bus_bytes=4, activation_rows=256, weight_rows=512, accumulator_rows=128,
    parameter_rows=32, max_length=32, max_features=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("board") / "small.json"
    path.write_text(SMALL.to_json())
    return path


@pytest.fixture(scope="module")
def port() -> Iterator[str]:
    with simulated_board("ulx3s", SMALL) as path:
        yield path


@pytest.fixture
def device(port: str) -> Iterator[Device]:
    device = Device.open(port, config=SMALL)
    yield device
    device.close()


@pytest.fixture(scope="module")
def model() -> Graph:
    return llama(
        16, hidden=16, heads=4, kv_heads=2, ffn=24, layers=1, vocabulary=40, context=16
    )


def test_identity_and_both_memories(device: Device, seed: int) -> None:
    identity = device.link.identity
    assert (identity.board, identity.build) == ("ulx3s", SIMULATED_BUILD)
    assert identity.memory_bytes == identity.block_bytes + (32 << 20)
    data = np.random.default_rng(seed).bytes(64)
    for address in (0, identity.block_bytes - 32, identity.memory_bytes - 64):
        device.link.write_memory(address, data)
        assert device.link.read_memory(address, 64) == data
    with pytest.raises(LinkError, match="nothing at 0x2"):
        device.link.read_memory(identity.memory_bytes, 4)
    assert device.register("ID") == 0x5359_5354


def test_text_whose_tokens_the_host_chooses(device: Device, model: Graph) -> None:
    program = compile_decoder(model, SMALL)
    for sampler in (Sampler(), Sampler(0.9, top_p=0.9, seed=2)):
        request = Request(prompt=[1, 2], tokens=3, sampler=sampler)
        made = machine_text(program, request, device)
        compare(made, integer_text(model, request, context=program.metadata["context"]))


def test_noise_on_the_line(port: str, model: Graph) -> None:
    """Flipped bits, lost and doubled octets both ways: the same text."""
    line = NoisyLine(SerialLine(port), flips=3e-4, drops=1e-4, doubles=1e-4, seed=3)
    device = Device(Link(line, patience=60), SMALL)
    request = Request(prompt=[4, 2], tokens=2)
    made = machine_text(compile_decoder(model, SMALL), request, device)
    compare(made, integer_text(model, request, context=16))
    assert line.damages > 0 and device.link.resent > 0
    device.close()


def test_a_cable_that_is_pulled_and_put_back(port: str) -> None:
    """What was to be written is not there, the host says so, and the next host finds the board."""
    line = NoisyLine(SerialLine(port), cut=700)
    link = Link(line, patience=1.5)
    with pytest.raises(LinkError, match="stopped answering"):
        link.write_memory(0, bytes(4096))
    line.close()
    link = Link(SerialLine(port))
    link.write_memory(0, b"go on...")
    assert link.read_memory(0, 8) == b"go on..."
    link.close()


def test_a_port_that_another_program_has(port: str, device: Device) -> None:
    with pytest.raises(LinkError, match=r"is in use by another program: close that first"):
        SerialLine(port)


def test_selftest_and_wrong_bitstream(port: str, config_file: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    junit = tmp_path / "junit.xml"
    runner = CliRunner()
    arguments = ["selftest", "--port", port, "--config", str(config_file)]
    manifest.write_text(f'{{"build_hash": "{SIMULATED_BUILD:016x}"}}')
    good = [*arguments, "--manifest", str(manifest), "--junit", str(junit)]
    result = runner.invoke(main, good)
    assert result.exit_code == 0, result.output
    assert "ok      all units together" in result.output
    assert 'failures="0"' in junit.read_text()
    manifest.write_text('{"build_hash": "0000000000000001"}')
    result = runner.invoke(main, [*arguments, "--manifest", str(manifest)])
    assert result.exit_code == 1
    assert "should be 0000000000000001: load it" in result.output
    result = runner.invoke(main, ["selftest", "--port", port])
    assert result.exit_code == 2 and "give its file by --config" in result.output
