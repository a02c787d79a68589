"""Cuts a graph for a whole sequence into passes over its tokens.

Attention needs the keys and values of all tokens before its first query. Everything else treats
each token alone, so that a block of tokens can go through many layers while its tensors stay on
chip. A *pass* takes block after block through the nodes between two attentions: it begins with an
attention's queries and ends with the keys and values of the next one.
"""

from collections.abc import Callable
from dataclasses import dataclass

from systolith.graph import Attention, Graph, Node


def _keys(node: Node) -> set[str]:
    """Tensors that a node needs of all tokens."""
    if not isinstance(node, Attention):
        return set()
    return {name for name in (node.k, node.v, node.k_low, node.v_low) if name is not None}


@dataclass(frozen=True)
class Passes:
    """``nodes[i]``: the nodes of pass i in order. ``crossing``: tensors that later passes read, as
    ordinary operands, with the first and the last pass that touches each."""

    nodes: tuple[tuple[Node, ...], ...]
    crossing: dict[str, tuple[int, int]]
    level: dict[str, int]
    """The pass of each node, by name."""


def find_passes(graph: Graph, size: Callable[[str], int]) -> Passes:
    """Cuts a graph; ``size``: bytes of a token of a tensor.

    A node is in the first pass that has its inputs, or in a later one if that leaves less to be
    kept from pass to pass: queries are made by the pass that uses them.
    """
    level: dict[str, int] = {}
    produced: dict[str, Node] = {}
    readers: dict[str, list[Node]] = {node.out: graph.consumers(node.out) for node in graph.nodes}
    for node in graph.nodes:
        keys = _keys(node)
        level[node.name] = max(
            (level[produced[name].name] + (name in keys) for name in node.inputs), default=0
        )
        produced[node.out] = node
    for node in reversed(graph.nodes):
        latest = min(
            (level[reader.name] - (node.out in _keys(reader)) for reader in readers[node.out]),
            default=level[node.name],
        )
        if latest > level[node.name] and node.inputs:
            kept = sum(
                size(name)
                for name in set(node.inputs)
                if not any(
                    level[reader.name] >= latest
                    for reader in readers[name]
                    if reader.name != node.name
                )
            )
            if kept <= size(node.out):
                level[node.name] = latest
    count = max(level.values()) + 1
    crossing = {}
    for node in graph.nodes:
        first = level[node.name]
        last = max(
            (level[reader.name] for reader in readers[node.out] if node.out not in _keys(reader)),
            default=first,
        )
        if last > first:
            crossing[node.out] = first, last
    nodes = tuple(
        tuple(node for node in graph.nodes if level[node.name] == index) for index in range(count)
    )
    return Passes(nodes, crossing, level)
