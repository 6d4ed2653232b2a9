"""Nested hosts, jointly optimal at any depth: a hypervisor VM is worth what its guests make of it.

On the way up, each of its options gets the best that its guests can have within it, less its
overhead: one row of the dynamic programme over all sizes (tree knapsack, Johnson and Niemi 1983).
The root is then a flat host. On the way down, each hypervisor VM is a flat host of the size that
it was given. Every tree's solution depends on that tree alone.
"""

import numpy as np

from controller.core.allocate.pack import Family, Packed, ranges
from controller.core.allocate.problem import (
    NOTHING,
    AnyInts,
    Bools,
    Bytes,
    Forest,
    ForestSolution,
    Ints,
    Problem,
    Solution,
    Status,
    root_of,
)
from controller.core.allocate.rows import NARROW, alike, best_within, least_of, room_of
from controller.core.allocate.solve import BUDGET, solve

KEPT_MOST = 1 << 23  # entries of problems; bounds the memory
ROW_WORK_MOST = 1 << 28  # about a quarter of a second


def solve_tree(
    forest: Forest, *, budget: int = BUDGET, row_work: int = ROW_WORK_MOST
) -> ForestSolution:
    """The greatest value of each tree: see `Forest`. ProblemError as `solve`.

    Where `budget` ends a search, the tree has status BUDGET, or is optimal if its bound is reached.
    `row_work`: states times options of one host from which each of its sizes is solved alone.
    """
    return _Solving(forest, budget, row_work).run()


