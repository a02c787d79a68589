from systolith import cost
from systolith.graph import Attention, Linear
from tests.graphs import every_node


def test_cycles_of_a_product():
    assert cost.product_cycles(100, 64, 32, 2) == 4 * 2 * 200
    assert cost.product_cycles(100, 65, 33) == 5 * 3 * 100
    assert cost.product_cycles(1, 16, 16, 2) == cost.product_cycles(1, 16, 16) == 16
    assert cost.product_cycles(1, 16, 16, dim=8) == 4 * 8
    assert cost.product_cycles(1, 16, 16, 2, dim=4) == 16 * 2 * 4  # a pass takes four cycles
    assert cost.product_cycles(1, 16, 16, 2, dim=4, weight_ports=2) == 16 * 2 * 2  # or two
    assert cost.product_cycles(1, 16, 16, 2, weight_ports=4) == 4
    assert cost.product_cycles(5, 16, 32, weight_ports=2) == 2 * 8


def test_cycles_of_attention():
    # A layer of BERT: 12 heads of 32, 128 tokens; each score tile streams 128 rows twice.
    scores, context = 2 * 8 * 256, 8 * 2 * 256
    assert cost.attention_cycles(12, 12, 32, 128, 128) == 12 * (scores + context)
    assert cost.attention_cycles(12, 12, 32, 128, 128, key_parts=2) == 12 * (2 * scores + context)
    assert cost.attention_cycles(12, 12, 32, 128, 128, q_planes=1, p_planes=1) == 12 * 4096
    with_low = cost.attention_cycles(12, 12, 32, 128, 128, value_parts=2)
    assert with_low == 12 * (scores + context + context // 2)
    # Query heads that share a key head stream together.
    assert cost.attention_cycles(4, 1, 16, 8, 16) == 2 * 4 * 8 * 2


def test_every_product_of_a_graph_has_its_cycles(seed):
    graph = every_node(seed)
    found = cost.array_cycles(graph, 5, dim=4)
    nodes = [n for n in graph.nodes if isinstance(n, Linear | Attention)]
    assert set(found) == {n.name for n in nodes}
    assert found["q_proj.node"] == 2 * 2 * 10          # 16-bit input of 8 channels, 5 tokens
    assert found["o_proj.node"] == 2 * 2 * 5           # 8-bit input
