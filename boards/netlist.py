"""Reading what the tools wrote: yosys's netlist and log, nextpnr's report, by block of the design.

A block is an instance of the hierarchy, named by its path: ``core.machine.matmul``. Flattening
leaves the path in the names of registers and of many nets; what has no such name belongs to the
block that most of its readers belong to.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable

from systolith.boards.family import Usage

DEPTH = 3
"""Parts of a path that name a block."""
TOP_BLOCK = "top"
"""Of what lies in no instance."""


def path_of(name: str, depth: int = DEPTH, scopes: frozenset[str] = frozenset()) -> str | None:
    """The block of a cell or net, or ``None`` for a name that a tool made up.

    ``scopes``: the paths of all instances; without them the last part of a name is taken for the
    cell's own, which it is not where the cell is a field of a structure. Behind a ``$`` is what a
    tool appended.
    """
    written = re.sub(r"\$.*", "", name.lstrip("\\"))
    if not written:
        return None
    parts = written.split(".")[:-1]
    while scopes and parts and ".".join(parts) not in scopes:
        parts.pop()
    return ".".join(parts[:depth]) or TOP_BLOCK


def scopes_of(netlist: dict) -> frozenset[str]:
    """The paths of the instances that yosys has flattened, where it has left them."""
    cells = netlist["cells"].items()
    return frozenset(name for name, cell in cells if cell["type"] == "$scopeinfo")


def cell_types(netlist: dict) -> Counter[str]:
    """How many cells of each type a netlist of yosys has."""
    return Counter(cell["type"] for cell in netlist["cells"].values())


def usage_by_block(
    netlist: dict, blocks: dict[str, str], count: Callable[[dict[str, int]], Usage]
) -> dict[str, Usage]:
    """What each block uses, the largest first. ``blocks``: of cells; ``count``: of a family."""
    types: dict[str, Counter[str]] = defaultdict(Counter)
    for name, cell in netlist["cells"].items():
        types[blocks[name]][cell["type"]] += 1
    usage = {block: count(amounts) for block, amounts in types.items()}
    usage = {block: used for block, used in usage.items() if used != Usage()}
    return dict(sorted(usage.items(), key=lambda item: (-item[1].lut, -item[1].ff, item[0])))


def blocks_of_cells(netlist: dict, depth: int = DEPTH) -> dict[str, str]:
    """The block of every cell of a netlist."""
    scopes = scopes_of(netlist)
    named: dict[int, str] = {}
    for name, net in netlist["netnames"].items():
        path = None if net.get("hide_name") else path_of(name, depth, scopes)
        for bit in net["bits"] if path is not None else ():
            # The deepest of a net's names: the others are ports on the way to it.
            if path.count(".") >= named.get(bit, "").count("."):
                named[bit] = path
    outputs: dict[str, list[int]] = {}
    readers: dict[int, list[str]] = defaultdict(list)
    blocks: dict[str, str] = {}
    for name, cell in netlist["cells"].items():
        outputs[name] = []
        for port, bits in cell["connections"].items():
            if cell["port_directions"].get(port) == "input":
                for bit in bits:
                    readers[bit].append(name)
            else:
                outputs[name] += [bit for bit in bits if isinstance(bit, int)]
        names = [named[bit] for bit in outputs[name] if bit in named]
        own = path_of(name, depth, scopes)
        if own is not None and own != TOP_BLOCK:
            blocks[name] = own
        elif names:
            blocks[name] = Counter(names).most_common(1)[0][0]
        elif own is not None:
            blocks[name] = own
    unknown = [name for name in netlist["cells"] if name not in blocks]
    while unknown:
        found = {}
        for name in unknown:
            votes = Counter(
                blocks[reader]
                for bit in outputs[name]
                for reader in readers[bit]
                if reader in blocks
            )
            if votes:
                found[name] = votes.most_common(1)[0][0]
        if not found:
            break
        blocks |= found
        unknown = [name for name in unknown if name not in blocks]
    return blocks | dict.fromkeys(unknown, TOP_BLOCK)


def multipliers_per_element(netlist: dict, multipliers: tuple[str, ...]) -> int:
    """The most multipliers that one processing element of the array has got."""
    elements = Counter(
        found[0]
        for name, cell in netlist["cells"].items()
        if cell["type"] in multipliers and (found := re.search(r"\bpe_\d+_\d+\b", name))
    )
    return max(elements.values(), default=0)


def utilization(log: str) -> dict[str, dict[str, int]]:
    """The table of cells in nextpnr's log, as its report has it: it is there even if it then fails
    for want of room."""
    rows = re.findall(r"^Info:\s+(\w+):\s+(\d+)/\s*(\d+)\s+\d+%", log, re.MULTILINE)
    return {name: {"used": int(used), "available": int(there)} for name, used, there in rows}


def fmax_mhz(report: dict) -> float:
    """The slowest clock that nextpnr reached, in MHz; infinite if no path has a clock."""
    return min((c["achieved"] for c in report["fmax"].values()), default=float("inf"))


def critical_path(report: dict) -> tuple[str, ...]:
    """Cell names along the slowest path between registers, without repetitions."""
    names = (re.sub(r"\$.*", "", name) for name in _critical_cells(report))
    return _without_repetitions(name for name in names if name)


def _critical_cells(report: dict) -> list[str]:
    paths = [
        path
        for path in report.get("critical_paths", [])
        if path["from"].startswith("posedge") and path["to"].startswith("posedge")
    ]
    if not paths:
        return []
    worst = max(paths, key=lambda path: sum(step["delay"] for step in path["path"]))
    return [step["to"]["cell"] for step in worst["path"] if "to" in step]


def critical_blocks(report: dict, blocks: dict[str, str]) -> tuple[str, ...]:
    """The blocks along the slowest path. nextpnr's names are yosys's with something appended, or
    made up."""
    found = []
    for name in _critical_cells(report):
        original = re.sub(r"_LC$", "", name)
        found.append(blocks.get(name) or blocks.get(original) or path_of(name))
    return _without_repetitions(block for block in found if block)


def _without_repetitions(names) -> tuple[str, ...]:
    kept: list[str] = []
    for name in names:
        if not kept or kept[-1] != name:
            kept.append(name)
    return tuple(kept)
