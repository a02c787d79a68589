"""What a graph needs, before any instruction: layouts, fusions, what stays on chip."""

from collections.abc import Callable

from systolith.compiler.layout import Heads, Layout, plain
from systolith.compiler.tensors import Unsupported
from systolith.graph import Add, Attention, Given, Graph, Linear, Lookup, Multiply, Node, Rope


def find_layouts(graph: Graph, dim: int) -> tuple[dict[str, Layout], dict[str, Heads]]:
    """Layout of every tensor, and the heads of each attention and RoPE node by name.

    Raises ``Unsupported`` where a layout that attention wants cannot be made.
    """
    found: dict[str, Heads] = {}
    layouts = {name: plain(t.channels, dim) for name, t in graph.tensors.items()}
    for node in graph.of_kind(Attention):
        heads = found[node.name] = Heads.of(node, dim)
        for name, layout in (
            (node.q, heads.queries()),
            (node.k, heads.keys()),
            (node.v, heads.keys()),
            (node.q_low, heads.queries()),
            (node.k_low, heads.keys()),
            (node.v_low, heads.keys()),
        ):
            if name is not None:
                _demand(graph, layouts, found, name, layout, heads)
        layouts[node.out] = heads.queries()
    return layouts, found


def _demand(
    graph: Graph,
    layouts: dict[str, Layout],
    found: dict[str, Heads],
    name: str,
    layout: Layout,
    heads: Heads,
) -> None:
    """Sets the layout of a tensor around attention, back to the weights that produce it."""
    same, layouts[name] = layouts[name] == layout, layout
    producer = graph.producer(name)
    if isinstance(producer, Rope) and found.setdefault(producer.name, heads) != heads:
        raise Unsupported(f"{producer.name}: attentions with different heads share it")
    if isinstance(producer, (Rope, Lookup)):
        _demand(graph, layouts, found, producer.x, layout, heads)
    elif isinstance(producer, Add) and producer.a == producer.b:
        _demand(graph, layouts, found, producer.a, layout, heads)
    elif not (same or isinstance(producer, (Linear, Given))):
        raise Unsupported(
            f"{producer.name}: a {type(producer).__name__} in front of attention is not "
            "supported where its heads do not fill the array, only linear layers and RoPE are"
        )


def find_fusions(graph: Graph, level: Callable[[Node], int]) -> dict[str, str]:
    """Linear layers whose result goes through the vector unit only: tensor → reading node."""
    fused: dict[str, str] = {}
    outputs = {output.tensor for output in graph.outputs}
    taken: set[str] = set()
    for node in graph.of_kind(Linear):
        if graph.tensors[node.out].bits != 16 or node.out in outputs:
            continue
        readers = graph.consumers(node.out)
        if len(readers) != 1 or level(readers[0]) != level(node):
            continue
        reader = readers[0]
        good = isinstance(reader, (Rope, Add, Multiply)) and reader.name not in taken
        if good and reader.inputs.count(node.out) == 1:
            fused[node.out] = reader.name
            taken.add(reader.name)
    return fused


def find_keys(graph: Graph) -> set[str]:
    """Tensors that attention alone reads, as keys or values."""
    names: set[str] = set()
    outputs = {output.tensor for output in graph.outputs}
    for node in graph.of_kind(Attention):
        for name in (node.k, node.v, node.k_low, node.v_low):
            if name is None:
                continue
            others = [n.name for n in graph.consumers(name) if n.name != node.name]
            if name in outputs or others:
                raise Unsupported(
                    f"{node.name}: a program needs keys and values that only one attention "
                    f"reads, and {name} has other readers"
                )
            names.add(name)
    return names


def staying_tables(graph: Graph, slots: int) -> list[str]:
    """Tables that stay in slots of their own: all, or the most used but for two slots."""
    uses: dict[str, int] = {}
    for node in graph.nodes:
        if isinstance(node, (Linear, Lookup)) and node.table is not None:
            uses[node.table] = uses.get(node.table, 0) + 1
    names = sorted(uses, key=lambda name: -uses[name])
    if len(names) <= slots:
        return names
    return names[: max(0, slots - 2)]
