"""The sequencer's arithmetic and comparisons: what ``alu`` and ``branch`` instructions compute."""

from systolith.isa import AluOp, Condition, Instruction

WORD_MASK = 0xFFFF_FFFF


def operands(item: Instruction) -> tuple[int, int]:
    """x and y, 32 bits each."""
    return item.fields.get("x", 0), item.fields.get("y", 0)


def compute(item: Instruction) -> int:
    """Result of an ``alu`` instruction, 32 bits unsigned."""
    x, y = operands(item)
    match AluOp(item.fields.get("op", 0)):
        case AluOp.ADD:
            result = x + y
        case AluOp.SUB:
            result = x - y
        case AluOp.SHL:
            result = x << (y & 31)
        case AluOp.SHR:
            result = x >> (y & 31)
        case AluOp.AND:
            result = x & y
        case AluOp.MIN:
            result = min(x, y)
        case AluOp.MAX:
            result = max(x, y)
    return result & WORD_MASK


def holds(item: Instruction) -> bool:
    """Whether the condition of a ``branch`` instruction holds."""
    x, y = operands(item)
    match Condition(item.fields.get("condition", 0)):
        case Condition.ALWAYS:
            return True
        case Condition.EQ:
            return x == y
        case Condition.NE:
            return x != y
        case Condition.LT:
            return x < y
        case Condition.GE:
            return x >= y
