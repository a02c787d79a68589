"""From a plan of a matrix product to instructions: places in the memories, loads, stores."""

from collections import Counter
from itertools import chain

from systolith.compiler.allocate import Ring
from systolith.compiler.gemm_plan import Panel, Piece, Plan, Task
from systolith.compiler.memory import Memory
from systolith.compiler.schedule import Region, Step
from systolith.config import Config
from systolith.isa import BY_NAME, Format, Instruction, LoadSpace, StoreSpace

MAX_WORDS = (1 << 16) - 1
_MAX_ROWS = 4095
"""Rows of a vector instruction."""
_REGIONS = 48
"""Regions of a memory in a round: fewer than a semaphore's 255 signals wait to be taken."""


class Emitter:
    """Collects steps; ``memory`` is that of the program."""

    def __init__(self, config: Config, memory: Memory) -> None:
        self.config = config
        self.memory = memory
        self.steps: list[Step] = []

    def emit(
        self,
        op: str,
        reads: tuple[Region, ...] = (),
        writes: tuple[Region, ...] = (),
        constant: bool = False,
        **fields: int,
    ) -> None:
        for name in fields:
            BY_NAME[op].field(name)
        self.steps.append(Step(Instruction(op, fields), reads, writes, constant))

    def load(
        self,
        space: LoadSpace,
        address: int,
        local: int,
        words: int,
        rows: int = 1,
        stride: int = 0,
        region: Region | None = None,
    ) -> None:
        """``rows`` rows of consecutive words, ``stride`` words apart in memory, not apart inside.

        Rows that touch become one; what is too long becomes several instructions.
        """
        d = self.config.dim
        if region is None:
            region = Region(space.name.lower(), local, local + rows * words)
        if rows == 1 or words == stride:
            words, rows = words * rows, 1
        for start in range(0, words, MAX_WORDS):
            some = min(words - start, MAX_WORDS)
            self.emit(
                "load", writes=(region,), constant=True, space=space, address=address + start * d,
                stride=stride * d, words=some, rows=rows, local=local + start, local_stride=words,
            )  # fmt: skip


