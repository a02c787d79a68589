"""The machine: all blocks, and the wires between them.

s_axil ─▶ csr ◀──▶ supervisor          fetch ─▶ sequencer ─▶ issue ─▶ commands of the units
m_axi read ◀─ arbiter ◀─┬─ fetch       load ─▶ scratchpad ◀─▶ matmul, vector, store
                        └─ load        matmul (accumulator) ◀─ vector, store
m_axi write ◀─ store
"""

from typing import Any

from amaranth import Cat, ClockDomain, ClockSignal, DomainRenamer, Module, ResetSignal, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import Out, connect

from systolith.config import Config
from systolith.hdl.axi import (
    AXI4Lite,
    AXI4Read,
    AXI4Write,
    ReadArbiter,
    connect_flat,
    flat_members,
)
from systolith.hdl.csr import Csr
from systolith.hdl.instruction_fetch import InstructionFetch
from systolith.hdl.issue import Issue
from systolith.hdl.layouts import acc_row, bits_for_rows
from systolith.hdl.load import LoadUnit
from systolith.hdl.matmul import MatmulUnit
from systolith.hdl.scratchpad import Scratchpad, SharedReadPort
from systolith.hdl.sequencer import Sequencer
from systolith.hdl.store import StoreUnit
from systolith.hdl.supervisor import Quiet, Supervisor, Watchdog
from systolith.hdl.vector import VectorUnit
from systolith.isa import INSTRUCTION_BYTES, Unit
from systolith.registers import Error

_FETCH, _LOAD = range(2)
"""Readers of memory, and their AXI IDs."""


def members(config: Config) -> dict[str, wiring.Member]:
    """The ports of the machine, without clock and reset."""
    return {
        **flat_members("s_axil", AXI4Lite().flip()),
        **flat_members("m_axi", AXI4Write(config)),
        **flat_members("m_axi", AXI4Read(config)),
        "irq": Out(1),
    }


