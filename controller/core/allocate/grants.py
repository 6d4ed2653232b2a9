"""The grants of a snapshot: one nested programme per resource over all trees at once.

First every VM's floor is what its violation budget asks for. A tree in which that does not fit is
short: the fewest weighted misses decide who may have less, and it is solved again with lower floors
for those. Where not even the lowest grants fit, limits in force exceed the capacity, and only the
way back is left.
"""

import numpy as np

from controller.core.allocate.problem import Forest, ForestSolution, Status, root_of
from controller.core.allocate.tree import solve_tree
from controller.core.allocate.value import values
from controller.core.state import (
    MISSING,
    RESOURCES,
    Allocation,
    Bins,
    Bools,
    Floats,
    Forecast,
    Ints,
    Policy,
    Snapshot,
)
from shared.resources import Resource

OPTIMAL = "optimal"  # every VM has what its violation budget asks for
SHORT = "short"  # as few VMs as possible have less than that; the rest optimal
UNPROVEN = "unproven"  # the best found within the cap on work
OVER = "over"  # limits in force exceed the capacity: only back towards it
UNKNOWN = "unknown"  # a capacity or a limit is not known or beyond all sense: nothing moves

_BITS = 52  # of the sums that the solver compares, with its own bits still below 62


def allocate(snapshot: Snapshot, forecast: Forecast, bins: Bins, policy: Policy) -> Allocation:
    """The grants of greatest total value for every root and resource; exact in integer units."""
    value = values(snapshot, forecast, bins, policy)
    level = np.where(bins.count > 0, snapshot.limit, MISSING)
    price = np.full((len(snapshot.ids), RESOURCES), np.nan)
    total = np.zeros((len(snapshot.roots()), RESOURCES), dtype=np.int64)
    words = [
        _One(snapshot, bins, value[:, resource], policy.quantum[resource], resource).solve(
            level[:, resource], total[:, resource], price[:, resource]
        )
        for resource in Resource
    ]
    return Allocation(level, value, total, price, tuple(zip(*words, strict=True)))


def shortfall(bins: Bins, allocation: Allocation, machine: int, resource: Resource) -> int:
    """How far a grant is below what the violation budget asks for; 0: it is not.

    Only where there was a choice: what is held or pinned asks for nothing.
    """
    needed = int(bins.needed[machine, resource])
    if bins.count[machine, resource] <= 1 or needed == MISSING:
        return 0
    return max(needed - int(allocation.level[machine, resource]), 0)