class Streamed:
    """One product from memory to memory: ``a`` (M, K), ``w`` in tiles, ``result`` (M, N).

    These are byte addresses. The activation memory is divided between operands and results, the
    accumulator is used in halves. Raises ``DoesNotFit``.
    """

    def __init__(self, emitter: Emitter, plan: Plan, a: int, w: int, result: int) -> None:
        config = emitter.config
        self.emitter = emitter
        self.plan = plan
        self.a, self.w, self.result = a, w, result
        self.n_tiles, self.k_tiles = plan.shape.tiles(config.dim)
        outs = min(4 * plan.block_rows * plan.piece_tiles, config.activation_rows // 2)
        split = config.activation_rows - outs
        half = config.accumulator_rows // 2
        self.acts = Ring("activation", 0, split, _REGIONS)
        self.outs = Ring("activation", split, config.activation_rows, _REGIONS)
        self.weights = Ring("weight", 0, config.weight_rows, _REGIONS)
        self.halves = (
            Ring("accumulator", 0, half, _REGIONS),
            Ring("accumulator", half, 2 * half, _REGIONS),
        )
        self.turn = 0
        self.a_places: dict[Panel, int] = {}
        self.w_places: dict[Panel, int] = {}
        self.sums: dict[Piece, tuple[int, int]] = {}
        self.loaded: dict[Panel, int] = {}
        """For each panel of A the row up to which it has been loaded."""

    def emit(self, parameters: int) -> None:
        """``parameters``: byte address of the parameter row, which is loaded behind the start."""
        tasks = list(self.plan.tasks())
        uses = Counter(chain.from_iterable((task.a, task.w) for task in tasks))
        have_parameters = False
        for task in tasks:
            self._operands(task)
            self._multiply(task)
            if task.last:
                if not have_parameters:
                    self.emitter.load(LoadSpace.PARAMETER, parameters, 0, 8)
                    have_parameters = True
                self._finish(task.piece)
            uses.subtract((task.a, task.w))
            if not uses[task.a]:
                self.acts.release(self.a_places.pop(task.a))
                del self.loaded[task.a]
            if not uses[task.w]:
                self.weights.release(self.w_places.pop(task.w))

    def _a(self, task: Task) -> tuple[int, int]:
        """First row, and rows, of what the task reads of A (all k tiles of the panel)."""
        depth = len(task.a.k)
        first = self.a_places[task.a] + (task.m.start - task.a.outer.start) * depth
        return first, len(task.m) * depth

    def _operands(self, task: Task) -> None:
        d = self.emitter.config.dim
        a, w = task.a, task.w
        if a not in self.a_places:
            self.a_places[a] = self.acts.take(len(a.outer) * len(a.k), hold=True)
            self.loaded[a] = a.outer.start
        start = self.loaded[a]
        if start < task.m.stop:  # rows come in order
            self.loaded[a] = task.m.stop
            address = self.a + (start * self.k_tiles + a.k.start) * d
            first = self.a_places[a] + (start - a.outer.start) * len(a.k)
            rows = task.m.stop - start
            self.emitter.load(LoadSpace.ACTIVATION, address, first, len(a.k), rows, self.k_tiles)
        if w not in self.w_places:
            words = len(w.k) * d
            self.w_places[w] = self.weights.take(len(w.outer) * words, hold=True)
            address = self.w + (w.outer.start * self.k_tiles + w.k.start) * d * d
            self.emitter.load(
                LoadSpace.WEIGHT, address, self.w_places[w], words, len(w.outer), self.k_tiles * d
            )

    def _multiply(self, task: Task) -> None:
        d = self.emitter.config.dim
        piece, depth = task.piece, len(task.w.k)
        if piece not in self.sums:
            self.turn ^= 1
            self.sums[piece] = self.turn, self.halves[self.turn].take(piece.rows, hold=True)
        acc = self.sums[piece][1] + (task.m.start - piece.m.start) * len(piece.n)
        act, rows = self._a(task)
        weight = self.w_places[task.w]
        self.emitter.emit(
            "matmul",
            reads=(
                Region("activation", act, act + rows),
                Region("weight", weight, weight + len(piece.n) * depth * d),
            ),
            writes=(Region("accumulator", acc, acc + len(task.m) * len(piece.n)),),
            act=act + task.w.k.start - task.a.k.start,
            act_stride=len(task.a.k),
            k_tiles=depth,
            weight=weight,
            n_tiles=len(piece.n),
            acc=acc,
            acc_stride=len(piece.n),
            rows=len(task.m),
            w_stride_n=depth * d,
            w_stride_k=d,
            signed=1,
            accumulate=int(task.w.k.start > 0),
        )

    def _finish(self, piece: Piece) -> None:
        turn, acc = self.sums.pop(piece)
        self.halves[turn].release(acc)
        tiles = len(piece.n)
        out = self.outs.take(piece.rows)
        region = Region("activation", out, out + piece.rows)
        for start in range(0, len(piece.m), _MAX_ROWS):
            rows = min(len(piece.m) - start, _MAX_ROWS)
            first = start * tiles
            self.emitter.emit(
                "vector",
                reads=(
                    Region("accumulator", acc + first, acc + first + rows * tiles),
                    Region("parameter", 0, 8),
                ),
                writes=(Region("activation", out + first, out + first + rows * tiles),),
                a=acc + first, a_stride=tiles, a_format=Format.ACC32,
                d=out + first, d_stride=tiles, rows=rows, blocks=tiles, scale=1, uniform=1,
            )  # fmt: skip
        d = self.emitter.config.dim
        self.emitter.emit(
            "store", reads=(region,), space=StoreSpace.ACTIVATION,
            address=self.result + (piece.m.start * self.n_tiles + piece.n.start) * d,
            stride=self.n_tiles * d, words=tiles, rows=len(piece.m), local=out, local_stride=tiles,
        )  # fmt: skip
