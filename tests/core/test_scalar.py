import pytest

from systolith.isa import AluOp, Condition, Instruction
from systolith.scalar import compute, holds

BIG = 0xFFFF_FFFF


@pytest.mark.parametrize(
    "op, x, y, result",
    [
        (AluOp.ADD, BIG, 2, 1),
        (AluOp.SUB, 1, 2, BIG),
        (AluOp.SHL, 0x8000_0001, 33, 2),
        (AluOp.SHR, 0x8000_0000, 31, 1),
        (AluOp.AND, 0b1100, 0b1010, 0b1000),
        (AluOp.MIN, BIG, 1, 1),
        (AluOp.MAX, BIG, 1, BIG),
    ],
)
def test_arithmetic_is_unsigned_and_of_32_bits(op, x, y, result):
    assert compute(Instruction("alu", {"op": op, "x": x, "y": y})) == result


@pytest.mark.parametrize(
    "condition, less, equal, greater",
    [
        (Condition.ALWAYS, True, True, True),
        (Condition.EQ, False, True, False),
        (Condition.NE, True, False, True),
        (Condition.LT, True, False, False),
        (Condition.GE, False, True, True),
    ],
)
def test_comparisons_are_unsigned(condition, less, equal, greater):
    for (x, y), expected in (((1, BIG), less), ((7, 7), equal), ((BIG, 1), greater)):
        assert holds(Instruction("branch", {"condition": condition, "x": x, "y": y})) == expected
