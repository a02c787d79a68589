"""Which weights stay in the weight memory of a program that is a loop."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from systolith.compiler.allocate import DoesNotFit

LEADING = 4096
"""Most weight rows of which a token loads the weights that the next one begins with."""


class Residency(Enum):
    """How many weights stay; those that do not come and go, layer by layer."""

    ALL = "all"
    SOME = "some"
    NONE = "none"


@dataclass(frozen=True)
class WeightRooms:
    """``resident``: names of the layers whose weights stay; ``staying``: rows of theirs.

    ``leading``: rows behind them for the first weights of a turn, loaded in the turn before.
    Whatever is left is for weights that come and go.
    """

    resident: frozenset[str]
    staying: int
    leading: int


def divide_weights(
    tiles: Mapping[str, tuple[int, int]],
    rows: int,
    held: int,
    residency: Residency,
    *,
    looping: bool,
) -> WeightRooms:
    """Divides ``rows`` rows of the weight memory, ``held`` of which have keys and values.

    ``tiles``: for each linear layer, in order, the rows of an output tile, and output tiles.
    ``looping``: there is a turn before. Of ``SOME`` weights the last layers' stay: those in front
    can be loaded while a turn ends. Raises ``DoesNotFit``; for ``SOME`` also where less than half
    of the weights would stay, or all of them could.
    """
    sizes = {name: per * count for name, (per, count) in tiles.items()}
    whole = sum(sizes.values())
    if residency is Residency.NONE:
        leading = min(LEADING, rows // 16) if looping else 0
        _demand(leading + held, rows)
        return WeightRooms(frozenset(), 0, leading)
    if residency is Residency.ALL:
        _demand(whole + held, rows)
        return WeightRooms(frozenset(sizes), whole, 0)
    leading = min(LEADING, rows // 64)
    # Double-buffered, with one to spare: the tiles in front are still read.
    passing = max(4 * max(per for per, _ in tiles.values()), rows // 32)
    room = rows - held - leading - passing
    staying: dict[str, int] = {}
    for name, size in reversed(sizes.items()):
        if sum(staying.values()) + size <= room:
            staying[name] = size
    kept = sum(staying.values())
    if kept < whole / 2 or kept == whole:
        raise DoesNotFit(f"Of {whole} rows of weights {kept} would stay")
    return WeightRooms(frozenset(staying), kept, leading)


def _demand(wanted: int, rows: int) -> None:
    if wanted > rows:
        raise DoesNotFit(
            f"The weight memory has {rows} rows, and {wanted} are needed: choose a configuration "
            "with a larger one, or a smaller context"
        )
