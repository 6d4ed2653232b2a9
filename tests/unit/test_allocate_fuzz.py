"""A share of `make fuzz`: always the same batches; and that the fuzz sees what is wrong."""

from dataclasses import replace

import allocate_checks as checks
import allocate_tree_checks as tree_checks
import numpy as np
from allocate_families import Case, draw_forest
from allocate_shrink import as_code, shrunk
from fuzz_allocate import run, run_batches, summary

from controller.core.allocate.problem import Problem
from controller.core.allocate.solve import solve
from controller.core.allocate.tree import solve_tree

BATCHES = 160  # some ten seconds


def test_random_hosts_and_trees_equal_the_oracle():
    report = run_batches(2, range(BATCHES))
    assert report.failed == {}
    tally = report.tally
    assert tally.hosts > 30_000 and tally.trees > 200
    assert min(tally.infeasible, tally.searched, tally.stopped) > 100, summary(report, 2, 1.0)
    assert tally.refused <= tally.hosts * 0.05


def test_the_program_ends_with_its_hosts_and_says_what_it_saw():
    report = run(3, hosts=500, seconds=60.0, processes=1)
    assert report.failed == {} and report.tally.hosts >= 500
    assert f"{report.tally.hosts:,} hosts and" in summary(report, 3, 1.0)


def host():
    value = np.array([[0, 0, 0], [10, 6, 3], [11, 13, 4]]).reshape(3, 3, 1)
    return Problem(value, np.array([0, 2, 3]).reshape(3, 1, 1), np.array([5]))


def test_each_check_sees_what_it_is_for():
    problem = host()
    good = solve(problem)
    best = np.array([23])
    case = Case(problem, "by hand", dense=True)
    assert checks._wrong(case, good, best) == []
    other = good.bin.copy()
    other[2] = 2
    wrongs = {
        "claimed value": replace(good, value=best + 1),
        "weight": replace(good, bin=other),
        "bound below the optimum": replace(good, bound=best - 1),
        "feasibility": replace(good, status=np.array([2], dtype=np.uint8)),
        "not optimal": replace(good, status=np.array([3], dtype=np.uint8)),
        "value": replace(good, bin=other * 0, value=best * 0, bound=best * 0),
        "price": replace(good, price=-best),
    }
    for what, solution in wrongs.items():
        assert what in {wrong.what for wrong in checks._wrong(case, solution, best)}


def test_each_check_of_trees_sees_what_it_is_for():
    forest = draw_forest(np.random.default_rng(4), 20)
    good = solve_tree(forest)
    best = good.value.tolist()
    assert tree_checks.wrong_trees(forest, good, best) == []
    place = next(p for p in range(len(best)) if good.status[p] < 2 and best[p])
    root = int(forest.roots[place])
    child = int(np.flatnonzero(forest.parent == root)[0])
    there = np.arange(len(best)) == place
    here = np.arange(len(forest.parent)) == child
    wrongs = {
        "claimed value": replace(good, value=good.value + there),
        "below the optimum": replace(good, bound=good.bound - there),
        "level not its own": replace(good, level=good.level + here),
        "feasibility": replace(good, status=np.where(there, 2, good.status).astype(np.uint8)),
        "not optimal": replace(good, status=np.where(there, 3, good.status).astype(np.uint8)),
    }
    for what, solution in wrongs.items():
        (wrong,) = tree_checks.wrong_trees(forest, solution, best)
        assert what in wrong.what and wrong.host == root


def test_a_failing_host_becomes_small():
    """With a stand-in for a fault: a host fails as long as some value is 13 or more."""
    small = shrunk(host(), lambda problem: problem.value.max() > 12)
    assert small.value.shape == (1, 1, 1)
    assert "np.array([[13]])" in as_code(small)
    assert shrunk(host(), lambda _problem: False).value.shape == (3, 3, 1)
