"""Channels that change places: a product with zeros and ones does it exactly.

The machine has no instruction that moves lanes, and needs none: the array can bring every channel
to every lane. `Slice` and `Concat` are so rare behind the quantizer, which splits weights instead,
that the cycles do not count.
"""

from dataclasses import replace

import numpy as np

from systolith.graph import Add, Concat, Graph, Linear, Node, Slice, Tensor

_ONE = 1 << 15
"""Mantissa that with a shift of 15 bits leaves a number as it is."""


def without_moves(graph: Graph) -> Graph:
    """The same graph with `Linear` and `Add` nodes in the place of `Slice` and `Concat`."""
    if not any(isinstance(node, (Slice, Concat)) for node in graph.nodes):
        return graph
    moves = _Moves(graph)
    for node in graph.nodes:
        moves.add(node)
    return replace(
        graph, nodes=tuple(moves.nodes), tensors=moves.tensors, constants=moves.constants
    )


class _Moves:
    def __init__(self, graph: Graph) -> None:
        self.nodes: list[Node] = []
        self.tensors = dict(graph.tensors)
        self.constants = dict(graph.constants)

    def add(self, node: Node) -> None:
        match node:
            case Slice():
                self._select(node.name, node.out, node.x, -node.first)
            case Concat():
                self._concat(node)
            case _:
                self.nodes.append(node)

    def _concat(self, node: Concat) -> None:
        """Every part at its place between zeros, and the sum of all."""
        total, offset = "", 0
        for index, x in enumerate(node.xs):
            last = index == len(node.xs) - 1
            name = f"{node.name}.part{index}"
            out = node.out if len(node.xs) == 1 else self._like(name, node.out)
            self._select(name, out, x, offset)
            offset += self.tensors[x].channels
            if total:
                name = node.name if last else f"{node.name}.sum{index}"
                both = node.out if last else self._like(name, node.out)
                self.nodes.append(
                    Add(
                        name=name, out=both, a=out, b=total, mult_a=_ONE, mult_b=_ONE, shift=15
                    )
                )  # fmt: skip
                out = both
            total = out

    def _like(self, name: str, out: str) -> str:
        """A tensor like another one."""
        self.tensors[name] = replace(self.tensors[out], name=name)
        return name

    def _select(self, name: str, out: str, x: str, offset: int) -> None:
        """Channel c of x becomes channel c + offset of out."""
        target: Tensor = self.tensors[out]
        weight = np.eye(target.channels, self.tensors[x].channels, -offset, dtype=np.int8)
        n = target.channels
        values = {
            "weight": weight,
            "bias": np.zeros(n, np.int32),
            "mult": np.full(n, _ONE, np.uint16),
            "shift": np.full(n, 15, np.uint8),
        }
        self.constants |= {f"{name}.{field}": value for field, value in values.items()}
        constants = {field: f"{name}.{field}" for field in values}
        self.nodes.append(Linear(name=name, out=out, x=x, **constants))
