# amaranth: UnusedElaboratable=no
"""The matmul unit under Verilator: bit-exact to the golden, and never a cycle too many."""

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from amaranth import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from systolith import golden, isa
from systolith.config import Config
from systolith.hdl.layouts import COMMAND, bits_for_rows, row
from systolith.hdl.matmul import MatmulUnit
from systolith.hdl.pipeline import delay
from systolith.hdl.verilog import to_verilog
from systolith.sim import build, runner
from systolith.sim.benches.matmul import ACTIVATION, WEIGHT
from systolith.sim.benches.matmul import COMMAND as QUEUE
from systolith.sim.scoreboard import compare

CONFIGS = {
    4: Config(dim=4, lanes=2, bus_bytes=4, activation_rows=1024, accumulator_rows=256),
    8: Config(dim=8, activation_rows=2048, weight_rows=4096, accumulator_rows=512),
    16: Config(
        dim=16,
        lanes=8,
        bus_bytes=16,
        activation_rows=4096,
        weight_rows=16384,
        accumulator_rows=2048,
    ),
}
"""By D, with one weight port."""
MACHINES = [(4, 1), (8, 1), (16, 1), (4, 2), (8, 2), (8, 4), (16, 4)]
"""D and W."""
QUEUE_ROWS = 64
GAP_BITS = 16
QUEUE_BYTES = (COMMAND.size + GAP_BITS) // 8
COUNTERS = ("accepted", "written", "rows", "waited", "writes", "refused", "worked")
LOG = data.StructLayout({"cycle": 32, "writes": 32})


