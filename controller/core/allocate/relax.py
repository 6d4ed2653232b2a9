"""Where nothing fits: the fewest nodes that must take less than they can, and by how much.

A relaxed node may take any level from 0 to its largest; with children it still holds its overhead
and their levels. As a rule it then takes less than its smallest; a node with children may also
take a level in a gap between two of its options. From the leaves up, `least[k]` is the least that
a node must take when at most k nodes of its subtree are relaxed: among leaves the k largest go
first, subtrees are joined by (min,+) convolution (tree knapsack, Johnson and Niemi 1983). Exact in
the number of nodes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from controller.core.allocate.problem import Bools, Forest, Ints

IMPOSSIBLE = 1 << 60  # quanta
FIRST_TRY = 8  # relaxed nodes at most; four times as many when they do not suffice


@dataclass(frozen=True, slots=True)
class Relaxation:
    """What would make one tree fit. Levels in quanta.

    Each level is as high as the others leave it: one relaxed node must give up `now - level` at
    least; of several none can give up less unless another gives up more.
    """

    root: int
    nodes: tuple[int, ...]  # the fewest; empty where nothing must, or where nothing helps
    now: tuple[int, ...]  # of each, the least of its options above `level`
    level: tuple[int, ...]  # of each, with which everything fits
    short: int | None  # what the root lacks now; None where a node below cannot hold its own
    tight: int  # a node that even its largest level leaves too small for its children; -1: none
    stuck: int  # a node that cannot even hold the overheads at and below it; -1: none


def relaxations(forest: Forest, roots: Iterable[int]) -> tuple[Relaxation, ...]:
    """One per root; without nodes where a tree fits as it stands."""
    children: list[list[int]] = [[] for _ in forest.parent]
    for node, parent in enumerate(forest.parent.tolist()):
        if parent >= 0:
            children[parent].append(node)
    return tuple(_Tree(forest, children, int(root)).relaxation() for root in roots)


@dataclass(slots=True)
class _Way:
    """How a node's `least` came about, to walk back down."""

    leaves: list[int]  # largest smallest level first
    inner: list[tuple[int, Ints]] = field(default_factory=list)  # with its part of each k
    itself: Bools = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))  # is it one of k?


