"""Local memories against numpy arrays, under random traffic on every port at once."""

import numpy as np
import pytest
from amaranth.lib.data import ArrayLayout
from amaranth.sim import Simulator

from systolith.config import PRESETS, Config
from systolith.hdl.scratchpad import Scratchpad, SharedReadPort, SharedWritePort
from systolith.hdl.verilog import to_verilog
from systolith.isa import LoadSpace

SMALL = {"activation_rows": 64, "weight_rows": 128, "accumulator_rows": 16, "parameter_rows": 4}
CONFIGS = [
    Config(dim=4, lanes=2, bus_bytes=4, **SMALL),
    Config(dim=4, lanes=4, bus_bytes=4, **SMALL),
    Config(dim=8, lanes=4, weight_ports=2, **SMALL),
    Config(dim=4, lanes=2, bus_bytes=4, weight_ports=4, **SMALL),
    Config(dim=16, lanes=2, **SMALL),
]


def number(values: np.ndarray) -> int:
    """Bytes, lane 0 lowest, as one integer."""
    return int.from_bytes(np.ascontiguousarray(values).tobytes(), "little")


class Port:
    """A read port with an access every now and then, whose data is checked a cycle later."""

    def __init__(self, port, rows: int, expect) -> None:
        self.port, self.rows, self.expect = port, rows, expect
        self.address: int | None = None
        self.pending: tuple[int, int] | None = None
        self.served = self.waited = 0

    def check(self, ctx, cycle: int) -> None:
        if self.pending is not None:
            address, wanted = self.pending
            got = ctx.get(self.port.data.as_value())
            assert got == wanted, f"cycle {cycle}, address {address}: {got:#x}, not {wanted:#x}"

    def accepted(self, ctx, written: set[int]) -> None:
        """``written``: addresses that change in this cycle; a read of them is undefined."""
        self.pending = None
        if self.address is None:
            return
        if ctx.get(self.port.ready):
            self.served += 1
            if self.address not in written:
                self.pending = self.address, self.expect(self.address)
            self.address = None
        else:
            self.waited += 1

    def drive(self, ctx, rng) -> None:
        if self.address is None and rng.random() < 0.7:
            self.address = int(rng.integers(self.rows))
        ctx.set(self.port.en, self.address is not None)
        ctx.set(self.port.addr, self.address or 0)


