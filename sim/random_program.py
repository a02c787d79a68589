"""Programs drawn at random for the whole machine: every opcode, field corners, semaphore order.

A program fills all local memories, executes instructions of all units that step on each other's
rows, with only as many semaphores as that takes, and stores everything that it has changed. The
golden machine executes the same image; the memories must agree to the last byte.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from systolith import isa
from systolith.compiler.memory import Memory, offset_in_part
from systolith.compiler.schedule import Region, Step, synchronize
from systolith.config import Config
from systolith.isa import AluOp, Combine, Condition, Format, Instruction, LoadSpace, StoreSpace
from systolith.program import Program
from systolith.sim.benches import vector_program

SCRATCH_BYTES = 4096
_REGISTERS = range(1, 12)
_ROUND = 13
_WORD = (1 << 32) - 1


KINDS = (
    "load", "store", "storew", "matmul", "vector", "vector", "softmax", "norm", "sequencer"
)  # fmt: skip
"""What a body is made of, as often as it stands here."""


def random_program(
    config: Config, length: int, seed: int, kinds: Sequence[str] = KINDS
) -> Program:
    """A program whose body has ``length`` instructions of ``kinds`` and is executed twice.

    The regions ``activation``, ``weight``, ``accumulator`` and ``scratch`` of its memory hold the
    results. The memories of ``config`` should be small: all of them are loaded and stored.
    """
    builder = _Builder(config, length, seed, kinds)
    image, memory_bytes, symbols = builder.memory.link(isa.assemble(builder.code()))
    image = builder.disguised(image)
    return Program(config, image, len(builder.steps), memory_bytes, symbols, {"seed": seed})


class _Builder:
    def __init__(
        self, config: Config, length: int, seed: int, kinds: Sequence[str]
    ) -> None:
        self.config = config
        self.rng = np.random.default_rng(seed)
        self.dice = vector_program.ProgramDice(self.rng, config)
        self.memory = Memory()
        self.steps: list[Step] = []
        self.values: dict[int, int] = {}
        self.last_rows: list[int | None] = []
        d = config.dim

        def constant(name: str, values: NDArray) -> int:
            return self.memory.constant(name, values.astype(np.uint8))

        self.images = {
            LoadSpace.ACTIVATION: constant("a", vector_program.activations(self.rng, config)),
            LoadSpace.WEIGHT: constant("w", self.rng.integers(0, 256, (config.weight_rows, d))),
            LoadSpace.PARAMETER: constant("p", vector_program.parameters(self.rng, config)),
            LoadSpace.TABLE: constant("t", vector_program.tables(self.rng, config)),
        }
        self.words = {
            LoadSpace.ACTIVATION: config.activation_rows,
            LoadSpace.WEIGHT: config.weight_rows,
            LoadSpace.PARAMETER: 8 * config.parameter_rows,
            LoadSpace.TABLE: config.table_slots * 1024 // d,
        }
        self.identity = constant("identity", np.eye(d))
        self.scratch = self.memory.buffer("scratch", "uint8", (SCRATCH_BYTES,))
        self.results = {
            "activation": self.memory.buffer("activation", "uint8", (config.activation_rows, d)),
            "accumulator": self.memory.buffer("accumulator", "int32", (config.accumulator_rows, d)),
            "weight": self.memory.buffer("weight", "int32", (config.weight_rows, d)),
        }
        self._prologue()
        loaded = len(self.steps)
        self.loop = self._control("fence")
        for _ in range(length):
            getattr(self, f"_{self.rng.choice(list(kinds))}")()
        self._control("fence")
        self._control("alu", {2: _ROUND}, y=1, rd=_ROUND, op=AluOp.ADD)
        back = self._control("branch", {2: _ROUND}, y=2, condition=Condition.LT)
        back.target = self.loop
        looped = len(self.steps)
        self._epilogue()
        # Fences separate the parts, and a signal must be taken in the round in which it is given.
        parts = self.steps[:loaded], self.steps[loaded:looped], self.steps[looped:]
        self.steps = [step for part in parts for step in synchronize(part)]

    def code(self) -> list[Instruction]:
        """The instructions, with the targets of branches."""
        index = {id(step): i for i, step in enumerate(self.steps)}
        code = []
        for step in self.steps:
            item = step.instruction
            if step.target is not None:
                target = index[id(step.target)]
                item = Instruction(item.op, {**item.fields, "target": target}, item.registers)
            code.append(item)
        return code

    def disguised(self, image: bytes) -> bytes:
        """The image with registers on some operands of its instructions."""
        words = np.frombuffer(image, "<u4", len(self.steps) * isa.WORDS).reshape(-1, isa.WORDS)
        code = words.tolist()
        loop = next(i for i, step in enumerate(self.steps) if step is self.loop)
        for step, item in zip(self.steps[loop + 1 :], code[loop + 1 :], strict=True):
            if step.instruction.unit in isa.QUEUED:
                self._disguise(item, step.instruction.registers)
        raw = np.array(code, dtype="<u4").tobytes()
        return raw + image[len(raw) :]

    def _disguise(self, words: list[int], taken: dict[int, int]) -> None:
        """Lets registers supply a part of some operand words."""
        for word in range(2, isa.WORDS):
            if word not in taken and self.rng.random() < 0.3:
                register = int(self.rng.choice(_REGISTERS))
                words[0] |= register << (8 + 4 * (word - 2))
                words[word] = (words[word] - self.values[register]) & _WORD

    # Steps ---------------------------------------------------------------------------------------

    def _control(self, code: str, registers: dict[int, int] | None = None, **fields: int) -> Step:
        values = {name: int(value) for name, value in fields.items()}
        self.steps.append(Step(Instruction(code, values, registers or {})))
        return self.steps[-1]

    def _emit(self, op: str, reads: list[Region], writes: list[Region], **fields: int) -> None:
        values = {name: int(value) for name, value in fields.items()}
        self.steps.append(Step(Instruction(op, values), tuple(reads), tuple(writes)))

    def _rows(self, space: str, first: int, stride: int, rows: int, count: int) -> Region:
        """From the first to the last of ``rows`` times ``count`` rows; everything on a wrap."""
        size = {
            "activation": self.config.activation_rows,
            "weight": self.config.weight_rows,
            "accumulator": self.config.accumulator_rows,
            "parameter": 8 * self.config.parameter_rows,
            "table": self.words[LoadSpace.TABLE],
            "memory": 1 << 32,
        }[space]
        if space == "memory":
            part, first = offset_in_part(first)
            space = f"memory {part}"
        first %= size
        stop = first + (rows - 1) * stride + count
        return Region(space, first, stop) if stop <= size else Region(space, 0, size)

    def _prologue(self) -> None:
        for space, address in self.images.items():
            for at in range(0, self.words[space], 1 << 15):
                words = min(self.words[space] - at, 1 << 15)
                self._emit(
                    "load", [], [self._rows(space.name.lower(), at, 0, 1, words)],
                    address=address + at * self.config.dim, words=words, rows=1, local=at,
                    space=space,
                )  # fmt: skip
        # Every accumulator row gets products of random rows.
        d, rows = self.config.dim, self.config.accumulator_rows
        m = min(d, rows)
        self._matmul_of(rows=m, n_tiles=rows // m, k_tiles=1, acc=0, acc_stride=rows // m)
        for register in _REGISTERS:
            value = int(self.rng.choice([0, 1, _WORD, *self.rng.integers(0, 1 << 32, 4)]))
            self.values[register] = value
            self._control("alu", x=value, rd=register, op=AluOp.ADD)

    def _load(self) -> None:
        rng, d, bus = self.rng, self.config.dim, self.config.bus_bytes
        space = LoadSpace(int(rng.integers(4)))
        name = space.name.lower()
        rows, words = int(rng.integers(1, 5)), int(rng.integers(1, 9))
        size = self.words[space]
        start, length = self.images[space], size * d
        if space in (LoadSpace.ACTIVATION, LoadSpace.WEIGHT) and rng.random() < 0.5:
            start, length = self.scratch, SCRATCH_BYTES
        # Parameters keep the byte order in which they are valid: whole rows of eight words.
        unit = 8 * d if space == LoadSpace.PARAMETER else bus
        words = 8 if space == LoadSpace.PARAMETER else words
        space_left = (length - words * d) // unit
        stride = unit * int(rng.integers(0, space_left // rows + 1))
        address = start + unit * int(rng.integers(0, space_left - (rows - 1) * stride // unit + 1))
        step = 8 if space == LoadSpace.PARAMETER else 1
        local = int(rng.integers(size // step)) * step
        local_stride = int(rng.choice([0, words, words, int(rng.integers(0, 20))])) // step * step
        self._emit(
            "load",
            [self._rows("memory", address, stride, rows, words * d)],
            [self._rows(name, local, local_stride, rows, words)],
            address=address, stride=stride, words=words, rows=rows, local=local,
            local_stride=local_stride, space=space,
        )  # fmt: skip

    def _store(self) -> None:
        rng, bus = self.rng, self.config.bus_bytes
        space = StoreSpace(int(rng.integers(2)))
        word_bytes = self.config.dim * (4 if space == StoreSpace.ACCUMULATOR else 1)
        rows, words = int(rng.integers(1, 4)), int(rng.integers(1, 6))
        left = (SCRATCH_BYTES - words * word_bytes) // bus
        # Rows in memory do not overlap: the order of bytes within one store is not defined.
        stride = -(-words * word_bytes // bus) + int(rng.integers(0, 4))
        address = self.scratch + bus * int(rng.integers(0, left - (rows - 1) * stride + 1))
        name = space.name.lower()
        local, local_stride = int(rng.integers(1 << 12)), int(rng.integers(0, 20))
        self._emit(
            "store",
            [self._rows(name, local, local_stride, rows, words)],
            [self._rows("memory", address, stride * bus, rows, words * word_bytes)],
            address=address, stride=stride * bus, words=words, rows=rows, local=local,
            local_stride=local_stride, space=space,
        )  # fmt: skip

    def _storew(self) -> None:
        address = self.scratch + 4 * int(self.rng.integers(SCRATCH_BYTES // 4))
        self._emit(
            "storew", [], [self._rows("memory", address, 0, 1, 4)],
            address=address, value=int(self.rng.integers(0, 1 << 32)),
        )  # fmt: skip

    def _matmul(self) -> None:
        rng, accumulators = self.rng, self.config.accumulator_rows
        n_tiles, rows = int(rng.integers(1, 4)), int(rng.integers(1, 8))
        rows = min(rows, accumulators // n_tiles)
        # No two results of an instruction share a row.
        most = accumulators // rows
        acc_stride = int(rng.choice([n_tiles, rng.integers(n_tiles, most + 1)]))
        group_log2 = int(rng.integers(0, self.config.dim.bit_length()))
        self._matmul_of(
            rows=rows, n_tiles=n_tiles, k_tiles=int(rng.integers(1, 4)),
            acc=int(rng.integers(accumulators)), acc_stride=acc_stride,
            act_stride=int(rng.integers(0, 10)),
            w_stride_n=int(rng.integers(0, 40)), w_stride_k=int(rng.integers(0, 40)),
            group_log2=group_log2,
            group=int(rng.integers(max(self.config.dim >> group_log2, 1))),
            **{name: int(rng.integers(2)) for name in
               ("columns", "wide", "signed", "accumulate", "mask_in", "mask_out", "apart")},
        )  # fmt: skip

    def _matmul_of(self, **fields: int) -> None:
        g = {"act_stride": 1, "w_stride_n": 1, "w_stride_k": 1} | fields
        g["act"] = int(self.rng.integers(self.config.activation_rows))
        g["weight"] = int(self.rng.integers(self.config.weight_rows))
        if self.config.weight_ports > 1:  # tiles start at multiples of D rows
            for name in ("weight", "w_stride_n", "w_stride_k"):
                g[name] = g[name] // self.config.dim * self.config.dim
        self._emit_matmul(g)

    def _emit_matmul(self, g: dict[str, int]) -> None:
        if self._meets_itself(g):
            g = g | {"accumulate": 0}
        step = 1 + (g.get("wide", 0) | g.get("apart", 0))
        last_tile = (g["n_tiles"] - 1) * g["w_stride_n"] + (g["k_tiles"] - 1) * g["w_stride_k"]
        target = self._rows("accumulator", g["acc"], g["acc_stride"], g["rows"], g["n_tiles"])
        reads = [
            self._rows("activation", g["act"], g["act_stride"], g["rows"], g["k_tiles"] * step),
            self._rows("weight", g["weight"], 0, 1, last_tile + self.config.dim),
            target,
        ]
        self._emit("matmul", reads, [target], **g)

    def _meets_itself(self, g: dict[str, int]) -> bool:
        """Whether it would add to rows that the matmul before it writes in its last three cycles.

        The accumulator has no forwarding, and programs must not do that (``MatmulUnit``).
        """

        def rows(n: int) -> list[int | None]:
            found = [g["acc"] + m * g["acc_stride"] + n for m in range(g["rows"])]
            found = [row % self.config.accumulator_rows for row in found]
            return found + [None] * (4 - len(found))  # a pass takes four cycles at least

        before = self.last_rows
        self.last_rows = rows(g["n_tiles"] - 1)[-3:]
        adds = g.get("accumulate", 0)
        return bool(adds) and any(
            row is not None and row in before[index:] for index, row in enumerate(rows(0)[:3])
        )

    def _vector(self) -> None:
        self._draw("vector")

    def _softmax(self) -> None:
        self._draw("softmax")

    def _norm(self) -> None:
        self._draw("norm")

    def _draw(self, op: str) -> None:
        item = self.dice.draw(op)
        g = item.get
        rows, blocks = g("rows"), g("blocks")
        format = {"softmax": Format.ACC32, "norm": Format.INT16}.get(op)
        format = g("a_format") if format is None else format
        source = "accumulator" if format == Format.ACC32 else "activation"
        planes = 2 if format == Format.INT16 else 1
        reads = [
            self._rows(source, g("a"), g("a_stride"), rows, blocks * planes),
            Region("parameter", 0, self.words[LoadSpace.PARAMETER]),
            Region("table", 0, self.words[LoadSpace.TABLE]),
        ]
        if op == "vector" and g("combine") != Combine.NONE:
            planes = 4 if g("combine") == Combine.ROPE else 1 + g("b_wide")
            count = min(blocks, g("b_period") or blocks) * planes
            reads.append(self._rows("activation", g("b"), g("b_stride"), rows, count))
        target = "weight" if g("d_weight") else "activation"
        width = blocks * (1 + g("d_wide"))
        writes = [self._rows(target, g("d"), g("d_stride"), rows, width)]
        self.steps.append(Step(item, tuple(reads), tuple(writes)))

    def _sequencer(self) -> None:
        match self.rng.choice(["fence", "mark", "argmax", "ldr"]):
            case "fence":
                self._control("fence")
            case "mark":
                self._control("mark", x=int(self.rng.integers(1 << 32)))
            case "argmax":
                # The index goes to memory from a register that nothing else uses.
                self._control("argmax", rd=15)
                address = self.scratch + 4 * int(self.rng.integers(SCRATCH_BYTES // 4))
                self._emit("storew", [], [self._rows("memory", address, 0, 1, 4)], address=address)
                item = self.steps[-1].instruction
                self.steps[-1].instruction = Instruction(item.op, item.fields, {3: 15})
            case "ldr":
                # A constant, so that nothing has to be waited for; it is checked by its use.
                size = self.config.activation_rows * self.config.dim
                address = self.images[LoadSpace.ACTIVATION] + int(self.rng.integers(size)) // 4 * 4
                self._control("ldr", address=address, rd=14)
                target = self.scratch + 4 * int(self.rng.integers(SCRATCH_BYTES // 4))
                self._emit("storew", [], [self._rows("memory", target, 0, 1, 4)], address=target)
                item = self.steps[-1].instruction
                self.steps[-1].instruction = Instruction(item.op, item.fields, {3: 14})

    def _epilogue(self) -> None:
        """Stores activations and accumulators; weights as products with the identity."""
        config, d = self.config, self.config.dim
        self._dump("activation", 0, config.activation_rows, self.results["activation"])
        self._dump("accumulator", 0, config.accumulator_rows, self.results["accumulator"])
        self._emit(
            "load", [], [self._rows("activation", 0, 0, 1, d)],
            address=self.identity, words=d, rows=1,
        )  # fmt: skip
        tiles = min(config.accumulator_rows, config.weight_rows) // d
        for at in range(0, config.weight_rows, tiles * d):
            self._emit_matmul(
                {
                    "rows": d, "n_tiles": tiles, "k_tiles": 1, "acc": 0, "acc_stride": tiles,
                    "act": 0, "act_stride": 1, "weight": at, "w_stride_n": d, "w_stride_k": 0,
                    "signed": 1,
                }
            )  # fmt: skip
            self._dump("accumulator", 0, tiles * d, self.results["weight"] + 4 * d * at)
        self._control("halt")

    def _dump(self, space: str, local: int, words: int, address: int) -> None:
        bytes_each = self.config.dim * (4 if space == "accumulator" else 1)
        for at in range(0, words, 1 << 15):
            count = min(words - at, 1 << 15)
            self._emit(
                "store",
                [self._rows(space, local + at, 0, 1, count)],
                [self._rows("memory", address + at * bytes_each, 0, 1, count * bytes_each)],
                address=address + at * bytes_each, words=count, rows=1, local=local + at,
                space=StoreSpace[space.upper()],
            )  # fmt: skip
