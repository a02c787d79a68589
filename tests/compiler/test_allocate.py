import pytest

from systolith.compiler.allocate import DoesNotFit, Pool, Ring


def test_ring_goes_round_and_avoids_what_is_held():
    ring = Ring("weight", 0, 10)
    assert ring.take(4) == 0
    assert ring.take(4, hold=True) == 4
    assert ring.take(4) == 0
    with pytest.raises(DoesNotFit, match="weight memory has 10 rows for this, and 5 more"):
        ring.take(5)
    ring.release(4)
    assert ring.take(5) == 4


def test_pool_reuses_the_first_gap_and_keeps_starts_even():
    pool = Pool("activation", 16)
    first, second, third = pool.take(3), pool.take(4), pool.take(4)
    assert (first, second, third) == (0, 4, 8)
    pool.release(second)
    assert pool.take(2) == 4
    assert pool.take(2) == 6
    assert pool.peak == 12
    with pytest.raises(DoesNotFit, match="activation memory has 16 rows, 12 of them in use"):
        pool.take(6)
