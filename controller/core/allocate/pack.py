"""Parents of a forest with their children, side by side as a problem of the flat solvers.

Trees are ragged, arrays are not. Parents with about as many children are taken together, and their
children padded: a child with fewer options repeats its last, a place without a child takes nothing.
How a parent is padded depends on itself alone, as far as solvers see it, and so does its solution.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from controller.core.allocate.problem import AnyInts, Forest, Ints, Problem

ENTRIES_AT_ONCE = 1 << 20  # of a problem's values; bounds the memory
ENTRIES_IN_CACHE = 1 << 15  # turned around at once
_BITS = 8  # more than the logarithm of a number of options needs
# Numbers of slots, a quarter apart.
_SLOTS = np.unique(np.ceil(1.25 ** np.arange(100))).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """h parents and their children in up to n slots."""

    parent: Ints  # (h,) nodes
    child: Ints  # (h, n) nodes; -1: an empty slot
    problem: Problem  # capacities are those asked for


class Family:
    """Who is whose child, and what of it is taken together."""

    def __init__(self, forest: Forest) -> None:
        self.forest = forest
        nodes = forest.parent.size
        self._order = np.argsort(forest.parent, kind="stable")
        self.children = np.bincount(forest.parent + 1, minlength=nodes + 1)[1:]  # (m,) how many
        self._first = forest.roots.size + np.cumsum(self.children) - self.children
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
        count = self.children[parents]
        slots = _SLOTS[np.searchsorted(_SLOTS, count)]
        shape = (slots << _BITS) + bits
        for key in np.unique(shape):
            chosen = np.flatnonzero(shape == key)
            bins = int(most[chosen].max())
            # As few as all of them need, but the solvers' bits for a sum over slots stay the same.
            width = max(int(count[chosen].max()), 1 << int(slots[chosen[0]]).bit_length() - 1)
            size = max(1, ENTRIES_AT_ONCE // (bins * width))
            for start in range(0, chosen.size, size):
                yield parents[chosen[start : start + size]], bins, width

    def pack(
        self, parents: Ints, bins: int, slots: int, worth: AnyInts, blocked: Ints, capacity: Ints
    ) -> Packed:
        """The children's options with their worth (o,), within the parents' capacities (h,)."""
        slot = np.arange(slots)
        taken = slot < self.children[parents][:, None]
        place = np.where(taken, self._first[parents][:, None] + slot, 0)
        child = np.where(taken, self._order[place], -1)
        places = _Places(
            first=np.where(taken, (self.forest.first[:-1] + blocked)[child], 0),
            options=np.where(taken, (self.options - blocked)[child], 0),
            bins=bins,
        )
        level = places.shared(self.forest.level)
        if level is None:
            level = places.host_minor(self.forest.level)
        problem = Problem(places.host_minor(worth), level, capacity)
        return Packed(parents, child, problem)


class _Places:
    """Where the options of some parents' children lie: h hosts, n slots, b bins."""

    def __init__(self, first: Ints, options: Ints, bins: int) -> None:
        self.first, self.options, self.bins = first, options, bins  # (h, n), 0 options: no child

    def host_minor(self, table: AnyInts) -> AnyInts:
        """(b, n, h) of a table (o,), turned piece by piece while it is in the cache."""
        hosts, slots = self.first.shape
        turned = np.empty((self.bins, slots, hosts), dtype=table.dtype)
        for some, piece in self._pieces(table):
            turned[:, :, some] = piece.T
        return turned

    def shared(self, table: AnyInts) -> AnyInts | None:
        """(b, n, 1) where all hosts have the same, else None.

        Never one for all slots as well: that could be an even grid, solved in another way, and then
        the neighbours would decide which of equal solutions a host gets.
        """
        first = None
        for _, piece in self._pieces(table):
            first = piece[:1].copy() if first is None else first
            if not bool((piece == first).all()):
                return None
        return None if first is None else np.ascontiguousarray(first.T)

    def _pieces(self, table: AnyInts) -> Iterator[tuple[slice, AnyInts]]:
        """(some hosts, n, b) at a time, in the order in which children mostly lie in memory; a
        child's options are one stretch of it."""
        hosts, slots = self.first.shape
        stretches = sliding_window_view(table, self.bins)
        size = max(1, ENTRIES_IN_CACHE // (self.bins * slots))
        short = bool((self.options < self.bins).any())
        for start in range(0, hosts, size):
            some = slice(start, start + size)
            first = self.first[some]
            piece = stretches[np.minimum(first, len(stretches) - 1)]
            if short:
                self._pad(piece, table, first, self.options[some])
            yield some, piece

    def _pad(self, piece: AnyInts, table: AnyInts, first: Ints, options: Ints) -> None:
        """Repeats the last option of a child that has fewer; nothing where there is no child."""
        host, slot = np.nonzero(options < self.bins)
        first, options = first[host, slot], options[host, slot]
        fewest = int(options[options > 0].min(initial=self.bins))
        if (first > table.size - self.bins).any():  # a stretch that would end after the table
            fewest = 0
        option = np.minimum(np.arange(fewest, self.bins), np.maximum(options[:, None] - 1, 0))
        piece[host, slot, fewest:] = table[first[:, None] + option]
        piece[host[options == 0], slot[options == 0]] = 0


def ranges(first: Ints, count: Ints) -> Ints:
    """first[0] .. first[0] + count[0] - 1, first[1] .. and so on, one after the other."""
    ends = np.cumsum(count)
    total = int(ends[-1]) if ends.size else 0
    return np.asarray(np.arange(total) + np.repeat(first - (ends - count), count), dtype=np.int64)
