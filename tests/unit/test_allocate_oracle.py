"""The allocator's second opinion against trying everything: two ways that share no line."""

import ast
from pathlib import Path

import allocate_oracle as oracle
import numpy as np
import pytest
from allocate_families import GRIDS, SHAPES, TRYABLE, VALUES, draw_capacity, draw_case, draw_forest

from controller.core.allocate.problem import NOTHING, Forest, Problem, checked


def test_it_knows_nothing_of_the_solvers():
    tree = ast.parse(Path(oracle.__file__).read_text())
    froms = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert froms == {"controller.core.allocate.problem"}


def test_a_host_worked_out_by_hand():
    value = np.array([[0, 0], [10, 6], [11, 13]]).reshape(3, 2, 1)
    level = np.array([0, 2, 3]).reshape(3, 1, 1)
    for capacity, expected in ((-1, NOTHING), (0, 0), (2, 10), (4, 16), (5, 23), (99, 24)):
        problem = Problem(value, level, np.array([capacity]))
        assert oracle.best(problem).tolist() == [expected]
        assert oracle.best_by_trying(problem).tolist() == [expected]


def small(random, case):
    """As many of the slots and bins as can be tried."""
    problem = case.problem
    slots = min(problem.slots, 4)
    bins = min(problem.bins, int(TRYABLE ** (1 / slots)))
    value = problem.value[:bins, :slots, :40]
    level = problem.level[:bins, :slots, :40]
    return Problem(value, level, draw_capacity(random, np.broadcast_to(level, value.shape)))


def test_rows_equal_trying_on_every_kind_of_host():
    random = np.random.default_rng(7)
    seen = set()
    hosts = infeasible = 0
    while hosts < 6000:
        case = draw_case(random)
        checked(case.problem)
        if not case.dense:
            continue
        problem = small(random, case)
        expected = oracle.best_by_trying(problem)
        assert oracle.best(problem).tolist() == expected.tolist(), case.family
        seen.add(case.family)
        hosts += problem.hosts
        infeasible += int((expected == NOTHING).sum())
    assert 0.02 < infeasible / hosts < 0.7
    words = {word.strip(",") for family in seen for word in family.split()}
    assert words == {*GRIDS, *VALUES, *SHAPES, "on"}


def test_a_choice_is_weighed():
    problem = Problem(
        np.array([[1, 2], [30, 40]]).reshape(2, 2, 1),
        np.array([5, 7]).reshape(2, 1, 1),
        np.array([12]),
    )
    value, weight = oracle.taken(problem, np.array([[1], [0]], dtype=np.uint8))
    assert (value.tolist(), weight.tolist()) == ([32], [12])


def forest(*nodes):
    """Of (parent, capacity, overhead, options)."""
    options = [pair for node in nodes for pair in node[3]]
    return Forest(
        parent=np.array([node[0] for node in nodes]),
        capacity=np.array([node[1] for node in nodes]),
        overhead=np.array([node[2] for node in nodes]),
        first=np.cumsum([0, *(len(node[3]) for node in nodes)]),
        level=np.array([level for level, _ in options], dtype=np.int64),
        value=np.array([value for _, value in options], dtype=np.int64),
    )


def test_a_tree_worked_out_by_hand():
    nest = [(-1, 9, 1, []), (0, 0, 2, [(2, 0), (5, -1), (9, 50)]), (1, 0, 0, [(0, 0), (3, 7)])]
    expected = {0: NOTHING, 2: NOTHING, 3: 0, 5: 0, 6: 6, 9: 6, 10: 57}
    for capacity, value in expected.items():
        one = forest((-1, capacity, 1, []), *nest[1:])
        assert oracle.best_of_tree(one, 0) == value
        assert oracle.best_of_tree_by_trying(one, 0) == value


def test_rows_equal_trying_on_trees():
    random = np.random.default_rng(11)
    tried = infeasible = 0
    deepest = 0
    while tried < 400:
        trees = draw_forest(random, 20)
        below = oracle.children_of(trees)
        for root in trees.roots.tolist():
            nodes, depth = [(root, 0)], 0
            for node, depth in nodes:
                nodes += [(child, depth + 1) for child in below[node]]
            if np.prod([len(oracle.options_of(trees, node)) or 1 for node, _ in nodes]) > 3000:
                continue
            expected = oracle.best_of_tree_by_trying(trees, root)
            assert oracle.best_of_tree(trees, root) == expected
            tried += 1
            deepest = max(deepest, depth)
            infeasible += expected == NOTHING
    assert deepest >= 3 and 0.05 < infeasible / tried < 0.7


@pytest.mark.parametrize(
    ("capacity", "count"),
    [(16, 0), (15, 1), (10, 1), (9, 2), (8, 3), (3, 3), (2, None), (0, None)],
)
def test_how_many_must_be_relaxed(capacity, count):
    """A plain VM of 6, a hypervisor of 10 with overhead 3 around a guest of 7."""
    one = forest(
        (-1, capacity, 0, []), (0, 0, 0, [(6, 1)]), (0, 0, 3, [(10, 1)]), (2, 0, 0, [(7, 1)])
    )
    assert oracle.fewest_to_relax(one, 0) == count
