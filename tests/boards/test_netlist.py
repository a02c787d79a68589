"""Reading what the tools wrote, from small examples of it."""

from systolith.boards.family import Usage
from systolith.boards.memories import memory_mapping
from systolith.boards.netlist import (
    blocks_of_cells,
    critical_blocks,
    critical_path,
    fmax_mhz,
    multipliers_per_element,
    path_of,
    usage_by_block,
    utilization,
)


def cell(kind: str, **connections: int) -> dict:
    """A cell; Q, O and P are outputs."""
    return {
        "type": kind,
        "connections": {name: [bit] for name, bit in connections.items()},
        "port_directions": {n: "output" if n in "QOP" else "input" for n in connections},
    }


NETLIST = {
    "cells": {
        "core.machine.matmul.array.pe_0_1.mul": cell("MULT", A=1, P=2),
        "core.machine.matmul.array.pe_0_1.mul_2": cell("MULT", A=1, P=20),
        "core.machine.matmul.array.pe_1_1.mul": cell("MULT", A=1, P=21),
        "$auto$ff.cc:266:slice$1": cell("FF", D=3, Q=4),
        "$abc$1$lut$2": cell("LUT", I=5, O=3),  # feeds the register alone
        "$abc$1$lut$3": cell("LUT", I=4, O=5),  # feeds that one
        "$abc$1$lut$4": cell("LUT", I=4, O=6),  # feeds nothing
        "led_OBUF": cell("OBUF", I=4, O=7),
    },
    "netnames": {
        "core.machine.load.count": {"bits": [4]},
        "core.leds": {"bits": [4]},  # a port on the way out: the register is further inside
        "$abc$5": {"bits": [5], "hide_name": 1},
        "led": {"bits": [7]},
    },
}


def count(types: dict[str, int]) -> Usage:
    return Usage(lut=types.get("LUT", 0), ff=types.get("FF", 0), dsp=types.get("MULT", 0))


def test_path_of() -> None:
    assert path_of("core.machine.load.unit.count_TRELLIS_FF_Q") == "core.machine.load"
    assert path_of("core.machine.x$auto$ff.cc:266:slice$1") == "core.machine"
    assert path_of("\\core.leds") == "core"
    assert path_of("led") == "top"
    assert path_of("$abc$12$auto$blifparse.cc:1") is None
    assert path_of("a.b.c.d.e", depth=2) == "a.b"
    scopes = frozenset({"core", "core.machine"})
    assert path_of("core.machine.axi.r.payload", scopes=scopes) == "core.machine"
    assert path_of("core.machine.x", scopes=scopes) == "core.machine"
    assert path_of("leds.x", scopes=scopes) == "top"


def test_instances_are_told_from_structures() -> None:
    scopes = {name: {"type": "$scopeinfo", "connections": {}, "port_directions": {}} for name in
              ("core", "core.machine")}  # fmt: skip
    blocks = blocks_of_cells({**NETLIST, "cells": NETLIST["cells"] | scopes})
    assert blocks["$auto$ff.cc:266:slice$1"] == "core.machine"


def test_cells_belong_to_blocks() -> None:
    blocks = blocks_of_cells(NETLIST)
    assert blocks["$auto$ff.cc:266:slice$1"] == "core.machine.load"
    assert blocks["$abc$1$lut$2"] == blocks["$abc$1$lut$3"] == "core.machine.load"
    assert blocks["$abc$1$lut$4"] == blocks["led_OBUF"] == "top"
    assert usage_by_block(NETLIST, blocks, count) == {
        "core.machine.load": Usage(lut=2, ff=1),
        "top": Usage(lut=1),
        "core.machine.matmul": Usage(dsp=3),
    }


def test_multipliers_of_an_element() -> None:
    assert multipliers_per_element(NETLIST, ("MULT",)) == 2
    assert multipliers_per_element(NETLIST, ("OTHER",)) == 0


def test_the_slowest_path() -> None:
    def path(ends: tuple[str, str], *cells: str, delay: float) -> dict:
        steps = [{"delay": delay, "to": {"cell": name}} for name in cells]
        return {"from": ends[0], "to": ends[1], "path": steps}

    clocked = ("posedge clk", "posedge clk")
    report = {
        "fmax": {"clk": {"achieved": 61.5}, "other": {"achieved": 88.0}},
        "critical_paths": [
            path(("<async>", "posedge clk"), "core.pin.a", delay=9.0),
            path(clocked, "core.fast.a", delay=1.0),
            path(
                clocked,
                "$auto$ff.cc:266:slice$1",
                "core.machine.vector.x_LUT4_Z$1",
                "core.machine.vector.y",
                "$abc$1$lut$2_LC",
                "$nextpnr_made_up",
                delay=2.0,
            ),
        ],
    }
    assert fmax_mhz(report) == 61.5
    assert fmax_mhz({"fmax": {}}) == float("inf")
    blocks = blocks_of_cells(NETLIST)
    load, vector = "core.machine.load", "core.machine.vector"
    assert critical_blocks(report, blocks) == (load, vector, load)
    assert critical_path(report) == ("core.machine.vector.x_LUT4_Z", "core.machine.vector.y")
    assert critical_blocks({"critical_paths": []}, blocks) == ()


def test_memories_of_every_family() -> None:
    log = "\n".join(
        [
            "mapping memory top.a via $__ECP5_PDPW16KD_",
            "mapping memory top.b via $__ICE40_SPRAM_",
            "mapping memory top.c via $__GOWIN_LUTRAM_",
            "mapping memory top.d via $__CC_BRAM_SDP_",
            "mapping memory top.e via $__NX_DPSC512K_",
            "mapping memory top.f via $__NEXUS_DPR16X4_",
            "mapping memory top.g via $__ICE40_RAM4K_",
            "using FF mapping for memory top.h",
        ]
    )
    kinds = ["block", "spram", "lut", "block", "spram", "lut", "block", "ff"]
    assert list(memory_mapping(log).values()) == kinds


def test_the_table_in_a_log() -> None:
    log = (
        "Info: Device utilisation:\n"
        "Info: \t              CPE_LT:   67567/  40960   164%\n"
        "Info: \t            RAM_HALF:      56/     64    87%\n"
        "ERROR: Unable to place cell\n"
    )
    assert utilization(log) == {
        "CPE_LT": {"used": 67567, "available": 40960},
        "RAM_HALF": {"used": 56, "available": 64},
    }
    assert utilization("ERROR: no such file") == {}
