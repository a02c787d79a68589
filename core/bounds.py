"""The overflow proof: no accumulator of a graph can leave 32 bits, whatever the tokens are.

The adder of the machine wraps and has no saturation logic. Bounds hold for every input that the
types allow, not only for what calibration has seen. Sums on the way may wrap: only the end counts,
because addition modulo 2**32 is associative.
"""

import numpy as np
from numpy.typing import NDArray

from systolith.graph import Attention, Graph, GraphError, Linear, int8_weight

LARGEST = (1 << 31) - 1
"""Largest magnitude that an accumulator may reach."""


def softmax_sum(length: int, bits: int) -> int:
    """Most that a row of ``golden.softmax`` can sum to, over up to ``length`` scores.

    The real probabilities sum to ``2**bits - 1``. Each of the ``length`` roundings adds at most
    1/2, the reciprocal is at most 2**-15 too large, and the terms lost at most ``length * 2**-25``
    of their sum.
    """
    one = 1 << bits
    return one + (one >> 12) + length // 2 + 2


def linear_bound(weight: np.ndarray, bias: np.ndarray, x_bits: int) -> np.ndarray:
    """Largest magnitude of each channel's accumulator with its bias: int64 [N].

    ``max|x| * sum|w| + |bias|``, where an x of b bits is 2**(b - 1) at most.
    """
    total = np.abs(weight.astype(np.int64)).sum(axis=1)
    return (total << (x_bits - 1)) + np.abs(bias.astype(np.int64))


def accumulator_bounds(graph: Graph) -> dict[str, NDArray[np.int64]]:
    """Largest magnitude of every accumulator, channel by channel: int64 [channels].

    A linear node has an entry of its name, attention two: ".scores" (one number for all scores)
    and ".context".
    """
    bounds: dict[str, NDArray[np.int64]] = {}
    for node in graph.nodes:
        if isinstance(node, Linear):
            weight, bias = int8_weight(graph, node), graph.constants[node.bias]
            bounds[node.name] = linear_bound(weight, bias, graph.tensors[node.x].bits)
        elif isinstance(node, Attention):
            bias = np.abs(graph.constants[node.bias].astype(np.int64))
            row = softmax_sum(graph.context, node.probability_bits)
            queries = (name for name in (node.q, node.q_low) if name is not None)
            q = sum(1 << (graph.tensors[name].bits - 1) for name in queries)
            bounds[f"{node.name}.scores"] = np.array([(q << 7) * node.head_dim])
            rows = row if node.v_low is None else row + (row >> 8)
            bounds[f"{node.name}.context"] = (rows << 7) + bias
    return bounds


def prove(graph: Graph) -> dict[str, NDArray[np.int64]]:
    """The bounds, once all are within 32 bits; otherwise raises ``GraphError``."""
    bounds = accumulator_bounds(graph)
    for name, bound in bounds.items():
        channel = int(bound.argmax())
        if bound[channel] > LARGEST:
            raise GraphError(
                f"{name}: its accumulator can reach {bound[channel]} in channel {channel}, beyond "
                f"{LARGEST}; quantize its weights or its input to a smaller range"
            )
    return bounds
