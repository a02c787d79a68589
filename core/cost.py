"""Predicted array cycles of matrix products: what precision and shape cost.

A tile of weights takes D / W cycles to enter the array by W weight ports, and a row of activations
one cycle for each of its byte planes, four for each plane at least (two with more than one port);
tiles follow each other without a bubble (see docs/performance.md). What waits for memory or for
the vector unit is not in these numbers.
"""

from systolith.graph import Attention, Graph, Linear

DIM = 16
"""Rows and columns of the array that costs are told for, unless said otherwise."""


def product_cycles(
    rows: int,
    inputs: int,
    outputs: int,
    planes: int = 1,
    dim: int = DIM,
    weight_ports: int = 1,
) -> int:
    """Of ``rows`` rows of ``inputs`` channels, ``planes`` bytes each, to ``outputs`` channels."""
    tiles = -(-inputs // dim) * -(-outputs // dim)
    shortest = 4 if weight_ports == 1 else 2
    return tiles * max(planes * max(rows, shortest), dim // weight_ports)


def attention_cycles(
    heads: int,
    kv_heads: int,
    head_dim: int,
    queries: int,
    keys: int,
    *,
    q_planes: int = 2,
    key_parts: int = 1,
    p_planes: int = 2,
    value_parts: int = 1,
    dim: int = DIM,
    weight_ports: int = 1,
) -> int:
    """Of all scores and of all probabilities times values, for ``queries`` tokens and ``keys``.

    ``key_parts``: 2 for keys of 12 bits, ``value_parts``: 2 for values of 16, which are two tensors
    of 8; the lower part of a value meets one plane of the probabilities.
    """
    rows = queries * (heads // kv_heads)
    array = {"dim": dim, "weight_ports": weight_ports}
    scores = product_cycles(rows, head_dim, keys, q_planes, **array) * key_parts
    context = product_cycles(rows, keys, head_dim, p_planes, **array)
    context += (value_parts - 1) * product_cycles(rows, keys, head_dim, 1, **array)
    return kv_heads * (scores + context)


def array_cycles(
    graph: Graph, tokens: int, dim: int = DIM, weight_ports: int = 1
) -> dict[str, int]:
    """For each `Linear` and `Attention` by name, one block of ``tokens`` from an empty cache."""
    found = {}
    for node in graph.nodes:
        match node:
            case Linear():
                x = graph.tensors[node.x]
                outputs = graph.tensors[node.out].channels
                found[node.name] = product_cycles(
                    tokens, x.channels, outputs, x.bits // 8, dim, weight_ports
                )
            case Attention():
                found[node.name] = attention_cycles(
                    node.heads,
                    node.kv_heads,
                    node.head_dim,
                    tokens,
                    tokens,
                    q_planes=graph.tensors[node.q].bits // 8,
                    key_parts=1 if node.k_low is None else 2,
                    p_planes=node.probability_bits // 8,
                    value_parts=1 if node.v_low is None else 2,
                    dim=dim,
                    weight_ports=weight_ports,
                )
    return found
