"""The instructions that a program executes, in order, with all registers added.

The sequencer's own instructions are executed for real on a copy of the memory, as the golden
machine does it; nothing else is. So what the units compute is unknown: `argmax` gives 0, and an
`ldr` sees what the host wrote and what `storew` did, but no results of `store`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from systolith import scalar
from systolith.isa import (
    INSTRUCTION_BYTES,
    WORDS,
    Instruction,
    ProgramError,
    decode,
)

LIMIT = 1 << 22
"""Instructions after which a program is said not to end."""


@dataclass(frozen=True, slots=True)
class Dynamic:
    """One executed instruction. ``taken``: a branch that jumps, to ``item.fields["target"]``."""

    pc: int
    item: Instruction
    taken: bool = False


def unroll(
    words: Sequence[Sequence[int]],
    memory: NDArray[np.uint8] | None = None,
    *,
    limit: int = LIMIT,
) -> list[Dynamic]:
    """What a program executes until ``halt``, the sequencer's own instructions included.

    ``words``: eight for each instruction, as ``isa.encode`` and ``words_of`` give them.
    ``memory``: (bytes,) uint8 from BASE on, as the host left it; it is not modified. Without one,
    every ``ldr`` gives 0. Raises ``ProgramError`` where the program leaves its code or does not
    halt within ``limit`` instructions.
    """
    return _Sequencer(words, memory).run(limit)


class _Sequencer:
    def __init__(self, words: Sequence[Sequence[int]], memory: NDArray[np.uint8] | None) -> None:
        self.words = words
        self.code = [decode(item) for item in words]
        self.known: dict[tuple[int, ...], Instruction] = {}
        self.memory = memory
        self.written: dict[int, int] = {}
        self.registers = [0] * 16

    def run(self, limit: int) -> list[Dynamic]:
        done: list[Dynamic] = []
        pc = 0
        while len(done) < limit:
            if not 0 <= pc < len(self.code):
                raise ProgramError(f"The program goes on at instruction {pc}, where there is none")
            item = self.code[pc]
            if item.registers:
                item = self._added(pc, item)
            taken = item.op == "branch" and scalar.holds(item)
            done.append(Dynamic(pc, item, taken))
            if item.op == "halt":
                return done
            self._execute(item)
            pc = item.fields.get("target", 0) if taken else pc + 1
        raise ProgramError(f"The program has not halted after {limit} instructions")

    def _added(self, pc: int, item: Instruction) -> Instruction:
        """The instruction with its registers added; the same ones come again and again."""
        values = tuple(self.registers[register] for register in item.registers.values())
        key = (pc, *values)
        if key not in self.known:
            words = list(self.words[pc])  # bits outside the fields count: they may carry
            for word, value in zip(item.registers, values, strict=True):
                words[word] = (words[word] + value) & scalar.WORD_MASK
            self.known[key] = decode(words)
        return self.known[key]

    def _execute(self, item: Instruction) -> None:
        get = item.fields.get
        if item.op == "alu":
            self._set(get("rd", 0), scalar.compute(item))
        elif item.op == "ldr":
            self._set(get("rd", 0), self._word(get("address", 0)))
        elif item.op == "argmax":
            self._set(get("rd", 0), 0)
        elif item.op == "storew":
            self.written[get("address", 0)] = get("value", 0)

    def _set(self, register: int, value: int) -> None:
        if register:
            self.registers[register] = value & scalar.WORD_MASK

    def _word(self, address: int) -> int:
        if address in self.written:
            return self.written[address]
        if self.memory is None:
            return 0
        return int.from_bytes(self.memory[address : address + 4].tobytes(), "little")


def words_of(image: bytes, count: int) -> list[list[int]]:
    """The words of the first ``count`` instructions of a program image."""
    words = np.frombuffer(image[: count * INSTRUCTION_BYTES], "<u4").reshape(-1, WORDS)
    return words.tolist()
