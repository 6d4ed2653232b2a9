"""What `whatif` says, of hosts that share out several resources at once.

Exact where the solver is. All is solved again for each option and each resource.
"""

from dataclasses import dataclass, replace

import numpy as np

from controller.core.allocate.answer import WORDS
from controller.core.allocate.coupled_answer import NOT_FOUND, why_infeasible
from controller.core.allocate.coupled_forest import (
    CoupledForest,
    CoupledForestSolution,
    CoupledSolver,
)
from controller.core.allocate.instance import CoupledInstance
from controller.core.allocate.problem import NOTHING, Ints, ProblemError, Status
from controller.core.allocate.whatif import Explanation, Forced, OneMore, runner_up


@dataclass(frozen=True, slots=True)
class OneMoreOf(OneMore):
    """What a quantum more of one resource would be worth."""

    resource: int  # counted from 1


def explain_coupled(instance: CoupledInstance, node: int, solver: CoupledSolver) -> Explanation:
    """Solves the host of `node` once per option and per resource; ProblemError for a root."""
    name = instance.ids[node]
    if instance.forest.parent[node] < 0:
        raise ProblemError(f"node {name!r} is a root and takes no option; name one below it")
    case = _Case(instance, node, solver)
    options = tuple(case.forced(option) for option in range(len(case.levels)))
    return Explanation(
        id=name,
        root=case.root,
        level=None if case.option < 0 else case.levels[case.option],
        why=_why(case, options),
        options=options,
        runner_up=runner_up(options),
        one_more_quantum=tuple(case.one_more(resource) for resource in range(len(case.price))),
    )


class _Case:
    """The host of the node by itself, solved; its root stands first."""

    def __init__(self, instance: CoupledInstance, node: int, solver: CoupledSolver) -> None:
        forest = instance.forest
        root = int(forest.parent[node])
        members = np.flatnonzero(forest.parent == root)
        self.solver, self.root = solver, instance.ids[root]
        self.forest = _host(forest, root, members)
        self.node = 1 + int(np.searchsorted(members, node))
        self.solution = solver(self.forest)
        first, end = self.forest.first[self.node : self.node + 2].tolist()
        self.levels = [tuple(level) for level in self.forest.level[:, first:end].T.tolist()]
        self.values = self.forest.value[first:end].tolist()
        self.total = _total(self.solution)
        self.option = int(self.solution.option[self.node])
        self.price = self.solution.price[:, 0].tolist()

    def forced(self, option: int) -> Forced:
        """What the host would be worth with this option."""
        found = self.solver(_with_only(self.forest, self.node, option))
        total = _total(found)
        return Forced(
            level=self.levels[option],
            value=self.values[option],
            total=total,
            loss=_less(self.total, total),
            status=WORDS[Status(int(found.status[0]))],
            chosen=option == self.option,
        )

    def one_more(self, resource: int) -> OneMoreOf:
        """With one quantum more of the resource."""
        capacity = self.forest.capacity.copy()
        capacity[resource, 0] += 1
        found = self.solver(replace(self.forest, capacity=capacity))
        total, price = _total(found), self.price[resource]
        known = total is not None or found.status[0] == Status.INFEASIBLE
        return OneMoreOf(
            id=self.root,
            price=price if np.isfinite(price) else None,
            worth=_less(total, self.total),
            fits=total is not None if known else None,
            resource=resource + 1,
        )


def _total(solution: CoupledForestSolution) -> int | None:
    value = int(solution.value[0])
    return value if value > NOTHING else None


def _less(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one - other


def _why(case: _Case, options: tuple[Forced, ...]) -> str:
    """What is worth most by itself, and what stands against it."""
    if case.total is None:
        if case.solution.status[0] == Status.INFEASIBLE:
            return why_infeasible(case.forest, 0)
        return NOT_FOUND
    best = max(range(len(options)), key=lambda option: options[option].value)
    forced, gain = options[best], options[best].value - options[case.option].value
    if not gain:
        return "no option is worth more by itself" if len(options) > 1 else "it has no other option"
    level = ", ".join(map(str, case.levels[best]))
    cost = "nothing would fit with it"
    if forced.loss is not None:
        cost = f"with it the whole would be worth {forced.loss} less"
    prices = ", ".join(f"{price:.3f}" for price in case.price)
    return (
        f"({level}) would be worth {gain} more by itself; its host {case.root} prices one more "
        f"quantum of each resource at ({prices}); {cost}"
    )


def _host(forest: CoupledForest, root: int, members: Ints) -> CoupledForest:
    """One root and its children by themselves."""
    first, end = forest.first[members], forest.first[members + 1]
    kept = np.concatenate([np.arange(a, b) for a, b in zip(first, end, strict=True)])
    capacity = np.zeros((len(forest.level), 1 + members.size), dtype=np.int64)
    capacity[:, 0] = forest.capacity[:, root]
    return CoupledForest(
        parent=np.concatenate([[-1], np.zeros(members.size, dtype=np.int64)]),
        capacity=capacity,
        first=np.concatenate([[0, 0], np.cumsum(end - first)]),
        level=forest.level[:, kept],
        value=forest.value[kept],
    )


def _with_only(forest: CoupledForest, node: int, option: int) -> CoupledForest:
    first, end = int(forest.first[node]), int(forest.first[node + 1])
    gone = np.delete(np.arange(first, end), option)
    shift = np.where(np.arange(forest.first.size) > node, end - first - 1, 0)
    return replace(
        forest,
        first=forest.first - shift,
        level=np.delete(forest.level, gone, axis=1),
        value=np.delete(forest.value, gone),
    )
