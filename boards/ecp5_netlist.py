"""What yosys leaves undone for the multipliers of an ECP5, done to its netlist before nextpnr.

A netlist is the top module of yosys's JSON: ``{"ports": …, "cells": …}``. A connection is a list of
bits, a bit the number of a net or a constant "0", "1", "x". The functions change it in place.
"""

import re
from collections import defaultdict

MULTIPLIER = "MULT18X18D"
OPERAND_BITS, PRODUCT_BITS = 18, 36
_CONSTANTS = ("0", "1", "x")

GROUP = 4
"""Multipliers that lie side by side between two gaps of their row."""
_COLUMNS = {"85k": (4, 8, 13, 17, 22, 26, 31, 35, 40, 44, 49, 53, 58, 62, 69, 73, 78, 82, 87, 91,
                    96, 100, 105, 109, 114, 118)}  # fmt: skip
_ROWS = {"85k": (10, 34, 58)}
"""Of the pairs of multipliers of a device, as nextpnr counts."""


def prepare(netlist: dict, device: str) -> None:
    """All of the below."""
    justify_operands(netlist)
    absorb_registers(netlist)
    place_multipliers(netlist, device)


def justify_operands(netlist: dict) -> None:
    """Moves sign-extended operands of multipliers to the top of their 18 bits, zeros behind them.

    A multiplier of 9 by 8 bits then takes 17 wires; the copies of its signs took 19 more in the
    same few tiles, while constants are free. The product moves up by as many bits.
    """
    same: dict[int, int] = {}
    for connections in _multipliers(netlist):
        shift = 0
        for operand in "AB":
            bits = [connections[f"{operand}{i}"][0] for i in range(OPERAND_BITS)]
            sign = bits[-1]
            if connections[f"SIGNED{operand}"] != ["1"] or sign in _CONSTANTS:
                continue
            copies = 0
            while copies < OPERAND_BITS - 1 and bits[-2 - copies] == sign:
                copies += 1
            for i, bit in enumerate(["0"] * copies + bits[: OPERAND_BITS - copies]):
                connections[f"{operand}{i}"] = [bit]
            shift += copies
        product = [connections.get(f"P{i}", []) for i in range(PRODUCT_BITS)]
        for i in range(PRODUCT_BITS):
            connections[f"P{i}"] = []
        for i, bit in enumerate(product):
            if not bit:
                continue
            at = connections[f"P{min(i + shift, PRODUCT_BITS - 1)}"]
            if at:  # beyond the product: the sign again
                same[bit[0]] = at[0]
            else:
                at.extend(bit)
    _rename(netlist, same)


def absorb_registers(netlist: dict) -> None:
    """Turns the registers that all a multiplier's products go to into its own output registers.

    They must have its clock and neither enable nor reset. What they hold after power-up changes.
    """
    cells = netlist["cells"]
    users = defaultdict(list)
    for name, cell in cells.items():
        for port, bits in cell["connections"].items():
            if cell["port_directions"][port] == "input":
                for bit in bits:
                    users[bit].append((name, port))
    for port in netlist["ports"].values():
        for bit in port["bits"]:
            users[bit].append((None, ""))

    def clock(user: tuple[str | None, str]) -> int | None:
        """Of a plain register that ``user`` is the input of."""
        name, port = user
        if name is None or port != "DI":
            return None
        connections = cells[name]["connections"]
        plain = connections.get("CE", ["1"]) == ["1"] and connections.get("LSR", ["0"]) == ["0"]
        return connections["CLK"][0] if plain else None

    same: dict[int, int] = {}
    for cell in [cell for cell in cells.values() if cell["type"] == MULTIPLIER]:
        connections = cell["connections"]
        product = [f"P{i}" for i in range(PRODUCT_BITS) if connections.get(f"P{i}")]
        product = [port for port in product if users[connections[port][0]]]
        clocks = {clock(user) for port in product for user in users[connections[port][0]]}
        if len(clocks) != 1 or None in clocks:
            continue
        for port in product:
            outputs = []
            for name, _ in users[connections[port][0]]:
                outputs.append(cells.pop(name)["connections"]["Q"][0])
            connections[port] = [outputs[0]]
            same |= dict.fromkeys(outputs[1:], outputs[0])
        cell["parameters"] |= {
            "REG_OUTPUT_CLK": "CLK0", "REG_OUTPUT_CE": "CE0", "REG_OUTPUT_RST": "RST0"
        }  # fmt: skip
        connections |= {"CLK0": list(clocks), "CE0": ["1"], "RST0": ["0"]}
        cell["port_directions"] |= dict.fromkeys(("CLK0", "CE0", "RST0"), "input")
    _rename(netlist, same)


