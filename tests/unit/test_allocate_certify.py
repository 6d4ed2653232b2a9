"""The certificate sees every kind of false claim; `resolve` is as exact as solving anew."""

from dataclasses import replace

import numpy as np
import pytest
from allocate_families import draw_case
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core.allocate.certify import audit, certify
from controller.core.allocate.problem import Problem, Status
from controller.core.allocate.resolve import resolve
from controller.core.allocate.solve import solve


def case(seed):
    return draw_case(np.random.default_rng(seed)).problem


def small():
    """Two hosts: one closed by its bound, one where a gap is left and the search decides."""
    value = np.array([[[0, 0], [0, 0], [0, 0]], [[10, 60], [20, 100], [30, 120]]])
    level = np.array([[[0], [0], [0]], [[10], [20], [30]]])
    return Problem(value, level, np.array([60, 50]))


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 1 << 30))
def test_what_the_solver_claims_holds(seed):
    problem = case(seed)
    found = solve(problem)
    seen = certify(problem, found)
    assert seen.holds.all()
    short = np.flatnonzero(problem.capacity < 10_000)  # an audit takes a place per quantum
    assert audit(problem.of(short), found.of(short)).all()


def test_a_price_proves_what_the_bound_closed_and_not_what_was_searched():
    problem = small()
    found = solve(problem)
    assert found.status.tolist() == [Status.OPTIMAL_BY_BOUND, Status.OPTIMAL_BY_SEARCH]
    assert found.value.tolist() == [60, 220]
    assert certify(problem, found).proven.tolist() == [True, False]


@pytest.mark.parametrize(
    ("claim", "check"),
    [
        ({"value": np.array([61, 220]), "bound": np.array([61, 220])}, "value"),
        ({"bin": np.ones((3, 2), np.uint8), "value": np.array([60, 280])}, "fits"),
        ({"bound": np.array([60, 219])}, "bound"),
        ({"bin": np.zeros((3, 2), np.uint8), "value": np.zeros(2, int)}, "bound"),
        ({"status": np.array([0, Status.INFEASIBLE], np.uint8)}, "value"),
    ],
)
def test_a_false_claim_is_seen(claim, check):
    problem = small()
    seen = certify(problem, replace(solve(problem), **claim))
    assert not getattr(seen, check).all()
    assert not seen.holds.all()


def test_a_worse_solution_that_calls_itself_optimal_fails_the_audit():
    problem = small()
    worse = replace(
        solve(problem),
        bin=np.array([[1, 0], [1, 0], [1, 1]], np.uint8),
        value=np.array([60, 120]),
        bound=np.array([60, 120]),
    )
    assert certify(problem, worse).holds.all(), "no price can tell"
    assert audit(problem, worse).tolist() == [True, False]


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 1 << 30), st.floats(0, 1), st.integers(0, 20))
def test_after_a_change_the_new_solution_is_as_exact(seed, share, size):
    problem = case(seed)
    rng = np.random.default_rng(seed)
    before = solve(problem)
    changed = rng.random(problem.hosts) < share
    value = problem.value.astype(np.int64)
    value[..., changed] += rng.integers(-size, size + 1, value[..., changed].shape)
    after = Problem(value, problem.level, problem.capacity + rng.integers(-2, 3) * changed)
    found, anew = resolve(after, before, changed), solve(after)
    np.testing.assert_array_equal(found.value, anew.value)
    np.testing.assert_array_equal(found.bound, anew.bound)
    assert certify(after, found).holds.all()
    np.testing.assert_array_equal(found.bin[:, ~changed], before.bin[:, ~changed])
