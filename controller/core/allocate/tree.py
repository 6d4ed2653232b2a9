"""Children before parents: a hypervisor VM is worth its own value plus the best of its guests.

One pass up collects rows, one pass down hands out the choices, so a single solve is jointly
optimal over L0, L1 and L2 (tree knapsack, Johnson and Niemi 1983). Resources are separable.
"""

import numpy as np

from controller.core.allocate.dense import NOTHING, Options, Rows, choices, rows
from controller.core.allocate.value import values
from controller.core.state import (
    MISSING,
    RESOURCES,
    Allocation,
    Bins,
    Bools,
    Forecast,
    Ints,
    Policy,
    Snapshot,
)
from shared.resources import Resource

OPTIMAL = "optimal"  # every VM has what its violation budget asks for
SHORT = "short"  # optimal, but some VM has less than that
OVER = "over"  # limits in force exceed the capacity: only back towards it
UNKNOWN = "unknown"  # a capacity or a limit is not known: nothing moves


def allocate(snapshot: Snapshot, forecast: Forecast, bins: Bins, policy: Policy) -> Allocation:
    """The grants of greatest total value for every root and resource; exact in integer units."""
    value = values(snapshot, forecast, bins, policy)
    level = np.where(bins.count > 0, snapshot.limit, MISSING)
    price = np.full((len(snapshot.ids), RESOURCES), np.nan)
    roots = snapshot.roots()
    total = np.zeros((len(roots), RESOURCES), dtype=np.int64)
    status = []
    for place, root in enumerate(roots):
        words = []
        for resource in Resource:
            tree = _Tree(snapshot, bins, value[:, resource], policy.quantum[resource], resource)
            word, total[place, resource] = tree.solve(root, level[:, resource], price[:, resource])
            words.append(word)
        status.append(tuple(words))
    return Allocation(level, value, total, price, tuple(status))


class _Tree:
    """One resource's view of the snapshot while it is solved."""

    def __init__(
        self, snapshot: Snapshot, bins: Bins, value: Ints, quantum: int, resource: Resource
    ) -> None:
        self.quantum = quantum
        self.level = bins.level[:, resource]
        self.count = bins.count[:, resource]
        self.needed = bins.needed[:, resource]
        self.lowest = bins.lowest[:, resource]
        self.limit = snapshot.limit[:, resource]
        self.value = value
        self.capacity = snapshot.capacity[:, resource]
        self.kept = snapshot.overhead[:, resource] + snapshot.reserve[:, resource]
        self.children: dict[int, list[int]] = {}
        for index, parent in enumerate(snapshot.parent.tolist()):
            if parent >= 0:
                self.children.setdefault(parent, []).append(index)

    def solve(self, root: int, level: Ints, price: Ints) -> tuple[str, int]:
        """Writes grants and prices of one tree; returns how it went and the value reached."""
        if self.capacity[root] == MISSING or not self._known(root):
            return UNKNOWN, 0
        room = self._quanta(int(self.capacity[root]), root)
        for word, floor in ((OPTIMAL, self.needed), (SHORT, self.lowest)):
            attempt = _Attempt(self, floor)
            found = attempt.up(root, room + 1) if room >= 0 else None
            if found is not None and found.best[room] > NOTHING:
                attempt.down(root, room, level, price)
                return word, int(found.best[room])
        self._back_towards_capacity(root, level)
        return OVER, 0

    def _known(self, node: int) -> bool:
        """Whether each limit below `node` is known; a hypervisor VM with unknown guests is not."""
        return all(
            self.count[child] > 0 and (child not in self.children or self._known(child))
            for child in self.children.get(node, ())
        )

    def _quanta(self, amount: int, node: int) -> int:
        """Whole quanta that `node` can hand to its children out of `amount`; may be negative."""
        return (amount - int(self.kept[node])) // self.quantum

    def _back_towards_capacity(self, node: int, level: Ints) -> None:
        """Where limits exceed what there is: shrink as far as allowed, grow nothing.

        A pinned VM has its pin for its lowest grant.
        """
        children = self.children.get(node, [])
        amount = self.capacity[node] if self.capacity[node] != MISSING else self.limit[node]
        over = int(self.limit[children].sum()) + int(self.kept[node]) > int(amount)
        for child in children:
            if child in self.children:
                self._back_towards_capacity(child, level)
            elif over:
                level[child] = min(int(self.level[child, 0]), int(self.limit[child]))


class _Attempt:
    """One solve with one lower bound per machine: what is needed, or merely what is allowed."""

    def __init__(self, tree: _Tree, floor: Ints) -> None:
        self.tree = tree
        self.floor = floor
        self.found: dict[int, Rows] = {}
        self.options: dict[int, tuple[Options, ...]] = {}

    def up(self, node: int, size: int) -> Rows:
        """Rows of `node` for 0..size quanta handed to its children."""
        children = self.tree.children.get(node, [])
        self.options[node] = tuple(self._options(child) for child in children)
        self.found[node] = rows(self.options[node], size)
        return self.found[node]

    def _options(self, child: int) -> Options:
        tree = self.tree
        amount = tree.level[child, : tree.count[child]]
        value = tree.value[child, : tree.count[child]].copy()
        value[self._forbidden(child, amount)] = NOTHING
        if child in tree.children:
            inside = np.array([tree._quanta(int(one), child) for one in amount])  # noqa: SLF001
            best = self.up(child, max(int(inside.max()), 0) + 1).best
            below = np.where(inside >= 0, best[np.maximum(inside, 0)], NOTHING)
            blocked = (value == NOTHING) | (below <= NOTHING)
            value = np.where(blocked, NOTHING, value + below)
        return Options(-(-amount // tree.quantum), value)

    def _forbidden(self, child: int, amount: Ints) -> Bools:
        """Candidates below the floor, unless there is only one candidate."""
        if len(amount) == 1 or self.floor[child] == MISSING:
            return np.zeros(len(amount), dtype=np.bool_)
        return amount < min(int(self.floor[child]), int(amount[-1]))

    def down(self, node: int, room: int, level: Ints, price: Ints) -> None:
        """Hands out the choices that reach the best value within `room` quanta."""
        found = self.found[node]
        price[node] = found.best[room + 1] - found.best[room]
        picked = choices(self.options[node], found, room)
        assert picked is not None, "the row promised a solution"
        for child, option in zip(self.tree.children.get(node, []), picked, strict=True):
            level[child] = self.tree.level[child, option]
            if child in self.tree.children:
                inside = self.tree._quanta(int(level[child]), child)  # noqa: SLF001
                self.down(child, inside, level, price)
