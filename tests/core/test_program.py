import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from systolith.config import PRESETS
from systolith.isa import Instruction, ProgramError, assemble
from systolith.program import Program, Symbol

IMAGE = assemble([Instruction("fence"), Instruction("halt")])


def program() -> Program:
    symbols = {"x": Symbol(64, "<i4", (2, 3))}
    return Program(PRESETS["tiny"], IMAGE, 2, 128, symbols, {"kind": "test"})


def test_regions_are_read_and_written():
    made = program()
    memory = made.memory()
    assert len(memory) == 128 and memory[:64].tobytes() == IMAGE
    values = np.arange(6, dtype=np.int32).reshape(2, 3) - 3
    made.write(memory, "x", values)
    assert np.array_equal(made.read(memory, "x"), values)
    assert memory[64:68].tobytes() == b"\xfd\xff\xff\xff"
    with pytest.raises(ProgramError, match="28 bytes do not fit into x"):
        made.write(memory, "x", np.zeros(7))


def test_code_is_the_start_of_the_image():
    assert [item.op for item in program().code()] == ["fence", "halt"]


def test_a_program_for_another_configuration_is_refused():
    made = program()
    made.check_config(PRESETS["tiny"])
    with pytest.raises(
        ProgramError, match=r"compiled for another configuration .*compile it again"
    ):
        made.check_config(replace(PRESETS["tiny"], max_burst=8))


def test_files_survive_and_leave_nothing_else(tmp_path):
    path = tmp_path / "p.slp"
    program().save(path)
    assert Program.load(path) == program()
    assert list(tmp_path.iterdir()) == [path]


def test_bad_files_are_refused_in_one_sentence(tmp_path):
    path = tmp_path / "p.slp"
    with pytest.raises(ProgramError, match="There is no program"):
        Program.load(path)
    program().save(path)
    raw = path.read_bytes()
    for damaged in (raw[:-10], raw[:20], b"", b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ProgramError, match="damaged or not a systolith program"):
            Program.load(path)
    save_file({"a": np.zeros(1)}, path)
    with pytest.raises(ProgramError, match="is not a systolith program"):
        Program.load(path)
    path.write_bytes(raw)
    tensors = load_file(path)
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
    save_file(tensors, path, metadata=header | {"version": "2"})
    with pytest.raises(ProgramError, match=r"has program version 2, .* install a newer systolith"):
        Program.load(path)
