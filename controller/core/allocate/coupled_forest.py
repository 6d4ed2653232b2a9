"""Hosts of several resources as files give them, ragged, and their solution: `solve_coupled`'s.

Hosts with as many VMs and as many options are solved side by side; nothing is padded but the
options of a VM that has fewer than another on its host, which repeats its last.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.core.allocate.coupled import BUDGET, solve_coupled
from controller.core.allocate.coupled_problem import CoupledProblem, CoupledSolution
from controller.core.allocate.problem import NOTHING, Bytes, Ints, Status

ENTRIES_AT_ONCE = 1 << 20  # of a problem's values; bounds the memory


@dataclass(frozen=True, slots=True, eq=False)
class CoupledForest:
    """m nodes: roots, and their direct children, of which each takes one of its options.

    The options of node i are places first[i] to first[i + 1] of `level` and `value`; a root has
    none and brings its capacities instead.
    """

    parent: Ints  # (m,) place of the root; -1: a root itself
    capacity: Ints  # (r, m) quanta of a root; ignored elsewhere
    first: Ints  # (m + 1,)
    level: Ints  # (r, o) quanta, in no order
    value: Ints  # (o,)

    @property
    def roots(self) -> Ints:
        return np.flatnonzero(self.parent < 0)


@dataclass(frozen=True, slots=True, eq=False)
class CoupledForestSolution:
    """What each node takes, and what each root's children are worth together."""

    option: Ints  # (m,) place among the node's own options; -1: a root, or nothing found fits
    level: Ints  # (r, m) quanta; -1 likewise
    value: Ints  # (k,) per root, in the order of `CoupledForest.roots`; NOTHING: none found
    bound: Ints  # (k,)
    price: NDArray[np.float64]  # (r, m) of roots with children: worth of a quantum; NaN elsewhere
    status: Bytes  # (k,) Status


CoupledSolver = Callable[[CoupledForest], CoupledForestSolution]


def solve_coupled_forest(forest: CoupledForest, *, budget: int = BUDGET) -> CoupledForestSolution:
    """The greatest value of each root; `budget` as `solve_coupled` has it."""
    roots, nodes = forest.roots, forest.parent.size
    found = CoupledForestSolution(
        option=np.full(nodes, -1, dtype=np.int64),
        level=np.full((len(forest.level), nodes), -1, dtype=np.int64),
        value=np.zeros(roots.size, dtype=np.int64),
        bound=np.zeros(roots.size, dtype=np.int64),
        price=np.full((len(forest.level), nodes), np.nan),
        status=np.full(roots.size, Status.OPTIMAL_BY_BOUND, dtype=np.uint8),
    )
    for places, child, bins in _batches(forest, roots):
        problem = _problem(forest, roots[places], child, bins)
        _put(found, forest, roots, places, child, solve_coupled(problem, budget=budget))
    return found


def _batches(forest: CoupledForest, roots: Ints) -> Iterator[tuple[Ints, Ints, int]]:
    """Places of roots (h,) that go together, their children (n, h), and how many bins those have.

    A host's batch depends on its own numbers alone where it matters: neighbours change nothing.
    """
    order = np.argsort(forest.parent, kind="stable")
    start = np.searchsorted(forest.parent[order], roots)
    count = np.searchsorted(forest.parent[order], roots, side="right") - start
    options = np.diff(forest.first)
    alike: dict[tuple[int, int], list[int]] = {}
    for place in np.flatnonzero(count).tolist():
        kin = order[start[place] : start[place] + count[place]]
        alike.setdefault((int(count[place]), int(options[kin].max())), []).append(place)
    for (slots, bins), hosts in alike.items():
        size = max(1, ENTRIES_AT_ONCE // (slots * bins))
        for begin in range(0, len(hosts), size):
            places = np.array(hosts[begin : begin + size])
            yield places, order[start[places] + np.arange(slots)[:, None]], bins


def _problem(forest: CoupledForest, roots: Ints, child: Ints, bins: int) -> CoupledProblem:
    last = np.diff(forest.first)[child] - 1
    entry = forest.first[child] + np.minimum(np.arange(bins)[:, None, None], last)
    return CoupledProblem(forest.value[entry], forest.level[:, entry], forest.capacity[:, roots])


def _put(
    found: CoupledForestSolution,
    forest: CoupledForest,
    roots: Ints,
    places: Ints,
    child: Ints,
    solution: CoupledSolution,
) -> None:
    found.value[places], found.bound[places] = solution.value, solution.bound
    found.status[places] = solution.status
    feasible = solution.status != Status.INFEASIBLE
    found.price[:, roots[places[feasible]]] = solution.price_per_quantum()[:, feasible]
    taken = solution.value > NOTHING
    child, option = child[:, taken], solution.option[:, taken].astype(np.int64)
    # Of a repeated last option the first is meant.
    option = np.minimum(option, np.diff(forest.first)[child] - 1)
    found.option[child] = option
    found.level[:, child] = forest.level[:, forest.first[child] + option]
