from systolith.compiler.schedule import Region, Step, overlap, prefetch, synchronize
from systolith.isa import Instruction, Unit, semaphore


def step(op, reads=(), writes=(), constant=False):
    regions = [tuple(Region("m", a, b) for a, b in part) for part in (reads, writes)]
    return Step(Instruction(op), *regions, constant)


def masks(steps):
    return [(s.instruction.wait, s.instruction.signal) for s in steps]


L2M = 1 << semaphore(Unit.LOAD, Unit.MATMUL)
M2L = 1 << semaphore(Unit.MATMUL, Unit.LOAD)
L2V = 1 << semaphore(Unit.LOAD, Unit.VECTOR)


def test_a_reader_waits_for_the_writer():
    steps = synchronize([step("load", writes=[(0, 4)]), step("matmul", reads=[(3, 5)])])
    assert masks(steps) == [(0, L2M), (L2M, 0)]


def test_regions_that_only_touch_do_not_conflict():
    steps = synchronize([step("load", writes=[(0, 4)]), step("matmul", reads=[(4, 5)])])
    assert masks(steps) == [(0, 0), (0, 0)]


def test_a_later_signal_covers_earlier_ones():
    first, second = step("load", writes=[(0, 1)]), step("load", writes=[(1, 2)])
    both, again = step("matmul", reads=[(0, 2)]), step("matmul", reads=[(0, 1)])
    assert masks(synchronize([first, second, both, again])) == [(0, 0), (0, L2M), (L2M, 0), (0, 0)]


def test_overwriting_waits_for_the_reader_and_every_consumer_has_its_own_signal():
    steps = synchronize(
        [
            step("load", writes=[(0, 4)]),
            step("matmul", reads=[(0, 2)]),
            step("vector", reads=[(2, 4)]),
            step("load", writes=[(1, 2)]),
        ]
    )
    assert masks(steps) == [(0, L2M | L2V), (L2M, M2L), (L2V, 0), (M2L, 0)]


def timed(op, reads=(), writes=(), constant=False, cycles=100):
    made = step(op, reads, writes, constant)
    made.cycles = cycles
    return made


def test_prefetch_moves_constants_to_where_half_a_queue_of_loads_has_begun():
    work = [timed("matmul", reads=[(50, 51)]) for _ in range(8)]
    loads = [timed("load", writes=[(i, i + 1)], constant=True) for i in range(8)]
    # With a queue of four, two loads are queued at once, then one whenever one has begun.
    order = prefetch([*work, *loads], 4)
    places = [order.index(load) for load in loads]
    assert places[:2] == [0, 1]
    assert places == sorted(places)
    behind = [sum(s is w for w in work for s in order[:place]) for place in places]
    assert behind[2:] == sorted(behind[2:]) and behind[-1] > 2
    assert [s for s in order if s in work] == work


def test_prefetch_keeps_semaphores_from_running_over():
    places = [[(i, i + 1)] for i in range(400)]
    work = [timed("matmul", reads=place, cycles=1000) for place in places]
    loads = [timed("load", writes=place, constant=True, cycles=1) for place in places]
    order = prefetch([s for pair in zip(loads, work, strict=True) for s in pair], 8)
    ahead = most = 0
    for s in order:
        ahead += 1 if s.constant else -1
        most = max(most, ahead)
    assert 100 < most < 200


def test_prefetch_stops_at_conflicts_and_moves_constants_alone():
    use, other = timed("matmul", reads=[(8, 9)]), timed("vector", reads=[(4, 5)])
    blocked = timed("load", writes=[(8, 9)], constant=True)
    assert prefetch([use, other, blocked], 8) == [use, blocked, other]
    fixed = timed("load", writes=[(20, 21)])
    assert prefetch([use, other, fixed], 8) == [use, other, fixed]
    first = timed("load", writes=[(1, 2)], constant=True)
    second = timed("load", writes=[(8, 9)], constant=True)
    third = timed("load", writes=[(2, 3)], constant=True)
    assert prefetch([use, first, second, third], 8) == [first, use, second, third]


def test_overlap_marks_what_reads_nothing_unfinished():
    steps = [
        step("vector", writes=[(0, 4)]),  # nothing is known of what comes before
        step("softmax", reads=[(8, 9)], writes=[(4, 8)]),
        step("matmul", reads=[(4, 8)], writes=[(20, 24)]),
        step("norm", reads=[(20, 22)], writes=[(9, 10)]),
        step("vector", reads=[(3, 4)], writes=[(10, 11)]),  # of the first, three before
        step("vector", reads=[(4, 8)]),  # finished, as the one before waited for everything
        step("branch"),
        step("vector"),
        step("vector"),
    ]
    steps[5].target = steps[8]
    marks = [s.instruction.get("independent") for s in overlap(steps) if s.unit == Unit.VECTOR]
    assert marks == [0, 1, 1, 0, 1, 0, 0]
