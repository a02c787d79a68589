"""Arithmetic and branches of the sequencer, as steps."""

from systolith.compiler.lower import Lowering
from systolith.compiler.schedule import Step
from systolith.compiler.tensors import Registers
from systolith.isa import AluOp, Condition

Operand = Registers | int


def _operands(x: Operand, y: Operand) -> tuple[dict[str, int], dict[str, Registers]]:
    fields: dict[str, int] = {}
    registers: dict[str, Registers] = {}
    for name, value in (("x", x), ("y", y)):
        if isinstance(value, Registers):
            registers[name] = value
        else:
            fields[name] = value
    return fields, registers


def alu(low: Lowering, op: AluOp, rd: Registers, x: Operand, y: Operand) -> Step:
    """rd = x op y."""
    fields, registers = _operands(x, y)
    return low.emit("alu", {"op": op, "rd": int(rd), **fields}, registers)


def times(low: Lowering, rd: Registers, x: Registers, factor: int, scratch: Registers) -> None:
    """rd = x * factor, by shifts and additions; rd and scratch differ from x."""
    bits = [i for i in range(factor.bit_length()) if factor >> i & 1]
    alu(low, AluOp.SHL, rd, x, bits[0])
    for bit in bits[1:]:
        alu(low, AluOp.SHL, scratch, x, bit)
        alu(low, AluOp.ADD, rd, rd, scratch)


def branch(
    low: Lowering, condition: Condition, x: Operand, y: Operand, target: Step | None = None
) -> Step:
    """Goes to ``target`` if the condition holds; the target may be set later."""
    fields, registers = _operands(x, y)
    step = low.emit("branch", {"condition": condition, **fields}, registers)
    step.target = target
    return step
