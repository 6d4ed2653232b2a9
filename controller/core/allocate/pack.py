"""Parents of a forest with their children, side by side as a problem of the flat solvers.

Trees are ragged, arrays are not. Parents with about as many children are taken together, and their
children padded: a child with fewer options repeats its last, a place without a child takes nothing.
How a parent is padded depends on itself alone, and so does its solution.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from controller.core.allocate.problem import AnyInts, Forest, Ints, Problem

ENTRIES_AT_ONCE = 1 << 20  # of a problem's values; bounds the memory
# Numbers of slots, a quarter apart.
_SLOTS = np.unique(np.ceil(1.25 ** np.arange(100))).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """h parents and their children in up to n slots."""

    parent: Ints  # (h,) nodes
    child: Ints  # (n, h) nodes; -1: an empty slot
    problem: Problem  # capacities are those asked for


class Family:
    """Who is whose child, and what of it is taken together."""

    def __init__(self, forest: Forest) -> None:
        self.forest = forest
        nodes = np.arange(forest.parent.size)
        self._order = np.argsort(forest.parent, kind="stable")
        ordered = forest.parent[self._order]
        self._first = np.searchsorted(ordered, nodes, side="left")
        self.children = np.searchsorted(ordered, nodes, side="right") - self._first  # (m,) how many
        self.options = np.diff(forest.first)  # (m,) how many

    def below(self, parents: Ints) -> Ints:
        """The children of all these parents, parent by parent."""
        return self._order[ranges(self._first[parents], self.children[parents])]

    def generations(self) -> list[Ints]:
        """Nodes that have children: roots, then those among their children, and so on."""
        found = []
        parents = self.forest.roots
        while parents.size:
            found.append(parents[self.children[parents] > 0])
            parents = self.below(parents)
        return found

    def batches(self, parents: Ints, blocked: Ints) -> Iterator[tuple[Ints, int, int]]:
        """Parents that go together, with their bins and slots.

        `blocked`: (m,) how many of a node's first options cannot be had; fewer than all.
        """
        if not parents.size:
            return
        kin = self.below(parents)
        options = (self.options - blocked)[kin]
        starts = np.cumsum(self.children[parents]) - self.children[parents]
        most = np.maximum.reduceat(options, starts)
        bits = np.ceil(np.log2(np.maximum(most, 1))).astype(np.int64)
        slots = _SLOTS[np.searchsorted(_SLOTS, self.children[parents])]
        for key in np.unique(np.stack([bits, slots]), axis=1).T:
            chosen = np.flatnonzero((bits == key[0]) & (slots == key[1]))
            bins, width = int(most[chosen].max()), int(key[1])
            size = max(1, ENTRIES_AT_ONCE // (bins * width))
            for start in range(0, chosen.size, size):
                yield parents[chosen[start : start + size]], bins, width

    def pack(
        self, parents: Ints, bins: int, slots: int, worth: Ints, blocked: Ints, capacity: Ints
    ) -> Packed:
        """The children's options with their worth (o,), within the parents' capacities (h,)."""
        slot = np.arange(slots)[:, None]
        taken = slot < self.children[parents]
        child = np.where(taken, self._order[np.where(taken, self._first[parents] + slot, 0)], -1)
        last = np.where(taken, (self.options - blocked)[child] - 1, 0)[:, :, None]
        first = np.where(taken, (self.forest.first[:-1] + blocked)[child], 0)[:, :, None]
        # Gathered child by child, as options lie in memory, and only then turned host-minor.
        entry = first + np.minimum(np.arange(bins), last)
        value, level = worth.take(entry), self.forest.level.take(entry)
        if not bool(taken.all()):
            value[~taken] = level[~taken] = 0
        value, level = (np.ascontiguousarray(one.transpose(2, 0, 1)) for one in (value, level))
        return Packed(parents, child, Problem(value, _shared(level), capacity))


def ranges(first: Ints, count: Ints) -> Ints:
    """first[0] .. first[0] + count[0] - 1, first[1] .. and so on, one after the other."""
    ends = np.cumsum(count)
    total = int(ends[-1]) if ends.size else 0
    return np.asarray(np.arange(total) + np.repeat(first - (ends - count), count), dtype=np.int64)


def _shared(level: AnyInts) -> AnyInts:
    """One table for all hosts where they have the same.

    Never one for all slots as well: that could be an even grid, solved in another way, and then the
    neighbours would decide which of equal solutions a host gets.
    """
    return level[:, :, :1].copy() if bool((level == level[:, :, :1]).all()) else level
