import numpy as np
import pytest

from systolith import weights


@pytest.mark.parametrize("k", [1, 2, 7, 64, 129])
def test_unpack_inverts_pack(k, seed):
    values = np.random.default_rng((seed, k)).integers(-8, 7, (5, k), dtype=np.int8, endpoint=True)
    packed = weights.pack(values)
    assert packed.dtype == np.uint8 and packed.shape == weights.packed_shape(5, k)
    np.testing.assert_array_equal(weights.unpack(packed, k), values)
    assert k % 2 == 0 or not (packed[:, -1] >> 4).any()


def test_the_low_half_comes_first():
    assert weights.pack(np.array([[1, -2, 3]], dtype=np.int8)).tolist() == [[0xE1, 0x03]]


@pytest.mark.parametrize("group", weights.GROUPS)
def test_groups_share_a_scale_and_the_last_may_be_short(group, seed):
    rng = np.random.default_rng((seed, group))
    k = 2 * group + 3
    values = rng.integers(-7, 7, (4, k), dtype=np.int8, endpoint=True)
    scale = rng.integers(1, 18, (4, 3), dtype=np.uint8, endpoint=True)
    assert scale.shape == weights.scale_shape(4, k, group)
    expected = [[int(v) * int(scale[n, i // group]) for i, v in enumerate(row)]
                for n, row in enumerate(values)]
    np.testing.assert_array_equal(weights.expand(values, scale, group), expected)


def test_the_largest_weights_fit_in_int8():
    largest = weights.LARGEST_VALUE * weights.LARGEST_SCALE
    assert largest <= 127 < weights.LARGEST_VALUE * (weights.LARGEST_SCALE + 1)
