"""Bench of test_top.py: the pins of a board, as the outside world sees them."""

from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import Edge, FallingEdge, RisingEdge, Timer, with_timeout
from cocotb.utils import get_sim_time

from systolith.sim.runner import arguments, report

EDGES = 200


@cocotb.test()
async def pins(dut: Any) -> None:
    asked = arguments()
    lit, pressed = (0 if asked["led_inverted"] else 1), (0 if asked["button_inverted"] else 1)
    dut.uart_rx.value = 0
    dut.reset_button.value = 1 - pressed
    dut.drive.value = 0
    cocotb.start_soon(Clock(dut.clk, asked["clock_ps"], unit="ps", period_high=None).start())
    found: dict[str, Any] = {}

    # The first change that is one of the running core: during reset the LED is dark.
    await Timer(1, "us")
    found["dark"] = int(dut.led.value) & 1 != lit
    await with_timeout(Edge(dut.led), 100, "us")
    found["start_us"] = get_sim_time("us")
    await Edge(dut.led)
    begin = get_sim_time("ps")
    for _ in range(EDGES):
        await Edge(dut.led)
    found["period_ps"] = (get_sim_time("ps") - begin) / EDGES
    found["odd"] = int(dut.led.value) >> 1 & 1 == lit if asked["leds"] > 1 else None

    if asked["sdram"]:
        await Edge(dut.sdram_we_n)
        change = get_sim_time("ps")
        await RisingEdge(dut.sdram_clk)
        found["setup_ps"] = get_sim_time("ps") - change
        await FallingEdge(dut.sdram_clk)
        found["high_ps"] = get_sim_time("ps") - change - found["setup_ps"]
        found["sdram_a"] = int(dut.sdram_a.value)
        # Who drives the data pins: first the outside, then the core.
        for name, drive, value in (("outside_even", 1, 3), ("outside_odd", 1, 1)):
            dut.drive.value, dut.outside.value = drive, value
            await Timer(100, "ns")
            found[name] = int(dut.uart_tx.value), int(dut.sdram_dq_seen.value)
        dut.drive.value = 0
        dut.uart_rx.value = 1
        await Timer(100, "ns")
        found["driven"] = int(dut.uart_tx.value), int(dut.sdram_dq_seen.value)
    else:
        seen = []
        for value in (0, 1, 0):
            dut.uart_rx.value = value
            await Timer(100, "ns")
            seen.append(int(dut.uart_tx.value))
        found["inverted_back"] = seen

    dut.reset_button.value = pressed
    await Timer(2, "us")
    quiet = get_sim_time("ps")
    dut.reset_button.value = 1 - pressed
    await with_timeout(Edge(dut.led), 100, "us")
    found["restart_us"] = (get_sim_time("ps") - quiet) / 1e6
    report(found)
