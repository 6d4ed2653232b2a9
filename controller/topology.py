"""Who runs on whom, from what nodes report; pure.

A VM whose id is that of a reporting node is that node, seen from outside: this join is the tree.
"""

from dataclasses import dataclass

import numpy as np

from controller.core.state import Ints

NOBODY = -1  # in `host_of`: no node reports this machine


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """Machines with parents before children. m = machines placed, s = slots."""

    slots: Ints  # (m,) slot of each machine
    parent: Ints  # (m,) place of the machine that it runs on; -1 for roots
    place: Ints  # (s,) place of each slot; -1 for slots that have none
    unplaced: Ints  # slots of machines that run on each other in a circle, or on such


def in_order(roots: Ints, guests: Ints, host_of: Ints) -> Order:
    """Level by level from the roots; O(depth x guests). `host_of` (s,) holds slots or NOBODY."""
    place = np.full(len(host_of), -1, dtype=np.int64)
    place[roots] = np.arange(len(roots))
    levels, parents = [roots], [np.full(len(roots), -1, dtype=np.int64)]
    placed, waiting = len(roots), guests
    while len(waiting):
        parent = place[host_of[waiting]]
        ready = parent >= 0
        if not ready.any():
            break
        level = waiting[ready]
        place[level] = placed + np.arange(len(level))
        levels.append(level)
        parents.append(parent[ready])
        placed += len(level)
        waiting = waiting[~ready]
    return Order(np.concatenate(levels), np.concatenate(parents), place, waiting)


def runs_on(slot: int, host: int, host_of: Ints) -> bool:
    """Whether machine `slot` runs on `host`, directly or further down; circles end the walk."""
    seen = set()
    while slot != NOBODY and slot not in seen:
        seen.add(slot)
        slot = int(host_of[slot])
        if slot == host:
            return True
    return False
