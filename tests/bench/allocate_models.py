"""The allocator's problems as any solver of mixed-integer programmes takes them.

One binary per option; the options of a group add up to exactly one; rows of weighted options stay
within their limits. A host is one row, a tree one row per hypervisor, coupled resources one row
each. Imports NumPy alone: the peers' environment reads it too.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Models:
    """i instances of one structure: o options in g groups, r rows with k entries together."""

    group_first: Ints  # (g + 1,) where the options of each group begin
    row_first: Ints  # (r + 1,) where the entries of each row begin
    row_option: Ints  # (k,)
    row_weight: Ints  # (i, k)
    row_limit: Ints  # (i, r)
    value: Ints  # (i, o) to be maximised

    def __len__(self) -> int:
        return len(self.value)

    def save(self, path: Path) -> None:
        np.savez(path, **{name: getattr(self, name) for name in self.__slots__})


def load(path: Path) -> Models:
    with np.load(path) as arrays:
        return Models(**arrays)


def of_hosts(value: NDArray[np.integer], levels: list[NDArray[np.integer]], limits: Ints) -> Models:
    """Hosts with one row per resource.

    `value` (b, n, h); each of `levels` broadcasts to that; `limits` (h, resources).
    """
    bins, slots = value.shape[:2]
    options, resources = bins * slots, len(levels)
    weights = [_by_host(np.broadcast_to(level, value.shape)) for level in levels]
    return Models(
        group_first=np.arange(slots + 1) * bins,
        row_first=np.arange(resources + 1) * options,
        row_option=np.tile(np.arange(options), resources),
        row_weight=np.concatenate(weights, axis=1),
        row_limit=limits.astype(np.int64),
        value=_by_host(value),
    )


def _by_host(array: NDArray[np.integer]) -> Ints:
    """(b, n, h) -> (h, n * b)"""
    turned = np.ascontiguousarray(array.transpose(2, 1, 0)).astype(np.int64)
    return turned.reshape(len(turned), -1)


def of_trees(
    root_of: Ints,
    parent: Ints,
    capacity: Ints,
    overhead: Ints,
    first: Ints,
    level: Ints,
    value: Ints,
) -> Models:
    """Trees of one shape, each joint over all its levels; arguments as in `problem.Forest`.

    `root_of` (m,) the root of each node. Trees stand one after the other.
    """
    roots = np.flatnonzero(parent < 0)
    size = len(parent) // len(roots)
    assert (root_of == np.repeat(roots, size)).all(), "trees of different shapes or mixed order"
    options = len(value) // len(roots)
    inner = np.flatnonzero(np.isin(np.arange(size), parent[1:size]))  # of the first tree
    entries, weights, limits, firsts = [], [], [], [0]
    for node in inner:
        own = np.arange(first[node], first[node + 1])
        below = [np.arange(first[child], first[child + 1])
                 for child in np.flatnonzero(parent[:size] == node)]  # fmt: skip
        row = np.concatenate([own, *below])
        places = row[None] + np.arange(len(roots))[:, None] * options
        weight = level[places]
        weight[:, : len(own)] *= -1  # what the node gets stands on the other side
        entries.append(row)
        weights.append(weight)
        limits.append(np.where(parent[roots + node] < 0, capacity[roots + node], 0)
                      - overhead[roots + node])  # fmt: skip
        firsts.append(firsts[-1] + len(row))
    return Models(
        group_first=first[1 : size + 1].astype(np.int64),
        row_first=np.array(firsts),
        row_option=np.concatenate(entries),
        row_weight=np.concatenate(weights, axis=1),
        row_limit=np.stack(limits, axis=1),
        value=value.reshape(len(roots), options).astype(np.int64),
    )
