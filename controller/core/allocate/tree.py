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
    fleets = [
        _Fleet(snapshot, bins, value[:, resource], policy.quantum[resource], resource)
        for resource in Resource
    ]
    for place, root in enumerate(roots):
        words = []
        for resource, fleet in zip(Resource, fleets, strict=True):
            word, total[place, resource] = fleet.solve(root, level[:, resource], price[:, resource])
            words.append(word)
        status.append(tuple(words))
    return Allocation(level, value, total, price, tuple(status))


class _Fleet:
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
        self.children = snapshot.below

    def solve(self, root: int, level: Ints, price: Ints) -> tuple[str, int]:
        """Writes grants and prices of one tree; returns how it went and the value reached."""
        if self.capacity[root] == MISSING or not self._known(root):
            return UNKNOWN, 0
        room = self.quanta(int(self.capacity[root]), root)
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
        return all(self.count[child] > 0 and self._known(child) for child in self.children[node])

    def quanta(self, amount: int, node: int) -> int:
        """Whole quanta that `node` can hand to its children out of `amount`; may be negative."""
        return (amount - int(self.kept[node])) // self.quantum

    def _back_towards_capacity(self, node: int, level: Ints) -> None:
        """Where limits exceed what there is: shrink as far as allowed, grow nothing.

        A pinned VM has its pin for its lowest grant.
        """
        children = list(self.children[node])
        amount = self.capacity[node] if self.capacity[node] != MISSING else self.limit[node]
        over = int(self.limit[children].sum()) + int(self.kept[node]) > int(amount)
        for child in children:
            if self.children[child]:
                self._back_towards_capacity(child, level)
            elif over:
                level[child] = min(int(self.level[child, 0]), int(self.limit[child]))


class _Attempt:
    """One solve with one lower bound per machine: what is needed, or merely what is allowed."""

    def __init__(self, fleet: _Fleet, floor: Ints) -> None:
        self.fleet = fleet
        self.floor = floor
        self.found: dict[int, Rows] = {}
        self.options: dict[int, tuple[Options, ...]] = {}

    def up(self, node: int, size: int) -> Rows:
        """Rows of `node` for 0..size quanta handed to its children."""
        self.options[node] = tuple(self._options(child) for child in self.fleet.children[node])
        self.found[node] = rows(self.options[node], size)
        return self.found[node]

    def _options(self, child: int) -> Options:
        fleet = self.fleet
        amount = fleet.level[child, : fleet.count[child]]
        value = fleet.value[child, : fleet.count[child]].copy()
        value[self._forbidden(child, amount)] = NOTHING
        if fleet.children[child]:
            inside = np.array([fleet.quanta(int(one), child) for one in amount])
            best = self.up(child, max(int(inside.max()), 0) + 1).best
            below = np.where(inside >= 0, best[np.maximum(inside, 0)], NOTHING)
            blocked = (value == NOTHING) | (below <= NOTHING)
            value = np.where(blocked, NOTHING, value + below)
        return Options(-(-amount // fleet.quantum), value)

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
        for child, option in zip(self.fleet.children[node], picked, strict=True):
            level[child] = self.fleet.level[child, option]
            if self.fleet.children[child]:
                inside = self.fleet.quanta(int(level[child]), child)
                self.down(child, inside, level, price)
