"""Start, stop and reset; the watchdog; when the bus counts as quiet."""

from amaranth.sim import Simulator

from systolith.hdl.supervisor import PATIENCE, QUIET, Quiet, Supervisor, Watchdog
from systolith.hdl.verilog import to_verilog
from systolith.isa import Unit
from systolith.registers import Error


def simulate(dut, bench) -> None:
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


async def pulse(ctx, signal, cycles: int = 1) -> None:
    ctx.set(signal, 1)
    await ctx.tick().repeat(cycles)
    ctx.set(signal, 0)


def status(ctx, dut) -> tuple[int, int, int]:
    return ctx.get(dut.busy), ctx.get(dut.done), ctx.get(dut.error)


def test_run_and_halt() -> None:
    dut = Supervisor(3)

    async def bench(ctx) -> None:
        assert status(ctx, dut) == (0, 0, 0) and ctx.get(dut.stop)
        for _ in range(2):
            ctx.set(dut.quiet, 0)
            await pulse(ctx, dut.start)
            for _ in range(10):
                assert ctx.get(dut.busy) and ctx.get(dut.stop) and not ctx.get(dut.machine_reset)
                await ctx.tick()
            ctx.set(dut.quiet, 1)
            await ctx.tick()
            assert ctx.get(dut.machine_reset) and not ctx.get(dut.go)
            assert status(ctx, dut) == (1, 0, 0)
            await ctx.tick()
            assert ctx.get(dut.go) and not ctx.get(dut.machine_reset) and not ctx.get(dut.stop)
            await ctx.tick()
            assert not ctx.get(dut.go) and not ctx.get(dut.stop)
            await pulse(ctx, dut.start)  # ignored
            assert not ctx.get(dut.stop)
            await pulse(ctx, dut.halted)
            assert status(ctx, dut) == (0, 1, 0) and ctx.get(dut.stop)
            await ctx.tick().repeat(5)
            assert status(ctx, dut) == (0, 1, 0)

    simulate(dut, bench)


def test_first_error_wins_and_reset_clears() -> None:
    dut = Supervisor(3)

    async def bench(ctx) -> None:
        for index, (code, pc) in enumerate(
            [(Error.MISALIGNED, 7), (Error.BUS_READ, 8), (Error.BUS_WRITE, 9)]
        ):
            ctx.set(dut.failures[index].code, code)
            ctx.set(dut.failures[index].pc, pc)
        ctx.set(dut.quiet, 1)
        ctx.set(dut.failures[0].valid, 1)  # not running: no error
        await ctx.tick().repeat(3)
        assert status(ctx, dut) == (0, 0, 0)
        ctx.set(dut.failures[0].valid, 0)
        await pulse(ctx, dut.start)
        await ctx.tick().repeat(3)
        ctx.set(dut.failures[2].valid, 1)
        await pulse(ctx, dut.failures[1].valid)
        assert status(ctx, dut) == (0, 0, 1) and ctx.get(dut.stop)
        await pulse(ctx, dut.failures[0].valid)
        ctx.set(dut.failures[2].valid, 0)
        assert (ctx.get(dut.error_code), ctx.get(dut.error_pc)) == (Error.BUS_READ, 8)
        await pulse(ctx, dut.reset)
        await ctx.tick()
        assert ctx.get(dut.machine_reset)
        await ctx.tick()
        assert status(ctx, dut) == (0, 0, 0) and not ctx.get(dut.go) and ctx.get(dut.stop)
        assert ctx.get(dut.error_code) == Error.NONE and ctx.get(dut.error_pc) == 0

    simulate(dut, bench)


def test_reset_while_running_then_start() -> None:
    """A start behind a reset that still waits for the bus is not lost; patience ends."""
    dut = Supervisor(1)

    async def bench(ctx) -> None:
        ctx.set(dut.quiet, 1)
        await pulse(ctx, dut.start)
        await ctx.tick().repeat(3)
        ctx.set(dut.quiet, 0)
        await pulse(ctx, dut.reset)
        assert ctx.get(dut.stop) and ctx.get(dut.busy)
        await pulse(ctx, dut.start)
        waited = 0
        while not ctx.get(dut.machine_reset):
            await ctx.tick()
            waited += 1
            assert waited <= PATIENCE
        assert waited >= PATIENCE - 2
        await ctx.tick()
        assert ctx.get(dut.go)

    simulate(dut, bench)


def test_watchdog() -> None:
    dut = Watchdog()

    async def bench(ctx) -> None:
        async def cycles() -> int:
            for count in range(60):
                if ctx.get(dut.expired):
                    return count
                await ctx.tick()
            return -1

        ctx.set(dut.limit, 20)
        assert await cycles() == -1  # not active
        ctx.set(dut.active, 1)
        assert await cycles() == 21
        await pulse(ctx, dut.moved)
        await ctx.tick().repeat(10)
        await pulse(ctx, dut.moved)
        assert await cycles() == 21
        await pulse(ctx, dut.moved)
        ctx.set(dut.limit, 0)
        assert await cycles() == -1

        # Who is it due to? Known as late as that it expired.
        async def suspect() -> int:
            await ctx.tick().repeat(3)
            return ctx.get(dut.suspect)

        ctx.set(dut.pc, 5)
        assert await suspect() == 5
        for unit in Unit.STORE, Unit.VECTOR:
            ctx.set(dut.blocked_pc[unit], 10 + unit)
            ctx.set(dut.running_pc[unit], 20 + unit)
        ctx.set(dut.blocked, 1 << Unit.STORE | 1 << Unit.VECTOR)
        assert await suspect() == 10 + Unit.STORE
        ctx.set(dut.starved, 1)
        assert await suspect() == 5
        ctx.set(dut.running, 1 << Unit.VECTOR)
        assert await suspect() == 20 + Unit.VECTOR

    simulate(dut, bench)


def test_quiet() -> None:
    dut = Quiet()

    async def bench(ctx) -> None:
        async def settle() -> int:
            for count in range(100):
                if ctx.get(dut.quiet):
                    return count
                await ctx.tick()
            return -1

        assert await settle() == QUIET
        for begin, end in ((dut.read, dut.read_end), (dut.write, dut.write_end)):
            ctx.set(dut.offered, 1)
            await pulse(ctx, begin, 2)
            ctx.set(dut.offered, 0)
            assert await settle() == -1
            await pulse(ctx, end)
            assert await settle() == -1
            await pulse(ctx, end)
            assert await settle() == QUIET
        ctx.set(dut.offered, 1)
        await ctx.tick()
        assert await settle() == -1

    simulate(dut, bench)


def test_converts() -> None:
    for component in (Supervisor(6), Watchdog(), Quiet()):
        assert "module block" in to_verilog(component, "block")