def place_multipliers(netlist: dict, device: str) -> None:
    """Gives every multiplier a place: the array's elements beside their neighbours, unit by unit.

    There are few rows of multipliers, as wide as the device. Without this the placer puts the logic
    of a machine into one half of it, and multipliers that have to be in the other half: more wires
    along their rows than there are. Does nothing on a device whose places are not known or do not
    suffice.
    """
    if device not in _COLUMNS:
        return
    columns, rows = _COLUMNS[device], _ROWS[device]
    groups = len(columns) // 2 * len(rows)
    names = [name for name, cell in netlist["cells"].items() if cell["type"] == MULTIPLIER]
    elements, others = {}, []
    for name in sorted(names):
        found = re.search(r"\.pe_(\d+)_(\d+)\.", name)
        if found:
            elements[name] = int(found[1]), int(found[2])
        else:
            others.append(name)

    def site(group: int, index: int) -> str:
        """Of a multiplier in a group; consecutive groups are neighbours."""
        x, y = divmod(group, len(rows))
        y = len(rows) - 1 - y if x % 2 else y
        column = columns[2 * x + index // 2] + index % 2
        return f"X{column}/Y{rows[y]}/MULT18_{index % 2 + 4 * (index // 2)}"

    # Four elements of the array to a group, two by two, from the top to the bottom and back.
    dim = 1 + max((row for row, _ in elements.values()), default=-1)
    quads = dim * dim // GROUP
    first_other = groups - -(-len(others) // GROUP)
    spread = min(first_other, quads + quads // 3)
    if spread < quads:
        return
    sites = {}
    for name, (row, column) in elements.items():
        down = dim // 2 - 1 - row // 2 if column // 2 % 2 else row // 2
        group = (column // 2 * (dim // 2) + down) * spread // quads
        sites[name] = site(group, 2 * (row % 2) + column % 2)
    others.sort(key=_unit_and_lane)
    for index, name in enumerate(others):
        sites[name] = site(first_other + index // GROUP, index % GROUP)
    for name, place in sites.items():
        netlist["cells"][name]["attributes"]["BEL"] = place


def _unit_and_lane(name: str) -> tuple[str, int, str]:
    """Order of the multipliers beside the array: by unit, lane by lane, what has no lane last."""
    lane = re.search(r"_(\d+)\.", name)
    return ".".join(name.split(".")[:3]), int(lane[1]) if lane else 1 << 16, name


def _multipliers(netlist: dict) -> list[dict]:
    return [c["connections"] for c in netlist["cells"].values() if c["type"] == MULTIPLIER]


def _rename(netlist: dict, same: dict[int, int]) -> None:
    """Inputs of cells and of the module's ports take another net of the same value."""

    def resolve(bit):
        while bit in same:
            bit = same[bit]
        return bit

    for cell in netlist["cells"].values():
        for port, bits in cell["connections"].items():
            if cell["port_directions"].get(port) == "input":
                cell["connections"][port] = [resolve(bit) for bit in bits]
    for port in netlist["ports"].values():
        port["bits"] = [resolve(bit) for bit in port["bits"]]
