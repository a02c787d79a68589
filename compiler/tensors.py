"""What lowering knows at compile time of things that exist at run time: registers and tensors."""

from dataclasses import dataclass
from enum import IntEnum

from systolith.compiler.layout import Layout
from systolith.compiler.schedule import Region
from systolith.errors import UserError
from systolith.isa import Format


class Unsupported(UserError):
    """A graph that this compiler cannot lower."""


class Registers(IntEnum):
    """What the sequencer's registers hold while a block is processed.

    The suffix says at which bit the value stands, to be added to a packed operand word.
    """

    POSITION = 1
    """Tokens already in the caches."""
    PROMPT = 2
    TOTAL = 3
    TOKENS = 4
    """Tokens of the block, M."""
    TOKENS_16 = 5
    GROUP_ROWS_16 = 6
    """M times the query heads of a key head."""
    TILES_20 = 7
    """Key tiles, ceil((POSITION + M) / D)."""
    SOFTMAX = 8
    """Rows of a softmax at bit 0, key tiles at bit 12."""
    POSITION_ROW = 9
    """Byte offset of the position in a cache: POSITION * D."""
    OLD = 10
    """Cached tokens to load: max(POSITION, 1)."""
    LAST = 11
    """Activation rows from the block's first token to its last."""
    ROPE_ROW = 12
    """Byte offset of the position in the RoPE table."""
    A = 13
    B = 14
    C = 15


@dataclass
class Placed:
    """A tensor in the activation memory: first row, its layout, rows from token to token."""

    first: int
    layout: Layout
    bits: int

    @property
    def planes(self) -> int:
        return self.bits // 8

    @property
    def stride(self) -> int:
        return self.layout.blocks * self.planes

    @property
    def format(self) -> Format:
        return Format.INT16 if self.bits == 16 else Format.INT8

    def region(self, tokens: int) -> Region:
        return Region("activation", self.first, self.first + tokens * self.stride)
