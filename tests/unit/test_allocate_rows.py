"""Rows of all sizes: both kernels give what a plain programme gives, wherever options lie."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core.allocate.pack import Family
from controller.core.allocate.problem import Forest, Problem
from controller.core.allocate.rows import alike, best_within, least_of, room_of

SCALES = [3, 1000, 1 << 40]  # the last needs wide integers


def drawn(seed, scale, most=9):
    """Hosts whose children share their levels; these may repeat, and values may fall."""
    rng = np.random.default_rng(seed)
    b, n, h = (int(rng.integers(1, top)) for top in (6, 7, most))
    level = np.cumsum(rng.integers(0, 5, (b, n, 1)), axis=0)
    value = rng.integers(-scale, scale + 1, (b, n, h))
    dtype = np.int32 if scale < 1 << 30 and rng.random() < 0.5 else np.int64
    return Problem(value.astype(dtype), level, level[0].sum() + rng.integers(0, 40, h))


def by_host(problem):
    level = np.broadcast_to(problem.level, problem.value.shape).copy()
    return Problem(problem.value, level, problem.capacity)


def plain(problem, host):
    """The best gain within each state, VM by VM and state by state."""
    room = int(room_of(problem)[host])
    best = [0] * (room + 1)
    for slot in range(problem.slots):
        weight = problem.level[:, slot, 0] - problem.level[0, slot, 0]
        gain = problem.value[:, slot, host].astype(np.int64) - problem.value[0, slot, host]
        options = list(zip(weight.tolist(), gain.tolist(), strict=True))
        best = [
            max(best[state - w] + g for w, g in options if w <= state) for state in range(room + 1)
        ]
    return best


def asked(problem, seed):
    """Some states of each host, the widest among them."""
    rng = np.random.default_rng(seed)
    host = np.repeat(np.arange(problem.hosts), 3)
    room = room_of(problem)[host]
    return np.where(np.arange(host.size) % 3, rng.integers(0, room + 1), room), host


@settings(deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from(SCALES))
def test_both_kernels_give_what_a_plain_programme_gives(seed, scale):
    problem = drawn(seed, scale)
    state, host = asked(problem, seed)
    expected = [plain(problem, h)[s] for s, h in zip(state.tolist(), host.tolist(), strict=True)]
    assert best_within(problem, state, host).tolist() == expected
    if problem.hosts > 1:
        assert best_within(by_host(problem), state, host).tolist() == expected


def test_a_bin_repeated_in_the_middle_hides_none_behind_it():
    """What a bin repeats is left out, and what comes after it is not."""
    level = np.array([1, 1, 2, 4]).reshape(4, 1, 1)
    problem = Problem(np.array([[[0, 0]], [[0, 0]], [[3, 2]], [[9, 8]]]), level, np.array([4, 4]))
    state, host = np.array([3, 3]), np.array([0, 1])
    assert best_within(problem, state, host).tolist() == [9, 8]
    assert best_within(by_host(problem), state, host).tolist() == [9, 8]


@pytest.mark.parametrize("scale", SCALES)
def test_long_rows_of_many_slots_are_the_same_in_both_kernels(scale):
    rng = np.random.default_rng(4)
    level = np.cumsum(rng.integers(1, 4, (16, 24, 1)), axis=0)
    value = rng.integers(-scale, scale + 1, (16, 24, 40))
    problem = Problem(value, level, level[0].sum() + rng.integers(0, 600, 40))
    state, host = asked(problem, 5)
    by_gathers = best_within(by_host(problem), state, host)
    np.testing.assert_array_equal(best_within(problem, state, host), by_gathers)


@settings(deadline=None)
@given(st.integers(0, 1 << 30))
def test_hosts_of_like_room_are_each_taken_once(seed):
    problem = drawn(seed, 3, most=3000)
    room, every = room_of(problem), np.arange(problem.hosts)
    parts = [every[part] for part in alike(problem, room, every)]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), every)
    assert (np.diff(room[np.concatenate(parts)]) >= 0).all()


@settings(deadline=None)
@given(st.integers(0, 1 << 30))
def test_what_is_packed_is_what_the_children_have(seed):
    rng = np.random.default_rng(seed)
    forest = flat_forest(rng)
    blocked = np.where(forest.parent < 0, 0, rng.integers(0, 2, forest.parent.size))
    blocked = np.minimum(blocked, np.maximum(np.diff(forest.first) - 1, 0))
    family, seen = Family(forest), []
    for batch, bins, slots in family.batches(forest.roots, blocked):
        capacity = forest.capacity[batch]
        packed = family.pack(batch, bins, slots, forest.value, blocked, capacity)
        seen += batch.tolist()
        for host, parent in enumerate(batch.tolist()):
            there = packed.child[host][packed.child[host] >= 0]
            np.testing.assert_array_equal(there, np.flatnonzero(forest.parent == parent))
            check_packed(forest, packed, host, blocked)
    assert sorted(seen) == forest.roots.tolist()


def flat_forest(rng):
    """Roots with a few children each, of one grid or of several."""
    roots = int(rng.integers(1, 8))
    parent = np.concatenate(
        [np.full(roots, -1), np.sort(rng.integers(0, roots, 2 * roots)), np.arange(roots)]
    )
    options = np.where(parent < 0, 0, rng.integers(1, int(rng.choice([2, 4, 20])), parent.size))
    first = np.append(0, np.cumsum(options))
    steps = rng.integers(1, int(rng.choice([2, 5])), int(first[-1]))
    level = np.concatenate([np.cumsum(one) for one in np.split(steps, first[1:-1])])
    return Forest(
        parent=parent,
        capacity=np.full(parent.size, 50),
        overhead=np.zeros(parent.size, dtype=np.int64),
        first=first,
        level=level.astype(np.int64),
        value=rng.integers(-9, 10, level.size),
    )


def check_packed(forest, packed, host, blocked):
    """Each child's options, the last repeated; nothing where there is no child."""
    problem = packed.problem
    level = np.broadcast_to(problem.level, problem.value.shape)
    for slot, child in enumerate(packed.child[host].tolist()):
        if child < 0:
            assert not problem.value[:, slot, host].any()
            assert not level[:, slot, host].any()
            continue
        places = np.arange(forest.first[child] + blocked[child], forest.first[child + 1])
        places = places[np.minimum(np.arange(problem.bins), places.size - 1)]
        np.testing.assert_array_equal(problem.value[:, slot, host], forest.value[places])
        np.testing.assert_array_equal(level[:, slot, host], forest.level[places])
    assert least_of(problem)[host] == level[0, :, host].sum()
