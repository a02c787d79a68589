"""What lowering knows at compile time of things that exist at run time: registers and tensors."""

from dataclasses import dataclass, replace
from enum import IntEnum

from systolith.compiler.layout import Layout
from systolith.compiler.schedule import Region
from systolith.errors import UserError
from systolith.isa import Format


class Unsupported(UserError):
    """A graph that this compiler cannot lower."""


class Registers(IntEnum):
    """What the sequencer's registers hold while a block is processed.

    The suffix says at which bit the value stands, to be added to a packed operand word. Programs
    for whole sequences use `LENGTH` and the scratch registers only.
    """

    POSITION = 1
    """Tokens already in the caches."""
    PROMPT = 2
    """Tokens of the prompt; behind it, the token to stop at."""
    TOTAL = 3
    TOKENS = 4
    """Tokens of the block, M."""
    TOKENS_16 = 5
    GROUP_ROWS_16 = 6
    """M times the query heads of a key head."""
    TILES_20 = 7
    """Key tiles, ceil((POSITION + M) / D)."""
    SOFTMAX = 8
    """Key tiles at bit 12; at bit 0 the rows of a softmax, if the span is open."""
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

    LENGTH = 1
    """Tokens of the whole sequence."""


@dataclass(frozen=True)
class Span:
    """Tokens that one instruction processes: ``count`` of a sequence from token ``first`` on.

    ``dynamic``: where in the sequence they begin stands in registers, and ``first`` is 0. ``open``:
    how many there are, at most ``count``, stands in registers, too.
    """

    first: int
    count: int
    dynamic: bool = False
    open: bool = False

    def rows(self) -> tuple[dict[str, int], dict[str, Registers]]:
        """Fields and registers of a vector instruction with a row for each token."""
        return ({}, {"rows": Registers.TOKENS}) if self.open else ({"rows": self.count}, {})

    def rows_16(self) -> tuple[dict[str, int], dict[str, Registers]]:
        """The same of a matmul or a store."""
        return ({}, {"rows": Registers.TOKENS_16}) if self.open else ({"rows": self.count}, {})


@dataclass(frozen=True)
class Placed:
    """A tensor in the activation memory: first row, its layout, rows from token to token.

    ``origin``: the token of the sequence that the first row belongs to; ``tokens``: how many have
    room.
    """

    first: int
    layout: Layout
    bits: int
    tokens: int
    origin: int = 0

    @property
    def planes(self) -> int:
        return self.bits // 8

    @property
    def stride(self) -> int:
        return self.layout.blocks * self.planes

    @property
    def format(self) -> Format:
        return Format.INT16 if self.bits == 16 else Format.INT8

    def row(self, span: Span) -> int:
        """First row of a span's tokens."""
        return self.first + (span.first - self.origin) * self.stride

    def region(self, span: Span, block: int = 0, blocks: int | None = None) -> Region:
        """All rows of a span's tokens; of one token, the rows of some blocks if only they count."""
        first = self.row(span)
        if span.count == 1 and blocks is not None:
            first += block * self.planes
            return Region("activation", first, first + blocks * self.planes)
        return Region("activation", first, first + span.count * self.stride)


@dataclass(frozen=True)
class Stationary:
    """Keys or values of a whole sequence in the weight memory, ready to be tiles.

    Block f of token m is row ``first + f * rows + m``; of a dynamic span the register `POSITION`
    has to be added.
    """

    first: int
    layout: Layout
    rows: int

    bits = 8
    planes = 1

    def of(self, sequence: int) -> "Stationary":
        """The keys or values of one of several sequences, which lie one behind the other."""
        return replace(self, first=self.first + sequence * self.layout.blocks * self.rows)

    def row(self, block: int, span: Span) -> int:
        return self.first + block * self.rows + span.first

    def block(self, block: int, blocks: int = 1) -> Region:
        """All rows of some blocks."""
        first = self.first + block * self.rows
        return Region("weight", first, first + blocks * self.rows)


@dataclass(frozen=True)
class Cached:
    """Keys or values of a whole sequence in memory: block f of token m at ``f * tokens + m`` words.

    ``title``: of the region in memory, with one row for each word in ``Region``.
    """

    title: str
    address: int
    layout: Layout
    tokens: int

    def words(self, block: int, span: Span) -> Region:
        """The words of a span in one block."""
        first = block * self.tokens + span.first
        return Region(self.title, first, first + span.count)
