"""How commands show what the hardware counters say."""

from collections.abc import Mapping, Sequence

from systolith.config import Config

CLOCK_MHZ = 100.0


def shares(counters: Mapping[str, int], config: Config) -> list[tuple[str, str]]:
    """How busy the parts of the machine were, in names and values."""
    cycles = counters["CYCLES"]
    moved = counters["READ_BYTES"] + counters["WRITE_BYTES"]
    return [
        ("array: a matmul under way", f"{counters['MATMUL_BUSY'] / cycles:.1%} of the cycles"),
        ("array: rows entering", f"{counters['ARRAY_ROWS'] / cycles:.1%} of the cycles"),
        ("vector unit busy", f"{counters['VECTOR_BUSY'] / cycles:.1%} of the cycles"),
        (
            "bus",
            f"{moved / cycles / config.bus_bytes:.1%} of {config.bus_bytes} bytes per cycle",
        ),
    ]


def show_table(rows: Sequence[tuple[str, str]], *, err: bool = False) -> None:
    """Names and values, on stdout or on stderr."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    Console(stderr=err).print(table)