class _Tree:
    """One tree and its limits; places of nodes are the forest's."""

    def __init__(self, forest: Forest, children: list[list[int]], root: int) -> None:
        self.forest = forest
        self.children = children
        self.root = root
        self.nodes = [root]  # parents first
        for node in self.nodes:
            self.nodes += children[node]
        self.parents = [node for node in self.nodes if children[node]]
        self.largest = {root: int(forest.capacity[root])}
        self.smallest = {root: self.largest[root]}
        for node in self.nodes[1:]:
            levels = self.levels(node)
            self.smallest[node], self.largest[node] = int(levels[0]), int(levels[-1])

    def levels(self, node: int) -> Ints:
        return self.forest.level[self.forest.first[node] : self.forest.first[node + 1]]

    def overhead(self, node: int) -> int:
        return int(self.forest.overhead[node]) if self.children[node] else 0

    def relaxation(self) -> Relaxation:
        held = self.held(frozenset())
        short = held[self.root] - self.largest[self.root]
        tight = next((node for node in reversed(self.parents) if held[node] >= IMPOSSIBLE), -1)
        known = None if tight >= 0 else max(short, 0)
        stuck = self._stuck()
        chosen = () if stuck >= 0 or (tight < 0 and short <= 0) else tuple(sorted(self._fewest()))
        level = self._as_high_as_possible(chosen)
        now = tuple(self._next(node, one) for node, one in zip(chosen, level, strict=True))
        return Relaxation(self.root, chosen, now, level, known, tight, stuck)

    def _next(self, node: int, level: int) -> int:
        """The least option of `node` above a level that is none."""
        return int(self.levels(node)[np.searchsorted(self.levels(node), level)])

    def held(self, relaxed: frozenset[int]) -> dict[int, int]:
        """The least level of each node; of the root its overhead and its children's."""
        need = dict.fromkeys(self.nodes, 0)
        for node in reversed(self.nodes):
            if self.children[node]:
                inside = self.overhead(node) + sum(need[child] for child in self.children[node])
                need[node] = min(inside, IMPOSSIBLE)
            need[node] = self.taken(node, need[node], relaxed)
        return need

    def taken(self, node: int, inside: int, relaxed: frozenset[int]) -> int:
        """The least level of `node` that holds `inside` quanta."""
        if node == self.root:
            return inside
        if node in relaxed:
            return inside if inside <= self.largest[node] else IMPOSSIBLE
        levels = self.levels(node)
        place = int(np.searchsorted(levels, inside))
        return int(levels[place]) if place < len(levels) else IMPOSSIBLE

    def _stuck(self) -> int:
        least = dict.fromkeys(self.nodes, 0)
        for node in reversed(self.parents):
            inside = sum(least[child] for child in self.children[node])
            least[node] = self.overhead(node) + inside
            if least[node] > self.largest[node]:
                return node
        return -1

    def _fewest(self) -> Iterator[int]:
        most = FIRST_TRY
        while True:
            ways: dict[int, _Way] = {}
            enough = np.flatnonzero(self._up(most, ways) <= self.largest[self.root])
            if len(enough):
                return self._down(ways, int(enough[0]))
            assert most < len(self.nodes), "without any smallest level everything fits"
            most *= 4

    def _up(self, most: int, ways: dict[int, _Way]) -> Ints:
        """(k,) what the root must hold at least when at most 0, 1, .. `most` are relaxed."""
        least: dict[int, Ints] = {}
        for node in reversed(self.parents):
            leaves = [child for child in self.children[node] if not self.children[child]]
            way = ways[node] = _Way(sorted(leaves, key=lambda leaf: -self.smallest[leaf]))
            falls = [self.smallest[leaf] for leaf in way.leaves]
            inside = (self.overhead(node) + sum(falls) - np.cumsum([0, *falls]))[: most + 1]
            for child in self.children[node]:
                if self.children[child]:
                    inside, share = _joined(inside, least.pop(child), most)
                    way.inner.append((child, share))
            least[node] = inside
            if node != self.root:
                least[node], way.itself = self._with_itself(node, inside, most)
        return least[self.root]

    def _with_itself(self, node: int, inside: Ints, most: int) -> tuple[Ints, Bools]:
        """The level by k and whether one of the k is `node`, by what it must hold by k."""
        levels = np.append(self.levels(node), IMPOSSIBLE)
        kept = levels[np.searchsorted(levels[:-1], np.append(inside, inside[-1])[: most + 1])]
        relaxed = np.append(IMPOSSIBLE, inside)[: most + 1]
        relaxed = np.where(relaxed > self.largest[node], IMPOSSIBLE, relaxed)
        return np.minimum(kept, relaxed), relaxed < kept

    def _down(self, ways: dict[int, _Way], count: int) -> Iterator[int]:
        """The relaxed nodes of the best way with `count` of them."""
        ahead = [(self.root, count)]
        for node, granted in ahead:  # grows while it is read
            way, left = ways[node], granted
            if len(way.itself) and way.itself[left]:
                yield node
                left -= 1
            for child, share in reversed(way.inner):
                part = int(share[min(left, len(share) - 1)])
                ahead.append((child, part))
                left -= part
            yield from way.leaves[:left]

    def _as_high_as_possible(self, chosen: tuple[int, ...]) -> tuple[int, ...]:
        """A level for each: children first, each takes what the others at their least leave."""
        relaxed = frozenset(chosen)
        held = self.held(relaxed) if chosen else {}
        for node in reversed([node for node in self.nodes if node in relaxed]):
            # Never as much as an option: the fewest were chosen, so without any of them all fails.
            held[node] = self._room(node, held, relaxed)
            self._pass_up(node, held, relaxed)
        return tuple(held[node] for node in chosen)

    def _room(self, node: int, held: dict[int, int], relaxed: frozenset[int]) -> int:
        """What `node` could take at most while all others hold what they hold."""
        room = self.largest[self.root]
        for above, below in pairwise(reversed([node, *self._above(node)])):
            others = sum(held[child] for child in self.children[above]) - held[below]
            room -= self.overhead(above) + others
            if below != node:
                room = self._widest(below, room, relaxed)
        return room

    def _widest(self, node: int, room: int, relaxed: frozenset[int]) -> int:
        """The largest level of `node` within `room`."""
        if node in relaxed:
            return min(room, self.largest[node])
        levels = self.levels(node)
        return int(levels[np.searchsorted(levels, room, side="right") - 1])

    def _above(self, node: int) -> Iterator[int]:
        while node != self.root:
            node = int(self.forest.parent[node])
            yield node

    def _pass_up(self, node: int, held: dict[int, int], relaxed: frozenset[int]) -> None:
        for above in self._above(node):
            inside = self.overhead(above) + sum(held[child] for child in self.children[above])
            held[above] = self.taken(above, inside, relaxed)


def _joined(one: Ints, other: Ints, most: int) -> tuple[Ints, Ints]:
    """(min,+) convolution up to `most`, and the part of each k that goes to `other`."""
    size = min(len(one) + len(other) - 1, most + 1)
    best = np.full(size, IMPOSSIBLE, dtype=np.int64)
    share = np.zeros(size, dtype=np.int64)
    for part, taken in enumerate(other[:size].tolist()):
        reached = one[: size - part] + taken
        here = slice(part, part + len(reached))
        better = reached < best[here]
        best[here][better] = reached[better]
        share[here][better] = part
    return best, share
