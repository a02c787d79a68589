"""Finds the first instruction whose result on a board is wrong.

A program is cut short: in the place of an instruction a branch leads to code behind the program
that stores the local memories and halts. What the board has there then is compared with the golden
machine at the same instruction. Halving the distance finds two neighbours, right before and wrong
after, in a dozen runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from systolith.boards.device import Device
from systolith.isa import INSTRUCTION_BYTES, Condition, Instruction, StoreSpace, assemble
from systolith.program import Program
from systolith.sim.jobs import Job
from systolith.sim.machine import GoldenMachine

_MAX_WORDS = 1 << 15
_FILLS = 0x00, 0x55
"""What memories hold before: what depends on it was not written by the program."""
_SPACES = ("activation", "accumulator")


@dataclass(frozen=True)
class Difference:
    """Instruction ``pc`` left ``found`` where ``expected`` should be, in a row and lane of a local
    memory. ``label``: the tensor that the instruction works for."""

    pc: int
    op: str
    label: str
    space: str
    row: int
    lane: int
    found: int
    expected: int

    def __str__(self) -> str:
        tensor = f" for {self.label}" if self.label else ""
        return (
            f"instruction {self.pc} ({self.op}{tensor}): {self.space} row {self.row}, lane "
            f"{self.lane} is {self.found} and should be {self.expected}"
        )


class Locator:
    """Cuts a program short on a board and on the golden machine.

    ``writes``: what the host writes before the start, as in a ``Job``.
    """

    def __init__(
        self, device: Device, program: Program, writes: Sequence[tuple[int, bytes]]
    ) -> None:
        self.device, self.program, self.writes = device, program, writes
        config = program.config
        self.at = -(-program.memory_bytes // INSTRUCTION_BYTES)
        """Index of the first instruction behind the program's memory."""
        rows = {"activation": config.activation_rows, "accumulator": config.accumulator_rows}
        bytes_each = {"activation": config.dim, "accumulator": 4 * config.dim}
        code, self.dumps = [Instruction("fence", {})], {}
        stores = sum(-(-count // _MAX_WORDS) for count in rows.values())
        at = (self.at + stores + 2) * INSTRUCTION_BYTES
        for space in _SPACES:
            self.dumps[space] = at, rows[space] * bytes_each[space]
            for first in range(0, rows[space], _MAX_WORDS):
                words = min(_MAX_WORDS, rows[space] - first)
                fields = {"address": at, "words": words, "rows": 1, "local": first,
                          "space": StoreSpace[space.upper()]}  # fmt: skip
                code.append(Instruction("store", fields))
                at += words * bytes_each[space]
        code.append(Instruction("halt", {}))
        self.behind = assemble(code)
        self.end = at

    @property
    def fits(self) -> bool:
        """Whether the board has room for the local memories behind the program."""
        return self.end <= self.device.link.identity.memory_bytes

    def order(self) -> list[int]:
        """The program's instructions in the order in which they are executed first."""
        return GoldenMachine(self.program.config, self._memory()).run()

    def difference(self, pc: int) -> tuple[str, int, int, int, int] | None:
        """(space, row, lane, found, expected) just before instruction ``pc``, or None."""
        found = self._on_board(pc)
        zeros, others = (self._golden(pc, fill) for fill in _FILLS)
        for space in _SPACES:
            known = zeros[space] == others[space]
            wrong = np.argwhere(known & (found[space] != zeros[space]))
            if len(wrong):
                row, lane = (int(x) for x in wrong[0])
                return (
                    space, row, lane, int(found[space][row, lane]), int(zeros[space][row, lane])
                )  # fmt: skip
        return None

    def _memory(self) -> NDArray[np.uint8]:
        memory = self.program.memory()
        for address, data in self.writes:
            memory[address : address + len(data)] = np.frombuffer(data, np.uint8)
        return memory

    def _golden(self, pc: int, fill: int) -> dict[str, NDArray]:
        machine = GoldenMachine(self.program.config, self._memory())
        machine.activation[:] = fill
        machine.accumulator[:] = fill
        machine.run(until=pc)
        return {"activation": machine.activation, "accumulator": machine.accumulator}

    def _on_board(self, pc: int) -> dict[str, NDArray]:
        always = Instruction("branch", {"target": self.at, "condition": Condition.ALWAYS})
        writes = [
            *self.writes,
            (self.at * INSTRUCTION_BYTES, self.behind),
            (pc * INSTRUCTION_BYTES, assemble([always])),
        ]
        # What these runs leave in buffers is written again by the next one.
        job = Job(self.program, writes=writes, reads=[])
        try:
            self.device.run_all([job])
        finally:
            original = self.program.image[pc * INSTRUCTION_BYTES :][:INSTRUCTION_BYTES]
            self.device.link.write_memory(pc * INSTRUCTION_BYTES, original)
        found = {}
        for space, dtype in zip(_SPACES, ("uint8", "<i4"), strict=True):
            address, size = self.dumps[space]
            raw = np.frombuffer(self.device.peek(address, size), dtype)
            found[space] = raw.reshape(-1, self.program.config.dim)
        return found


def first_difference(
    device: Device, program: Program, writes: Sequence[tuple[int, bytes]]
) -> Difference | str:
    """The instruction that is the first to leave something wrong, or why it cannot be named."""
    locator = Locator(device, program, writes)
    if not locator.fits:
        return "the board has no room beside the program for a search of the instruction"
    order = locator.order()
    right, wrong = 0, len(order) - 1
    last = locator.difference(order[wrong])
    if last is None:
        return "every instruction is right the first time it is executed; a later time is wrong"
    while wrong - right > 1:
        middle = (right + wrong) // 2
        seen = locator.difference(order[middle])
        if seen is None:
            right = middle
        else:
            wrong, last = middle, seen
    pc = order[right]
    labels = program.metadata.get("labels", [])
    label = labels[pc] if pc < len(labels) else ""
    return Difference(pc, program.code()[pc].op, label, *last)
