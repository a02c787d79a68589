"""Control and status registers: an AXI4-Lite slave made from the table in ``core/registers.py``."""

from amaranth import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.memory import Memory, MemoryData
from amaranth.lib.wiring import In, Out

from systolith import registers
from systolith.config import Config
from systolith.hdl.axi import AXI4Lite
from systolith.hdl.layouts import PC_BITS
from systolith.registers import Access

COUNTED = tuple(
    counter.name for counter in registers.COUNTERS if counter.name not in ("CYCLES", "MATMUL_SPAN")
)
"""Counters with an input ``count_<name>`` each."""
_COUNTER_BITS = 64
_FIRST_COUNTER = registers.COUNTERS[0].offset


class Counters(wiring.Component):
    """Up to 16 counters of 64 bits in one small memory, with one adder.

    Few-bit counters take the events; each slot of the memory is visited every 16 cycles to add what
    came since. A value is therefore seen in its slot's cycle only, and without the last two cycles.

    Parameters
    ----------
    count : int
        Number of counters.
    totals : MemoryData
        16 words of 64 bits, the memory's contents.

    Members
    -------
    events : in, one bit a counter
        Counts 1 each cycle.
    clear : in, 1
        Sets all to 0; events of the same cycle are lost.
    select : in, 4
        The counter that ``value`` is wanted of.
    value : out, 64
    valid : out, 1
        ``value`` is that of ``select`` in this cycle; at most 16 cycles after ``select`` changed.
    """

    SLOTS = 16

    def __init__(self, count: int, totals: MemoryData) -> None:
        if not 1 <= count <= self.SLOTS:
            raise ValueError(f"Counters must be from 1 to {self.SLOTS}, not {count!r}")
        self.count = count
        self.totals = totals
        super().__init__(
            {
                "events": In(count),
                "clear": In(1),
                "select": In(4),
                "value": Out(_COUNTER_BITS),
                "valid": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.memory = memory = Memory(self.totals)
        read, write = memory.read_port(), memory.write_port()
        # Slot s: address in the first cycle, data in the second, sum and write in the third.
        slot = Signal(range(self.SLOTS))
        reading = Signal.like(slot)
        writing = Signal.like(slot)
        cleared = Signal(self.SLOTS, init=(1 << self.SLOTS) - 1)
        """Slots whose memory does not count yet."""
        before = Signal(_COUNTER_BITS)
        since = Signal(range(self.SLOTS + 1))
        m.d.sync += [
            slot.eq(slot + 1),
            reading.eq(slot),
            writing.eq(reading),
            before.eq(Mux(cleared.bit_select(reading, 1), 0, read.data)),
            cleared.bit_select(reading, 1).eq(0),
            since.eq(0),
        ]
        for index in range(self.count):
            pending = Signal(range(self.SLOTS + 1), name=f"pending_{index}")
            with m.If(reading == index):
                m.d.sync += [since.eq(pending), pending.eq(self.events[index])]
            with m.Else():
                m.d.sync += pending.eq(pending + self.events[index])
            with m.If(self.clear):
                m.d.sync += pending.eq(0)
        with m.If(self.clear):
            m.d.sync += cleared.eq((1 << self.SLOTS) - 1)
        m.d.comb += [
            read.addr.eq(slot),
            read.en.eq(1),
            self.value.eq(before + since),
            self.valid.eq(writing == self.select),
            write.addr.eq(writing),
            write.data.eq(self.value),
            write.en.eq(1),
        ]
        return m


class Csr(wiring.Component):
    """AXI4-Lite slave with the registers of ``systolith.registers``.

    Address and data of a write are accepted independently, one write at a time; WSTRB is respected.
    Every access answers OKAY; addresses without a register read as 0 and ignore writes; the lowest
    two address bits and PROT are ignored. A read takes 3 cycles, of a counter up to 20. Reading the
    lower half of a counter latches its upper half (one latch for all counters: read low, then
    high).

    STATUS shows ``done`` and ``error``, ERROR and ERROR_PC their values, only while not ``busy``: a
    start hides the end of the program before. The interrupt is the OR of the
    enabled causes: ``done`` or ``error`` rose, a mark was executed. Causes are forgotten by
    CONTROL's bit 2, by a start and by ``clear``.

    MATMUL_SPAN counts the first start's and the last write's cycle too. Counters hold the events of
    all cycles after the last ``clear``, except that the last few cycles may be missing in what is
    read while they count.

    Members
    -------
    bus : ``AXI4Lite``, in

    Host to machine:

    start : out, 1; soft_reset : out, 1
        One cycle when the host writes bits 0, 1 of CONTROL.
    base : out, 32; watchdog : out, 32
    irq : out, 1
        Level.

    Machine to host:

    busy, done, error : in, 1; error_code : in, 4; error_pc : in, 24
        Levels.
    mark : in, 32; marked : in, 1
        MARK takes the value in a cycle with ``marked``.
    clear : in, 1
        Sets counters and MARK to 0 and forgets causes of the interrupt: at a reset, and before each
        program. CYCLES counts ``busy`` from then on.
    matmul_started, matmul_wrote : in, 1
        A matmul starts; an accumulator row is written.
    count_array_rows, count_wait_weights, count_wait_memory, count_vector_busy, count_instructions,
    count_matmul_busy : in, 1
        Their counters count these cycles.
    count_read_bytes, count_write_bytes, count_fetch_bytes : in, 1
        A beat of the bus, which counts as ``bus_bytes``.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.totals = MemoryData(shape=_COUNTER_BITS, depth=Counters.SLOTS, init=[])
        super().__init__(
            {
                "bus": In(AXI4Lite()),
                "busy": In(1),
                "done": In(1),
                "error": In(1),
                "error_code": In(4),
                "error_pc": In(PC_BITS),
                "mark": In(32),
                "marked": In(1),
                "clear": In(1),
                "matmul_started": In(1),
                "matmul_wrote": In(1),
                **{f"count_{name.lower()}": In(1) for name in COUNTED},
                "start": Out(1),
                "soft_reset": Out(1),
                "base": Out(32),
                "watchdog": Out(32),
                "irq": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        table = registers.BY_NAME
        config = self.config

        # Write: address and data wait for each other.
        aw, w, b = self.bus.aw, self.bus.w, self.bus.b
        has_address, has_data = Signal(), Signal()
        address = Signal(10)
        data = Signal(32)
        strobes = Signal(4)
        write = Signal()
        m.d.comb += [
            aw.ready.eq(~has_address),
            w.ready.eq(~has_data),
            write.eq(has_address & has_data & ~b.valid),
        ]
        with m.If(aw.valid & aw.ready):
            m.d.sync += [has_address.eq(1), address.eq(aw.payload.addr[2:])]
        with m.If(w.valid & w.ready):
            m.d.sync += [has_data.eq(1), data.eq(w.payload.data), strobes.eq(w.payload.strb)]
        with m.If(write):
            m.d.sync += [has_address.eq(0), has_data.eq(0), b.valid.eq(1)]
        with m.If(b.valid & b.ready):
            m.d.sync += b.valid.eq(0)

        # Registers that the host writes.
        written: dict[str, Signal] = {}
        command = Signal(32)
        for register in registers.REGISTERS:
            if register.access == Access.READ_WRITE:
                value = Signal(32, name=register.name.lower(), init=register.reset)
                written[register.name] = value
                with m.If(write & (address == register.offset >> 2)):
                    for byte in range(4):
                        with m.If(strobes[byte]):
                            m.d.sync += value.word_select(byte, 8).eq(data.word_select(byte, 8))
            elif register.access == Access.COMMAND:
                with m.If(write & (address == register.offset >> 2)):
                    m.d.comb += command.eq(data & Cat(bit.replicate(8) for bit in strobes))
        irq_clear = Signal()
        m.d.comb += [
            self.start.eq((command & registers.CONTROL_START).any()),
            self.soft_reset.eq((command & registers.CONTROL_RESET).any()),
            irq_clear.eq((command & registers.CONTROL_IRQ_CLEAR).any()),
            self.base.eq(written["BASE"]),
            self.watchdog.eq(written["WATCHDOG"]),
        ]

        # State of the machine.
        mark = Signal(32)
        with m.If(self.marked):
            m.d.sync += mark.eq(self.mark)
        with m.If(self.clear):
            m.d.sync += mark.eq(0)
        was_done, was_error = Signal(), Signal()
        causes = Signal(3)
        risen = Cat(self.done & ~was_done, self.error & ~was_error, self.marked)
        forget = irq_clear | self.clear | (self.start & ~self.busy)
        m.d.sync += [
            was_done.eq(self.done),
            was_error.eq(self.error),
            causes.eq(Mux(forget, 0, causes) | Mux(self.clear, 0, risen)),
            self.irq.eq((causes & written["IRQ_ENABLE"]).any()),
        ]

        # Counters.
        m.submodules.counters = counters = Counters(len(registers.COUNTERS), self.totals)
        m.d.comb += counters.clear.eq(self.clear)
        for index, counter in enumerate(registers.COUNTERS):
            if counter.name in COUNTED:
                m.d.comb += counters.events[index].eq(
                    getattr(self, f"count_{counter.name.lower()}")
                )
            elif counter.name == "CYCLES":
                m.d.comb += counters.events[index].eq(self.busy)
        spanning = Signal()
        span_now, span = Signal(_COUNTER_BITS), Signal(_COUNTER_BITS)
        with m.If(spanning | self.matmul_started):
            m.d.sync += [spanning.eq(1), span_now.eq(span_now + 1)]
            with m.If(self.matmul_wrote):
                m.d.sync += span.eq(span_now + 1)
        with m.If(self.clear):
            m.d.sync += [spanning.eq(0), span_now.eq(0), span.eq(0)]
        count = Signal(_COUNTER_BITS)
        m.d.comb += count.eq(counters.value)
        shift = config.bus_bytes.bit_length() - 1
        with m.Switch(counters.select):
            for index, counter in enumerate(registers.COUNTERS):
                if counter.name.endswith("_BYTES"):
                    with m.Case(index):
                        m.d.comb += count.eq(counters.value << shift)
                elif counter.name == "MATMUL_SPAN":
                    with m.Case(index):
                        m.d.comb += count.eq(span)

        # Read.
        idle = self.busy == 0
        plain: dict[str, Value] = {
            "ID": Const(registers.IDENTIFICATION, 32),
            "VERSION": Const(registers.VERSION, 32),
            "CONFIG": Const(config.dim | config.lanes << 8 | config.bus_bytes << 16, 32),
            "CONFIG_HASH": Const(config.hash, 32),
            "CONTROL": Const(0, 32),
            "STATUS": Cat(self.busy, self.done & idle, self.error & idle),
            "ERROR": Mux(idle, self.error_code, 0),
            "ERROR_PC": Mux(idle, self.error_pc, 0),
            "MARK": mark,
            **written,
        }
        assert plain.keys() | {c.name for c in registers.COUNTERS} == table.keys()
        ar, r = self.bus.ar, self.bus.r
        wanted = Signal(10)
        upper = Signal(32)
        first = _FIRST_COUNTER >> 2
        is_counter = Signal()
        m.d.comb += [
            counters.select.eq((wanted - first)[1:]),
            is_counter.eq((wanted >= first) & (wanted < first + 2 * len(registers.COUNTERS))),
        ]
        with m.FSM():
            with m.State("idle"):
                m.d.comb += ar.ready.eq(1)
                m.d.sync += wanted.eq(ar.payload.addr[2:])
                with m.If(ar.valid):
                    m.next = "read"
            with m.State("read"):
                with m.If(is_counter):
                    with m.If(wanted[0]):
                        m.d.sync += r.payload.data.eq(upper)
                        m.next = "answer"
                    with m.Elif(counters.valid):
                        m.d.sync += [r.payload.data.eq(count[:32]), upper.eq(count[32:])]
                        m.next = "answer"
                with m.Else():
                    m.d.sync += r.payload.data.eq(0)
                    with m.Switch(wanted):
                        for name, value in plain.items():
                            with m.Case(table[name].offset >> 2):
                                m.d.sync += r.payload.data.eq(value)
                    m.next = "answer"
            with m.State("answer"):
                m.d.comb += r.valid.eq(1)
                with m.If(r.ready):
                    m.next = "idle"
        return m
