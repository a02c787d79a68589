"""What quantization did to every tensor: range, precision, noise, cycles, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from systolith.cost import DIM, array_cycles
from systolith.graph import Attention, Graph, Linear
from systolith.quant.calibrate import Inputs, Range, inside
from systolith.quant.network import Network
from systolith.quant.torch_model import IntegerModule

TEMPLATE = Path(__file__).with_name("report.html.j2")
SEQUENCES = 16
"""Most batches that noise is measured on."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One tensor.

    kind    of the node that defines it          source  module path and line in the user's program
    bits    of its integers                      limit   largest real value that they hold
    seen    largest real value in calibration    sqnr    signal to quantization noise in dB, the
    cycles  of the array for the products that           errors of all tensors before included
            read it, None where none does        why     it has its bits, where there was a choice
    weights format of those it is made with
    """

    name: str
    kind: str
    source: str
    bits: int
    limit: float
    seen: float | None
    sqnr: float | None
    cycles: int | None
    weights: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """``rows`` in the graph's order; ``tokens``: length of the block that cycles are told for."""

    rows: tuple[Row, ...]
    tokens: int
    bytes: int

    @property
    def cycles(self) -> int:
        """Array cycles of the whole graph."""
        return sum(row.cycles or 0 for row in self.rows)

    def __str__(self) -> str:
        lines = [f"{'tensor':40} {'bits':>4} {'range':>10} {'seen':>10} {'SQNR dB':>8} "
                 f"{'cycles':>9}  {'weights':8} why"]
        for row in self.rows:
            cells = [_shown(row.seen, "10.4g"), _shown(row.sqnr, "8.1f"), _shown(row.cycles, "9,")]
            lines.append(f"{row.name:40} {row.bits:4} {row.limit:10.4g} {' '.join(cells)}  "
                         f"{row.weights:8} {row.why}".rstrip())
        lines.append(f"{self.bytes:,} bytes of constants; {self.cycles:,} cycles of a "
                     f"{DIM} × {DIM} array for {self.tokens} tokens")
        return "\n".join(lines)

    def html(self, title: str) -> str:
        """One page, complete in itself."""
        from jinja2 import Environment, StrictUndefined

        page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                           lstrip_blocks=True).from_string(TEMPLATE.read_text())
        most = max((row.cycles or 0 for row in self.rows), default=0)
        return page.render(title=title, report=self, dim=DIM, most=max(most, 1))


def _shown(value: float | None, form: str) -> str:
    width = int(form.split(".")[0].rstrip(","))
    return " " * width if value is None else format(value, form)


def measure(
    graph: Graph,
    network: Network,
    batches: Sequence[tuple[Inputs, Tensor | None]],
    ranges: Mapping[str, Range],
    reasons: Mapping[str, str],
) -> Report:
    """The report of a graph, its noise measured against its network on (some of) the batches."""
    integers = IntegerModule(graph)
    power: dict[str, list[float]] = {}
    tokens = 1
    for inputs, lengths in batches[:SEQUENCES]:
        floats, found = network.run(inputs, lengths), integers.trace(inputs, lengths)
        tokens = max(tokens, next(iter(inputs.values())).shape[1])
        within = inside(next(iter(floats.values())), lengths)
        for name in found.keys() & floats.keys():
            real = floats[name][within].double().numpy()
            noise = found[name][within].numpy() * np.array(graph.tensors[name].scale) - real
            total = power.setdefault(name, [0.0, 0.0])
            total[0] += float((real**2).sum())
            total[1] += float((noise**2).sum())
    cycles = array_cycles(graph, tokens)
    reads: dict[str, int] = {}
    streamed = [(node.name, node.x) for node in graph.of_kind(Linear)]
    streamed += [(node.name, node.q) for node in graph.of_kind(Attention)]
    for name, x in streamed:
        reads[x] = reads.get(x, 0) + cycles[name]
    formats = graph.weight_formats()
    sources = {op.name: str(op.source) for op in network.ops}
    rows = []
    for node in graph.nodes:
        tensor = graph.tensors[node.out]
        signal, noise_power = power.get(node.out, (0.0, 0.0))
        ratio = 10 * np.log10(max(signal, 1e-300) / max(noise_power, 1e-300))
        rows.append(Row(
            name=node.out, kind=type(node).__name__, source=sources.get(node.out, ""),
            bits=tensor.bits, limit=max(tensor.scale) * (2 ** (tensor.bits - 1) - 1),
            seen=float(ranges[node.out].largest.max()) if node.out in ranges else None,
            sqnr=float(ratio) if node.out in power else None, cycles=reads.get(node.out),
            weights=formats.get(node.out, ""), why=reasons.get(node.out, "")))
    return Report(rows=tuple(rows), tokens=tokens, bytes=graph.bytes())
