"""The cascade against a plain dynamic programme, and what each of its stages promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core.allocate.block import Memory, blocks_of, picked
from controller.core.allocate.bound import Keys, bound
from controller.core.allocate.concave import is_concave
from controller.core.allocate.problem import (
    NOTHING,
    VALUE_MAX,
    Problem,
    ProblemError,
    Status,
    checked,
)
from controller.core.allocate.solve import solve


def plain_dp(problem):
    """(h,) the optimum by the textbook recursion over all capacities; NOTHING: infeasible."""
    best = []
    for host in range(problem.hosts):
        level = np.broadcast_to(problem.level, problem.value.shape)[:, :, host].astype(np.int64)
        room = int(problem.capacity[host])
        row = np.zeros(max(room, 0) + 1, dtype=np.int64)
        for slot in range(problem.slots):
            after = np.full_like(row, NOTHING)
            for w, v in zip(level[:, slot], problem.value[:, slot, host], strict=True):
                if w < row.size:
                    after[w:] = np.maximum(after[w:], row[: row.size - w] + int(v))
            row = after
        best.append(int(row[-1]) if room >= 0 and row[-1] > NOTHING // 2 else NOTHING)
    return np.array(best)


def drawn(seed, hosts=40, slots=None, bins=None, scale=None):
    """A batch of one of several families, from a seed."""
    rng = np.random.default_rng(seed)
    n, b = slots or int(rng.integers(1, 9)), bins or int(rng.integers(1, 20))
    shape = [(b, 1, 1), (b, n, 1), (b, n, hosts)][rng.integers(3)]
    level = np.cumsum(rng.integers(rng.integers(2), 6, shape), axis=0)  # some as light as others
    if rng.random() < 0.3:
        level = (np.arange(b) * rng.integers(1, 4) + rng.integers(0, 3)).reshape(b, 1, 1)
    scale = scale or int(10 ** rng.integers(0, 6))
    value = rng.integers(-scale, scale + 1, (b, n, hosts))
    family = rng.integers(4)
    if family == 1:
        value = np.sort(value, axis=0)
    elif family == 2:  # strongly correlated
        value = np.broadcast_to(level, value.shape) * 7 + rng.integers(0, 3, value.shape)
    elif family == 3:  # concave
        value = np.cumsum(-np.sort(-value, axis=0), axis=0)
    most = int(np.broadcast_to(level[-1], (n, hosts)).sum(axis=0).max())
    return Problem(value, level.astype(np.int32), rng.integers(-1, most + 3, hosts))


def assert_consistent(problem, found):
    """What is claimed about the chosen bins is so."""
    hosts = np.arange(problem.hosts)
    feasible = found.status != Status.INFEASIBLE
    value = picked(problem.value, found.bin, hosts).sum(axis=0, dtype=np.int64)
    weight = picked(problem.level, found.bin, hosts)
    weight = np.broadcast_to(weight, found.bin.shape).sum(axis=0, dtype=np.int64)
    np.testing.assert_array_equal(value[feasible], found.value[feasible])
    assert (weight <= problem.capacity)[feasible].all()
    assert (found.bound >= found.value).all()


@pytest.mark.parametrize("seed", range(60))
def test_finds_the_optimum_and_says_so(seed):
    problem = checked(drawn(seed))
    found = solve(problem)
    best = plain_dp(problem)
    np.testing.assert_array_equal(found.value, best)
    assert_consistent(problem, found)
    np.testing.assert_array_equal(found.status == Status.INFEASIBLE, best == NOTHING)
    assert (found.status != Status.BUDGET).all()
    np.testing.assert_array_equal(found.bound, found.value)


@pytest.mark.parametrize("seed", range(60, 75))
def test_numbers_too_wide_for_32_bits_are_solved_as_exactly(seed):
    problem = drawn(seed, hosts=15, scale=VALUE_MAX // 100)
    np.testing.assert_array_equal(solve(problem).value, plain_dp(problem))


@settings(deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 39))
def test_a_host_has_the_same_solution_in_every_batch(seed, cut):
    problem = drawn(seed)
    whole = solve(problem)
    for part in (slice(0, cut), slice(cut, None)):
        alone = solve(problem.of(part))
        np.testing.assert_array_equal(alone.bin, whole.bin[:, part])
        np.testing.assert_array_equal(alone.price, whole.price[part])
        np.testing.assert_array_equal(alone.status, whole.status[part])


@settings(deadline=None)
@given(st.integers(0, 1 << 30))
def test_the_first_solution_fits_and_the_bound_holds(seed):
    problem = drawn(seed, hosts=8)
    best = plain_dp(problem)
    for hosts, block in blocks_of(problem, 0, problem.hosts, Memory()):
        first = bound(block, Keys(block, Memory()))
        feasible = block.room >= 0
        assert (first.weight <= block.room)[feasible].all()
        assert (block.base + first.gain <= best[hosts])[feasible].all()
        assert (block.base + (first.bound >> block.shift) >= best[hosts])[feasible].all()


@settings(deadline=None)
@given(st.integers(0, 1 << 30), st.integers(0, 200))
def test_a_small_budget_gives_the_best_found_and_how_far_it_may_be(seed, budget):
    problem = drawn(seed, hosts=10)
    found, best = solve(problem, budget=budget), plain_dp(problem)
    assert_consistent(problem, found)
    assert (found.value <= best).all()
    assert (found.bound >= best).all()
    proven = found.status <= Status.OPTIMAL_BY_SEARCH
    np.testing.assert_array_equal(found.value[proven], best[proven])


def test_machines_that_are_alike_are_filled_up_even_without_a_search():
    """At the price where all of them change their minds, one by one would leave room unused."""
    rng = np.random.default_rng(1)
    level = np.array([1, 2, 40, 41]).reshape(4, 1, 1)
    value = np.array([0, 10, 4000, 4005]).reshape(4, 1, 1) + rng.integers(0, 3, (4, 60, 5))
    found = solve(Problem(value, level, np.array([700, 800, 900, 1000, 1100])), budget=0)
    assert (found.value > 0.94 * found.bound).all()


def test_a_budget_of_nothing_leaves_some_hosts_open():
    problem = drawn(4, hosts=200, slots=8, bins=16, scale=100_000)
    status = solve(problem, budget=0).status
    assert (status == Status.BUDGET).any()
    assert (status == Status.OPTIMAL_BY_BOUND).any()


@settings(deadline=None)
@given(st.integers(0, 1 << 30))
def test_old_prices_change_no_value(seed):
    problem = drawn(seed, hosts=12)
    before = solve(problem)
    rng = np.random.default_rng(seed)
    changed = Problem(
        problem.value + rng.integers(-3, 4, problem.value.shape), *(problem.level, problem.capacity)
    )
    warm = solve(changed, warm=before)
    np.testing.assert_array_equal(warm.value, solve(changed).value)
    assert_consistent(changed, warm)


def test_concave_hosts_are_recognised_and_need_no_proof():
    rng = np.random.default_rng(5)
    steps = -np.sort(-rng.integers(-5, 50, (15, 6, 30)), axis=0)
    value = np.concatenate([np.zeros((1, 6, 30), int), np.cumsum(steps, axis=0)])
    value[7, 2, 11] -= 60  # one host is not concave
    level = np.arange(16).reshape(16, 1, 1) * 3 + 2
    problem = Problem(value, level, rng.integers(12, 300, 30))
    [(_, block)] = blocks_of(problem, 0, 30, Memory())
    assert np.flatnonzero(~is_concave(block)).tolist() == [11]
    found = solve(problem)
    np.testing.assert_array_equal(found.value, plain_dp(problem))
    assert_consistent(problem, found)


def test_a_full_host_has_a_price():
    """Without any room the lightest bins are proven by the price that nobody would pay."""
    value = np.array([[0, 0], [30, 50], [40, 60]])[:, :, None]
    found = solve(Problem(value, np.array([2, 3, 5]).reshape(3, 1, 1), np.array([4])))
    assert found.value.tolist() == [0]
    assert found.status.tolist() == [Status.OPTIMAL_BY_BOUND]
    assert found.price_per_quantum()[0] >= 50


def test_of_equal_solutions_the_smaller_levels_are_chosen():
    value = np.array([[0, 0], [5, 5], [5, 5]])[:, :, None]
    problem = Problem(value, np.array([1, 2, 3]).reshape(3, 1, 1), np.array([6]))
    assert solve(problem).bin[:, 0].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (Problem(np.zeros((2, 1, 1), int), np.array([[[3]], [[1]]]), np.array([5])), "ascend"),
        (Problem(np.zeros((2, 1, 1)), np.array([[[1]], [[2]]]), np.array([5])), "integers"),
        (Problem(np.zeros((2, 1, 1), int), np.array([[[-1]], [[2]]]), np.array([5])), "negative"),
        (Problem(np.zeros((300, 1, 1), int), np.zeros((300, 1, 1), int), np.array([5])), "256"),
        (Problem(np.full((1, 1, 1), 1 << 50), np.zeros((1, 1, 1), int), np.array([5])), "exceeds"),
        (Problem(np.zeros((1, 2, 3), int), np.zeros((1, 3, 1), int), np.zeros(3, int)), "fit"),
        (Problem(np.zeros((1, 2, 3), int), np.zeros((1, 1, 1), int), np.zeros(2, int)), "3 hosts"),
    ],
)
def test_what_cannot_be_solved_is_refused_with_its_place(problem, words):
    with pytest.raises(ProblemError, match=words):
        checked(problem)


def test_more_than_62_bits_together_are_refused_with_the_host():
    value = np.zeros((2, 1, 3), dtype=np.int64)
    value[1, 0, 2] = VALUE_MAX
    level = np.zeros((2, 1, 3), dtype=np.int64)
    level[1] = 1
    level[1, 0, 2] = (1 << 31) - 1
    problem = Problem(np.repeat(value, 2, axis=1), np.repeat(level, 2, axis=1), np.full(3, 10))
    problem.level[1, 0, 2] = 1  # one steep VM beside one heavy VM
    with pytest.raises(ProblemError, match="host 2"):
        solve(problem)