class Systolith(wiring.Component):
    """The whole machine of a configuration.

    ``clk``, and ``rst`` (synchronous, active high), belong to every port.

    Members
    -------
    s_axil_* : AXI4-Lite slave, 32-bit data, 12-bit addresses
        The registers of ``systolith.registers``.
    m_axi_* : AXI4 master, 32-bit addresses, ``8 * bus_bytes`` bits of data
        Memory. INCR bursts of full-width beats that do not cross 4 KiB; ID 0 for instructions, ID 1
        for loads, ID 0 for stores.
    irq : out, 1
        Level: an enabled cause of interrupt is there.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.busy, self.error = Signal(), Signal()
        """As in STATUS, for lamps: no ports."""
        super().__init__(members(config))

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        accumulator_bits = bits_for_rows(config.accumulator_rows)

        # These stay when the machine is reset.
        m.submodules.csr = csr = Csr(config)
        m.submodules.quiet = quiet = Quiet()
        m.submodules.watchdog = watchdog = Watchdog()

        # The others: the units, in the order of isa.Unit, and what serves them.
        load, store = LoadUnit(config), StoreUnit(config)
        matmul, vector = MatmulUnit(config), VectorUnit(config)
        units: dict[Unit, Any] = {
            Unit.LOAD: load, Unit.STORE: store, Unit.MATMUL: matmul, Unit.VECTOR: vector,
        }  # fmt: skip
        fetch, sequencer, issue = InstructionFetch(config), Sequencer(), Issue(config)
        scratchpad = Scratchpad(config)
        accumulator = SharedReadPort(accumulator_bits, acc_row(config))
        arbiter = ReadArbiter(config)
        failures = [sequencer, issue, *units.values(), watchdog]
        m.submodules.supervisor = supervisor = Supervisor(len(failures))
        for name, block in {
            "load": load, "store": store, "matmul": matmul, "vector": vector, "fetch": fetch,
            "sequencer": sequencer, "issue": issue, "scratchpad": scratchpad,
            "accumulator": accumulator, "arbiter": arbiter,
        }.items():  # fmt: skip
            m.submodules[name] = DomainRenamer("units")(block)

        # Everything that is reset waits for one register: from ``rst`` and the supervisor to it is
        # a long way, and from it to thousands of others another one.
        reset, go = Signal(init=1), Signal()
        m.domains.units = ClockDomain(local=True)
        m.d.comb += [ClockSignal("units").eq(ClockSignal()), ResetSignal("units").eq(reset)]
        m.d.sync += [reset.eq(supervisor.machine_reset), go.eq(supervisor.go)]

        # Outside.
        connect_flat(m, self, "s_axil", csr.bus)
        connect_flat(m, self, "m_axi", arbiter.axi)
        connect_flat(m, self, "m_axi", store.bus)
        m.d.comb += self.irq.eq(csr.irq)
        connect(m, arbiter.clients[_FETCH], fetch.bus)
        connect(m, arbiter.clients[_LOAD], load.bus)

        # Instructions.
        connect(m, fetch.words, sequencer.words)
        connect(m, sequencer.addresses, fetch.addresses)
        connect(m, fetch.loaded, sequencer.loaded)
        connect(m, sequencer.queued, issue.queued)
        for unit, block in units.items():
            connect(m, issue.commands[unit], block.commands)
            m.d.comb += issue.done[unit].eq(block.done)
        m.d.comb += [
            fetch.restart.eq(sequencer.restart),
            fetch.flush.eq(sequencer.begins),
            fetch.pc.eq(sequencer.pc),
            sequencer.misaligned.eq(csr.base % INSTRUCTION_BYTES != 0),
            sequencer.idle.eq(issue.idle),
            sequencer.vector_idle.eq(issue.unit_idle[Unit.VECTOR]),
            sequencer.maximum.eq(vector.result),
        ]

        # Local memories.
        connect(m, load.writes, scratchpad.writes)
        connect(m, matmul.activation, scratchpad.matmul_activation)
        for reader, bank in zip(matmul.weight, scratchpad.matmul_weight, strict=True):
            connect(m, reader, bank)
        connect(m, vector.activation, scratchpad.vector_activation)
        connect(m, vector.activation_write, scratchpad.activation_write)
        connect(m, vector.weight_write, scratchpad.weight_write)
        connect(m, vector.parameter, scratchpad.vector_parameter)
        connect(m, scratchpad.table_write, vector.table_write)
        connect(m, store.activation, scratchpad.store_activation)
        connect(m, vector.acc, accumulator.readers[0])
        connect(m, store.accumulator, accumulator.readers[1])
        connect(m, accumulator.memory, matmul.read)

        # Start, stop, errors.
        m.d.comb += [
            supervisor.start.eq(csr.start),
            supervisor.reset.eq(csr.soft_reset),
            supervisor.quiet.eq(quiet.quiet),
            supervisor.halted.eq(sequencer.halted),
            sequencer.start.eq(go),
        ]
        m.d.comb += [block.base.eq(csr.base) for block in (fetch, load, store)]
        # A register each, beside its block; the tools would make one of all.
        for block in (fetch, sequencer, issue, load, store):
            stop = Signal(init=1, attrs={"keep": 1})
            m.d.sync += stop.eq(supervisor.stop)
            m.d.comb += block.stop.eq(stop)
        sources = {
            sequencer: (sequencer.error, sequencer.error_code, sequencer.pc),
            issue: (issue.overflow, Error.SEMAPHORE, issue.overflow_pc),
            watchdog: (watchdog.expired, Error.WATCHDOG, watchdog.suspect),
            **{unit: (unit.error, unit.error_code, unit.error_pc) for unit in units.values()},
        }
        # Through registers: an error is the end of many a long path.
        for failure, block in zip(supervisor.failures, failures, strict=True):
            valid, code, pc = sources[block]
            m.d.sync += [failure.valid.eq(valid), failure.code.eq(code), failure.pc.eq(pc)]

        # What the bus and the watchdog are judged by.
        ar, r = arbiter.axi.ar, arbiter.axi.r
        aw, w, b = store.bus.aw, store.bus.w, store.bus.b
        m.d.comb += [
            quiet.read.eq(ar.valid & ar.ready),
            quiet.read_end.eq(r.valid & r.ready & r.payload.last),
            quiet.write.eq(aw.valid & aw.ready),
            quiet.write_end.eq(b.valid & b.ready),
            quiet.offered.eq(ar.valid | aw.valid | w.valid),
        ]
        moves = [issue.moved, sequencer.moved, matmul.streaming, matmul.wrote]
        moves += [channel.valid & channel.ready for channel in (ar, r, aw, w, b, load.writes)]
        moves += [
            port.en & port.ready
            for port in (vector.acc, vector.activation, vector.activation_write,
                         vector.weight_write)
        ]  # fmt: skip
        moved = Signal()
        m.d.sync += moved.eq(Cat(moves).any())
        m.d.comb += [
            watchdog.limit.eq(csr.watchdog),
            watchdog.active.eq(~supervisor.stop),
            watchdog.moved.eq(moved),
            watchdog.running.eq(issue.running),
            watchdog.blocked.eq(issue.blocked),
            watchdog.starved.eq(sequencer.starved),
            watchdog.pc.eq(sequencer.pc),
        ]
        for unit in units:
            m.d.comb += [
                watchdog.running_pc[unit].eq(issue.running_pc[unit]),
                watchdog.blocked_pc[unit].eq(issue.blocked_pc[unit]),
            ]

        # Status and counters.
        m.d.comb += [
            csr.busy.eq(supervisor.busy),
            csr.done.eq(supervisor.done),
            csr.error.eq(supervisor.error),
            self.busy.eq(supervisor.busy),
            self.error.eq(supervisor.error),
            csr.error_code.eq(supervisor.error_code),
            csr.error_pc.eq(supervisor.error_pc),
            csr.mark.eq(sequencer.mark),
            csr.marked.eq(sequencer.marked),
            csr.clear.eq(supervisor.machine_reset),
        ]
        # What is counted, a cycle later: it is the end of many a long path.
        m.d.units += [
            csr.matmul_started.eq(matmul.commands.valid & matmul.commands.ready),
            csr.matmul_wrote.eq(matmul.wrote),
            csr.count_array_rows.eq(matmul.streaming),
            csr.count_wait_weights.eq(matmul.waiting),
            csr.count_wait_memory.eq(load.waiting),
            csr.count_vector_busy.eq(vector.busy),
            csr.count_read_bytes.eq(arbiter.beat),
            csr.count_write_bytes.eq(store.beat),
            csr.count_fetch_bytes.eq(fetch.beat),
            csr.count_instructions.eq(sequencer.retired),
            csr.count_matmul_busy.eq(matmul.busy),
        ]
        return m
