import numpy as np
import pytest

from systolith.compiler.memory import ALIGNMENT, Memory
from systolith.isa import Instruction, assemble, disassemble


def test_link_puts_everything_in_its_place():
    """Code, constants, rare constants, buffers, whatever the order in which they came."""
    memory = Memory()
    buffer = memory.buffer("buffer", "<u4", (3,))
    rare = memory.constant("rare", np.full(2, 7, dtype=np.uint8), rare=True)
    first = memory.constant("first", np.arange(5, dtype=np.uint8))
    last = memory.constant("last", np.full(2, 9, dtype=np.uint8))
    code = [
        Instruction("load", {"address": last, "words": 1, "rows": 1}),
        Instruction("storew", {"address": buffer + 4, "value": 9}),
        Instruction("alu", {"x": 5}, {2: 3}),
        Instruction("ldr", {"address": first}, {2: 1}),
        Instruction("load", {"address": rare - 64, "words": 1, "rows": 1}),
    ]
    image, size, symbols = memory.link(assemble(code))
    at = {name: symbol.address for name, symbol in symbols.items()}
    shift = at["first"]
    assert at == {
        "first": shift, "last": shift + 64, "rare": shift + 128, "buffer": shift + 192
    }  # fmt: skip
    assert shift % ALIGNMENT == 0 and shift >= 5 * 32
    moved = disassemble(image[: 5 * 32])
    assert [item.get("address") for item in (*moved[:2], *moved[3:])] == [
        at["last"], at["buffer"] + 4, at["first"], at["rare"] - 64
    ]  # fmt: skip
    assert moved[2].get("x") == 5
    assert image[shift : shift + 5] == bytes(range(5))
    assert image[at["last"] :][:2] == b"\11\11"
    assert image[at["rare"] :] == b"\7\7"
    assert size == at["buffer"] + ALIGNMENT


def test_a_buffer_is_one_region_however_often_it_is_asked_for():
    memory = Memory()
    assert memory.buffer("a", "uint8", (4,)) == memory.buffer("a", "uint8", (4,))
    with pytest.raises(ValueError, match="'a' is placed twice"):
        memory.buffer("a", "uint8", (5,))
