"""Local memories: activations, stationary weights, parameters, and who may use their ports.

The array must never wait, so the matmul unit has read ports of its own. Where two units share a
port they take turns (the one that was served last yields), so that neither can starve the other:
a waiting unit is served after one access of the other at the latest.

Every memory has one write port and synchronous read ports that are not transparent: a row that is
read in the cycle of its write is not defined, and semaphores keep programs from doing so. A memory
with two read ports is built by the tools as two copies of the same block RAM. That is deliberate:
it costs memory, and no conflict can ever stall the array.
"""

from amaranth import Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out, connect, flipped

from systolith.config import Config
from systolith.hdl.layouts import PARAMETER, ReadPort, WritePort, bits_for_rows, line, row
from systolith.hdl.load import load_write
from systolith.isa import LoadSpace

NO_COLLISIONS = {"no_rw_check": 1}
"""Attribute of a memory for Yosys: what a read in the cycle of its write returns does not matter.
Without it, registers and multiplexers are added to return the old row."""


def parameter_bits(config: Config) -> int:
    """Address bits of the parameter memory as the vector unit reads it, V channels a line."""
    return bits_for_rows(config.parameter_rows * config.dim // config.lanes)


def table_bits(config: Config) -> int:
    """Address bits of the function tables, in words of ``dim`` bytes."""
    return bits_for_rows(config.table_slots * 1024 // config.dim)


def _owner(m: Module, first: Value, second: Value, memory) -> Signal:
    """A register: the port of ``memory`` belongs to the second of two that want it.

    Drives ``memory.en``. The owner loses the port if it does not use it, or was served, and the
    other one waits.
    """
    second_owns = Signal()
    m.d.comb += memory.en.eq(Mux(second_owns, second, first))
    with m.If(Mux(second_owns, first, second) & (memory.ready | ~memory.en)):
        m.d.sync += second_owns.eq(~second_owns)
    return second_owns


class SharedReadPort(wiring.Component):
    """Two readers on one read port, in turns.

    The port belongs to the reader that was served last, at first to the first one, for which it has
    no latency. It changes hands in one cycle if the owner does not read, or was served and the
    other waits. ``data`` of the memory goes to both readers, and a reader knows by its ``ready``
    whether it is meant; that depends on ``ready`` of the memory and on a register, not on the other
    reader.

    Members
    -------
    readers : array of 2 read ports
    memory : read port of the memory
    """

    def __init__(self, address_bits: int, shape) -> None:
        super().__init__(
            {
                "readers": In(ReadPort(address_bits, shape)).array(2),
                "memory": Out(ReadPort(address_bits, shape)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        first, second = self.readers
        second_owns = _owner(m, first.en, second.en, self.memory)
        m.d.comb += [
            self.memory.addr.eq(Mux(second_owns, second.addr, first.addr)),
            first.ready.eq(self.memory.ready & ~second_owns),
            second.ready.eq(self.memory.ready & second_owns),
        ]
        for reader in (first, second):
            m.d.comb += Value.cast(reader.data).eq(Value.cast(self.memory.data))
        return m


class SharedWritePort(wiring.Component):
    """Two writers on one write port, in turns.

    As with ``SharedReadPort`` the port belongs to the writer that was served last, at first to the
    first one, and changes hands in one cycle: whether a writer is served is in a register.

    Members
    -------
    writers : array of 2 write ports
    memory : write port of the memory, which never waits
    """

    def __init__(self, address_bits: int, shape, lanes: int) -> None:
        super().__init__(
            {
                "writers": In(WritePort(address_bits, shape, lanes)).array(2),
                "memory": Out(WritePort(address_bits, shape, lanes)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        first, second = self.writers
        second_owns = _owner(m, first.en, second.en, self.memory)
        m.d.comb += [
            first.ready.eq(self.memory.ready & ~second_owns),
            second.ready.eq(self.memory.ready & second_owns),
        ]
        for name in ("addr", "mask", "data"):
            chosen = Value.cast(getattr(self.memory, name))
            one, two = (Value.cast(getattr(writer, name)) for writer in (first, second))
            m.d.comb += chosen.eq(Mux(second_owns, two, one))
        return m


class ActivationMemory(wiring.Component):
    """``activation_rows`` rows of D bytes, kept as lines of two rows.

    Reads take one cycle. The matmul unit's port never waits; vector and store share a port.

    Members
    -------
    load : write port, rows
    vector_write : write port, lines
    matmul : read port, rows
    vector : read port, lines
    store : read port, rows
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        rows = bits_for_rows(config.activation_rows)
        super().__init__(
            {
                "load": In(WritePort(rows, row(config), 1)),
                "vector_write": In(WritePort(rows - 1, line(config), 2 * config.dim)),
                "matmul": In(ReadPort(rows, row(config))),
                "vector": In(ReadPort(rows - 1, line(config))),
                "store": In(ReadPort(rows, row(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        bits = bits_for_rows(config.activation_rows) - 1
        lanes = 2 * config.dim
        m.submodules.memory = memory = Memory(
            shape=data.ArrayLayout(unsigned(8), lanes),
            depth=config.activation_rows // 2,
            init=[],
            attrs=NO_COLLISIONS,
        )

        m.submodules.writes = writes = SharedWritePort(bits, line(config), lanes)
        word, block = writes.writers
        high = self.load.addr[0]
        m.d.comb += [
            word.en.eq(self.load.en),
            word.addr.eq(self.load.addr[1:]),
            word.mask.eq(Cat((self.load.mask & ~high).replicate(config.dim),
                             (self.load.mask & high).replicate(config.dim))),
            Value.cast(word.data).eq(Value.cast(self.load.data).replicate(2)),
            self.load.ready.eq(word.ready),
        ]  # fmt: skip
        connect(m, block, flipped(self.vector_write))
        write = memory.write_port(granularity=1)
        m.d.comb += [
            writes.memory.ready.eq(1),
            write.addr.eq(writes.memory.addr),
            Value.cast(write.data).eq(Value.cast(writes.memory.data)),
            write.en.eq(writes.memory.mask & writes.memory.en.replicate(lanes)),
        ]

        first = memory.read_port()
        m.d.comb += [
            first.en.eq(self.matmul.en),
            first.addr.eq(self.matmul.addr[1:]),
            self.matmul.ready.eq(1),
        ]
        _select_row(m, self.matmul, first.data)

        m.submodules.reads = reads = SharedReadPort(bits, line(config))
        lines, rows = reads.readers
        second = memory.read_port()
        connect(m, lines, flipped(self.vector))
        m.d.comb += [
            rows.en.eq(self.store.en),
            rows.addr.eq(self.store.addr[1:]),
            self.store.ready.eq(rows.ready),
            reads.memory.ready.eq(1),
            second.en.eq(reads.memory.en),
            second.addr.eq(reads.memory.addr),
            Value.cast(reads.memory.data).eq(Value.cast(second.data)),
        ]
        _select_row(m, self.store, rows.data)
        return m


def _select_row(m: Module, port, line_data: Value) -> None:
    """Half of the line that ``port`` (rows) asked for in the last cycle."""
    high = Signal()
    m.d.sync += high.eq(port.addr[0])
    half = len(Value.cast(port.data))
    m.d.comb += Value.cast(port.data).eq(Value.cast(line_data).word_select(high, half))


class WeightMemory(wiring.Component):
    """``weight_rows`` rows of D bytes in W banks; reads take one cycle and never wait.

    Of each D rows, which a tile of weights may be, bank p has rows p D / W to (p + 1) D / W - 1. A
    write goes to one row of one bank, so one row a cycle is written.

    Members
    -------
    load : write port, whole rows
    vector : write port with one mask bit a byte
    matmul : array of W read ports, of the banks
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        bits = bits_for_rows(config.weight_rows)
        bank_bits = bits_for_rows(config.weight_rows // config.weight_ports)
        super().__init__(
            {
                "load": In(WritePort(bits, row(config), 1)),
                "vector": In(WritePort(bits, row(config), config.dim)),
                "matmul": In(ReadPort(bank_bits, row(config))).array(config.weight_ports),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        bits = bits_for_rows(config.weight_rows)
        ports = config.weight_ports
        m.submodules.writes = writes = SharedWritePort(bits, row(config), config.dim)
        word, block = writes.writers
        connect(m, block, flipped(self.vector))
        m.d.comb += [
            word.en.eq(self.load.en),
            word.addr.eq(self.load.addr),
            word.mask.eq(self.load.mask.replicate(config.dim)),
            Value.cast(word.data).eq(Value.cast(self.load.data)),
            self.load.ready.eq(word.ready),
            writes.memory.ready.eq(1),
        ]
        # Row address: tile, bank, row of the tile in the bank.
        low, high = bits_for_rows(config.dim // ports), bits_for_rows(config.dim)
        address = writes.memory.addr
        for bank, port in enumerate(self.matmul):
            m.submodules[f"bank_{bank}"] = memory = Memory(
                shape=row(config), depth=config.weight_rows // ports, init=[], attrs=NO_COLLISIONS
            )
            write, read = memory.write_port(granularity=1), memory.read_port()
            chosen = (address[low:high] == bank) if ports > 1 else Const(1, 1)
            enable = writes.memory.en & chosen
            m.d.comb += [
                write.addr.eq(Cat(address[:low], address[high:])),
                Value.cast(write.data).eq(Value.cast(writes.memory.data)),
                write.en.eq(writes.memory.mask & enable.replicate(config.dim)),
                read.en.eq(port.en),
                read.addr.eq(port.addr),
                port.ready.eq(1),
                Value.cast(port.data).eq(Value.cast(read.data)),
            ]
        return m


class ParameterMemory(wiring.Component):
    """``parameter_rows`` rows of D channels, kept as lines of V channels (8 bytes each).

    Written in words of D bytes (D / 8 channels, or half a channel at D = 4), read in lines; a
    line is filled by 8 V / D words. Reads take one cycle; neither side ever waits.

    Members
    -------
    load : write port, words
    vector : read port, lines
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        shape = data.ArrayLayout(PARAMETER, config.lanes)
        words = bits_for_rows(config.parameter_rows * 8)
        super().__init__(
            {
                "load": In(WritePort(words, row(config), 1)),
                "vector": In(ReadPort(parameter_bits(config), shape)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        words = 8 * config.lanes // config.dim
        low = bits_for_rows(words)
        m.submodules.memory = memory = Memory(
            shape=data.ArrayLayout(unsigned(8 * config.dim), words),
            depth=config.parameter_rows * 8 // words,
            init=[],
            attrs=NO_COLLISIONS,
        )
        write, read = memory.write_port(granularity=1), memory.read_port()
        for index in range(words):
            chosen = (self.load.addr[:low] == index) if low else 1
            m.d.comb += write.en[index].eq(self.load.en & self.load.mask & chosen)
        m.d.comb += [
            write.addr.eq(self.load.addr[low:]),
            Value.cast(write.data).eq(Value.cast(self.load.data).replicate(words)),
            self.load.ready.eq(1),
            read.en.eq(self.vector.en),
            read.addr.eq(self.vector.addr),
            self.vector.ready.eq(1),
            Value.cast(self.vector.data).eq(Value.cast(read.data)),
        ]
        return m


class Scratchpad(wiring.Component):
    """The three local memories, and the words of the load unit steered to them and to the tables.

    Addresses count rows (words for loads) and wrap at the end of a memory. A write is visible to
    reads of the next cycle.

    Members
    -------
    writes : stream of ``load_write``, accepted at one word a cycle but for turns of the vector unit
    activation_write, weight_write : write ports of the vector unit
    table_write : write port of the function tables, which are in the vector unit
    matmul_activation : read port that never waits
    matmul_weight : array of W read ports that never wait, of the banks of the weight memory
    vector_activation, store_activation : read ports that share a memory port
    vector_parameter : read port that never waits
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        rows, weights = bits_for_rows(config.activation_rows), bits_for_rows(config.weight_rows)
        bank = bits_for_rows(config.weight_rows // config.weight_ports)
        parameters = data.ArrayLayout(PARAMETER, config.lanes)
        super().__init__(
            {
                "writes": In(stream.Signature(load_write(config))),
                "activation_write": In(WritePort(rows - 1, line(config), 2 * config.dim)),
                "weight_write": In(WritePort(weights, row(config), config.dim)),
                "table_write": Out(WritePort(table_bits(config), row(config), 1)),
                "matmul_activation": In(ReadPort(rows, row(config))),
                "matmul_weight": In(ReadPort(bank, row(config))).array(config.weight_ports),
                "vector_activation": In(ReadPort(rows - 1, line(config))),
                "store_activation": In(ReadPort(rows, row(config))),
                "vector_parameter": In(ReadPort(parameter_bits(config), parameters)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.activations = activations = ActivationMemory(self.config)
        m.submodules.weights = weights = WeightMemory(self.config)
        m.submodules.parameters = parameters = ParameterMemory(self.config)
        connect(m, flipped(self.activation_write), activations.vector_write)
        connect(m, flipped(self.weight_write), weights.vector)
        connect(m, flipped(self.matmul_activation), activations.matmul)
        for outside, inside in zip(self.matmul_weight, weights.matmul, strict=True):
            connect(m, flipped(outside), inside)
        connect(m, flipped(self.vector_activation), activations.vector)
        connect(m, flipped(self.store_activation), activations.store)
        connect(m, flipped(self.vector_parameter), parameters.vector)
        destinations = {
            LoadSpace.ACTIVATION: activations.load,
            LoadSpace.WEIGHT: weights.load,
            LoadSpace.PARAMETER: parameters.load,
            LoadSpace.TABLE: self.table_write,
        }
        word = self.writes.payload
        with m.Switch(word.space):
            for space, port in destinations.items():
                with m.Case(space):
                    m.d.comb += [
                        port.en.eq(self.writes.valid),
                        self.writes.ready.eq(port.ready),
                    ]
                m.d.comb += [
                    port.addr.eq(word.addr),
                    port.mask.eq(1),
                    Value.cast(port.data).eq(Value.cast(word.data)),
                ]
        return m
