"""How long an instruction keeps its unit busy, roughly: what the order of loads is chosen by.

The model that predicts cycles is `timing`; this one knows neither memory latency nor conflicts.
"""

from systolith.config import Config
from systolith.isa import Instruction, Unit

_LATENCY = {"vector": 24, "norm": 60, "softmax": 180, "matmul": 40, "load": 4, "store": 4}
"""Cycles beyond the throughput of a unit."""


def cycles(item: Instruction, config: Config, context: int) -> int:
    """Cycles of one instruction; a number that stands in a register is taken as one token's.

    ``context``: the longest sequence; attention over half of it is assumed where that is not known.
    """
    if item.unit == Unit.SEQUENCER:
        return 8
    d = config.dim

    def get(name: str, default: int) -> int:
        word = item.opcode.field(name).word
        return item.get(name) or (default if word in item.registers else 1)

    tiles = max(1, context // 2 // d)
    match item.op:
        case "matmul":
            passes = get("rows", 1) * (2 if item.get("wide") else 1)
            work = get("k_tiles", tiles) * get("n_tiles", tiles)
            work *= max(passes, d // config.weight_ports)
        case "load":
            work = get("rows", 1) * get("words", context // 2) * (d // config.bus_bytes)
        case "store":
            work = get("rows", 1) * get("words", 1) * (d // config.bus_bytes)
        case "storew":
            work = 1
        case _:
            work = get("rows", 1) * get("blocks", tiles) * (d // config.lanes)
    return work + _LATENCY.get(item.op, 4)
