"""Who waits at the memories' shared ports.

A matmul that adds to a bank of the accumulator takes its read port from the vector unit. Vector
unit and store take turns at the second read port of the activation memory. What that costs is
worked out from rates, not read by read: nothing a compiler emits on purpose depends on it.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from systolith.compiler.timing.parameters import Parameters
from systolith.compiler.timing.units import Fields
from systolith.config import Config
from systolith.isa import Combine, Format, StoreSpace


@dataclass(frozen=True, slots=True)
class Updates:
    """Additions of a matmul to rows of the accumulator: ``count`` in [start, stop)."""

    banks: frozenset[int]
    start: int
    stop: int
    count: int


class Accumulator:
    """The two banks, and the matmuls that add to them."""

    def __init__(self, config: Config, parameters: Parameters) -> None:
        self.config, self.p = config, parameters
        self.updates: deque[Updates] = deque(maxlen=16)

    def banks(self, first: int, stride: int, rows: int, blocks: int) -> frozenset[int]:
        """Banks that hold the rows ``first + m * stride + f``."""
        half = self.config.accumulator_rows // 2
        last = first + max(rows - 1, 0) * stride + max(blocks - 1, 0)
        return frozenset(bank % 2 for bank in range(first // half, last // half + 1))

    def add(self, fields: Fields, swap: int, streamed: int) -> None:
        """A matmul whose first tile is swapped in in ``swap``, and whose last row is ``streamed``
        in that cycle."""
        planes = 2 if fields.get("wide", 0) else 1
        passes = fields.get("k_tiles", 0) * planes - (0 if fields.get("accumulate", 0) else 1)
        rows, tiles = fields.get("rows", 0), fields.get("n_tiles", 0)
        if passes <= 0:
            return
        behind = 2 * self.config.dim + self.p.update
        banks = self.banks(fields.get("acc", 0), fields.get("acc_stride", 0), rows, tiles)
        self.updates.append(
            Updates(banks, swap + 1 + behind, streamed + 1 + behind, passes * tiles * rows)
        )

    def delay(self, banks: frozenset[int], start: int, reads: int, spacing: int) -> int:
        """How much later than without matmuls the last of ``reads`` reads happens, of which one in
        ``spacing`` cycles is wanted from ``start`` on."""
        now, left = float(start), float(reads)
        for item in self.updates:
            if not item.banks & banks or item.stop <= now:
                continue
            free = max(0.0, item.start - now) / spacing
            if left <= free:
                break
            left -= free
            now = max(now, item.start)
            length = item.stop - item.start
            rate = min(1 / spacing, 1 - min(item.count / length, 1))
            if left <= rate * (item.stop - now):
                now, left = now + left / rate, 0.0
                break
            left -= rate * (item.stop - now)
            now = item.stop
        return round(now + left * spacing) - start - reads * spacing


class SharedPort:
    """Of two units on a port of a memory, the one that was served last, at first the first one.

    Vector unit and store read the activation memory and the accumulator, load and vector unit write
    the activation memory and the weight memory.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.p = parameters
        self.second_owns = False

    def change(self, second: bool) -> int:
        """What it costs to use it now."""
        changes = self.second_owns != second
        self.second_owns = second
        return self.p.change_owner if changes else 0


def sources(op: str, fields: Fields) -> Sequence[StoreSpace]:
    """The memories that an instruction of the vector unit reads."""
    if op == "norm":
        return (StoreSpace.ACTIVATION,)
    if op == "softmax":
        return (StoreSpace.ACCUMULATOR,)
    if fields.get("a_format", 0) != Format.ACC32:
        return (StoreSpace.ACTIVATION,)
    if fields.get("combine", 0) != Combine.NONE:
        return (StoreSpace.ACCUMULATOR, StoreSpace.ACTIVATION)
    return (StoreSpace.ACCUMULATOR,)
