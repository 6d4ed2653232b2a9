"""The allocator's problems solved in the plainest way that can be: a second opinion for tests.

Knows the values of problem.py and nothing else of the solvers. `best` is a dense dynamic programme
over all hosts of a batch at once (Kellerer, Pferschy, Pisinger 2004, chapter 11.5), `best_of_tree`
the same over rows of one tree; `best_by_trying` and `best_of_tree_by_trying` try every choice.
"""

import itertools

import numpy as np

from controller.core.allocate.problem import NOTHING, Forest, Ints, Problem

IMPOSSIBLE = NOTHING // 2  # below it: the mark of the impossible plus some values


def best(problem: Problem) -> Ints:
    """(h,) the greatest value of each host; NOTHING where nothing fits. O(b n capacity) each."""
    level = problem.level.astype(np.int64)
    value = problem.value.astype(np.int64)
    _, slots, hosts = value.shape
    most = int(np.broadcast_to(level[-1], (slots, hosts)).sum(axis=0).max(initial=0))
    capacity = np.clip(problem.capacity, -1, most)
    size = int(capacity.max(initial=0)) + 1
    row = np.zeros((size, hosts), dtype=np.int64)  # by quanta: the best of the slots so far
    for slot in range(slots):
        weight = level[:, min(slot, level.shape[1] - 1)]  # (b, 1) or (b, hosts)
        step = _shared_step if weight.shape[1] == 1 else _own_step
        row = step(row, weight, value[:, slot])
    found = row[np.maximum(capacity, 0), np.arange(hosts)]
    return np.where((found < IMPOSSIBLE) | (capacity < 0), NOTHING, found)


def _shared_step(row: Ints, weight: Ints, value: Ints) -> Ints:
    """One slot more, whose levels are the same at every host."""
    after = np.full_like(row, NOTHING)
    for one, gain in zip(weight[:, 0].tolist(), value, strict=True):
        if one < len(row):
            np.maximum(after[one:], row[: len(row) - one] + gain, out=after[one:])
    return after


def _own_step(row: Ints, weight: Ints, value: Ints) -> Ints:
    """One slot more, whose levels are each host's own."""
    size, hosts = row.shape
    below = np.concatenate([np.full_like(row, NOTHING), row]).ravel()  # NOTHING below 0 quanta
    here = np.arange(size * hosts).reshape(size, hosts) + size * hosts
    after = np.full_like(row, NOTHING)
    for one, gain in zip(np.minimum(weight, size), value, strict=True):
        np.maximum(after, below.take(here - one * hosts) + gain, out=after)
    return after


def best_by_trying(problem: Problem) -> Ints:
    """(h,) the same from all b**n choices; any levels, however large."""
    bins, slots, hosts = problem.value.shape
    level = np.broadcast_to(problem.level, problem.value.shape).astype(np.int64)
    found = np.full(hosts, NOTHING)
    for choice in itertools.product(range(bins), repeat=slots):
        picked = (list(choice), list(range(slots)))
        total = problem.value.astype(np.int64)[picked].sum(axis=0)
        fits = level[picked].sum(axis=0) <= problem.capacity
        found = np.where(fits, np.maximum(found, total), found)
    return np.where(problem.capacity < 0, NOTHING, found)


def taken(problem: Problem, choice: Ints) -> tuple[Ints, Ints]:
    """(h,) value and (h,) quanta of a choice of bins (n, h)."""
    place = choice.astype(np.int64)[None]
    level = np.broadcast_to(problem.level, problem.value.shape)
    value = np.take_along_axis(problem.value.astype(np.int64), place, axis=0)[0]
    return value.sum(axis=0), np.take_along_axis(level.astype(np.int64), place, 0)[0].sum(axis=0)


def children_of(forest: Forest) -> list[list[int]]:
    below: list[list[int]] = [[] for _ in forest.parent]
    for node, parent in enumerate(forest.parent.tolist()):
        if parent >= 0:
            below[parent].append(node)
    return below


def options_of(forest: Forest, node: int) -> list[tuple[int, int]]:
    """Pairs of level and value."""
    places = slice(int(forest.first[node]), int(forest.first[node + 1]))
    return list(zip(forest.level[places].tolist(), forest.value[places].tolist(), strict=True))


def best_of_tree(forest: Forest, root: int) -> int:
    """The greatest value of one tree, by rows over quanta from the leaves up; NOTHING if none."""
    below = children_of(forest)

    def row(node: int, room: int) -> Ints:
        """The best of all children of `node` within 0..room quanta."""
        sofar = np.zeros(room + 1, dtype=np.int64)
        for child in below[node]:
            after = np.full(room + 1, NOTHING)
            for level, value in worth(child, room):
                reached = sofar[: room + 1 - level] + value
                np.maximum(after[level:], reached, out=after[level:])
            sofar = np.where(after < IMPOSSIBLE, NOTHING, after)
        return sofar

    def worth(child: int, room: int) -> list[tuple[int, int]]:
        """What its options are worth together with what they hold; those within `room`."""
        options = [pair for pair in options_of(forest, child) if pair[0] <= room]
        if not below[child] or not options:
            return options
        overhead = int(forest.overhead[child])
        inside = row(child, max(options[-1][0] - overhead, 0))
        return [
            (level, value + int(inside[level - overhead]))
            for level, value in options
            if level >= overhead and inside[level - overhead] > NOTHING
        ]

    if not below[root]:
        return 0
    room = int(forest.capacity[root] - forest.overhead[root])
    return int(row(root, room)[room]) if room >= 0 else NOTHING


def best_of_tree_by_trying(forest: Forest, root: int) -> int:
    """The same from every combination of options."""
    below = children_of(forest)
    nodes = [root]
    for node in nodes:
        nodes += below[node]
    found = NOTHING
    for picked in itertools.product(*(options_of(forest, node) for node in nodes[1:])):
        level = {root: int(forest.capacity[root])}
        level |= {node: pair[0] for node, pair in zip(nodes[1:], picked, strict=True)}
        if fits(forest, below, level):
            found = max(found, sum(value for _, value in picked))
    return found


def fits(forest: Forest, below: list[list[int]], level: dict[int, int]) -> bool:
    """Whether every node with children holds its overhead and theirs within its level."""
    return all(
        forest.overhead[node] + sum(level[child] for child in below[node]) <= level[node]
        for node in level
        if below[node]
    )


def fewest_to_relax(forest: Forest, root: int) -> int | None:
    """How many nodes at least must be free to take any level from 0 to their largest; None: no
    number is enough. Tries every set."""
    below = children_of(forest)
    nodes = [root]
    for node in nodes:
        nodes += below[node]

    def least(node: int, free: frozenset[int]) -> int | None:
        """The least that `node` must take."""
        inside = 0
        if below[node]:
            parts = [least(child, free) for child in below[node]]
            if None in parts:
                return None
            inside = int(forest.overhead[node]) + sum(part for part in parts if part is not None)
        if node == root:
            return inside if inside <= forest.capacity[root] else None
        levels = [level for level, _ in options_of(forest, node)]
        if node in free:
            return inside if inside <= levels[-1] else None
        return next((level for level in levels if level >= inside), None)

    for count in range(len(nodes)):
        for free in itertools.combinations(nodes[1:], count):
            if least(root, frozenset(free)) is not None:
                return count
    return None
