"""Random problems of many kinds for the allocator: what real fleets look like, and what hurts.

Every function draws from the generator that it is given, so that a seed is a story.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from controller.core.allocate.problem import VALUE_MAX, Forest, Ints, Problem

Generator = np.random.Generator

CELLS = 3_000_000  # options times quanta times hosts of one batch: a tenth of a second each
HOSTS_MAX = 1500
HOSTS_WIDE = 60  # with levels of billions of quanta, where a search may be long
SHAPES = ("shared", "slot", "host")
TRYABLE = 700  # choices of one host that are few enough to try all


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A batch with the words that say what is in it."""

    problem: Problem
    family: str
    dense: bool  # whether quanta are few enough for rows; if not, choices are few enough


def draw_case(random: Generator) -> Case:
    """A batch of hosts of one family."""
    dense = random.random() > 0.04
    bins, slots = _sizes(random) if dense else (int(random.integers(2, 6)), 4)
    shape = SHAPES[int(random.integers(3))]
    grid = str(random.choice(list(GRIDS)))
    kind = str(random.choice(list(VALUES)))
    span = GRIDS[grid](random, bins, slots)
    most = int(span.max()) + 1
    hosts = int(
        min(
            HOSTS_MAX if dense else HOSTS_WIDE,
            1 + CELLS / (bins * slots * slots * most) * random.random(),
        )
    )
    level = _levels(random, grid, shape, (bins, slots, hosts))
    if random.random() < 0.1:  # some bins as light as the one before, and worth something else
        same = random.random((bins - 1, *level.shape[1:])) < 0.4
        step = np.where(same, 0, np.diff(level, axis=0))
        level = np.concatenate([level[:1], level[:1] + np.cumsum(step, axis=0)])
    if not dense:
        level = level * int(random.integers(1, ((1 << 31) - 1) // max(int(level.max()), 1)))
    scale = int(random.choice([1, 10, 10**3, 10**6, 10**9, VALUE_MAX], p=SCALE_SHARES))
    full = np.broadcast_to(level, (bins, slots, hosts))
    value = np.clip(VALUES[kind](random, full, scale), -VALUE_MAX, VALUE_MAX).astype(np.int64)
    if random.random() < 0.3:
        level, value = _padded(random, level, value)
    capacity = draw_capacity(random, np.broadcast_to(level, value.shape))
    problem = Problem(_stored(random, value), _stored(random, level), capacity)
    return Case(problem, f"{kind} on {grid}, {shape}", dense)


SCALE_SHARES = (0.1, 0.2, 0.3, 0.3, 0.06, 0.04)


def _sizes(random: Generator) -> tuple[int, int]:
    kind = random.random()
    if kind < 0.03:
        return int(random.integers(41, 257)), int(random.integers(1, 4))
    if kind < 0.05:  # as a real host has
        return int(random.integers(8, 33)), int(random.integers(13, 61))
    return int(random.integers(1, 41)), int(random.integers(1, 13))


def _unit(random: Generator, bins: int, slots: int) -> Ints:
    return np.arange(bins)


def _step(random: Generator, bins: int, slots: int) -> Ints:
    return np.arange(bins) * int(random.integers(1, 4)) + int(random.integers(0, 4))


def _ragged(random: Generator, bins: int, slots: int) -> Ints:
    return np.sort(random.permutation(2 * bins + int(random.integers(0, 30)))[:bins])


GRIDS: dict[str, Callable[[Generator, int, int], Ints]] = {
    "units": _unit,
    "steps": _step,
    "ragged": _ragged,
}


def _levels(random: Generator, grid: str, shape: str, sizes: tuple[int, int, int]) -> Ints:
    """Strictly ascending along the bins, in one of the shapes that a Problem may have."""
    bins, slots, hosts = sizes
    make = GRIDS[grid]
    if shape == "shared":
        return make(random, bins, slots).reshape(bins, 1, 1)
    rows = slots if shape == "slot" else slots * hosts
    columns = [make(random, bins, slots) for _ in range(min(rows, 64))]
    picked = np.stack(columns, axis=1)[:, random.integers(0, len(columns), rows)]
    return picked.reshape(bins, slots, rows // slots)


def _any(random: Generator, level: Ints, scale: int) -> Ints:
    return random.integers(-scale, scale + 1, level.shape)


def _rising(random: Generator, level: Ints, scale: int) -> Ints:
    return np.sort(random.integers(0, scale + 1, level.shape), axis=0)


def _negative(random: Generator, level: Ints, scale: int) -> Ints:
    return -random.integers(0, scale + 1, level.shape)


def _tied(random: Generator, level: Ints, scale: int) -> Ints:
    return random.integers(0, 2, level.shape) * scale


def _equal(random: Generator, level: Ints, scale: int) -> Ints:
    return np.full(level.shape, int(random.integers(-scale, scale + 1)))


def _concave(random: Generator, level: Ints, scale: int) -> Ints:
    steps = -np.sort(-random.integers(-scale // 4, scale + 1, level.shape), axis=0)
    return np.cumsum(steps, axis=0)


def _convex(random: Generator, level: Ints, scale: int) -> Ints:
    return np.cumsum(np.sort(random.integers(-scale // 2, scale + 1, level.shape), axis=0), axis=0)


def _strong(random: Generator, level: Ints, scale: int) -> Ints:
    """Value follows weight but for a constant: bounds say little (Pisinger's hard instances)."""
    slope = int(random.integers(1, 9)) * max(1, scale // 1000)
    return level * slope + (level > 0) * max(scale // 10, 1)


def _sums(random: Generator, level: Ints, scale: int) -> Ints:
    """Value is weight, or nearly: subset sums."""
    return level * int(random.integers(1, 9)) + random.integers(0, 2, level.shape)


def _used(random: Generator, level: Ints, scale: int) -> Ints:
    """As the control loop's: use of what is granted, less waste and the cost of moving."""
    largest = np.maximum(level[-1:], 1)
    demand = random.random(level.shape[1:]) * largest
    use = np.minimum(level, demand) - 0.15 * np.maximum(level - demand, 0)
    now = random.integers(0, len(level), level.shape[1:])
    moved = np.arange(len(level))[:, None, None] != now
    return np.rint(scale * (use / largest - 0.05 * moved))


def _spiked(random: Generator, level: Ints, scale: int) -> Ints:
    """Flat but for one bin of each slot."""
    best = random.integers(0, len(level), level.shape[1:])
    return np.where(np.arange(len(level))[:, None, None] == best, scale, 0)


VALUES: dict[str, Callable[[Generator, Ints, int], Ints]] = {
    "any": _any,
    "rising": _rising,
    "negative": _negative,
    "tied": _tied,
    "equal": _equal,
    "concave": _concave,
    "convex": _convex,
    "strong": _strong,
    "sums": _sums,
    "used": _used,
    "spiked": _spiked,
}


def _padded(random: Generator, level: Ints, value: Ints) -> tuple[Ints, Ints]:
    """Slots with fewer bins repeat their last; where levels are the hosts' own, some are empty."""
    bins, slots, hosts = value.shape
    count = random.integers(1, bins + 1, level.shape[1:])
    if level.shape[1] == 1:
        count[:] = bins
    count = np.where(random.random(count.shape) < 0.5, bins, count)
    place = np.minimum(np.arange(bins)[:, None, None], count - 1)
    level = np.take_along_axis(level, place, axis=0)
    value = np.take_along_axis(value, np.broadcast_to(place, value.shape), axis=0)
    if level.shape[2] == hosts and hosts > 1:
        there = random.integers(0, slots + 1, hosts) > np.arange(slots)[:, None]  # (n, h)
        level, value = level * there, value * there
    return level, value


def draw_capacity(random: Generator, level: Ints) -> Ints:
    """Mostly where it matters; also none, less than none, just enough, and more than enough."""
    least, most = level[0].sum(axis=0, dtype=np.int64), level[-1].sum(axis=0, dtype=np.int64)
    hosts = len(least)
    capacity = least + np.rint((most - least) * random.random(hosts) ** 1.5).astype(np.int64)
    cases = [
        (0.87, capacity),
        (0.04, random.integers(0, np.maximum(least, 1))),
        (0.04, least),
        (0.02, least - 1),
        (0.01, np.zeros_like(least)),
        (0.01, most),
        (0.01, most + random.integers(1, 1 << 40)),
    ]
    kind = random.choice(len(cases), hosts, p=[share for share, _ in cases])
    return np.choose(kind, [each for _, each in cases]).astype(np.int64)


def _stored(random: Generator, values: Ints) -> Ints:
    """In any integer type that holds them, now and then in another order of memory."""
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    types = [
        kind
        for kind in (np.int64, np.int32, np.int16, np.uint16)
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max
    ]
    stored = values.astype(types[int(random.integers(len(types)))])
    return np.asfortranarray(stored) if random.random() < 0.2 else np.ascontiguousarray(stored)


def draw_forest(random: Generator, trees: int) -> Forest:
    """Trees of up to four levels of machines, of any shape, their nodes mixed with each other."""
    depth = int(random.integers(1, 5))
    scale = int(random.choice([1, 10, 10**3, 10**6, 10**9], p=(0.1, 0.2, 0.3, 0.3, 0.1)))
    most = int(random.choice([3, 6, 24], p=(0.5, 0.4, 0.1)))  # options of a node
    nodes: list[_Drawn] = []
    for _ in range(trees):
        _draw_node(random, nodes, -1, depth, (scale, most))
    return _mixed(random, nodes)


@dataclass(slots=True)
class _Drawn:
    parent: int
    capacity: int
    overhead: int
    options: list[tuple[int, int]]


def _draw_node(
    random: Generator, nodes: list[_Drawn], parent: int, depth: int, size: tuple[int, int]
) -> tuple[int, int]:
    """Appends a node and its subtree; returns its smallest and its largest level."""
    place = len(nodes)
    nodes.append(_Drawn(parent, 0, int(random.integers(0, 4)), []))
    inner = depth > 0 and (parent < 0 or random.random() < 0.4)
    fan = int(random.integers(0 if parent < 0 else 1, 6)) if inner else 0
    below = [_draw_node(random, nodes, place, depth - 1, size) for _ in range(fan)]
    least = sum(low for low, _ in below) + nodes[place].overhead * bool(below)
    most = sum(high for _, high in below) + nodes[place].overhead * bool(below)
    if parent < 0:
        nodes[place].capacity = _near(random, least, most)
        return 0, 0
    count = int(random.integers(1, size[1] + 1))
    levels = sorted({_near(random, least, most + 4 * (not below)) for _ in range(count)})
    values = random.integers(-size[0], size[0] + 1, len(levels))
    if random.random() < 0.5:
        values = np.sort(values)
    nodes[place].options = list(zip(levels, values.tolist(), strict=True))
    return levels[0], levels[-1]


def _near(random: Generator, least: int, most: int) -> int:
    """Between the two, rarely too little."""
    low = least // 2 if random.random() < 0.15 else least
    return int(random.integers(low, most + 2))


def _mixed(random: Generator, nodes: list[_Drawn]) -> Forest:
    """Another order with parents still first."""
    rank = np.zeros(len(nodes))
    for place, node in enumerate(nodes):
        rank[place] = random.random() if node.parent < 0 else rank[node.parent] + random.random()
    order = np.argsort(rank, kind="stable")
    place_of = np.empty(len(nodes) + 1, dtype=np.int64)
    place_of[order], place_of[-1] = np.arange(len(nodes)), -1
    mixed = [nodes[place] for place in order.tolist()]
    options = [pair for node in mixed for pair in node.options]
    return Forest(
        parent=np.array([place_of[node.parent] for node in mixed]),
        capacity=np.array([node.capacity for node in mixed]),
        overhead=np.array([node.overhead for node in mixed]),
        first=np.concatenate([[0], np.cumsum([len(node.options) for node in mixed])]),
        level=np.array([level for level, _ in options], dtype=np.int64),
        value=np.array([value for _, value in options], dtype=np.int64),
    )