class _Solving:
    def __init__(self, forest: Forest, budget: int, row_work: int) -> None:
        nodes = forest.parent.size
        self.forest, self.budget, self.row_work = forest, budget, row_work
        self.family = Family(forest)
        # Per option: what it is worth with guests at their best, found and at most.
        self.root = root_of(forest.parent)
        self.worth: AnyInts = forest.value.astype(_width(forest, self.root), copy=True)
        self.most = self.worth
        self.kept: dict[int, Packed] = {}  # by the first parent
        self.keeping = KEPT_MOST  # entries that may still be kept
        self.blocked = np.zeros(nodes, dtype=np.int64)  # first options that hold too little
        self.option = np.full(nodes, -1, dtype=np.int64)
        self.level = np.full(nodes, -1, dtype=np.int64)
        self.price = np.full(nodes, np.nan)

    def run(self) -> ForestSolution:
        generations = self.family.generations()
        for parents in reversed(generations[1:]):
            self._up(parents)
        roots = self.forest.roots
        status, bound = self._roots(roots)
        for parents in generations[1:]:
            placed = parents[self.option[parents] >= 0]
            self._down(placed)
        value = self._values(roots)
        feasible = status != Status.INFEASIBLE
        short = feasible & (value < bound)
        assert bool((value <= bound)[feasible].all()), "a value exceeds its bound"
        status[short] = Status.BUDGET
        status[feasible & ~short & (status == Status.BUDGET)] = Status.OPTIMAL_BY_BOUND
        return ForestSolution(
            self.option, self.level, np.where(feasible, value, NOTHING), bound, self.price, status
        )

    def _up(self, parents: Ints) -> None:
        """Gives the parents' own options the best that their children make of them."""
        self.blocked[parents] = self.family.options[parents]  # until shown otherwise
        for batch, bins, slots in self.family.batches(self._possible(parents), self.blocked):
            widest = self.forest.room_at(self.forest.first[batch + 1] - 1, batch)
            packed = self._pack(batch, bins, slots, widest)
            self._keep(packed[0])
            room = room_of(packed[0].problem)
            wide = bins * slots * (room + 1) > self.row_work
            for hosts in alike(packed[0].problem, room, np.flatnonzero(~wide)):
                self._by_rows(batch[hosts], [one.problem.of(hosts) for one in packed])
            for host in np.flatnonzero(wide).tolist():
                self._by_size(
                    int(batch[host]), [one.problem.of(slice(host, host + 1)) for one in packed]
                )

    def _pack(self, batch: Ints, bins: int, slots: int, capacity: Ints) -> list[Packed]:
        """With what was found for each child, and, where that differs, with what is possible."""
        worths = [self.worth] if self.most is self.worth else [self.worth, self.most]
        return [
            self.family.pack(batch, bins, slots, worth, self.blocked, capacity) for worth in worths
        ]

    def _keep(self, packed: Packed) -> None:
        """For the way down, where the same children get other capacities."""
        self.keeping -= packed.problem.value.size + packed.problem.level.size
        if self.keeping >= 0:
            self.kept[int(packed.parent[0])] = packed

    def _possible(self, parents: Ints) -> Ints:
        """Those each of whose children can have some option."""
        kin = self.family.below(parents)
        fine = (self.blocked < self.family.options)[kin]
        counts = self.family.children[parents]
        bad = np.bincount(np.repeat(np.arange(parents.size), counts)[~fine], minlength=parents.size)
        return np.asarray(parents[bad == 0])

    def _by_rows(self, parents: Ints, problems: list[Problem]) -> None:
        """All sizes at once, from the last row of the dynamic programme."""
        host = np.repeat(np.arange(parents.size), self.family.options[parents])
        option = ranges(self.forest.first[parents], self.family.options[parents])
        guests = []
        for problem in problems:
            room = self.forest.room_at(option, parents[host]) - least_of(problem)[host]
            state = np.clip(room, 0, room_of(problem)[host])
            base = problem.value[0].sum(axis=0, dtype=np.int64)
            guests.append(best_within(problem, state, host) + base[host])
        self._add(option, room >= 0, guests[0], guests[-1])
        self.blocked[parents] = np.bincount(host[room < 0], minlength=parents.size)

    def _by_size(self, parent: int, problems: list[Problem]) -> None:
        """One size after the other, where a row would be too long; proven within the budget."""
        option = np.arange(self.forest.first[parent], self.forest.first[parent + 1])
        room = self.forest.room_at(option, np.full(option.size, parent))
        alone = [one.of(np.zeros(option.size, dtype=np.int64)) for one in problems]
        found = [solve(Problem(one.value, one.level, room), budget=self.budget) for one in alone]
        fits = found[0].status != Status.INFEASIBLE
        self._add(option, fits, found[0].value, found[-1].bound)
        self.blocked[parent] = int((~fits).sum())

    def _add(self, option: Ints, fits: Bools, found: Ints, most: Ints) -> None:
        if self.most is self.worth and bool((found < most)[fits].any()):
            self.most = self.worth.copy()
        if self.most is not self.worth:
            self.most[option[fits]] += most[fits]
        self.worth[option[fits]] += found[fits]

    def _roots(self, roots: Ints) -> tuple[Bytes, Ints]:
        """Status and bound of each root; its children take their levels."""
        status = np.full(self.forest.parent.size, Status.OPTIMAL_BY_BOUND, dtype=np.uint8)
        bound = np.zeros(self.forest.parent.size, dtype=np.int64)
        parents = roots[self.family.children[roots] > 0]
        possible = self._possible(parents)
        status[parents] = Status.INFEASIBLE
        bound[parents] = NOTHING
        for batch, bins, slots in self.family.batches(possible, self.blocked):
            room = self.forest.capacity[batch] - self.forest.overhead[batch]
            packed = self._pack(batch, bins, slots, room)
            found = [solve(one.problem, budget=self.budget) for one in packed]
            self._place(packed[0], found[0])
            status[batch], bound[batch] = found[0].status, found[-1].bound
        return status[roots], bound[roots]

    def _down(self, parents: Ints) -> None:
        """Hands the parents' levels to their children."""
        for batch, bins, slots in self.family.batches(parents, self.blocked):
            room = self.forest.room_at(self.forest.first[batch] + self.option[batch], batch)
            kept = self.kept.pop(int(batch[0]), None)
            if kept is None or not np.array_equal(kept.parent, batch):
                kept = self._pack(batch, bins, slots, room)[0]
            problem = Problem(kept.problem.value, kept.problem.level, room)
            self._place(kept, solve(problem, budget=self.budget))

    def _place(self, packed: Packed, found: Solution) -> None:
        infeasible = found.status == Status.INFEASIBLE
        self.price[packed.parent] = np.where(infeasible, np.nan, found.price_per_quantum())
        taken = (packed.child >= 0) & ~infeasible[:, None]
        child = packed.child[taken]
        option = self.blocked[child] + found.bin.T[taken]
        self.option[child] = option
        self.level[child] = self.forest.level[self.forest.first[child] + option]

    def _values(self, roots: Ints) -> Ints:
        """What the chosen options are worth, tree by tree."""
        own = np.where(self.option >= 0, self.option, 0) + self.forest.first[:-1]
        chosen = np.flatnonzero(self.option >= 0)
        value = np.zeros(self.forest.parent.size, dtype=np.int64)
        np.add.at(value, self.root[chosen], self.forest.value[own[chosen]])
        return value[roots]


def _width(forest: Forest, root: Ints) -> type[np.int32 | np.int64]:
    """Integers that hold what any option is worth with all that is below it."""
    if not forest.value.size:
        return np.int64
    most = max(int(forest.value.max()), -int(forest.value.min()))
    return np.int32 if most * int(np.bincount(root).max()) < NARROW else np.int64