class _One:
    """One resource's view of the snapshot while it is solved."""

    def __init__(
        self, snapshot: Snapshot, bins: Bins, value: Ints, quantum: int, resource: Resource
    ) -> None:
        self.snapshot, self.quantum, self.value = snapshot, quantum, value
        self.level = bins.level[:, resource]
        self.count = bins.count[:, resource]
        self.limit = snapshot.limit[:, resource]
        self.capacity = snapshot.capacity[:, resource]
        self.kept = snapshot.overhead[:, resource] + snapshot.reserve[:, resource]
        # A host that shrinks keeps what its own working set needs, where that is more.
        self.kept_below = np.maximum(self.kept, bins.own[:, resource])
        self.used = np.arange(self.level.shape[1]) < self.count[:, None]
        self.roots = np.array(snapshot.roots(), dtype=np.int64)
        self.root = root_of(snapshot.parent)
        # The floor that the violation budget asks for, as far as the candidates reach.
        top = np.where(self.used, self.level, 0).max(axis=1, initial=0)
        needed = bins.needed[:, resource]
        asks = (self.count > 1) & (needed != MISSING)
        self.misses = asks[:, None] & self.used & (self.level < np.minimum(needed, top)[:, None])

    def solve(self, level: Ints, total: Ints, price: Floats) -> list[str]:
        """Writes grants, totals and prices; says per root how it went."""
        words = dict.fromkeys(self.roots.tolist(), UNKNOWN)
        trees = self._known()
        for word in (OPTIMAL, SHORT):
            allowed = self.used & ~self.misses
            if word == SHORT:
                first = _Attempt(self, trees, self.used, self._misses_first())
                allowed = self.used & ~(self.misses & ~first.short()[:, None])
            attempt = _Attempt(self, trees, allowed, self.value)
            for root, status in attempt.status():
                if status != Status.INFEASIBLE:
                    words[root] = UNPROVEN if status == Status.BUDGET else word
                    trees[root] = False
            attempt.write(level, total, price)
        for root in np.flatnonzero(trees).tolist():
            words[root] = OVER
            self._back_towards_capacity(root, level)
        return [words[root] for root in self.roots.tolist()]

    def _known(self) -> Bools:
        """(n,) roots whose capacity is known and below which each limit is, all within sense."""
        bad = np.where(self.snapshot.parent < 0, self.capacity == MISSING, self.count == 0)
        known = self.snapshot.parent < 0
        known[self.root[bad]] = False
        known &= self._bits(self._spread()) < _BITS
        return known

    def _spread(self) -> Ints:
        """(n,) at roots: how far apart the values of two solutions of the tree can be at most."""
        most = np.where(self.used, self.value, 0).max(axis=1, initial=0)
        least = np.where(self.used, self.value, 0).min(axis=1, initial=0)
        spread = np.zeros(self.root.size, dtype=np.int64)
        np.add.at(spread, self.root, most - least)
        return spread

    def _bits(self, spread: Ints) -> Floats:
        """(n,) at roots: of a value times a weight, summed over the tree's VMs."""
        heaviest = np.zeros(self.root.size, dtype=np.int64)
        amount = np.where(self.used, self.level, 0).max(axis=1, initial=0)
        np.maximum.at(heaviest, self.root, amount // self.quantum)
        members = np.bincount(self.root, minlength=self.root.size)
        bits: Floats = np.log2(1.0 + spread) + np.log2(2.0 + heaviest) + np.log2(1.0 + members)
        return bits

    def _misses_first(self) -> Ints:
        """(n, b) values in which one miss more is worse than anything else could mend.

        Where that takes too many bits, values are coarser; misses still come first.
        """
        weight = np.maximum(self.snapshot.priority, 1)[:, None] * self.misses
        misses = np.zeros(self.root.size, dtype=np.int64)
        np.add.at(misses, self.root, weight.max(axis=1, initial=0))
        spread = self._spread()
        bits = self._bits(spread) + np.log2(2.0 + misses)
        coarser = np.maximum(np.ceil(bits - _BITS), 0).astype(np.int64)
        big = (spread >> coarser) + np.bincount(self.root, minlength=self.root.size) + 1
        found: Ints = self.value >> coarser[self.root][:, None]
        found -= big[self.root][:, None] * weight
        return found

    def _back_towards_capacity(self, node: int, level: Ints) -> None:
        """Where limits exceed what there is: shrink as far as allowed, grow nothing.

        A pinned VM has its pin for its lowest grant.
        """
        children = list(self.snapshot.below[node])
        amount = self.capacity[node] if self.capacity[node] != MISSING else self.limit[node]
        over = int(self.limit[children].sum()) + int(self.kept[node]) > int(amount)
        for child in children:
            if self.snapshot.below[child]:
                self._back_towards_capacity(child, level)
            elif over:
                level[child] = min(int(self.level[child, 0]), int(self.limit[child]))


class _Attempt:
    """Some trees solved with some of their options at some value."""

    def __init__(self, one: _One, trees: Bools, allowed: Bools, value: Ints) -> None:
        self.one = one
        self.node = np.flatnonzero(trees[one.root])
        allowed = allowed[self.node]
        self.row, self.place = np.nonzero(allowed)
        amount = one.level[self.node][allowed]
        parent = one.snapshot.parent[self.node]
        self.forest = Forest(
            parent=np.where(parent < 0, -1, np.searchsorted(self.node, parent)),
            capacity=(one.capacity[self.node] - one.kept[self.node]) // one.quantum,
            overhead=np.zeros(self.node.size, dtype=np.int64),
            first=np.concatenate([[0], np.cumsum(allowed.sum(axis=1))]),
            level=-(-amount // one.quantum),
            value=value[self.node][allowed],
            room=(amount - self._kept(amount)) // one.quantum,
        )
        self.found: ForestSolution = solve_tree(self.forest)

    def _kept(self, amount: Ints) -> Ints:
        """Of each option, beside the guests' grants."""
        machine = self.node[self.row]
        shrinks = amount < self.one.limit[machine]
        return np.where(shrinks, self.one.kept_below[machine], self.one.kept[machine])

    def status(self) -> list[tuple[int, int]]:
        """(root, status) of each tree."""
        roots = self.node[self.forest.roots]
        return list(zip(roots.tolist(), self.found.status.tolist(), strict=True))

    def short(self) -> Bools:
        """(n,) which machines got less than they ask for."""
        short = np.zeros(self.one.root.size, dtype=np.bool_)
        node, place = self._placed()
        short[node] = self.one.misses[node, place]
        return short

    def write(self, level: Ints, total: Ints, price: Floats) -> None:
        """Grants, totals and prices of the trees that were solved."""
        node, place = self._placed()
        level[node] = self.one.level[node, place]
        sums = np.zeros(self.one.root.size, dtype=np.int64)
        np.add.at(sums, self.one.root[node], self.one.value[node, place])
        total += sums[self.one.roots]
        price[self.node] = self.found.price

    def _placed(self) -> tuple[Ints, Ints]:
        """Machines that were given something, and which of their candidates."""
        placed = np.flatnonzero(self.found.option >= 0)
        option = self.forest.first[placed] + self.found.option[placed]
        return self.node[placed], self.place[option]
