"""What the solvers take and give: problems of one resource, hosts side by side, all integers.

A `Problem` is a batch of multiple-choice knapsacks: each host gives each of its VMs exactly one
of the VM's levels, the levels add up to no more than the host's capacity, the values to as much
as possible (Kellerer, Pferschy, Pisinger, "Knapsack Problems", 2004, chapter 11). Arrays are
host-minor, so that one operation serves a whole row of hosts: b bins, n VM slots, h hosts.

A `Forest` nests them: a VM with guests is worth its own value plus the best of its guests within
what it gets, less its overhead.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
AnyInts = NDArray[np.integer]
Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]

BINS_MAX = 256  # a bin fits a byte
VALUE_MAX = 1 << 40  # of one option, either sign
LEVEL_MAX = (1 << 31) - 1  # quanta
NOTHING = -(1 << 60)  # the value of what cannot be had


class Status(IntEnum):
    """How sure a solution is. The first two are proven optima."""

    OPTIMAL_BY_BOUND = 0  # its value equals an upper bound
    OPTIMAL_BY_SEARCH = 1  # a dynamic programme left nothing better
    INFEASIBLE = 2  # the smallest levels together exceed the capacity
    BUDGET = 3  # the best found before the cap on work; `bound` says how much better it could be

    @property
    def optimal(self) -> bool:
        return self <= Status.OPTIMAL_BY_SEARCH


class ProblemError(ValueError):
    """What a solver cannot take, and where it stands."""


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """One resource of h hosts. Use `checked` where the arrays come from elsewhere.

    A VM with fewer bins than others repeats its last one; a host with fewer VMs than others has
    slots whose bins are all level 0 and value 0.
    """

    value: AnyInts  # (b, n, h)
    level: AnyInts  # (b, 1, 1), (b, n, 1) or (b, n, h); quanta, ascending along b
    capacity: Ints  # (h,) quanta; where negative, nothing fits

    @property
    def bins(self) -> int:
        return int(self.value.shape[0])

    @property
    def slots(self) -> int:
        return int(self.value.shape[1])

    @property
    def hosts(self) -> int:
        return int(self.value.shape[2])

    def of(self, hosts: AnyInts | slice) -> "Problem":
        """The same problem for some of its hosts."""
        level = self.level if self.level.shape[2] == 1 else self.level[:, :, hosts]
        return Problem(self.value[:, :, hosts], level, self.capacity[hosts])


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """One row per host. Where a host is infeasible its bins are 0 and its value NOTHING."""

    bin: Bytes  # (n, h) the chosen bin of each VM
    value: Ints  # (h,)
    bound: Ints  # (h,) no solution is worth more; equals `value` where that is optimal
    price: Ints  # (h,) Lagrange multiplier: worth of a quantum, in units of 2**-shift
    shift: Ints  # (h,)
    status: Bytes  # (h,) Status

    def of(self, hosts: AnyInts | slice) -> "Solution":
        """The solution of some of the hosts."""
        return Solution(
            self.bin[:, hosts],
            self.value[hosts],
            self.bound[hosts],
            self.price[hosts],
            self.shift[hosts],
            self.status[hosts],
        )

    def price_per_quantum(self) -> NDArray[np.float64]:
        """(h,) the shadow price in value units."""
        return np.asarray(np.ldexp(self.price.astype(np.float64), -self.shift))


@dataclass(frozen=True, slots=True, eq=False)
class Forest:
    """m nodes in trees of any depth; a node stands after its parent.

    The options of node i are places first[i] to first[i + 1] of `level` and `value`; a root has
    none and brings its capacity instead.
    """

    parent: Ints  # (m,) place of the parent; -1: a root
    capacity: Ints  # (m,) quanta of a root; ignored elsewhere
    overhead: Ints  # (m,) quanta that a node with children keeps for itself
    first: Ints  # (m + 1,)
    level: Ints  # (o,) quanta, ascending within a node
    value: Ints  # (o,)
    room: Ints | None = None  # (o,) quanta that an option leaves its children; None: less overhead

    @property
    def roots(self) -> Ints:
        return np.flatnonzero(self.parent < 0)

    def room_at(self, option: Ints, node: Ints) -> Ints:
        """(k,) quanta that options, as places of `level`, leave to the children of their nodes."""
        if self.room is not None:
            return self.room[option]
        return self.level[option] - self.overhead[node]


@dataclass(frozen=True, slots=True, eq=False)
class ForestSolution:
    """What each node takes, and what each tree is worth."""

    option: Ints  # (m,) place among the node's own options; -1: a root, or its tree is infeasible
    level: Ints  # (m,) quanta; -1 likewise
    value: Ints  # (r,) per root, in the order of `Forest.roots`
    bound: Ints  # (r,)
    price: NDArray[np.float64]  # (m,) of nodes with children: worth of a quantum; NaN elsewhere
    status: Bytes  # (r,) Status


def root_of(parent: Ints) -> Ints:
    """(m,) the root of each node's tree, from each node's parent, -1 at roots."""
    root = np.where(parent < 0, np.arange(parent.size), parent)
    while bool((root != root[root]).any()):  # each turn doubles the steps up
        root = root[root]
    return root


def checked(problem: Problem) -> Problem:
    """The problem itself, or ProblemError that names the host and the slot."""
    value, level, capacity = problem.value, problem.level, problem.capacity
    if (value.ndim, level.ndim, capacity.ndim) != (3, 3, 1):
        raise ProblemError("value and level need three axes (bin, slot, host), capacity one (host)")
    for name, array in (("value", value), ("level", level), ("capacity", capacity)):
        if not np.issubdtype(array.dtype, np.integer):
            raise ProblemError(f"{name} holds {array.dtype}, integers are needed")
    bins, slots, hosts = value.shape
    if not 1 <= bins <= BINS_MAX:
        raise ProblemError(f"{bins} bins; 1 to {BINS_MAX} are possible")
    if level.shape not in {(bins, 1, 1), (bins, slots, 1), (bins, slots, hosts)}:
        raise ProblemError(f"levels of shape {level.shape} do not fit values of {value.shape}")
    if capacity.shape != (hosts,):
        raise ProblemError(f"{capacity.size} capacities for {hosts} hosts")
    _refuse(level[:1] < 0, "the level is negative")
    _refuse(level > LEVEL_MAX, f"the level exceeds {LEVEL_MAX} quanta")
    _refuse(np.abs(value) > VALUE_MAX, f"the value exceeds {VALUE_MAX}")
    _refuse(level[1:] < level[:-1], "levels do not ascend after this bin")
    return problem


def _refuse(wrong: Bools, why: str) -> None:
    if wrong.any():
        where, slot, host = (int(axis[0]) for axis in np.nonzero(wrong))
        raise ProblemError(f"host {host}, slot {slot}, bin {where}: {why}")
