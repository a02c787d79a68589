"""What each kind of node becomes: instructions for one span of tokens."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from systolith.compiler.allocate import DoesNotFit
from systolith.compiler.attention import AttentionLowering
from systolith.compiler.layout import Layout, parameter_rows, planes
from systolith.compiler.linear import linear
from systolith.compiler.lower import Lowering
from systolith.compiler.tensors import Placed, Registers, Span, Unsupported
from systolith.compiler.vector import Source, elementwise, source
from systolith.config import Config
from systolith.graph import (
    Add,
    ArgMax,
    Attention,
    Embedding,
    Given,
    Linear,
    Lookup,
    Multiply,
    Node,
    Norm,
    Rope,
)
from systolith.isa import Combine, Format, LoadSpace, TableMode

Emit = Callable[[Lowering, Any, Span], None]
"""Emits the instructions of a node for some tokens."""


def lower(
    low: Lowering, nodes: Iterable[Node], span: Span, keep: set[str], inputs: Emit, results: Emit
) -> None:
    """Emits nodes in order; what none of them reads any more is released, unless in ``keep``.

    ``inputs`` emits `Embedding` and `Given` nodes, whose results are placed already, ``results``
    what follows a node: stores of what is wanted elsewhere.
    """
    nodes = list(nodes) if span.count > 1 else keys_first(list(nodes))
    late = _late(low, nodes, span)
    nodes = [node for node in nodes if not any(node in group for group in late.values())]
    last = low.last_uses(node for each in nodes for node in (*late.get(each.name, ()), each))

    def emit(node: Node) -> None:
        low.label = node.name
        if isinstance(node, (Embedding, Given)):
            low.place(node.out, span)
            inputs(low, node, span)
        elif isinstance(node, Attention):
            # The late nodes have their places before, so that attention knows them.
            for each in late.get(node.name, ()):
                low.place(each.out, span)
            parts = [span]
            if low.sequences > 1:
                low.place(node.out, span)
                parts = [replace(span, first=token, count=1) for token in range(span.count)]
            for part in parts:
                AttentionLowering(low, node, part).run(lambda: emit_late(node))
        elif type(node) in _LOWER:
            _LOWER[type(node)](low, node, span)
        else:
            raise Unsupported(f"{node.name}: a program cannot have {type(node).__name__} nodes yet")
        results(low, node, span)

    def emit_late(attention: Node) -> None:
        for each in late.get(attention.name, ()):
            emit(each)
        low.label = attention.name

    for node in nodes:
        if isinstance(node, ArgMax) or (isinstance(node, Linear) and node.out in low.fused):
            continue  # a fused layer is emitted by the node that reads it
        emit(node)
        done = {node.name, *(each.name for each in late.get(node.name, ()))}
        for name, reader in last.items():
            if reader in done and name in low.placed and name not in keep:
                low.release(name)


def keys_first(nodes: list[Node]) -> list[Node]:
    """Nodes of one token with an attention's keys before its queries and these before its values.

    Keys go through the longest chain until there can be scores.
    """
    readers: dict[str, list[Node]] = {}
    producer = {node.out: node for node in nodes}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)

    def chain(names: Iterable[str | None], found: list[Node]) -> list[Node]:
        """What serves these tensors alone, in order."""
        for name in names:
            node = producer.get(name or "")
            if not isinstance(node, (Linear, Rope, Lookup, Add)) or node in found:
                continue
            served = [n for n in readers[node.out] if n not in found and n is not target]
            if not served:
                found.append(node)
                chain(node.inputs, found)
        return found

    for target in [node for node in nodes if isinstance(node, Attention)]:
        chains = [
            chain((target.k, target.k_low), []),
            chain((target.q_low, target.q), []),
            chain((target.v, target.v_low), []),
        ]
        moved = [node for group in chains for node in reversed(group)]
        rest = [node for node in nodes if node not in moved]
        at = rest.index(target)
        nodes = [*rest[:at], *moved, *rest[at:]]
    return nodes


def _late(low: Lowering, nodes: list[Node], span: Span) -> dict[str, list[Node]]:
    """Attention by name → nodes of one token that make its values, which the scores do not need."""
    if span.count > 1:
        return {}
    late: dict[str, list[Node]] = {}
    for node in nodes:
        if isinstance(node, Lookup) and node.out in low.keys:
            reader = low.graph.consumers(node.out)[0]
            if isinstance(reader, Attention) and node.out in (reader.v, reader.v_low):
                late.setdefault(reader.name, []).append(node)
    return late


def last_token(low: Lowering, node: Node) -> bool:
    """Whether only the last token of an open span matters: logits, and the norm before them."""
    if node.out == low.graph.logits:
        return True
    readers = low.graph.consumers(node.out)
    return isinstance(node, Norm) and [reader.out for reader in readers] == [low.graph.logits]


def _norm(low: Lowering, node: Norm, span: Span) -> None:
    channels = low.graph.tensors[node.x].channels
    _demand_features(low.config, node, channels)
    last = span.open and last_token(low, node)
    out_span = Span(0, 1) if last else span
    x, out = low.at(node.x), low.place(node.out, out_span)
    assert isinstance(out, Placed)
    constants = low.graph.constants
    param, region = low.parameters(
        node.name,
        lambda: parameter_rows(
            x.layout,
            constants[node.bias],
            constants[node.gain].view(np.uint16),
            constants[node.shift],
        ),
        x.layout.blocks,
    )
    rows, registers = out_span.rows()
    if last:
        registers = {"a": Registers.LAST}
    low.emit(
        "norm",
        {
            "a": x.row(span),
            "a_stride": x.stride,
            "d": out.row(out_span),
            "d_stride": out.stride,
            "blocks": x.layout.blocks,
            "d_wide": int(out.bits == 16),
            "length": channels,
            "param": param,
            "center": int(node.center),
            "eps": node.eps,
            "eps_shift": node.eps_shift,
            **rows,
        },
        registers,
        reads=(x.region(span), region),
        writes=(out.region(out_span),),
    )


def _demand_features(config: Config, node: Node, channels: int) -> None:
    """Raises ``DoesNotFit`` for rows that the norm unit cannot hold."""
    if channels > min(config.max_features, 4095):
        raise DoesNotFit(
            f"{node.name}: {channels} features are more than max_features "
            f"{config.max_features} of the configuration"
        )


def _linear(low: Lowering, node: Linear, span: Span) -> None:
    fields = {}
    if span.open and last_token(low, node):
        span = Span(0, 1, dynamic=True)
    if span.dynamic and span.count == 1 and last_token(low, node):
        fields = {"argmax": 1}
    linear(low, node, span, low.place(node.out, span), fields)


def _rope(low: Lowering, node: Rope, span: Span) -> None:
    blocks = low.heads[node.name].head_blocks
    row = span if low.sequences == 1 else replace(span, count=1)  # the same one for all
    table = _rope_table(low, node, row)
    stride = blocks * 4 if low.sequences == 1 else 0
    b = Source(table.row(row), stride, 4, table.region(row), Format.INT16, blocks)
    _binary(low, node, node.x, {"combine": Combine.ROPE, "shift": node.shift}, span, b)


def _add(low: Lowering, node: Add, span: Span) -> None:
    a, b, mult_a, mult_b = node.a, node.b, node.mult_a, node.mult_b
    if low.fused.get(b) == node.name:
        a, b, mult_a, mult_b = b, a, mult_b, mult_a
    fields = {"combine": Combine.ADD, "shift": node.shift, "mult_a": mult_a, "mult_b": mult_b}
    _binary(low, node, a, fields, span, source(low, b, span))


def _multiply(low: Lowering, node: Multiply, span: Span) -> None:
    a, b = node.a, node.b
    if low.fused.get(b) == node.name:
        a, b = b, a
    fields = {"combine": Combine.MULTIPLY, "shift": node.shift, "mult_a": node.mult}
    _binary(low, node, a, fields, span, source(low, b, span))


def _binary(
    low: Lowering, node: Node, a: str, fields: dict[str, int], span: Span, b: Source
) -> None:
    """A vector instruction whose source A is a tensor, or a linear layer fused into it."""
    out = low.place(node.out, span)
    if low.fused.get(a) == node.name:
        layer = low.graph.producer(a)
        assert isinstance(layer, Linear)
        linear(low, layer, span, out, fields, b)
    else:
        elementwise(low, fields, source(low, a, span), out, span, b=b)


def _lookup(low: Lowering, node: Lookup, span: Span) -> None:
    slot, region = low.table(node.table)
    mode = TableMode.EXACT if node.exact else TableMode.INTERPOLATE
    fields = {"table": mode, "slot": slot}
    out = low.place(node.out, span)
    elementwise(low, fields, source(low, node.x, span), out, span, reads=(region,))


_LOWER: dict[type[Node], Emit] = {
    Norm: _norm,
    Linear: _linear,
    Rope: _rope,
    Add: _add,
    Multiply: _multiply,
    Lookup: _lookup,
}


# RoPE ------------------------------------------------------------------------------------------


def rope_row_bytes(low: Lowering, node: Rope) -> int:
    """Bytes of one position in a RoPE table."""
    return low.heads[node.name].head_blocks * 4 * low.config.dim


def _rope_table(low: Lowering, node: Rope, span: Span) -> Placed:
    """The RoPE rows of the span's positions in the activation memory, loaded once a span."""
    key = (node.cos, node.sin)
    if key in low.rope_tables and low.rope_tables[key].origin == span.first:
        return low.rope_tables[key]
    heads, d = low.heads[node.name], low.config.dim
    blocks = heads.head_blocks

    def make() -> np.ndarray:
        cos, sin = (
            planes(heads.rotation(low.graph.constants[name][: low.context]), d).reshape(
                low.context, blocks, 2, d
            )
            for name in key
        )
        # A span may read beyond the context: the table is longer than the caches.
        rows = np.concatenate([cos, sin], axis=2)
        return np.concatenate([rows, np.zeros((low.tokens, *rows.shape[1:]), dtype=rows.dtype)])

    address = low.constant(f"rope {node.cos}", make, rare=True)
    layout = Layout(d, (0,) * (2 * d * blocks))  # cosines and sines: two blocks of 16 bits each
    if key in low.rope_tables:
        low.pool.release(low.rope_tables[key].first)
    words = span.count * layout.blocks * 2
    table = Placed(low.pool.take(words), layout, 16, span.count, span.first)
    row_bytes = rope_row_bytes(low, node)
    registers = {"address": Registers.ROPE_ROW} if span.dynamic else None
    low.load(
        LoadSpace.ACTIVATION,
        address + span.first * row_bytes,
        words,
        table.first,
        registers=registers,
    )
    low.rope_tables[key] = table
    return table
