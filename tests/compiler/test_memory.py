import numpy as np
import pytest

from systolith.compiler.memory import ALIGNMENT, Memory
from systolith.isa import Instruction, assemble, disassemble


def test_link_moves_everything_behind_the_code():
    memory = Memory()
    first = memory.constant("first", np.arange(5, dtype=np.uint8))
    buffer = memory.buffer("buffer", "<u4", (3,))
    last = memory.constant("last", np.full(2, 7, dtype=np.uint8))
    code = [
        Instruction("load", {"address": last, "words": 1, "rows": 1}),
        Instruction("storew", {"address": buffer + 4, "value": 9}),
        Instruction("alu", {"x": 5}, {2: 3}),
        Instruction("ldr", {"address": first}, {2: 1}),
    ]
    image, size, symbols = memory.link(assemble(code))
    shift = symbols["first"].address
    assert shift % ALIGNMENT == 0 and shift >= 4 * 32
    moved = disassemble(image[: 4 * 32])
    assert [item.get("address") for item in (moved[0], moved[1], moved[3])] == [
        last + shift, buffer + 4 + shift, first + shift
    ]  # fmt: skip
    assert moved[2].get("x") == 5
    assert image[shift : shift + 5] == bytes(range(5))
    assert image[symbols["last"].address :] == b"\7\7"
    assert size == symbols["last"].address + ALIGNMENT


def test_a_buffer_is_one_region_however_often_it_is_asked_for():
    memory = Memory()
    assert memory.buffer("a", "uint8", (4,)) == memory.buffer("a", "uint8", (4,))
    with pytest.raises(ValueError, match="'a' is placed twice"):
        memory.buffer("a", "uint8", (5,))
