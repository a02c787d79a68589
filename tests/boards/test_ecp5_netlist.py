"""The changes to a netlist's multipliers: the same products, the registers inside, a place each."""

import random
from collections.abc import Iterable

import pytest

from systolith.boards.ecp5_netlist import absorb_registers, justify_operands, place_multipliers

CLOCK = 1
SITES_85K = 156


def multiplier(a: Iterable, b: Iterable, product: Iterable, signed: str = "11") -> dict:
    connections = {f"A{i}": [bit] for i, bit in enumerate(a)}
    connections |= {f"B{i}": [bit] for i, bit in enumerate(b)}
    directions = dict.fromkeys([*connections, "SIGNEDA", "SIGNEDB"], "input")
    connections |= {f"P{i}": [bit] for i, bit in enumerate(product)}
    connections |= {"SIGNEDA": [signed[0]], "SIGNEDB": [signed[1]]}
    directions |= {f"P{i}": "output" for i in range(36)}
    return {
        "type": "MULT18X18D", "parameters": {}, "attributes": {},
        "port_directions": directions, "connections": connections,
    }  # fmt: skip


def register(d: int, q: int, **more: list) -> dict:
    connections = {"CLK": [CLOCK], "DI": [d], "Q": [q], "LSR": ["0"], **more}
    directions = dict.fromkeys(connections, "input") | {"Q": "output"}
    return {"type": "TRELLIS_FF", "parameters": {}, "attributes": {},
            "port_directions": directions, "connections": connections}  # fmt: skip


def number(bits: list, values: dict, signed: bool) -> int:
    found = [int(values.get(bit, bit)) for bit in bits]
    total = sum(value << i for i, value in enumerate(found))
    return total - (found[-1] << len(found)) if signed else total


def evaluate(cell: dict, values: dict) -> dict:
    """Values of the nets that the multiplier drives."""
    connections = cell["connections"]
    a, b = (
        number([connections[f"{x}{i}"][0] for i in range(18)], values,
               connections[f"SIGNED{x}"] == ["1"])
        for x in "AB"
    )  # fmt: skip
    return {connections[f"P{i}"][0]: a * b >> i & 1 for i in range(36) if connections[f"P{i}"]}


@pytest.mark.parametrize("bits_a, bits_b, signed", [
    (9, 8, "11"), (18, 18, "11"), (2, 2, "11"), (16, 18, "10"), (12, 16, "01"), (10, 11, "00"),
])  # fmt: skip
def test_justified_operands_give_the_same_product(bits_a: int, bits_b: int, signed: str) -> None:
    def extended(first: int, bits: int, is_signed: bool) -> list:
        nets = list(range(first, first + bits))
        return nets + [nets[-1] if is_signed else "0"] * (18 - bits)

    cell = multiplier(
        extended(100, bits_a, signed[0] == "1"), extended(200, bits_b, signed[1] == "1"),
        range(300, 336), signed,
    )  # fmt: skip
    product = list(range(300, 336))
    netlist = {"cells": {"m": cell}, "ports": {"p": {"direction": "output", "bits": product}}}
    before = multiplier(
        *([cell["connections"][f"{x}{i}"][0] for i in range(18)] for x in "AB"), product, signed
    )
    justify_operands(netlist)
    used = [cell["connections"][f"{x}{i}"][0] for x in "AB" for i in range(18)]
    used = [bit for bit in used if isinstance(bit, int)]
    assert len(used) == len(set(used)) == bits_a + bits_b
    rng = random.Random(bits_a)
    for _ in range(200):
        values = {net: rng.randrange(2) for net in range(100, 220)}
        expected = evaluate(before, values)
        found = evaluate(cell, values)
        wanted = [expected[bit] for bit in product]
        assert [found[bit] for bit in netlist["ports"]["p"]["bits"]] == wanted


def registered(**more: list) -> dict:
    """A multiplier, a register behind each bit, two behind bit 3, an output for each."""
    cells = {"m": multiplier(range(100, 118), range(200, 218), range(300, 336))}
    cells |= {f"r{i}": register(300 + i, 400 + i) for i in range(36)}
    cells["twin"] = register(303, 500)
    cells["r5"] = register(305, 405, **more)
    bits = [*range(400, 436), 500]
    return {"cells": cells, "ports": {"p": {"direction": "output", "bits": bits}}}


def test_registers_are_absorbed() -> None:
    netlist = registered()
    absorb_registers(netlist)
    assert list(netlist["cells"]) == ["m"]
    cell = netlist["cells"]["m"]
    assert cell["parameters"]["REG_OUTPUT_CLK"] == "CLK0"
    assert cell["connections"]["CLK0"] == [CLOCK] and cell["connections"]["CE0"] == ["1"]
    outputs = [cell["connections"][f"P{i}"][0] for i in range(36)]
    assert netlist["ports"]["p"]["bits"] == [*outputs, outputs[3]]


@pytest.mark.parametrize("more", [{"CE": [7]}, {"LSR": [7]}, {"CLK": [7]}])
def test_registers_of_another_kind_stay(more: dict) -> None:
    netlist = registered(**more)
    absorb_registers(netlist)
    assert len(netlist["cells"]) == 38 and not netlist["cells"]["m"]["parameters"]


def test_a_product_that_is_used_at_once_stays() -> None:
    netlist = registered()
    netlist["ports"]["early"] = {"direction": "output", "bits": [310]}
    absorb_registers(netlist)
    assert len(netlist["cells"]) == 38


@pytest.mark.parametrize("dim, others", [(4, 30), (8, 72), (8, 0)])
def test_every_multiplier_has_its_own_place(dim: int, others: int) -> None:
    names = [f"machine.array.pe_{r}_{c}.x" for r in range(dim) for c in range(dim)]
    names += [f"machine.vector.unit.lane_{lane % 4}.{lane}" for lane in range(others)]
    cells = {name: multiplier([], [], []) for name in names}
    place_multipliers({"cells": cells}, "85k")
    sites = {cell["attributes"]["BEL"] for cell in cells.values()}
    assert len(sites) == len(names) <= SITES_85K


@pytest.mark.parametrize("dim, device", [(8, "12k"), (16, "85k")])
def test_what_does_not_fit_is_left_to_the_placer(dim: int, device: str) -> None:
    names = [f"machine.array.pe_{r}_{c}.x" for r in range(dim) for c in range(dim)]
    cells = {name: multiplier([], [], []) for name in names}
    place_multipliers({"cells": cells}, device)
    assert not any(cell["attributes"] for cell in cells.values())
