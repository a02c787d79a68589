import numpy as np
import pytest

from systolith.compiler.layout import Heads, parameter_rows, plain, planes, weight_rows


def test_plain_layout_pads_to_whole_blocks():
    layout = plain(10, 4)
    assert layout.blocks == 3
    assert layout.channels[8:] == (8, 9, -1, -1)
    lanes = layout.spread(np.arange(1, 11))
    assert lanes.tolist() == [*range(1, 11), 0, 0]
    assert layout.gather(lanes).tolist() == list(range(1, 11))


@pytest.mark.parametrize("dim", [4, 8, 16])
@pytest.mark.parametrize(
    "heads, kv_heads, head_dim",
    [(8, 4, 8), (4, 2, 16), (6, 3, 4), (4, 1, 12), (2, 2, 6), (3, 3, 48)],
)
def test_query_and_key_heads_share_lanes(dim, heads, kv_heads, head_dim):
    placement = Heads(dim, heads, kv_heads, head_dim)
    queries, keys = placement.queries(), placement.keys()
    assert sorted(c for c in queries.channels if c >= 0) == list(range(heads * head_dim))
    assert sorted(c for c in keys.channels if c >= 0) == list(range(kv_heads * head_dim))
    set_lanes = placement.head_blocks * dim
    for head in range(heads):
        kv = head // (heads // kv_heads)
        for c in range(head_dim):
            q = queries.channels.index(head * head_dim + c)
            k = keys.channels.index(kv * head_dim + c)
            assert q % set_lanes == k % set_lanes, (head, c)
            # The query's blocks lie in the key's set: [set][head of the group][head block].
            assert q // (set_lanes * placement.group) == k // set_lanes


def test_weight_tiles_multiply_like_the_matrix(seed):
    rng = np.random.default_rng(seed)
    d, n, k = 4, 10, 7
    weight = rng.integers(-127, 128, (n, k)).astype(np.int8)
    x = rng.integers(-128, 128, k)
    inside, outside = plain(k, d), plain(n, d)
    tiles = weight_rows(weight, inside, outside).astype(np.int64)
    lanes = inside.spread(x).reshape(inside.blocks, d)
    result = np.einsum("kj,nkji->ni", lanes, tiles).reshape(-1)
    assert np.array_equal(outside.gather(result), weight.astype(np.int64) @ x)


def test_parameters_and_planes_are_little_endian():
    layout = plain(2, 4)
    rows = parameter_rows(
        layout, np.array([-2, 3], np.int32), np.array([0x1234, 5], np.uint16), np.array([7, 8])
    )
    assert rows.shape == (1, 4, 8)
    assert rows[0, 0].tolist() == [0xFE, 0xFF, 0xFF, 0xFF, 0x34, 0x12, 7, 0]
    assert not rows[0, 2:].any()
    low_high = planes(np.array([1, -2, 0x1234, -32768], np.int16), 4)
    assert low_high.tolist() == [[[1, 0xFE, 0x34, 0], [0, 0xFF, 0x12, 0x80]]]


def test_rotation_repeats_for_narrow_heads_and_splits_for_wide_ones():
    table = np.arange(8, dtype=np.int16)[None]
    assert Heads(16, 4, 4, 8).rotation(table).tolist() == [[[*range(8), *range(8)]]]
    assert Heads(4, 4, 4, 8).rotation(table).tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7]]]
    assert Heads(8, 4, 4, 6).rotation(table[:, :6]).tolist() == [[[0, 1, 2, 3, 4, 5, 0, 0]]]
