"""Combinations of resources: against enumeration and a dense table, proven bounds, budgets."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core.allocate.coupled import solve_coupled
from controller.core.allocate.coupled_flavours import MISSING, Table, bins_of, flavours
from controller.core.allocate.coupled_problem import CoupledProblem, checked_coupled
from controller.core.allocate.problem import NOTHING, ProblemError, Status

FAMILIES = ("random", "ties", "correlated", "huge", "forbidden", "worthless")


def random_problem(rng, family, *, resources, options=6, slots=5, hosts=12, widest=20):
    shape = (resources, options, int(rng.choice([1, slots])), int(rng.choice([1, hosts])))
    level = rng.integers(0, widest + 1, shape)
    full = np.broadcast_to(level, (resources, options, slots, hosts))
    vms = (options, slots, hosts)
    value = {
        "random": rng.integers(-50, 1000, vms),
        "ties": rng.integers(0, 3, vms),
        "correlated": 10 * full.sum(axis=0) + rng.integers(0, 6, vms),
        "huge": rng.integers(-(1 << 40), 1 << 40, vms),
        "forbidden": np.where(rng.random(vms) < 0.2, -(1 << 40), rng.integers(0, 900, vms)),
        "worthless": np.zeros(vms, dtype=np.int64),
    }[family]
    capacity = full.mean(axis=1).sum(axis=1) * rng.uniform(0.1, 1.3, (resources, hosts))
    return CoupledProblem(value, level, capacity.astype(np.int64))


def utility_problem(seed, *, slots=20, hosts=16, bins=6, capacity=60):
    """What VMs are worth with diminishing returns, a min-type part and a cost to move."""
    rng = np.random.default_rng(seed)
    level = np.arange(1, bins + 1)[:, None, None]
    tables = []
    for _ in range(2):
        mean = rng.uniform(0.5, bins, (1, slots, hosts))
        worth = 1000 * mean * (1 - np.exp(-level / mean)) - 150 * level
        now = rng.integers(1, bins // 2 + 1, (slots, hosts))
        tables.append(Table(np.rint(worth).astype(np.int64), level, np.full(hosts, capacity), now))
    return flavours(tuple(tables), move=300, share_per_mille=500)


def hard_problem(seed, *, slots=12, hosts=6):
    """Worth hardly more than size: bounds prove little, and searches are long."""
    rng = np.random.default_rng(seed)
    level = rng.integers(20, 200, (2, 6, slots, hosts))
    value = level.sum(axis=0) + rng.integers(0, 3, (6, slots, hosts))
    return CoupledProblem(value, level, np.full((2, hosts), 100 * slots + 1))


def best_by_enumeration(problem, host):
    """The greatest value of a selection that fits, by trying all; NOTHING: none fits."""
    options, slots, _ = problem.value.shape
    level = np.broadcast_to(problem.level, (len(problem.level), *problem.value.shape))[..., host]
    vm = np.arange(slots)
    best = NOTHING
    for pick in itertools.product(range(options), repeat=slots):
        if (level[:, pick, vm].sum(axis=1) <= problem.capacity[:, host]).all():
            best = max(best, int(problem.value[pick, vm, host].sum()))
    return best


def best_by_table(problem, host):
    """The same by a dense table of the capacity that is left, one axis per resource."""
    level = np.broadcast_to(problem.level, (len(problem.level), *problem.value.shape))[..., host]
    if (problem.capacity[:, host] < 0).any():
        return NOTHING
    best = np.zeros(problem.capacity[:, host] + 1, dtype=np.int64)
    for slot in range(problem.value.shape[1]):
        before, best = best, np.full_like(best, NOTHING)
        for option, value in enumerate(problem.value[:, slot, host]):
            step = level[:, option, slot]
            if (step >= best.shape).any():
                continue
            to = tuple(slice(int(s), None) for s in step)
            at = tuple(slice(0, n - int(s)) for n, s in zip(best.shape, step, strict=True))
            reached = np.where(before[at] > NOTHING, before[at] + value, NOTHING)
            best[to] = np.maximum(best[to], reached)
    return int(best.max())


def assert_honest(problem, solution):
    """Values and bounds are what the options and the prices say, and everything fits."""
    _, slots, hosts = problem.value.shape
    level = np.broadcast_to(problem.level, (len(problem.level), *problem.value.shape))
    host, vm = np.arange(hosts), np.arange(slots)[:, None]
    have = solution.value > NOTHING
    value = problem.value[solution.option, vm, host].sum(axis=0)
    taken = level[:, solution.option, vm, host].sum(axis=1)
    assert (value[have] == solution.value[have]).all()
    assert (taken <= problem.capacity)[:, have].all()
    assert (solution.option[:, ~have] == 0).all()
    assert (solution.price >= 0).all()
    # The multipliers by themselves prove a bound; recomputed in exact integers of any size.
    price, shift = solution.price.astype(object), solution.shift.astype(object)
    cost = (price[:, None, None] * level).sum(axis=0)
    reduced = problem.value.astype(object) * 2**shift - cost
    total = reduced.max(axis=0).sum(axis=0) + (price * problem.capacity).sum(axis=0)
    feasible = solution.status != Status.INFEASIBLE
    assert (solution.bound[feasible] <= (total // 2**shift)[feasible]).all()
    by_bound = solution.status == Status.OPTIMAL_BY_BOUND
    assert (solution.bound[by_bound] == solution.value[by_bound]).all()


def assert_optimal(problem, solution, best):
    assert_honest(problem, solution)
    for host, value in enumerate(best):
        assert int(solution.value[host]) == value, host
        expected = value == NOTHING
        assert (solution.status[host] == Status.INFEASIBLE) == expected, host
        if not expected:
            assert Status(solution.status[host]).optimal
            assert int(solution.bound[host]) == value


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("resources", [1, 2, 3])
def test_equals_a_dense_table(family, resources):
    rng = np.random.default_rng([resources, FAMILIES.index(family)])
    seen = set()
    for _ in range(4):
        widest = {1: 300, 2: 20, 3: 5}[resources]
        problem = random_problem(rng, family, resources=resources, widest=widest)
        solution = solve_coupled(checked_coupled(problem))
        best = [best_by_table(problem, host) for host in range(problem.value.shape[2])]
        assert_optimal(problem, solution, best)
        seen |= set(solution.status.tolist())
    assert Status.INFEASIBLE in seen and len(seen) > 1


small = st.integers(1, 3)


@settings(max_examples=150, deadline=None)
@given(st.data(), small, st.integers(1, 4), st.integers(1, 4), small)
def test_equals_enumeration(data, resources, options, slots, hosts):
    def draw(shape, least, most):
        size = int(np.prod(shape))
        drawn = data.draw(st.lists(st.integers(least, most), min_size=size, max_size=size))
        return np.array(drawn, dtype=np.int64).reshape(shape)

    shared = data.draw(st.booleans())
    level = draw((resources, options, 1 if shared else slots, 1 if shared else hosts), 0, 6)
    capacity = draw((resources, hosts), -1, 14)
    problem = CoupledProblem(draw((options, slots, hosts), -9, 9), level, capacity)
    best = [best_by_enumeration(problem, host) for host in range(hosts)]
    assert_optimal(problem, solve_coupled(problem), best)


def test_equals_a_dense_table_where_moves_and_minima_couple():
    problem = utility_problem(3)
    solution = solve_coupled(problem)
    best = [best_by_table(problem, host) for host in range(problem.value.shape[2])]
    assert_optimal(problem, solution, best)
    assert {Status.OPTIMAL_BY_BOUND, Status.OPTIMAL_BY_SEARCH} == set(solution.status.tolist())


def test_levels_of_very_different_size():
    """Millions of quanta of one resource beside a handful of another."""
    rng = np.random.default_rng(8)
    level = np.stack([rng.integers(0, 5, (5, 5, 8)), rng.integers(1 << 29, 1 << 31, (5, 5, 8))])
    capacity = (level.mean(axis=1).sum(axis=1) * rng.uniform(0.8, 1.1, (2, 8))).astype(np.int64)
    problem = CoupledProblem(rng.integers(0, 50, (5, 5, 8)), level, capacity)
    best = [best_by_enumeration(problem, host) for host in range(8)]
    assert_optimal(problem, solve_coupled(checked_coupled(problem)), best)


@pytest.mark.parametrize(
    ("make", "budget"),
    [
        (utility_problem, 1 << 18),
        (hard_problem, 300),
        # More states than are made together.
        (lambda seed: hard_problem(seed, slots=24, hosts=16), 20_000),
    ],
)
def test_a_host_does_not_depend_on_its_neighbours(make, budget):
    problem = make(5)
    hosts = problem.value.shape[2]
    together = solve_coupled(problem, budget=budget)
    for chosen in (*(np.array([host]) for host in range(hosts)), np.arange(hosts)[::-2]):
        alone = solve_coupled(problem.of(chosen), budget=budget)
        for name in ("option", "value", "bound", "price", "shift", "status"):
            assert (getattr(alone, name) == getattr(together, name)[..., chosen]).all(), name


def test_a_budget_caps_the_work_and_still_bounds():
    problem = hard_problem(1)
    solutions = [solve_coupled(problem, budget=budget) for budget in (0, 10, 1000, 10**5, 10**6)]
    for solution in solutions:
        assert_honest(problem, solution)
        short = solution.status == Status.BUDGET
        assert (solution.value[short] < solution.bound[short]).all()
        assert (solution.value <= solutions[-1].bound).all()
        assert (solution.bound >= solutions[-1].value).all()
    assert (solutions[0].status == Status.BUDGET).any()
    for less, more in itertools.pairwise(solutions):
        assert (more.bound <= less.bound).all()
    assert all(Status(status).optimal for status in solutions[-1].status)


def test_what_cannot_fit_is_proven_though_each_resource_alone_would():
    # Each VM takes 3 of one resource or of the other, and both have room for one VM of three.
    level = np.array([[3, 0], [0, 3]])[:, :, None, None]
    problem = CoupledProblem(np.zeros((2, 3, 2), dtype=np.int64), level, np.array([[5, 6], [5, 5]]))
    solution = solve_coupled(problem)
    assert solution.status.tolist() == [Status.INFEASIBLE, Status.OPTIMAL_BY_BOUND]
    assert solution.value.tolist() == [NOTHING, 0]
    assert solution.bound.tolist() == [NOTHING, 0]


def test_equal_selections_always_come_out_the_same():
    problem = CoupledProblem(
        np.zeros((4, 3, 2), dtype=np.int64),
        np.zeros((2, 4, 1, 1), dtype=np.int64),
        np.zeros((2, 2)),
    )
    problem = CoupledProblem(problem.value, problem.level, problem.capacity.astype(np.int64))
    assert (solve_coupled(problem).option == 0).all()


@pytest.mark.parametrize("shape", [(3, 0, 2), (3, 2, 0)])
def test_no_vms_or_no_hosts(shape):
    capacity = np.array([[4, -1], [4, 4]])[:, : shape[2]]
    problem = CoupledProblem(np.zeros(shape, dtype=np.int64), np.ones((2, 3, 1, 1), int), capacity)
    solution = solve_coupled(checked_coupled(problem))
    assert solution.value.tolist() == [0, NOTHING][: shape[2]]
    assert solution.option.shape == shape[1:]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"value": np.zeros((2, 3))}, "three axes"),
        ({"value": np.full((2, 3, 4), np.nan)}, "float64, integers are needed"),
        ({"level": np.zeros((2, 2, 2, 1), int)}, "do not fit"),
        ({"capacity": np.zeros((2, 5), int)}, "capacities"),
        ({"capacity": np.zeros((4, 4), int), "level": np.ones((4, 2, 3, 4), int)}, "4 resources"),
        ({"level": (1, 1, 2, 3, -1)}, "host 3, slot 2, option 1: the level of resource 1 is neg"),
        ({"level": (0, 1, 0, 2, 1 << 31)}, "host 2, slot 0, option 1: the level of resource 0 exc"),
        ({"value": (1, 2, 3, -(1 << 41))}, "host 3, slot 2, option 1: the value exceeds"),
        ({"value": np.zeros((257, 3, 4), int)}, "257 options"),
        ({"value": np.zeros((2, 1 << 17, 4), int)}, "131072 slots"),
    ],
)
def test_bad_input_is_named(change, says):
    parts = {
        "value": np.zeros((2, 3, 4), int),
        "level": np.ones((2, 2, 3, 4), int),
        "capacity": np.full((2, 4), 9),
    }
    for name, new in change.items():
        if isinstance(new, tuple):
            parts[name][new[:-1]] = new[-1]
        else:
            parts[name] = new
    with pytest.raises(ProblemError, match=says):
        checked_coupled(CoupledProblem(**parts))


def test_flavours_pay_a_move_once_and_count_the_minimum():
    level = np.array([1, 2])[:, None, None]
    values = np.array([[10], [30]])[:, :, None]
    tables = (
        Table(values, level, np.array([4]), now=np.array([[1]])),
        Table(values * 2, level * 3, np.array([6]), now=np.array([[3]])),
    )
    problem = flavours(tables, move=7, share_per_mille=250)
    assert problem.level[:, :, 0, 0].tolist() == [[1, 1, 2, 2], [3, 6, 3, 6]]
    # 10 + 20 + 2 stays; the others pay 7 once, whether one resource changes or both.
    assert problem.value[:, 0, 0].tolist() == [32, 10 + 60 + 2 - 7, 30 + 20 + 5 - 7, 90 + 7 - 7]
    solution = solve_coupled(problem)
    assert solution.value.tolist() == [90]
    assert bins_of(tables, solution.option).ravel().tolist() == [1, 1]
    assert solution.price_per_quantum().tolist() == [[0.0], [0.0]]


def test_flavours_of_a_new_vm_all_pay():
    level = np.array([1, 2])[:, None, None]
    value = np.array([5, 6])[:, None, None]
    table = Table(value, level, np.array([4]), now=np.array([[MISSING]]))
    assert flavours((table,), move=2).value.ravel().tolist() == [3, 4]


def test_flavours_are_bounded_and_agree_on_their_vms():
    table = Table(np.zeros((7, 2, 1), int), np.arange(7)[:, None, None], np.array([4]))
    with pytest.raises(ProblemError, match="7 x 7 x 7 combinations"):
        flavours((table,) * 3)
    other = Table(np.zeros((7, 3, 1), int), table.level, table.capacity)
    with pytest.raises(ProblemError, match="resource 1 has values of shape"):
        flavours((table, other))
    with pytest.raises(ProblemError, match="at least one"):
        flavours(())
