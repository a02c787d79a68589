"""What each layer of a model costs: cycles, use of the units, traffic."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from systolith.compiler.timeline import Timeline
from systolith.config import Config
from systolith.isa import QUEUED, Instruction, StoreSpace, Unit

_FIRST = (Unit.LOAD, Unit.STORE, Unit.VECTOR, Unit.MATMUL)
"""Whose layer a cycle belongs to, where several work: that of the last of these."""
NO_LABEL = "other"


@dataclass(frozen=True)
class Layer:
    """One label of a program.

    ``cycles``: the layer's share; those of all layers add up to the program's. Where units work on
    different layers at once, a cycle belongs to the matmul's, else the vector instruction's, else
    the store's, else the load's; where none works, to what the sequencer is at. ``busy``: cycles
    in which each unit worked on this layer. ``passes``: rows that entered the array. ``macs``: D²
    for each of them. ``read_bytes`` (of loads), ``write_bytes``.
    """

    label: str
    instructions: int
    cycles: int
    busy: dict[Unit, int]
    passes: int
    macs: int
    read_bytes: int
    write_bytes: int

    @property
    def use(self) -> float:
        """Rows that entered the array, for each of the layer's cycles."""
        return self.passes / self.cycles if self.cycles else 0.0


def per_layer(timeline: Timeline, labels: Sequence[str], config: Config) -> list[Layer]:
    """The layers in the order of their first instructions.

    ``labels``: of each instruction of the program, by pc; beyond its end, and where it is empty, an
    instruction belongs to `NO_LABEL`. Needs the timeline's ``items``.
    """
    names: dict[str, int] = {}
    owners = np.array(
        [
            names.setdefault((labels[i.pc] if i.pc < len(labels) else "") or NO_LABEL, len(names))
            for i in timeline.executed
        ],
        dtype=np.int32,
    )
    shares, busy = _shares(timeline, owners, len(names))
    passes, reads, writes = (np.zeros(len(names), np.int64) for _ in range(3))
    for owner, item in zip(owners, timeline.items, strict=True):
        passes[owner] += _passes(item)
        reads[owner] += _bytes(config, item) if item.unit == Unit.LOAD else 0
        writes[owner] += _bytes(config, item) if item.unit == Unit.STORE else 0
    counts = np.bincount(owners, minlength=len(names))
    return [
        Layer(
            label=name,
            instructions=int(counts[i]),
            cycles=int(shares[i]),
            busy={unit: int(cycles[i]) for unit, cycles in busy.items()},
            passes=int(passes[i]),
            macs=int(passes[i]) * config.dim**2,
            read_bytes=int(reads[i]),
            write_bytes=int(writes[i]),
        )
        for name, i in names.items()
    ]


def _shares(
    timeline: Timeline, owners: NDArray[np.int32], count: int
) -> tuple[NDArray[np.int64], dict[Unit, NDArray[np.int64]]]:
    """Cycles of each owner: its share of all, and those in which a unit worked for it."""
    # First, as if no unit worked: what the sequencer is at, until it has handed it on.
    left = np.array([i.end if i.unit == Unit.SEQUENCER else i.queued for i in timeline.executed])
    at = np.searchsorted(left, np.arange(timeline.cycles))
    share = owners[np.minimum(at, len(owners) - 1)]
    busy = {}
    for unit in _FIRST:
        mine = np.full(timeline.cycles, -1, np.int32)
        for owner, item in zip(owners, timeline.executed, strict=True):
            if item.unit == unit:
                mine[item.start : item.end + 1] = owner
        works = mine >= 0
        busy[unit] = np.bincount(mine[works], minlength=count)
        share[works] = mine[works]
    return np.bincount(share, minlength=count), {unit: busy[unit] for unit in QUEUED}


def _passes(item: Instruction) -> int:
    if item.unit != Unit.MATMUL:
        return 0
    planes = 2 if item.get("wide") else 1
    return item.get("rows") * item.get("k_tiles") * item.get("n_tiles") * planes


def _bytes(config: Config, item: Instruction) -> int:
    """What a load or store moves."""
    if item.op == "storew":
        return 4
    words = item.get("rows") * item.get("words") * config.dim
    wide = item.op == "store" and item.get("space") == StoreSpace.ACCUMULATOR
    return words * (4 if wide else 1)
