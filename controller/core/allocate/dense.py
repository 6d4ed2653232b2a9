"""Multiple-choice knapsack by dense rows: best value for every capacity, all in integers.

Kellerer, Pferschy, Pisinger, "Knapsack Problems" (2004), chapter 11. A row has one
place per quantum of capacity and never falls. NOTHING marks a capacity that cannot be met.
"""

from dataclasses import dataclass

import numpy as np

from controller.core.state import Ints

NOTHING = -(1 << 60)


@dataclass(frozen=True, slots=True, eq=False)
class Options:
    """One child: what it may take. Weights in whole quanta, ascending."""

    weight: Ints  # (k,)
    value: Ints  # (k,); NOTHING: not allowed


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """`best[c]` for c quanta of capacity, and which option each child took to get there."""

    best: Ints  # (capacity + 1,)
    taken: tuple[Ints, ...]  # per child (capacity + 1,) index of its option


def rows(children: tuple[Options, ...], capacity: int) -> Rows:
    """Best total value within each capacity 0..capacity; O(options x capacity) per child."""
    best = np.zeros(capacity + 1, dtype=np.int64)
    taken = []
    for child in children:
        best, choice = _with_child(best, child)
        taken.append(choice)
    return Rows(best, tuple(taken))


def _with_child(before: Ints, child: Options) -> tuple[Ints, Ints]:
    size = len(before)
    best = np.full(size, NOTHING, dtype=np.int64)
    choice = np.zeros(size, dtype=np.int64)
    for option, (weight, value) in enumerate(zip(child.weight, child.value, strict=True)):
        if value == NOTHING or weight >= size:
            continue
        reached = before[: size - weight] + value
        # Strictly better only: of equal values the smaller grant stays.
        better = (reached > best[weight:]) & (before[: size - weight] > NOTHING)
        best[weight:][better] = reached[better]
        choice[weight:][better] = option
    return best, choice


def choices(children: tuple[Options, ...], found: Rows, capacity: int) -> tuple[int, ...] | None:
    """The option of each child in a best solution within `capacity`; None where there is none."""
    if capacity < 0 or found.best[capacity] <= NOTHING:
        return None
    left = capacity
    picked: list[int] = []
    for child, taken in zip(reversed(children), reversed(found.taken), strict=True):
        option = int(taken[left])
        picked.append(option)
        left -= int(child.weight[option])
    return tuple(reversed(picked))
