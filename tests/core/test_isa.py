from pathlib import Path

import numpy as np
import pytest

from systolith import isa
from systolith.isa import OPCODES, QUEUED, Instruction, ProgramError, Unit

ROOT = Path(__file__).parents[2]
# The arg-max reuses the mantissas' bits: the two never occur together.
SHARED = {("vector", "count"), ("vector", "first")}


@pytest.mark.parametrize("opcode", OPCODES, ids=lambda o: o.name)
def test_fields_fit_and_do_not_overlap(opcode):
    used: dict[tuple[int, int], str] = {}
    for spec in (*opcode.fields, *opcode.reserved):
        assert 1 <= spec.word < isa.WORDS and spec.low >= 0 and spec.low + spec.width <= 32
        assert spec.word > 1 or spec.low >= 24, "the masks are in the way"
        if (opcode.name, spec.name) in SHARED:
            continue
        for bit in range(spec.low, spec.low + spec.width):
            assert (spec.word, bit) not in used, (spec.name, used.get((spec.word, bit)))
            used[spec.word, bit] = spec.name
        if spec.kind:
            assert max(spec.kind) < 1 << spec.width


@pytest.mark.parametrize("opcode", OPCODES, ids=lambda o: o.name)
def test_decode_inverts_encode(opcode, seed):
    rng = np.random.default_rng(seed)
    names = [s.name for s in opcode.fields if (opcode.name, s.name) not in SHARED]
    for _ in range(50):
        fields = {
            name: int(rng.integers(0, 1 << opcode.field(name).width, dtype=np.uint64))
            for name in names
        }
        registers = {w: int(r) for w, r in enumerate(rng.integers(0, 16, 6), start=2) if r}
        wait, signal = (int(m) for m in rng.integers(0, 1 << 12, 2))
        item = Instruction(opcode.name, fields, registers, wait, signal)
        again = isa.decode(isa.encode(item))
        assert {name: again.fields[name] for name in names} == fields
        assert (again.registers, again.wait, again.signal) == (registers, wait, signal)
        assert isa.disassemble(isa.assemble([item, item])) == [again, again]


@pytest.mark.parametrize("opcode", OPCODES, ids=lambda o: o.name)
def test_nothing_sets_reserved_bits(opcode):
    everything = {s.name: (1 << s.width) - 1 for s in opcode.fields}
    words = isa.encode(Instruction(opcode.name, everything, {}, 0xFFF, 0xFFF))
    for spec in opcode.reserved:
        assert not words[spec.word] >> spec.low & ((1 << spec.width) - 1)
        with pytest.raises(ProgramError, match=f"{opcode.name} has no field '{spec.name}'"):
            isa.encode(Instruction(opcode.name, {spec.name: 1}))


def test_one_semaphore_for_each_ordered_pair():
    pairs = [(a, b) for a in QUEUED for b in QUEUED if a != b]
    assert sorted(isa.semaphore(*pair) for pair in pairs) == list(range(isa.SEMAPHORES))
    for pair in ((Unit.LOAD, Unit.LOAD), (Unit.SEQUENCER, Unit.LOAD)):
        with pytest.raises(ValueError, match="There is no semaphore"):
            isa.semaphore(*pair)


@pytest.mark.parametrize(
    "item, message",
    [
        (Instruction("matmul", {"rows": 1 << 16}), "rows must fit in 16 unsigned bits, not 65536"),
        (Instruction("matmul", {"rows": -1}), "rows must fit in 16 unsigned bits, not -1"),
        (Instruction("matmul", {"bogus": 1}), "matmul has no field 'bogus'"),
        (Instruction("jump"), "Unknown instruction 'jump'"),
        (Instruction("halt", wait=1 << 12), "wait mask 0x1000 has no 12 bits"),
        (Instruction("halt", registers={1: 3}), "no register r3 on word 1"),
    ],
)
def test_encoding_errors_name_the_field(item, message):
    with pytest.raises(ProgramError, match=message):
        isa.encode(item)


def test_illegal_opcodes_are_refused():
    with pytest.raises(ProgramError, match="Illegal opcode 0xff"):
        isa.decode([0xFF, 0, 0, 0, 0, 0, 0, 0])


def test_listing_reads_like_the_instruction():
    item = Instruction(
        "load",
        {"address": 256, "words": 4, "rows": 1, "space": isa.LoadSpace.WEIGHT},
        {2: 9},
        signal=1 << isa.semaphore(Unit.LOAD, Unit.MATMUL),
    )
    text = isa.listing([Instruction("fence"), item])
    assert text.splitlines() == [
        "    0  fence",
        "    1  load     address=256+r9 words=4 rows=1 space=weight signal=load>matmul",
    ]


def test_the_document_is_up_to_date():
    assert (ROOT / "docs/isa.md").read_text() == isa.document()
