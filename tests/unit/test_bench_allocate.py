"""The allocator's benchmark measures what it says: its instances, its peers' models, its rules."""

import importlib
import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from controller.core.allocate.coupled import CoupledProblem, solve_coupled
from controller.core.allocate.problem import Forest, Problem, Status, checked
from controller.core.allocate.solve import solve
from controller.core.allocate.tree import solve_tree

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def bench(monkeypatch):
    """Imports as a script of that folder does."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


def optimum(models, place):
    """By trying every selection."""
    edges = models.group_first.tolist()
    groups = [range(*edge) for edge in itertools.pairwise(edges) if edge[0] < edge[1]]
    best = None
    for taken in itertools.product(*groups):
        weight = np.zeros(len(models.row_limit[place]), np.int64)
        for row in range(len(weight)):
            span = slice(models.row_first[row], models.row_first[row + 1])
            chosen = np.isin(models.row_option[span], taken)
            weight[row] = models.row_weight[place, span][chosen].sum()
        if (weight <= models.row_limit[place]).all():
            value = int(models.value[place, list(taken)].sum())
            best = value if best is None else max(best, value)
    return best


@pytest.mark.parametrize("family", ["use", "concave", "uncorrelated", "unordered", "strong"])
@pytest.mark.parametrize("uniform", [True, False])
def test_a_fleet_is_a_problem_and_its_first_hosts_stay_the_same(bench, family, uniform):
    instances = bench("allocate_instances")
    shape = instances.Shape(family, hosts=600, slots=3, bins=4, capacity=64, uniform=uniform)
    problem = checked(instances.fleet(shape))
    assert problem.value.shape == (4, 3, 600)
    fewer = instances.fleet(replace(shape, hosts=7))
    assert (fewer.value == problem.value[:, :, :7]).all()
    assert (problem.level[1:] > problem.level[:-1]).all()
    assert len(np.unique(problem.value, axis=2)[0, 0]) > 5, "hosts differ"


@pytest.mark.parametrize("uniform", [True, False])
def test_the_peers_model_of_a_host_has_the_same_optimum(bench, uniform):
    instances, models = bench("allocate_instances"), bench("allocate_models")
    shape = instances.Shape("unordered", hosts=8, slots=4, bins=3, capacity=8, uniform=uniform)
    problem = instances.fleet(shape)
    as_models = models.of_hosts(problem.value, [problem.level], problem.capacity[:, None])
    assert [optimum(as_models, host) for host in range(8)] == solve(problem).value.tolist()


def test_the_peers_model_of_coupled_resources_has_the_same_optimum(bench):
    instances, rows = bench("allocate_instances"), bench("allocate_rows")
    drawn = instances.flavours(6, slots=4, sizes=2, capacity=6)
    problem = CoupledProblem(drawn.value, drawn.level[:, :, None, None], drawn.capacity)
    as_models = rows.flavours_as_models(drawn)
    assert [optimum(as_models, host) for host in range(6)] == solve_coupled(problem).value.tolist()


def test_the_peers_model_of_a_tree_has_the_same_optimum(bench):
    """A host with a VM and a hypervisor VM of two guests, twice."""
    models, random = bench("allocate_models"), np.random.default_rng(3)
    one = Forest(
        parent=np.array([-1, 0, 0, 2, 2]),
        capacity=np.array([9, 0, 0, 0, 0]),
        overhead=np.array([1, 0, 1, 0, 0]),
        first=np.array([0, 0, 3, 6, 8, 10]),
        level=np.array([1, 2, 4, 3, 5, 6, 1, 2, 1, 3]),
        value=random.integers(-50, 50, 10),
    )
    two = Forest(
        parent=np.append(one.parent, np.where(one.parent < 0, -1, one.parent + 5)),
        capacity=np.append(one.capacity, one.capacity - 2),
        overhead=np.tile(one.overhead, 2),
        first=np.append(one.first, one.first[1:] + 10),
        level=np.tile(one.level, 2),
        value=np.append(one.value, random.integers(-50, 50, 10)),
    )
    root = np.repeat([0, 5], 5)
    as_models = models.of_trees(
        root, two.parent, two.capacity, two.overhead, two.first, two.level, two.value
    )
    assert [optimum(as_models, tree) for tree in range(2)] == solve_tree(two).value.tolist()


def test_the_forest_has_the_promised_shape_and_is_solved(bench):
    instances, rows = bench("allocate_instances"), bench("allocate_rows")
    forest = instances.forest(3)
    assert len(forest.parent) == 3 * (1 + 26 + 48)
    assert np.bincount(forest.parent[1:75])[[0, 1, 21]].tolist() == [26, 0, 8]
    assert (solve_tree(forest).status <= Status.OPTIMAL_BY_SEARCH).all()
    assert len(rows.trees_as_models(forest, 2)) == 2


def test_processes_together_find_what_one_finds(bench):
    instances, pool = bench("allocate_instances"), bench("allocate_pool")
    problem = instances.fleet(instances.Shape(hosts=300, slots=5, bins=4, capacity=16))
    alone = solve(problem)
    with pool.pool(problem, 2, take=128) as workers:
        for _ in range(2):
            run = workers.run()
            assert (run.solution.bin == alone.bin).all()
            assert (run.solution.value == alone.value).all()
            assert run.wall_s > 0 and run.cpu_s > 0


def test_a_wrong_optimum_of_ours_or_of_a_peer_stops_the_benchmark(bench):
    compare = bench("allocate_compare")
    found = compare.Found("peer", [10, None], [True, False], [0, 0], [1, 1], [1, 1])
    status = np.array([Status.OPTIMAL_BY_BOUND, Status.OPTIMAL_BY_SEARCH])
    compare.agree(found, np.array([10, 7]), status)
    with pytest.raises(compare.BenchError, match="instance 0: peer proves 10, we 9"):
        compare.agree(found, np.array([9, 7]), status)
    better = replace(found, value=[10, 8])
    with pytest.raises(compare.BenchError, match="instance 1: peer has 8, we only 7"):
        compare.agree(better, np.array([10, 7]), status)
    with pytest.raises(compare.BenchError, match="1 hosts are not optimal"):
        compare.agree(found, np.array([10, 7]), np.array([0, Status.BUDGET]))


def test_a_line_says_what_was_reached(bench):
    line = bench("allocate_compare").Line("row", "what", "x", 50, 100, 99)
    assert line.reached() == "gate"
    assert [replace(line, measured=m).reached() for m in (100, 49, None)] == [
        "stretch", "MISSED", "not measured",
    ]  # fmt: skip
    least = replace(line, gate=0.4, stretch=0.1, below=True)
    assert [replace(least, measured=m).reached() for m in (0.1, 0.4, 0.41)] == [
        "stretch", "gate", "MISSED",
    ]  # fmt: skip


def test_simple_rules_fit_and_are_never_better_than_the_optimum(bench):
    quality, random = bench("allocate_quality"), np.random.default_rng(5)
    size = random.choice([1000.0, 2000.0, 8000.0], 60)
    demand = size[:, None] * random.beta(0.5, 3, (60, 72))
    roomy, scarce = quality.cases("made-up CPU", demand, size, 3)
    assert (scarce.problem.capacity < roomy.problem.capacity).all()
    for case in (roomy, scarce):
        found = quality.compare(case)
        assert found["optimum"]["loss_percent"] == 0
        for name in quality.RULES:
            assert found[name]["loss_percent"] > 0 and found[name]["loss_percent_most"] > 0
    assert found["greedy"]["loss_percent"] < found["equal share"]["loss_percent"]


def test_an_equal_share_gives_back_what_a_small_vm_cannot_take(bench):
    quality = bench("allocate_quality")
    level = np.minimum(np.arange(1, quality.BINS + 1)[:, None, None], np.array([[4], [200], [200]]))
    problem = Problem(np.zeros_like(level), level, np.array([64]))
    case = quality.Case("", problem, np.array([[1.0], [10.0], [30.0]]), level, level[0])
    taken = np.take_along_axis(level, quality.equal_share(case)[None], axis=0)[0].ravel()
    assert taken.tolist() == [4, 30, 30]
    taken = np.take_along_axis(level, quality.proportional(case)[None], axis=0)[0].ravel()
    assert taken.sum() == 64 and taken.tolist() == [1, 16, 47]


def test_pairs_of_the_dense_programme_are_counted(bench):
    """Two slots with steps 0, 1, 2 and room for 3: 1 + 2 places first, then only the last."""
    floor = bench("allocate_floor")
    level = np.array([1, 2, 3])[:, None, None]
    problem = Problem(np.zeros((3, 2, 1), np.int32), level, np.array([5]))
    # First slot: capacities 1 and 2, of which two bins reach 1 and all 2; second: only 3.
    assert floor.dense_pairs(problem) == (2 + 2 + 1) + 3
    assert floor.floor_pairs_per_s(np.int32) > 1e6


def test_the_script_prints_its_tables_with_or_without_peers(tmp_path):
    words = ["--quick", "--row", "coupled", "--row", "quality", "--json", tmp_path / "found.json"]
    done = subprocess.run(
        [sys.executable, BENCH / "bench_allocate.py", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "4/4 proven and equal" in done.stdout or "`make bench` sets it up" in done.stdout
    assert "name a folder of traces with --traces" in done.stdout
    assert "coupled" in (tmp_path / "found.json").read_text()
