"""How long the units work on one instruction, from its fields."""

from collections.abc import Iterator, Mapping

from systolith.compiler.timing.parameters import Parameters
from systolith.config import Config
from systolith.isa import Combine, Format, StoreSpace, TableMode

PAGE_BYTES = 4096

Fields = Mapping[str, int]


class Matmuls:
    """The array: tiles of weights come in while the rows of the tile before stream.

    The loader takes a tile in cycle u, at the earliest one cycle after the swap s of the one before
    and when that one's D rows are in, W a cycle. The streamer swaps at the earliest in u + 1, and
    when the passes of the tile before are through.
    """

    def __init__(self, config: Config, parameters: Parameters) -> None:
        self.parameters = parameters
        self.dim = config.dim
        self.load = config.dim // config.weight_ports
        several = config.weight_ports > 1
        self.minimum = parameters.minimum_pass_forwarded if several else parameters.minimum_pass
        self.taken = -(1 << 30)
        """When the loader took the last tile."""
        self.swap = -(1 << 30)
        self.streamed = -(1 << 30)
        """Last cycle of the last tile's passes."""

    def passes(self, fields: Fields) -> int:
        """Cycles in which a tile's rows stream."""
        rows = max(fields.get("rows", 0), self.minimum)
        return rows * (2 if fields.get("wide", 0) else 1)

    def run(self, fields: Fields, start: int) -> tuple[int, int, int, int]:
        """Of an instruction that starts in cycle ``start``: when the next one can start, the swap
        of its first tile, the last cycle of its last pass, cycles in which the array waited for
        weights."""
        tiles = fields.get("k_tiles", 0) * fields.get("n_tiles", 0)
        passes, load = self.passes(fields), self.load
        taken = max(start + self.parameters.first_tile, self.swap + 1, self.taken + load)
        swap = max(taken + 1, self.streamed)
        # Until the last tile's weights are in, the array counts as waiting for them.
        waited = max(swap - max(self.streamed, start, self.taken + load), 0)
        first_taken, first_swap = taken, swap
        more = tiles - 1
        if more:
            # The longest of the chains from the first tile to the last one.
            taken = max(
                first_taken + more * load,
                first_swap + 1 + (more - 1) * load,
                first_swap + 1 + (more - 1) * passes,
            )
            swap = max(
                first_swap + more * passes,
                first_taken + more * load + 1,
                first_swap + 2 + (more - 1) * load,
            )
            waited += swap - first_swap - more * passes
        self.taken, self.swap, self.streamed = taken, swap, swap + passes
        waited += max(taken + load - self.streamed, 0)
        return taken + 1, first_swap, self.streamed, waited

    def done(self, streamed: int) -> int:
        """When the sums of the row that streamed in that cycle are in the accumulator."""
        return streamed + 2 * self.dim + self.parameters.matmul_done


class Vectors:
    """What instructions of the vector unit take where no port waits."""

    def __init__(self, config: Config, parameters: Parameters) -> None:
        self.parameters = parameters
        self.beats = config.dim // config.lanes
        self.log_lanes = config.lanes.bit_length() - 1

    def block(self, op: str, fields: Fields) -> tuple[int, int]:
        """(cycles of a block, reads of the activation memory that it needs)."""
        if op == "softmax":
            return self.beats, 0
        if op == "norm":
            return self.beats, 1
        reads = int(fields.get("a_format", 0) != Format.ACC32)
        combine = fields.get("combine", 0)
        if combine != Combine.NONE:
            reads += 2 if combine == Combine.ROPE else 1
        return max(self.beats, reads), reads

    def span(self, op: str, fields: Fields) -> int:
        """Cycles from the first beat that leaves the reader to the last one, both counted."""
        rows, blocks = fields.get("rows", 0), fields.get("blocks", 0)
        block, _ = self.block(op, fields)
        if op == "norm":
            row = self.beats * blocks
            return max(row, self.parameters.norm_row) * (rows - 1) + row
        return block * (rows * blocks - 1) + self.beats

    def cycles(self, op: str, fields: Fields) -> int:
        """From start to ``done`` of a softmax or a norm that nobody hinders."""
        p, row = self.parameters, self.beats * fields.get("blocks", 0)
        if op == "softmax":
            return row * (fields.get("rows", 0) + 2) + p.softmax + self.log_lanes
        return self.span(op, fields) + row + p.norm + self.log_lanes

    def latency(self, fields: Fields) -> int:
        """Of the ALU."""
        p = self.parameters
        scaled = fields.get("scale", 0) or fields.get("a_format", 0) == Format.ACC32
        latency = p.scale if scaled else p.as_it_is
        if fields.get("table", 0) != TableMode.NONE:
            latency += p.table
        combine = fields.get("combine", 0)
        if combine != Combine.NONE:
            latency += p.combine + (p.multiply if combine == Combine.MULTIPLY else 0)
        return latency


def bursts(config: Config, op: str, fields: Fields, base: int) -> Iterator[int]:
    """The beats of each burst of a load or store: cut at 4 KiB and after ``max_burst`` beats."""
    if op == "storew":
        yield 1
        return
    bus = config.bus_bytes
    words = fields.get("words", 0)
    if op == "store" and fields.get("space", 0) == StoreSpace.ACCUMULATOR:
        words *= 4
    beats = words * config.dim // bus
    page = PAGE_BYTES // bus
    address = (base + fields.get("address", 0)) // bus
    stride = fields.get("stride", 0) // bus
    for _ in range(fields.get("rows", 0)):
        at, left = address, beats
        while left:
            count = min(left, config.max_burst, page - at % page)
            yield count
            at += count
            left -= count
        address += stride