class MatmulTop(wiring.Component):
    """The unit with memories that can be filled, a queue of commands with pauses, and counters."""

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "fill_en": In(1),
                "fill_space": In(2),
                "fill_addr": In(20),
                "fill_data": In(8 * max(config.dim, QUEUE_BYTES)),
                "read_addr": In(16),
                "read_data": Out(32 * config.dim),
                "log_addr": In(range(QUEUE_ROWS)),
                "log_data": Out(LOG.size),
                "count": In(range(QUEUE_ROWS + 1)),
                "run": In(1),
                "hammer": In(1),
                "finished": Out(1),
                "busy": Out(1),
                **dict.fromkeys(COUNTERS, Out(32)),
            }
        )

    def memory(self, m: Module, space: int, shape, rows: int, bank: int = 0, banks: int = 1):
        """``rows`` rows; as one of ``banks`` it has D / ``banks`` of each D rows."""
        name = f"memory_{space}_{bank}"
        m.submodules[name] = memory = Memory(shape=shape, depth=rows // banks, init=[])
        write = memory.write_port()
        high = bits_for_rows(self.config.dim)
        low = bits_for_rows(self.config.dim // banks)
        m.d.comb += [
            write.en.eq(
                self.fill_en & (self.fill_space == space) & (self.fill_addr[low:high] == bank)
                if banks > 1
                else self.fill_en & (self.fill_space == space)
            ),
            write.addr.eq(Cat(self.fill_addr[:low], self.fill_addr[high:])),
            Value.cast(write.data).eq(self.fill_data),
        ]
        return memory

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        m.submodules.unit = unit = MatmulUnit(config)
        activations = self.memory(m, ACTIVATION, row(config), config.activation_rows)
        ports = config.weight_ports
        banks = [
            self.memory(m, WEIGHT, row(config), config.weight_rows, bank, ports)
            for bank in range(ports)
        ]
        for memory, port in zip(
            (activations, *banks), (unit.activation, *unit.weight), strict=True
        ):
            read = memory.read_port()
            m.d.comb += [
                read.addr.eq(port.addr),
                read.en.eq(port.en),
                port.ready.eq(1),
                Value.cast(port.data).eq(Value.cast(read.data)),
            ]

        item = data.StructLayout({"command": COMMAND, "gap": GAP_BITS})
        index, pause = Signal(range(QUEUE_ROWS + 1)), Signal(GAP_BITS)
        head = self.memory(m, QUEUE, item, QUEUE_ROWS).read_port(domain="comb")
        transfer = Signal()
        m.d.comb += [
            head.addr.eq(index),
            unit.commands.payload.eq(head.data.command),
            unit.commands.valid.eq(self.run & (index != self.count) & (pause == head.data.gap)),
            transfer.eq(unit.commands.valid & unit.commands.ready),
        ]
        with m.If(transfer | ~self.run):
            m.d.sync += pause.eq(0)
        with m.Elif(pause != head.data.gap):
            m.d.sync += pause.eq(pause + 1)

        # A reader that wants a row every cycle, from pseudo-random addresses.
        lfsr = Signal(16, init=1)
        m.d.sync += lfsr.eq(Cat(lfsr[1:], lfsr[0] ^ lfsr[2] ^ lfsr[3] ^ lfsr[5]))
        m.d.comb += [
            unit.read.en.eq(1),
            unit.read.addr.eq(Mux(self.hammer, lfsr, self.read_addr)),
            self.read_data.eq(Value.cast(unit.read.data)),
            self.busy.eq(unit.busy),
        ]

        # What was announced has been written some cycles later.
        now, finished = Signal(32), Signal(range(QUEUE_ROWS + 1))
        done = delay(m, unit.done, unit.EARLY, "done")
        writes = Signal(32)
        m.submodules.log = log = Memory(shape=LOG, depth=QUEUE_ROWS, init=[])
        note, recall = log.write_port(), log.read_port()
        m.d.comb += [
            writes.eq(self.writes + unit.wrote),
            note.en.eq(done),
            note.addr.eq(finished),
            note.data.cycle.eq(now - unit.EARLY),
            note.data.writes.eq(writes),
            recall.addr.eq(self.log_addr),
            self.log_data.eq(Value.cast(recall.data)),
            self.finished.eq(self.run & (finished == self.count)),
        ]
        with m.If(~self.run):
            m.d.sync += [index.eq(0), finished.eq(0), now.eq(0)]
            for counter in (self.rows, self.waited, self.writes, self.refused, self.worked):
                m.d.sync += counter.eq(0)
        with m.Else():
            m.d.sync += [
                now.eq(now + 1),
                index.eq(index + transfer),
                finished.eq(finished + done),
                self.writes.eq(writes),
                self.rows.eq(self.rows + unit.streaming),
                self.waited.eq(self.waited + unit.waiting),
                self.worked.eq(self.worked + unit.busy),
                self.refused.eq(self.refused + (self.hammer & ~unit.read.ready)),
            ]
            with m.If(transfer & (index == 0)):
                m.d.sync += self.accepted.eq(now)
            with m.If(unit.wrote):
                m.d.sync += self.written.eq(now)
        return m


@cache
def simulator(config: Config) -> build.Build:
    name = f"matmul_top_{config.dim}_{config.weight_ports}"
    return build.build(to_verilog(MatmulTop(config), name), name)


def config_of(dim: int, ports: int) -> Config:
    return replace(CONFIGS[dim], weight_ports=ports)


@dataclass
class Program:
    """Instructions over memory images; ``gaps`` are pauses before each of them, in cycles."""

    config: Config
    act: np.ndarray  # (rows, D) uint8
    weight: np.ndarray  # (rows, D) int8
    instructions: list[dict[str, int]]
    gaps: list[int] = field(default_factory=list)
    hammer: bool = False

    def queue(self) -> bytes:
        image = b""
        for index, fields in enumerate(self.instructions):
            words = isa.encode(isa.Instruction("matmul", fields))
            command = words[0] & 0xFF | (words[1] >> 24) << 8 | index << 208
            for i, word in enumerate(words[2:]):
                command |= word << (16 + 32 * i)
            gap = self.gaps[index] if self.gaps else 0
            image += (command | gap << COMMAND.size).to_bytes(QUEUE_BYTES, "little")
        return image


def tiles(fields: dict[str, int]) -> int:
    return fields["k_tiles"] * fields["n_tiles"]


def passes(fields: dict[str, int]) -> int:
    return 1 + fields.get("wide", 0)


def streaming(config: Config, fields: dict[str, int]) -> int:
    """Cycles for which a tile streams at least."""
    return passes(fields) * max(fields["rows"], 4 if config.weight_ports == 1 else 2)


def execute(program: Program, fields: dict[str, int], acc: np.ndarray) -> None:
    """One instruction on ``acc`` (rows, D): gathers the operands, leaves the sums to golden."""
    dim = program.config.dim
    get = {spec.name: fields.get(spec.name, 0) for spec in isa.BY_NAME["matmul"].fields}
    planes = 1 + get["wide"]
    m, k, n = (np.arange(get[name]) for name in ("rows", "k_tiles", "n_tiles"))
    lanes = np.arange(dim)
    group = lanes >> get["group_log2"] == get["group"]

    step = 1 + (get["wide"] | get["apart"])
    first = get["act"] + m[:, None] * get["act_stride"] + k * step
    a = np.zeros((len(m), len(k), dim), dtype=np.int64)
    for plane in range(planes):
        byte = program.act[(first + plane) % len(program.act)].astype(np.int64)
        if get["signed"] and plane == planes - 1:
            byte = (byte ^ 128) - 128
        a += byte << 8 * plane
    if get["mask_in"]:
        a *= group
    a = a.reshape(len(m), -1)

    first = get["weight"] + n * get["w_stride_n"] + k[:, None] * get["w_stride_k"]
    w = program.weight[(first[:, :, None] + lanes) % len(program.weight)]  # (k, n, row j, lane i)
    w = w.transpose(0, 3, 1, 2) if get["columns"] else w.transpose(0, 2, 1, 3)
    w = w.reshape(len(k) * dim, len(n) * dim)

    rows = (get["acc"] + m[:, None] * get["acc_stride"] + n) % len(acc)
    assert len(np.unique(rows)) == rows.size
    old = acc[rows].reshape(len(m), -1)
    new = golden.matmul(a, w, old if get["accumulate"] else 0)
    write = np.tile(group, len(n)) if get["mask_out"] else True
    acc[rows] = np.where(write, new, old).reshape(*rows.shape, dim)


def run(programs: list[Program], folder: Path, seed: int) -> list[dict]:
    """Simulates the programs one after the other (the accumulator is kept) and compares each."""
    config = programs[0].config
    dim = config.dim
    files = {}
    for i, program in enumerate(programs):
        files |= {
            f"{i}.act": program.act.astype(np.uint8).tobytes(),
            f"{i}.weight": program.weight.astype(np.int8).tobytes(),
            f"{i}.queue": program.queue(),
        }
    result = runner.run(
        simulator(config),
        "matmul",
        {
            "dim": dim,
            "queue_bytes": QUEUE_BYTES,
            "acc_rows": config.accumulator_rows,
            "programs": [
                {"name": str(i), "count": len(p.instructions), "hammer": int(p.hammer)}
                for i, p in enumerate(programs)
            ],
        },
        seed=seed,
        files=files,
        directory=folder,
    )
    acc = np.zeros((config.accumulator_rows, dim), dtype=np.int64)
    act = np.zeros((config.activation_rows, dim), dtype=np.int64)
    weight = np.zeros((config.weight_rows, dim), dtype=np.int64)
    results = []
    for i, program in enumerate(programs):
        # Images are as long as the program needs; the rest of a memory keeps what it held.
        act[: len(program.act)], weight[: len(program.weight)] = program.act, program.weight
        whole = Program(config, act, weight, program.instructions)
        writes = 0
        measured = result[str(i)]
        for fields, logged in zip(program.instructions, measured.pop("done"), strict=True):
            execute(whole, fields, acc)
            writes += tiles(fields) * passes(fields) * fields["rows"]
            assert logged >> 32 == writes, f"program {i}: done and writes disagree, {fields}"
            measured["done"] = logged & 0xFFFFFFFF
        assert measured["writes"] == measured["rows"] == writes
        got = np.frombuffer((folder / f"{i}.acc").read_bytes(), dtype="<i4").reshape(acc.shape)
        compare(got, acc, what=f"accumulator, program {i}", axes=("row", "lane"), seed=seed)
        results.append(measured)
    return results


def schedule(config: Config, instructions: list[dict[str, int]]) -> int:
    """Cycles from the first command's transfer to the last ``done``, as the contracts add up."""
    load = loaded = swap = streamed = 0  # cycle 0 is the first tile's transfer to the loader
    for fields in instructions:
        for _ in range(tiles(fields)):
            load = max(loaded, swap + 1) if streamed else 0
            swap = max(streamed, load + 1)
            loaded = load + config.dim // config.weight_ports
            streamed = swap + streaming(config, fields)
    return streamed + 2 * config.dim + 2


def gemm(config: Config, rng: np.random.Generator, m: int, k: int, n: int, **flags) -> Program:
    """A single product (m, k) x (k, n) on random operands, as a compiler would lay it out."""
    dim = config.dim
    k_tiles, n_tiles = -(-k // dim), -(-n // dim)
    planes = 1 + flags.get("wide", 0)
    weight = rng.integers(-128, 128, (k_tiles, dim, n_tiles, dim))
    weight.reshape(k_tiles * dim, -1)[k:] = 0
    fields = {
        "rows": m,
        "k_tiles": k_tiles,
        "n_tiles": n_tiles,
        "act_stride": k_tiles * planes,
        "acc_stride": n_tiles,
        "w_stride_k": dim,
        "w_stride_n": k_tiles * dim,
        **flags,
    }
    return Program(
        config,
        rng.integers(0, 256, (m * k_tiles * planes, dim)),
        weight.transpose(2, 0, 1, 3).reshape(-1, dim),
        [fields],
    )


def test_converts():
    assert "module matmul" in to_verilog(MatmulUnit(CONFIGS[4]), "matmul")


GEMMS = [
    (16, 16, 16),
    (31, 66, 30),
    (128, 64, 64),
    (64, 64, 64),
    (17, 200, 33),
    (16, 512, 16),
    (16, 16, 512),
    (33, 48, 16),
    (128, 64, 256),
    (15, 64, 64),
    (4, 64, 64),
    (3, 32, 48),
    (1, 384, 384),
]


def test_a_16_bit_row_takes_no_longer(tmp_path, seed):
    """Two passes of one row in the four cycles in which a tile enters; each adds to the last."""
    config = config_of(16, 4)
    rng = np.random.default_rng(seed)
    programs = [gemm(config, rng, m, 384, 32, wide=1, signed=1) for m in (1, 2, 3)]
    for m, got in zip((1, 2, 3), run(programs, tmp_path, seed), strict=True):
        assert got["done"] - got["accepted"] == 24 * 2 * max(2 * m, 4) + 35


@pytest.mark.parametrize("ports", [1, 4])
def test_a_gemm_takes_the_cycles_of_its_tiles(ports, tmp_path, seed):
    """From first command to ``done``: tiles * max(M, 16 / W), and 35 cycles of latency."""
    config = config_of(16, ports)
    tile = 16 // ports
    rng = np.random.default_rng(seed)
    programs = [gemm(config, rng, *shape, signed=i & 1) for i, shape in enumerate(GEMMS)]
    for (m, k, n), got in zip(GEMMS, run(programs, tmp_path, seed), strict=True):
        bound = -(-k // 16) * -(-n // 16) * max(m, tile)
        cycles = got["written"] - got["accepted"]
        print(f"{m} x {k} x {n}: {cycles} cycles, bound {bound}")
        assert cycles <= bound + 80, f"{m} x {k} x {n}"
        idle = max(tile - streaming(config, {"rows": m}), 0)  # of the last tile
        assert got["done"] - got["accepted"] == bound + 35 - idle
        assert got["worked"] == got["done"] - got["accepted"]
        # Only the first tile, or tiles with fewer rows than they have weights, wait for weights.
        assert m < tile or got["waited"] == 2


@pytest.mark.parametrize("dim, ports", MACHINES)
def test_a_queue_of_gemms_has_no_bubbles(dim, ports, tmp_path, seed):
    """Short and long instructions behind each other cost the sum of their tiles."""
    config = config_of(dim, ports)
    rng = np.random.default_rng(seed)
    shapes = [
        *[(dim, 1, 1)] * 4,
        (dim + 1, 2, 1),
        *[(4, 1, 1)] * 6,
        (1, 3, 2),
        (2 * dim, 2, 2),
        *[(3, 1, 1)] * 4,
        (dim, 3, 1),
        (2, 1, 2),
        (dim, 1, 3),
    ]
    instructions = []
    for i, (m, k, n) in enumerate(shapes):
        instructions.append(
            {
                "rows": m,
                "k_tiles": k,
                "n_tiles": n,
                "act": i,
                "act_stride": k,
                "acc": 8 * i,
                "acc_stride": n,
                "weight": dim * i,
                "w_stride_k": dim,
                "w_stride_n": k * dim,
                "signed": i & 1,
                "wide": int(rng.integers(2)),
                "columns": int(rng.integers(2)),
            }
        )
    act = rng.integers(0, 256, (256, dim))
    weight = rng.integers(-128, 128, (64 * dim, dim))
    (got,) = run([Program(config, act, weight, instructions)], tmp_path, seed)
    cycles = got["done"] - got["accepted"]
    assert cycles == schedule(config, instructions)
    bound = sum(tiles(x) * max(streaming(config, x), dim // ports) for x in instructions)
    print(f"dim {dim}: {cycles} cycles, sum of the bounds {bound}")
    assert cycles <= bound + 2 * dim + 6 <= bound + 80


def random_program(config: Config, rng: np.random.Generator, count: int, idle: int) -> Program:
    """Valid instructions with every flag; none adds to a row that its forerunner wrote last."""
    dim = config.dim
    log2 = dim.bit_length() - 1
    instructions: list[dict[str, int]] = []
    forbidden: set[int] = set()
    while len(instructions) < count:
        k_tiles, n_tiles = (int(x) for x in rng.choice([1, 1, 2, 3, 5], 2))
        m = int(rng.choice([*range(1, 6), dim - 1, dim, dim + 1, rng.integers(1, 40)]))
        fields = {
            "rows": m,
            "k_tiles": k_tiles,
            "n_tiles": n_tiles,
            "act": int(rng.integers(config.activation_rows)),
            "weight": int(rng.integers(config.weight_rows)),
            "acc": int(rng.integers(config.accumulator_rows)),
            "act_stride": int(rng.choice([0, 1, k_tiles, rng.integers(1 << 16)])),
            "acc_stride": n_tiles + int(rng.integers(4)),
            "w_stride_n": int(rng.choice([0, dim, k_tiles * dim, rng.integers(1 << 16)])),
            "w_stride_k": int(rng.choice([0, dim, n_tiles * dim, rng.integers(1 << 16)])),
            "group_log2": int(rng.integers(log2 + 2)),
            "group": int(rng.integers(4)),
            **{
                flag: int(rng.integers(2))
                for flag in (
                    "columns",
                    "wide",
                    "signed",
                    "accumulate",
                    "mask_in",
                    "mask_out",
                    "apart",
                )
            },
        }
        if config.weight_ports > 1:
            for name in ("weight", "w_stride_n", "w_stride_k"):
                fields[name] = fields[name] // dim * dim
        if instructions and rng.random() < 0.5:  # the same rows again
            fields |= {
                name: instructions[-1][name] for name in ("rows", "n_tiles", "acc", "acc_stride")
            }
        n, rows = fields["n_tiles"], np.arange(fields["rows"])
        if (fields["rows"] - 1) * fields["acc_stride"] + n > config.accumulator_rows:
            continue
        written = (fields["acc"] + rows * fields["acc_stride"]) % config.accumulator_rows
        if fields["accumulate"] and forbidden & set(written[:3].tolist()):
            continue
        forbidden = set(((written + n - 1) % config.accumulator_rows)[-3:].tolist())
        instructions.append(fields)
    gaps = rng.integers(0, idle + 1, count) * rng.integers(0, 2, count)
    return Program(
        config,
        rng.choice([0, 127, 128, 255, *range(256)], (config.activation_rows, dim)),
        rng.choice([-128, 127, 0, *range(-128, 128)], (config.weight_rows, dim)),
        instructions,
        [int(gap) for gap in gaps],
        hammer=bool(idle),
    )


@pytest.mark.parametrize("idle", [0, 60])
@pytest.mark.parametrize("dim, ports", MACHINES)
def test_random_programs(dim, ports, idle, tmp_path, seed):
    """Every flag, stride and wrap-around, with and without pauses and a competing reader."""
    rng = np.random.default_rng([seed, dim, idle])
    programs = [random_program(config_of(dim, ports), rng, 40, idle) for _ in range(2)]
    results = run(programs, tmp_path, seed)
    for program, got in zip(programs, results, strict=True):
        if idle:
            assert got["refused"] > 0
        else:
            cycles = schedule(program.config, program.instructions)
            assert got["done"] - got["accepted"] == cycles
