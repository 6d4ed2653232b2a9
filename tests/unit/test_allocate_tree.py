"""Nested hosts: both ways up give the same, trees do not touch each other, budgets are honest."""

import numpy as np
import pytest
from allocate_families import draw_forest
from allocate_oracle import best_of_tree
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core.allocate.problem import NOTHING, Forest, Status
from controller.core.allocate.tree import solve_tree


def drawn(seed, trees=6):
    return draw_forest(np.random.default_rng(seed), trees)


def tree_of(forest, root):
    """One tree as a forest of its own."""
    node = [root]
    for parent in node:
        node += np.flatnonzero(forest.parent == parent).tolist()
    node = np.sort(node)
    places = [np.arange(forest.first[one], forest.first[one + 1]) for one in node]
    entries = np.concatenate(places)
    parent = forest.parent[node]
    return Forest(
        parent=np.where(parent < 0, -1, np.searchsorted(node, parent)),
        capacity=forest.capacity[node],
        overhead=forest.overhead[node],
        first=np.concatenate([[0], np.cumsum([len(one) for one in places])]),
        level=forest.level[entries],
        value=forest.value[entries],
    ), node


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1 << 30))
def test_a_tree_has_the_same_solution_in_every_forest(seed):
    forest = drawn(seed)
    whole = solve_tree(forest)
    for place, root in enumerate(forest.roots.tolist()):
        tree, node = tree_of(forest, root)
        alone = solve_tree(tree)
        np.testing.assert_array_equal(alone.level, whole.level[node])
        np.testing.assert_array_equal(alone.price, whole.price[node])
        assert alone.value[0] == whole.value[place]
        assert alone.status[0] == whole.status[place]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1 << 30))
def test_size_by_size_and_by_rows_is_the_same(seed):
    forest = drawn(seed)
    by_rows, by_size = solve_tree(forest), solve_tree(forest, row_work=0)
    np.testing.assert_array_equal(by_size.value, by_rows.value)
    np.testing.assert_array_equal(by_size.bound, by_rows.bound)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1 << 30), st.integers(0, 50), st.sampled_from([0, 1 << 28]))
def test_a_small_budget_never_claims_too_much(seed, budget, row_work):
    forest = drawn(seed)
    found = solve_tree(forest, budget=budget, row_work=row_work)
    for place, root in enumerate(forest.roots.tolist()):
        best = best_of_tree(forest, root)
        if best <= NOTHING // 2:
            assert found.status[place] == Status.INFEASIBLE
            continue
        assert found.value[place] <= best <= found.bound[place]
        if found.status[place] != Status.BUDGET:
            assert found.value[place] == best


def chain(levels, values, capacity, overhead=0, room=None):
    """A host, a hypervisor VM with these options, and in it a guest that takes what there is."""
    guest = list(range(max(levels) + 1))
    return Forest(
        parent=np.array([-1, 0, 1]),
        capacity=np.array([capacity, 0, 0]),
        overhead=np.array([0, overhead, 0]),
        first=np.array([0, 0, len(levels), len(levels) + len(guest)]),
        level=np.array([*levels, *guest]),
        value=np.array([*values, *(10 * one for one in guest)]),
        room=None if room is None else np.array([*room, *guest]),
    )


def test_a_hypervisor_is_worth_its_own_value_and_its_guests():
    found = solve_tree(chain([4, 8], [0, -30], capacity=10, overhead=2))
    assert found.level.tolist() == [-1, 8, 6]
    assert found.value.tolist() == [30]
    assert found.price[2:].tolist() != found.price[2:].tolist(), "a guest has no price"


def test_what_an_option_leaves_to_guests_can_be_said_apart_from_its_level():
    found = solve_tree(chain([4, 8], [0, -30], capacity=10, room=[4, 5]))
    assert found.level.tolist() == [-1, 4, 4]


def test_a_tree_in_which_the_least_does_not_fit_is_infeasible_and_leaves_others_alone():
    forest = Forest(
        parent=np.array([-1, 0, 1, -1, 3]),
        capacity=np.array([9, 0, 0, 3, 0]),
        overhead=np.array([0, 3, 0, 0, 0]),
        first=np.array([0, 0, 1, 2, 2, 3]),
        level=np.array([5, 3, 2]),
        value=np.array([1, 1, 7]),
    )
    found = solve_tree(forest)
    assert found.status.tolist() == [Status.INFEASIBLE, Status.OPTIMAL_BY_BOUND]
    assert found.value.tolist() == [NOTHING, 7]
    assert found.level.tolist() == [-1, -1, -1, -1, 2]
    assert np.isnan(found.price[:2]).all()


@pytest.mark.parametrize("depth", [2, 50])
def test_any_depth(depth):
    """Each hypervisor keeps a quantum for itself; the innermost guest gets what is left."""
    size = 100
    forest = Forest(
        parent=np.arange(-1, depth),
        capacity=np.full(depth + 1, size),
        overhead=np.array([0, *([1] * (depth - 1)), 0]),
        first=np.concatenate([[0], np.arange(depth + 1) * size]),
        level=np.tile(np.arange(1, size + 1), depth),
        value=np.concatenate([np.zeros(size * (depth - 1), int), np.arange(1, size + 1)]),
    )
    found = solve_tree(forest)
    assert found.value.tolist() == [size - depth + 1]
    assert found.level[-1] == size - depth + 1
