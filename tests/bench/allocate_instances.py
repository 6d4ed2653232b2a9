"""Instances for the allocator's benchmark, each from a seed: hosts, trees, coupled resources.

Values of `use` are the project's objective (controller/core/allocate/value.py) on demand that is a
mixture of two exponentials: expected use, less waste, shortage, a fixed cost of any change and a
small one per quantum. The other families are the classical hard ones of the multiple-choice
knapsack (Pisinger 1995): uncorrelated, strongly correlated, without any order.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.core.allocate.problem import Forest, Problem

Floats = NDArray[np.float64]
Values = NDArray[np.int32]

SCALE = 1000  # integer units per quantum of use, as the product has them
BLOCK = 500  # hosts drawn together, so that a large fleet needs little more than its values
SIZES = np.array([16, 24, 32, 48, 64, 96, 128])  # of VMs, quanta at a capacity of 1024
WASTE, SHORT, MOVE, DRIFT = 0.15, 0.5, 0.5, 0.02


@dataclass(frozen=True, slots=True)
class Shape:
    """What a fleet looks like. `capacity` in quanta of a host."""

    family: str = "use"
    hosts: int = 10_000
    slots: int = 50
    bins: int = 32
    capacity: int = 512
    uniform: bool = True  # one grid for all VMs, or a grid per VM
    seed: int = 11

    def __str__(self) -> str:
        grid = "one grid" if self.uniform else "grids per VM"
        return f"{self.family}, {self.slots} VMs, {self.bins} bins, {self.capacity} quanta, {grid}"


def fleet(shape: Shape) -> Problem:
    """The first hosts are the same for any number of hosts."""
    blocks = range(0, shape.hosts, BLOCK)
    value = np.empty((shape.bins, shape.slots, shape.hosts), dtype=np.int32)
    level = np.empty((shape.bins, 1, 1) if shape.uniform else value.shape, dtype=np.int32)
    for number, start in enumerate(blocks):
        random = np.random.default_rng([shape.seed, number])
        some = slice(start, min(start + BLOCK, shape.hosts))
        grid = _grid(shape, random)
        drawn = FAMILIES[shape.family](shape, grid, random)
        value[:, :, some] = drawn[:, :, : some.stop - some.start]
        if shape.uniform:
            level[:] = grid
        else:
            level[:, :, some] = grid[:, :, : some.stop - some.start]
    return Problem(value, level, np.full(shape.hosts, shape.capacity, dtype=np.int64))


def _grid(shape: Shape, random: np.random.Generator) -> Values:
    """(b, 1, 1), or (b, n, BLOCK) with a size of its own for each VM."""
    step = np.arange(1, shape.bins + 1, dtype=np.int32)[:, None, None]
    if shape.uniform:
        return step * np.int32(max(1, shape.capacity // 512))
    sizes = np.maximum(SIZES * shape.capacity // 1024, shape.bins)
    size = random.choice(sizes, size=(1, shape.slots, BLOCK)).astype(np.int32)
    return np.asarray(-(-size * step // shape.bins), dtype=np.int32)


def _use(shape: Shape, grid: Values, random: np.random.Generator) -> Values:
    one = (1, shape.slots, BLOCK)
    size = np.broadcast_to(grid[-1:], one).astype(np.float64)
    usual, peak = size * random.uniform(0.05, 0.35, one), size * random.uniform(0.3, 1.0, one)
    share = random.uniform(0.0, 0.4, one)  # of the time at its peak
    level = np.broadcast_to(grid, (shape.bins, *one[1:])).astype(np.float64)
    use = (1 - share) * _expected_use(usual, level) + share * _expected_use(peak, level)
    mean = (1 - share) * usual + share * peak
    weight = random.choice([1, 1, 1, 2, 4], size=one) * random.uniform(0.8, 1.2, one)
    worth = weight * (use - WASTE * (level - use) - SHORT * (mean - use))
    if shape.family == "use":
        worth -= _cost_of_change(shape, level, size, weight, random)
    return np.rint(worth * (SCALE * 512 / shape.capacity)).astype(np.int32)


def _expected_use(mean: Floats, level: Floats) -> Floats:
    """E min(D, level) of an exponential demand."""
    return np.asarray(mean * (1.0 - np.exp(-level / mean)))


def _cost_of_change(
    shape: Shape, level: Floats, size: Floats, weight: Floats, random: np.random.Generator
) -> Floats:
    now = random.integers(0, shape.bins // 2, size=size.shape)
    away = np.arange(shape.bins)[:, None, None] != now
    distance = np.abs(level - np.take_along_axis(level, now, axis=0))
    return np.asarray(away * (MOVE * size / 32) * weight + DRIFT * distance)


def _uncorrelated(shape: Shape, grid: Values, random: np.random.Generator) -> Values:
    return np.sort(_unordered(shape, grid, random), axis=0)


def _unordered(shape: Shape, grid: Values, random: np.random.Generator) -> Values:
    return random.integers(0, 10_000, (shape.bins, shape.slots, BLOCK), dtype=np.int32)


def _strong(shape: Shape, grid: Values, random: np.random.Generator) -> Values:
    """A hundred per quantum and hardly any noise: every solution is nearly as good as the best."""
    noise = random.integers(0, 20, (shape.bins, shape.slots, BLOCK), dtype=np.int32)
    step = 100 * (np.arange(shape.bins, dtype=np.int32) > 0)[:, None, None]
    return np.asarray(grid * 100 + noise + step, dtype=np.int32)


FAMILIES: dict[str, Callable[[Shape, Values, np.random.Generator], Values]] = {
    "use": _use,
    "concave": _use,  # without costs of a change
    "uncorrelated": _uncorrelated,
    "unordered": _unordered,
    "strong": _strong,
}


# ---- trees ----

PLAIN, HYPERVISORS, GUESTS = 20, 6, 8  # VMs of a host, its hypervisor VMs, guests of each of those
TREE_BINS, GUEST_BINS = 32, 16
TREE_CAPACITY, TREE_OVERHEAD, STEP = 384, 2, 4  # quanta
NODES = 1 + PLAIN + HYPERVISORS * (1 + GUESTS)


def forest(trees: int, seed: int = 1) -> Forest:
    """Hosts with plain VMs and hypervisor VMs, whose own value is the cost of changing them."""
    plain = fleet(Shape(hosts=trees, slots=PLAIN, bins=TREE_BINS, seed=seed))
    guests = fleet(Shape(hosts=trees * HYPERVISORS, slots=GUESTS, bins=GUEST_BINS, seed=seed + 1))
    random = np.random.default_rng([seed, 2])
    now = random.integers(4, 20, (trees, HYPERVISORS, 1))
    cost = random.integers(500, 3000, (trees, HYPERVISORS, 1))
    own = np.where(np.arange(TREE_BINS) == now, 0, -cost)
    value = np.concatenate(
        [
            plain.value.transpose(2, 1, 0).reshape(trees, -1),
            own.reshape(trees, -1),
            guests.value.transpose(2, 1, 0).reshape(trees, -1),
        ],
        axis=1,
    )
    level = np.concatenate(
        [
            np.tile(plain.level[:, 0, 0], PLAIN),
            np.tile(np.arange(1, TREE_BINS + 1) * STEP, HYPERVISORS),
            np.tile(guests.level[:, 0, 0], HYPERVISORS * GUESTS),
        ]
    )
    return Forest(
        parent=_parents(trees),
        capacity=_per_tree(trees, np.arange(NODES) == 0) * TREE_CAPACITY,
        overhead=_per_tree(trees, _is_hypervisor()) * TREE_OVERHEAD,
        first=_first(trees),
        level=np.tile(level, trees).astype(np.int64),
        value=value.ravel().astype(np.int64),
    )


def _is_hypervisor() -> NDArray[np.bool_]:
    place = np.arange(NODES)
    return np.asarray((place > PLAIN) & (place <= PLAIN + HYPERVISORS))


def _per_tree(trees: int, one: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.tile(one.astype(np.int64), trees)


def _parents(trees: int) -> NDArray[np.int64]:
    one = np.zeros(NODES, dtype=np.int64)
    one[0] = -1
    one[1 + PLAIN + HYPERVISORS :] = 1 + PLAIN + np.repeat(np.arange(HYPERVISORS), GUESTS)
    place = one + np.arange(trees)[:, None] * NODES
    return np.where(one < 0, -1, place).ravel()


def _first(trees: int) -> NDArray[np.int64]:
    count = np.full(NODES, GUEST_BINS)
    count[: 1 + PLAIN + HYPERVISORS] = TREE_BINS
    count[0] = 0
    return np.append(0, np.cumsum(np.tile(count, trees)))


# ---- two coupled resources ----


@dataclass(frozen=True, slots=True, eq=False)
class Flavours:
    """Each VM takes one flavour, a size of both resources at once."""

    value: Values  # (f, n, h)
    level: NDArray[np.int64]  # (2, f) quanta
    capacity: NDArray[np.int64]  # (2, h)


def flavours(
    hosts: int, slots: int = 50, sizes: int = 8, capacity: int = 128, seed: int = 5
) -> Flavours:
    """The use of both resources, something for using them together, a shared cost of changing."""
    random = np.random.default_rng([seed, 3])
    one = (1, slots, hosts)
    weight = random.choice([1, 1, 2, 4], size=one) * random.uniform(0.8, 1.2, one)
    first, second = (_gain(random, one, sizes) for _ in range(2))
    left, right = np.repeat(first, sizes, axis=0), np.tile(second, (sizes, 1, 1))
    worth = left + right + 0.5 * np.minimum(left, right)
    now = random.integers(0, sizes * sizes // 2, size=one)
    worth -= 0.3 * (np.arange(sizes * sizes)[:, None, None] != now)
    steps = np.arange(1, sizes + 1)
    return Flavours(
        np.rint(worth * weight * SCALE).astype(np.int32),
        np.stack([np.repeat(steps, sizes), np.tile(steps, sizes)]),
        np.full((2, hosts), capacity, dtype=np.int64),
    )


def _gain(random: np.random.Generator, one: tuple[int, ...], sizes: int) -> Floats:
    level = np.arange(1, sizes + 1, dtype=np.float64)[:, None, None]
    usual, peak = sizes * random.uniform(0.05, 0.35, one), sizes * random.uniform(0.3, 1.0, one)
    share = random.uniform(0.0, 0.4, one)
    use = (1 - share) * _expected_use(usual, level) + share * _expected_use(peak, level)
    return np.asarray(use - WASTE * (level - use))
