"""How a matrix product from memory to memory is cut: plans to choose from.

The product is computed in *blocks* of the result whose sums stay in the accumulator until they are
complete. A block is cut into *pieces* (a few n tiles by all or some of its rows), the contraction
into *panels* of k tiles. A task is one matmul instruction: some rows of one piece times one panel.

Three things decide how long the array waits:

- *Start.* The first task needs some rows of A and one tile of W, no more. Afterwards each tile of W
  that comes in (D * D bytes) meets the rows that are there already, and each row of A meets the W
  that is there: with as many rows as a tile takes cycles to come, the array never waits again. The
  first panel of the first block is therefore walked in growing groups of rows, each through all
  pieces. Panels are wide enough that rows of A are bursts which fill the bus.
- *Drain.* The vector unit takes D / V cycles for a row of a tile, and cannot read the bank of the
  accumulator that is being added to. Pieces alternate between the banks, and are completed one
  after another: the drain of one is hidden behind the last panel of the next.
- *End.* The last pieces have few rows, and the last panel is narrow: little is left to be drained,
  stored and, where memory sets the pace, multiplied when the last operand has come.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from systolith.config import Config
from systolith.cost import product_cycles
from systolith.errors import UserError

LATENCY = 40
"""Cycles of the memory that plans are made for; they are correct for any."""
_FIELD = 4095
"""Largest count of a 12-bit field."""
_PIECES = 64
"""Most pieces of a block."""
_SHARE = 4
"""What is loaded ahead of its use takes at most one part in so many of a memory."""


@dataclass(frozen=True)
class Shape:
    """A matrix product of (m, k) by (k, n)."""

    m: int
    n: int
    k: int

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """From "MxNxK"."""
        parts = text.lower().split("x")
        if len(parts) != 3 or not all(p.isdecimal() and 0 < int(p) < 1 << 16 for p in parts):
            raise UserError(f"A shape is MxNxK with numbers from 1 to 65535, not {text!r}")
        return cls(*map(int, parts))

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}"

    def tiles(self, dim: int) -> tuple[int, int]:
        """Tiles along n and k."""
        return -(-self.n // dim), -(-self.k // dim)

    def bound(self, dim: int, weight_ports: int = 1) -> int:
        """Cycles that a D × D array needs: see ``product_cycles``."""
        return product_cycles(self.m, self.k, self.n, dim=dim, weight_ports=weight_ports)

    def bytes_once(self, dim: int) -> int:
        """Bytes of operands (int8) and result (int8) in whole blocks of D, each moved once."""
        n_tiles, k_tiles = self.tiles(dim)
        return dim * (self.m * k_tiles + n_tiles * k_tiles * dim + self.m * n_tiles)


@dataclass(frozen=True)
class Span:
    """``start`` to ``stop`` (exclusive): rows, or tiles."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Piece:
    """A part of the result that is drained and stored at once: rows by n tiles."""

    m: Span
    n: Span

    @property
    def rows(self) -> int:
        """Rows of the accumulator, and of the activation memory when drained."""
        return len(self.m) * len(self.n)


@dataclass(frozen=True)
class Panel:
    """Rows by k tiles of A, or n tiles by k tiles of W, that lie together in a local memory.

    ``use`` tells loads of the same operand apart that happen more than once.
    """

    outer: Span
    k: Span
    use: int = 0


