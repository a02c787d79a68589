import pytest

from systolith.compiler.allocate import DoesNotFit
from systolith.compiler.residency import LEADING, Residency, divide_weights

TILES = {"first": (8, 40), "second": (16, 20), "third": (8, 20), "last": (8, 40)}
"""320, 320, 160 and 320 rows: 1120."""


def test_all_weights_stay():
    rooms = divide_weights(TILES, 1200, 80, Residency.ALL, looping=True)
    assert rooms.resident == set(TILES)
    assert (rooms.staying, rooms.leading) == (1120, 0)
    with pytest.raises(DoesNotFit, match="has 1200 rows, and 1201 are needed"):
        divide_weights(TILES, 1200, 81, Residency.ALL, looping=True)


def test_no_weights_stay():
    assert divide_weights(TILES, 640, 0, Residency.NONE, looping=True).leading == 40
    assert divide_weights(TILES, 1 << 20, 0, Residency.NONE, looping=True).leading == LEADING
    assert divide_weights(TILES, 640, 0, Residency.NONE, looping=False).leading == 0


def test_weights_of_the_last_layers_stay():
    rooms = divide_weights(TILES, 1024, 0, Residency.SOME, looping=True)
    assert rooms.resident == {"second", "third", "last"}
    assert rooms.staying == 800
    # What comes and goes is double-buffered in what is left.
    assert 1024 - rooms.staying - rooms.leading >= 4 * 16


def test_a_smaller_layer_takes_what_a_larger_one_leaves():
    rooms = divide_weights({"small": (8, 4), **TILES}, 1000, 0, Residency.SOME, looping=True)
    assert rooms.resident == {"small", "second", "third", "last"}
    assert rooms.staying == 832


@pytest.mark.parametrize("rows, held", [(512, 0), (1024, 512), (4096, 0)])
def test_some_is_neither_less_than_half_nor_all(rows, held):
    with pytest.raises(DoesNotFit, match="rows of weights"):
        divide_weights(TILES, rows, held, Residency.SOME, looping=True)