@pytest.mark.parametrize(
    "config", CONFIGS, ids=lambda c: f"dim{c.dim}-lanes{c.lanes}-ports{c.weight_ports}"
)
def test_traffic(config: Config, seed: int) -> None:
    rng = np.random.default_rng(seed)
    d, lanes = config.dim, config.lanes
    dut = Scratchpad(config)
    activation = np.zeros((config.activation_rows, d), np.uint8)
    weight = np.zeros((config.weight_rows, d), np.uint8)
    parameter = np.zeros((config.parameter_rows * 8, d), np.uint8)
    table = np.zeros((config.table_slots * 1024 // d, d), np.uint8)
    memories = {
        LoadSpace.ACTIVATION: activation,
        LoadSpace.WEIGHT: weight,
        LoadSpace.PARAMETER: parameter,
        LoadSpace.TABLE: table,
    }
    lines = parameter.reshape(-1, 8 * lanes)
    ports = {
        "row": Port(dut.matmul_activation, len(activation), lambda a: number(activation[a])),
        "store": Port(dut.store_activation, len(activation), lambda a: number(activation[a])),
        "line": Port(
            dut.vector_activation,
            len(activation) // 2,
            lambda a: number(activation[2 * a : 2 * a + 2]),
        ),
        "parameter": Port(dut.vector_parameter, len(lines), lambda a: number(lines[a])),
    }
    # Row of the weight memory by bank and row of the bank: of each D rows a bank has D / W.
    banks = np.arange(len(weight)).reshape(-1, config.weight_ports, d // config.weight_ports)
    banks = banks.transpose(1, 0, 2).reshape(config.weight_ports, -1)
    weights = [
        Port(port, len(bank), lambda a, bank=bank: number(weight[bank[a]]))
        for port, bank in zip(dut.matmul_weight, banks, strict=True)
    ]
    ports |= {f"weight {bank}": port for bank, port in enumerate(weights)}
    tables_written = loads = 0

    async def bench(ctx) -> None:
        nonlocal tables_written, loads
        load = block = entry = None
        for cycle in range(600):
            for port in ports.values():
                port.drive(ctx, rng)
            if load is None and rng.random() < 0.8:
                space = LoadSpace(int(rng.integers(4)))
                address = int(rng.integers(len(memories[space])))
                load = space, address, rng.integers(0, 256, d, dtype=np.uint8)
            if load is not None:
                ctx.set(dut.writes.payload.space, int(load[0]))
                ctx.set(dut.writes.payload.addr, load[1])
                ctx.set(dut.writes.payload.data.as_value(), number(load[2]))
            ctx.set(dut.writes.valid, load is not None)
            if block is None and rng.random() < 0.5:
                block = int(rng.integers(len(activation) // 2)), rng.integers(0, 2, 2 * d)
                block += (rng.integers(0, 256, 2 * d, dtype=np.uint8),)
            if entry is None and rng.random() < 0.5:
                entry = int(rng.integers(len(weight))), rng.integers(0, 2, d)
                entry += (rng.integers(0, 256, d, dtype=np.uint8),)
            for port, item in ((dut.activation_write, block), (dut.weight_write, entry)):
                ctx.set(port.en, item is not None)
                if item is not None:
                    ctx.set(port.addr, item[0])
                    ctx.set(port.mask, int("".join(str(bit) for bit in item[1][::-1]), 2))
                    ctx.set(port.data.as_value(), number(item[2]))
            table_ready = int(rng.integers(2))
            ctx.set(dut.table_write.ready, table_ready)

            # Between the edges: who is served, and what each accepted read will return.
            for port in ports.values():
                port.check(ctx, cycle)
            load_goes = load is not None and bool(ctx.get(dut.writes.ready))
            block_goes = block is not None and bool(ctx.get(dut.activation_write.ready))
            entry_goes = entry is not None and bool(ctx.get(dut.weight_write.ready))
            if load is not None and load[0] == LoadSpace.TABLE:
                assert ctx.get(dut.table_write.en) and load_goes == bool(table_ready)
                assert ctx.get(dut.table_write.addr) == load[1]
                assert ctx.get(dut.table_write.data.as_value()) == number(load[2])
                assert ctx.get(dut.table_write.mask) == 1
                tables_written += load_goes
            else:
                assert not ctx.get(dut.table_write.en)
            rows = {"activation": set(), "weight": set(), "parameter": set()}
            if load_goes and load[0] != LoadSpace.TABLE:
                rows[load[0].name.lower()].add(load[1])
            if block_goes:
                rows["activation"] |= {2 * block[0], 2 * block[0] + 1}
            if entry_goes:
                rows["weight"].add(entry[0])
            assert ctx.get(dut.matmul_activation.ready)
            assert all(ctx.get(port.port.ready) for port in weights)
            assert ctx.get(dut.vector_parameter.ready)
            ports["row"].accepted(ctx, rows["activation"])
            ports["store"].accepted(ctx, rows["activation"])
            ports["line"].accepted(ctx, {row // 2 for row in rows["activation"]})
            for port, bank in zip(weights, banks.tolist(), strict=True):
                port.accepted(ctx, {bank.index(row) for row in rows["weight"] if row in bank})
            words = 8 * lanes // d
            ports["parameter"].accepted(ctx, {word // words for word in rows["parameter"]})
            if load_goes:
                memories[load[0]][load[1]] = load[2]
                load = None
                loads += 1
            if block_goes:
                pair = activation[2 * block[0] : 2 * block[0] + 2].reshape(-1)
                pair[block[1] == 1] = block[2][block[1] == 1]
                block = None
            if entry_goes:
                weight[entry[0]][entry[1] == 1] = entry[2][entry[1] == 1]
                entry = None
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert tables_written > 30 and loads > 200
    assert all(port.served > 100 for port in ports.values())
    assert ports["line"].waited and ports["store"].waited
    assert not ports["row"].waited and not any(port.waited for port in weights)


@pytest.mark.parametrize("kind", [SharedReadPort, SharedWritePort])
def test_turns(kind: type) -> None:
    """Both want to, always: each gets every other turn, even if the memory is busy in between."""
    shape = ArrayLayout(8, 2)
    dut = kind(4, shape) if kind is SharedReadPort else kind(4, shape, 2)
    first, second = dut.readers if kind is SharedReadPort else dut.writers
    served = []

    async def bench(ctx) -> None:
        ctx.set(first.en, 1)
        ctx.set(first.addr, 1)
        ctx.set(second.en, 1)
        ctx.set(second.addr, 2)
        for cycle in range(20):
            ctx.set(dut.memory.ready, cycle % 2)
            assert ctx.get(dut.memory.en)
            ready = ctx.get(first.ready), ctx.get(second.ready)
            assert sum(ready) == cycle % 2
            if cycle % 2:
                served.append(ready.index(1))
                assert ctx.get(dut.memory.addr) == served[-1] + 1
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert served == [0, 1] * 5


@pytest.mark.parametrize("name", PRESETS)
def test_converts(name: str) -> None:
    assert "module scratchpad" in to_verilog(Scratchpad(PRESETS[name]), "scratchpad")
