"""One HTML page about a run of a program: roofline, use of the units, stalls, cycles per layer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from systolith.compiler.layers import Layer, per_layer
from systolith.compiler.roofline import roofline
from systolith.compiler.stalls import END, HANDOVER, SEQUENCER, by_reason, stalls
from systolith.compiler.timeline import Timeline
from systolith.config import Config
from systolith.isa import QUEUED, Unit

TEMPLATE = Path(__file__).with_name("report.html.j2")
_COLOURS = {
    "works": "#3b6ea5",
    SEQUENCER: "#c9a227",
    "load": "#b5573c",
    "store": "#8c6bb1",
    "matmul": "#5c9a6b",
    "vector": "#d08770",
    HANDOVER: "#999999",
    END: "#dddddd",
}
_MEANINGS = {
    "works": "works",
    SEQUENCER: "instruction not dispatched yet",
    HANDOVER: "issue latency",
    END: "nothing left to do",
}


@dataclass(frozen=True)
class Report:
    """``predicted`` and, if it was measured, ``measured``: with their ``items``.

    ``labels``: of the program's instructions. ``bandwidth``: bytes per cycle of the memory.
    ``latency``: of its reads, in cycles.
    """

    title: str
    config: Config
    predicted: Timeline
    labels: Sequence[str]
    measured: Timeline | None = None
    clock_mhz: float = 100.0
    bandwidth: float = 0.0
    latency: int = 40
    layers: list[Layer] = field(init=False)

    def __post_init__(self) -> None:
        layers = per_layer(self.predicted, self.labels, self.config)
        object.__setattr__(self, "layers", layers)

    def html(self) -> str:
        """The page, complete in itself."""
        from jinja2 import Environment, StrictUndefined

        page = Environment(
            autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        ).from_string(TEMPLATE.read_text(encoding="utf-8"))
        peak = float(self.config.dim**2)
        bandwidth = self.bandwidth or float(self.config.bus_bytes)
        return page.render(
            title=self.title,
            config=self.config,
            clock=self.clock_mhz,
            latency=self.latency,
            bandwidth=bandwidth,
            summary=self._summary(),
            units=self._units(),
            legend=[(name, _MEANINGS.get(name, f"waits for {name}"), colour)
                    for name, colour in _COLOURS.items()],
            rows=self._rows(),
            measured=self.measured is not None,
            roofline=roofline(self.layers, peak, bandwidth),
        )  # fmt: skip

    def _summary(self) -> list[tuple[str, str, str]]:
        """Rows of (name, predicted, measured)."""
        lines: list[tuple[str, str, str]] = []

        def add(name: str, text) -> None:
            shown = [
                text(line) if line is not None else "" for line in (self.predicted, self.measured)
            ]
            lines.append((name, *shown))

        peak = self.config.dim**2

        def macs(line: Timeline) -> float:
            return line.counters["ARRAY_ROWS"] * peak / line.cycles

        def share(name: str):
            return lambda line: f"{line.counters[name] / line.cycles:.1%}"

        add("cycles", lambda line: f"{line.cycles:,}")
        add(
            f"at {self.clock_mhz:g} MHz",
            lambda line: f"{line.cycles / self.clock_mhz / 1e3:,.3f} ms",
        )
        add("instructions", lambda line: f"{len(line.executed):,}")
        add(
            f"MACs per cycle, of {peak}",
            lambda line: f"{macs(line):.1f} ({macs(line) / peak:.1%})",
        )
        add("a matmul under way", share("MATMUL_BUSY"))
        add("vector unit busy", share("VECTOR_BUSY"))
        add("array waited for weights", share("WAIT_WEIGHTS"))
        add("bytes read", lambda line: f"{line.counters['READ_BYTES']:,}")
        add("of them instructions", lambda line: f"{line.counters['FETCH_BYTES']:,}")
        add("bytes written", lambda line: f"{line.counters['WRITE_BYTES']:,}")
        return lines

    def _units(self) -> list[dict[str, Any]]:
        """Bars: for each unit the parts of all cycles, by what it did; the measured run's, if there
        is one."""
        line = self.predicted if self.measured is None else self.measured
        found = by_reason(stalls(line))
        bars = []
        for unit in QUEUED:
            if unit not in found:
                continue
            idle = found[unit]
            parts = {"works": line.cycles - sum(idle.values()), **idle}
            bars.append(
                {
                    "name": unit.name.lower(),
                    "parts": [
                        {
                            "name": _MEANINGS.get(name, f"waits for {name}"),
                            "share": 100 * parts[name] / line.cycles,
                            "cycles": parts[name],
                            "colour": colour,
                        }
                        for name, colour in _COLOURS.items()
                        if parts.get(name, 0)
                    ],
                }
            )
        return bars

    def _rows(self) -> list[dict[str, Any]]:
        """The table of layers."""
        measured: dict[str, int] = {}
        if self.measured is not None:
            found = per_layer(self.measured, self.labels, self.config)
            measured = {layer.label: layer.cycles for layer in found}
        most = max((layer.cycles for layer in self.layers), default=1)
        return [
            {
                "label": layer.label,
                "instructions": layer.instructions,
                "cycles": layer.cycles,
                "measured": measured.get(layer.label, 0),
                "share": layer.cycles / self.predicted.cycles,
                "bar": 120 * layer.cycles / max(most, 1),
                "use": layer.use,
                "matmul": layer.busy[Unit.MATMUL],
                "vector": layer.busy[Unit.VECTOR],
                "load": layer.busy[Unit.LOAD],
                "store": layer.busy[Unit.STORE],
                "macs": layer.macs,
                "bytes": layer.read_bytes + layer.write_bytes,
            }
            for layer in self.layers
        ]
