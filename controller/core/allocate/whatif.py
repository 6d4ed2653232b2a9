"""Why a node takes what it takes: everything else solved again with each of its options forced.

Exact where the solver is: the loss of an option is what the whole tree would be worth less, and
the worth of one more quantum is what the whole tree would be worth more.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from controller.core.allocate.answer import WORDS, why_infeasible
from controller.core.allocate.instance import Instance
from controller.core.allocate.problem import Forest, ForestSolution, Ints, ProblemError, Status
from controller.core.allocate.relax import relaxations

Solver = Callable[[Forest], ForestSolution]
Level = int | tuple[int, ...]  # a tuple: of each resource, where there are several


@dataclass(frozen=True, slots=True)
class Forced:
    """The best of the whole tree with the node held at one option; None where nothing fits."""

    level: Level
    value: int  # the option's own
    total: int | None
    loss: int | None  # against the best
    status: str  # optimal, budget: `total` is the best found, infeasible
    chosen: bool


@dataclass(frozen=True, slots=True)
class OneMore:
    """What a quantum more for the children of `id` would be worth to the whole tree."""

    id: str
    price: float | None  # the solver's shadow price
    worth: int | None  # by solving again; None where nothing fits now
    fits: bool | None  # with it; None: nothing was found within the budget


@dataclass(frozen=True, slots=True)
class Explanation:
    """One node of a solved tree; all values in the units of the file."""

    id: str
    root: str
    level: Level | None  # None: its tree is infeasible
    why: str
    options: tuple[Forced, ...]
    runner_up: Level | None  # the level of the best other option
    one_more_quantum: tuple[OneMore, ...]  # at its parent, and at the root if that is another


def explain(instance: Instance, node: int, solver: Solver) -> Explanation:
    """Solves the tree of `node` once per option and twice more; ProblemError for a root."""
    name = instance.ids[node]
    if instance.forest.parent[node] < 0:
        raise ProblemError(f"node {name!r} is a root and takes no option; name one below it")
    case = _Case(instance, node, solver)
    options = tuple(case.forced(option) for option in range(case.count))
    return Explanation(
        id=name,
        root=case.ids[0],
        level=case.level,
        why=_why(case, options),
        options=options,
        runner_up=runner_up(options),
        one_more_quantum=tuple(case.one_more(each) for each in dict.fromkeys((case.parent, 0))),
    )


def runner_up(options: tuple[Forced, ...]) -> Level | None:
    """The level of the best option that was not chosen; of equals the first."""
    totals = {one: one.total for one in options if one.total is not None and not one.chosen}
    return max(totals, key=lambda one: totals[one]).level if totals else None


class _Case:
    """The tree of the node by itself, solved."""

    def __init__(self, instance: Instance, node: int, solver: Solver) -> None:
        self.solver = solver
        places = _same_tree(instance.forest, node)
        self.forest = _part(instance.forest, places)
        self.ids = tuple(instance.ids[place] for place in places.tolist())
        self.node = int(np.searchsorted(places, node))
        self.parent = int(self.forest.parent[self.node])
        self.solution = solver(self.forest)
        first, end = self.forest.first[self.node : self.node + 2].tolist()
        self.count = end - first
        self.levels = self.forest.level[first:end].tolist()
        self.values = self.forest.value[first:end].tolist()
        self.total = self._total(self.solution)
        self.option = int(self.solution.option[self.node])

    @property
    def level(self) -> int | None:
        return None if self.total is None else self.levels[self.option]

    def _total(self, solution: ForestSolution) -> int | None:
        feasible = solution.status[0] != Status.INFEASIBLE
        return int(solution.value[0]) if feasible else None

    def forced(self, option: int) -> Forced:
        """What the whole would be worth with this option."""
        found = self.solver(_with_only(self.forest, self.node, option))
        total = self._total(found)
        known = total is not None and self.total is not None
        return Forced(
            level=self.levels[option],
            value=self.values[option],
            total=total,
            loss=self.total - total if known else None,  # type: ignore[operator] # both known
            status=WORDS[Status(int(found.status[0]))],
            chosen=self.total is not None and option == self.option,
        )

    def one_more(self, place: int) -> OneMore:
        """With one quantum more at `place` for its children."""
        total = self._total(self.solver(_with_one_more(self.forest, place)))
        price = float(self.solution.price[place])
        known = total is not None and self.total is not None
        return OneMore(
            id=self.ids[place],
            price=price if np.isfinite(price) else None,
            worth=total - self.total if known else None,  # type: ignore[operator] # both known
            fits=total is not None,
        )


def _why(case: _Case, options: tuple[Forced, ...]) -> str:
    """What is worth most by itself, and what stands against it."""
    if case.total is None:
        found = relaxations(case.forest, [0])[0]
        return why_infeasible(Instance(case.ids, case.forest), found)
    best = int(np.argmax(case.values))
    gain = case.values[best] - case.values[case.option]
    if not gain:
        return f"stays at {case.level}" if case.count == 1 else "no option is worth more by itself"
    forced = options[best]
    cost = "nothing would fit with it"
    if forced.loss is not None:
        cost = f"with it the whole would be worth {forced.loss} less"
    host = case.ids[case.parent]
    price = float(case.solution.price[case.parent])
    at_price = f", at a shadow price of {price:.3f} per quantum" if np.isfinite(price) else ""
    more = f"{forced.level} would be worth {gain} more by itself"
    if forced.level < case.levels[case.option]:
        return f"{more}, but what it holds makes more of {case.level}; {cost}"
    return f"{more}, its host {host} is full{at_price}; {cost}"


def _same_tree(forest: Forest, node: int) -> Ints:
    """Places of all nodes of the tree of `node`, parents first."""
    root = np.arange(len(forest.parent))
    for place, parent in enumerate(forest.parent.tolist()):
        if parent >= 0:
            root[place] = root[parent]
    return np.flatnonzero(root == root[node])


def _part(forest: Forest, places: Ints) -> Forest:
    """Some whole trees by themselves."""
    parent = forest.parent[places]
    first, end = forest.first[places], forest.first[places + 1]
    kept = np.concatenate([np.arange(a, b) for a, b in zip(first, end, strict=True)])
    return Forest(
        parent=np.where(parent < 0, -1, np.searchsorted(places, parent)),
        capacity=forest.capacity[places],
        overhead=forest.overhead[places],
        first=np.concatenate([[0], np.cumsum(end - first)]),
        level=forest.level[kept],
        value=forest.value[kept],
    )


def _with_only(forest: Forest, node: int, option: int) -> Forest:
    first, end = int(forest.first[node]), int(forest.first[node + 1])
    gone = np.delete(np.arange(first, end), option)
    shift = np.where(np.arange(len(forest.first)) > node, end - first - 1, 0)
    return replace(
        forest,
        first=forest.first - shift,
        level=np.delete(forest.level, gone),
        value=np.delete(forest.value, gone),
    )


def _with_one_more(forest: Forest, node: int) -> Forest:
    """A root gets the quantum; any other node keeps one less for itself, at the same level."""
    more = np.arange(len(forest.parent)) == node
    if forest.parent[node] < 0:
        return replace(forest, capacity=forest.capacity + more)
    return replace(forest, overhead=forest.overhead - more)