@dataclass(frozen=True)
class Task:
    """One matmul instruction: rows ``m`` of ``piece`` times k tiles of both panels.

    ``last``: the piece is complete with it.
    """

    piece: Piece
    m: Span
    a: Panel
    w: Panel
    last: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How one product is cut.

    ``block_rows``, ``block_tiles``: size of a block; ``first_tiles``: n tiles of the first one,
    which the product starts with. ``piece_tiles``: n tiles of a piece. ``first_rows``: rows of A
    that are loaded first. ``panels``: k tiles of each panel; the first ``ramps`` of them are walked
    in growing groups of rows. ``keep_a``: A stays for all blocks of the same rows; ``keep_w``: W
    stays for all blocks.
    """

    shape: Shape
    dim: int
    block_rows: int
    block_tiles: int
    first_tiles: int
    piece_tiles: int
    first_rows: int
    panels: tuple[int, ...]
    ramps: int
    keep_a: bool
    keep_w: bool

    def _blocks(self) -> Iterator[tuple[Span, Span]]:
        n_tiles, _ = self.shape.tiles(self.dim)
        for m in _cut(self.shape.m, self.block_rows):
            first = self.first_tiles if m.start == 0 else self.block_tiles
            yield m, Span(0, min(first, n_tiles))
            for n in _cut(n_tiles - first, self.block_tiles):
                yield m, Span(first + n.start, first + n.stop)

    def _cells(self, m: Span, tiles: list[Span]) -> list[tuple[Span, Span]]:
        """Rows and n tiles of the first panel of all, in the order in which they are computed.

        The rows and the tiles that take part double in turns: so operands soon come faster than
        they are used.
        """
        cells: list[tuple[Span, Span]] = []
        done = 1  # n tiles that take part
        for group in _growing(m, self.first_rows, self.dim):
            cells += [(group, t) for t in tiles[:done]]
            cells += [(Span(m.start, group.stop), t) for t in tiles[done : 2 * done]]
            done *= 2
        return cells + [(m, t) for t in tiles[done:]]

    def _tiles(self, n: Span, *, final: bool) -> list[Span]:
        """n tiles of the pieces of a block; the last piece of all has one."""
        tiles = [Span(n.start + t.start, n.start + t.stop) for t in _cut(len(n), self.piece_tiles)]
        if final and len(tiles[-1]) > 1:
            last = tiles.pop()
            tiles += [Span(last.start, last.stop - 1), Span(last.stop - 1, last.stop)]
        return tiles

    def tasks(self) -> Iterator[Task]:
        """In the order in which they are computed."""
        blocks = list(self._blocks())
        edges = list(_spans(self.panels))
        for index, (m, n) in enumerate(blocks):
            use_a = 0 if self.keep_a else index
            use_w = 0 if self.keep_w else index
            ramp, final = index == 0, index == len(blocks) - 1
            tiles = self._tiles(n, final=final)
            whole = [(m, t) for t in tiles]
            start = self._cells(m, tiles) if ramp else whole
            # With a single panel, rows are complete before others have come.
            pieces = [Piece(*cell) for cell in (start if len(edges) == 1 else whole)]
            if final:
                end = pieces.pop()
                pieces += [Piece(rows, end.n) for rows in _shrinking(end.m, self.dim)]
            for number, k in enumerate(edges):
                a = Panel(m, k, use_a)
                begins = ramp and k.start == 0
                ends = final and k is edges[-1]
                for piece, rows in _walk(start if number < self.ramps else whole, pieces):
                    parts = [k]
                    if begins and piece.n == tiles[0]:
                        parts = _growing(k, 1, 1, 4)
                    elif ends and piece.n == tiles[-1]:
                        parts = _shrinking(k, 2)
                    for part in parts:
                        last = part.stop == edges[-1].stop and rows.stop == piece.m.stop
                        yield Task(piece, rows, a, Panel(piece.n, part, use_w), last)


def _walk(cells: list[tuple[Span, Span]], pieces: list[Piece]) -> Iterator[tuple[Piece, Span]]:
    """The pieces, and the rows of them, that make up each cell."""
    for m, n in cells:
        for piece in pieces:
            rows = _meet(m, piece.m)
            if piece.n == n and len(rows):
                yield piece, rows


def _cut(length: int, size: int) -> Iterator[Span]:
    for start in range(0, length, size):
        yield Span(start, min(start + size, length))


def _spans(sizes: tuple[int, ...]) -> Iterator[Span]:
    start = 0
    for size in sizes:
        yield Span(start, start + size)
        start += size


def _meet(a: Span, b: Span) -> Span:
    start = max(a.start, b.start)
    return Span(start, max(start, min(a.stop, b.stop)))


def _growing(span: Span, first: int, least: int, slowly: int = 1) -> list[Span]:
    """Cuts a span into parts of ``first``, or of one in ``slowly`` of all before if that is more.

    None is shorter than ``least``, unless the span is.
    """
    sizes: list[int] = []
    rest = len(span)
    while rest:
        size = min(max(first, sum(sizes) // slowly), rest)
        if rest - size < least:
            size = rest
        sizes.append(size)
        rest -= size
    return [Span(span.start + s.start, span.start + s.stop) for s in _spans(tuple(sizes))]


def _shrinking(span: Span, last: int) -> list[Span]:
    """Cuts a span into halves, the last one of which is halved again, down to ``last``."""
    sizes: list[int] = []
    rest = len(span)
    while rest >= 2 * last:
        sizes.append(rest // 2)
        rest -= rest // 2
    return [Span(span.start + s.start, span.start + s.stop) for s in _spans((*sizes, rest))]


def _panels(k_tiles: int, first: int, wide: int, most: int, last: int) -> tuple[int, ...]:
    """Sizes that begin with ``first``, double up to ``wide``, and halve towards ``last``.

    None is above ``most``.
    """
    sizes: list[int] = []
    rest = k_tiles
    while rest:
        size = min(max(first, sum(sizes)), wide, max(first, last, rest // 2), rest)
        if rest - size < last and rest <= most:
            size = rest
        sizes.append(size)
        rest -= size
    return tuple(sizes)


def candidates(config: Config, shape: Shape) -> Iterator[Plan]:
    """Plans that may fit into the memories of ``config`` (the accumulator they do fit)."""
    d = config.dim
    n_tiles, k_tiles = shape.tiles(d)
    # Rows of A that are bursts long enough to fill the bus with as many as may be in flight.
    burst = -(-(LATENCY + 4) * config.bus_bytes // (config.outstanding * d))
    # Rows that use a tile of W for as long as one takes to come, or half as long.
    starts = {max(d, d * d // config.bus_bytes), d}
    room = config.activation_rows
    seen = set()
    # In a narrower panel a piece would be computed faster than the one before is drained.
    last = d // config.lanes + 2
    widths = {min(width, k_tiles) for width in (max(1, burst * 2 // 3), burst, 2 * burst, k_tiles)}
    for first, steady in product(widths, (False, True)):
        for block_rows in _block_rows(config, shape):
            for piece_tiles in _piece_tiles(config, shape, block_rows):
                most = min(
                    _FIELD,
                    max(1, room // _SHARE // block_rows),
                    max(1, config.weight_rows // _SHARE // (piece_tiles * d)),
                )
                # Equal ones are best where operands come no faster than they are used.
                wide = min(most, max(first, last)) if steady else most
                panels = _panels(k_tiles, min(first, most), wide, most, last)
                # Sums of a block, and of the first pieces of the next, are held at once.
                margin = 2 * piece_tiles * block_rows
                fits = (config.accumulator_rows - margin) // block_rows
                outs = _SHARE * block_rows * piece_tiles
                keep_w = shape.m > block_rows and (
                    n_tiles * k_tiles * d <= config.weight_rows * (_SHARE - 1) // _SHARE
                )
                sides = 2 if shape.m > block_rows else 1
                keep_a = sides * block_rows * k_tiles + outs <= room
                fits = min(fits // piece_tiles, _PIECES) * piece_tiles
                many = max(piece_tiles, min(fits, n_tiles))
                few = min(4 * piece_tiles, many)
                for first_tiles, first_rows, ramps in product(
                    {few, many}, starts, {1, len(panels)}
                ):
                    plan = Plan(
                        shape=shape,
                        dim=d,
                        block_rows=block_rows,
                        block_tiles=piece_tiles if keep_a else many,
                        first_tiles=first_tiles if keep_a else many,
                        piece_tiles=piece_tiles,
                        first_rows=first_rows,
                        panels=panels,
                        ramps=ramps,
                        keep_a=keep_a,
                        keep_w=keep_w,
                    )
                    if plan not in seen:
                        seen.add(plan)
                        yield plan


def _block_rows(config: Config, shape: Shape) -> set[int]:
    """Rows of a block: M in equal parts of at most a power of two of rows, whole groups of D."""
    d = config.dim
    limit = min(config.accumulator_rows // 4, config.activation_rows // 8)
    rows = set()
    size = min(limit, 4 * d)
    while size <= limit:
        parts = -(-shape.m // size)
        even = -(-shape.m // parts)
        rows.add(min(shape.m, -(-even // d) * d, limit))
        size *= 2
    return rows


def _piece_tiles(config: Config, shape: Shape, block_rows: int) -> set[int]:
    """n tiles of a piece: one, and so many that a piece takes several hundred cycles."""
    d = config.dim
    n_tiles, k_tiles = shape.tiles(d)
    limit = max(1, min(n_tiles, config.accumulator_rows // 8 // block_rows,
                       config.activation_rows // 16 // block_rows,
                       config.weight_rows // _SHARE // d))  # fmt: skip
    cycles = k_tiles * max(block_rows, d)
    return {min(limit, max(1, size // cycles)) for size in (1, 256, 512, 1024, 2048, 8192)}
