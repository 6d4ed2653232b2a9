"""The best bins of many hosts at once, with proof: bound, exchange, search.

Most hosts are closed by the Lagrangian bound alone: a solution is found whose value equals it. For
the others the search decides, over the few bins that reduced costs leave open. Where every VM is
concave on an even grid, the greatest increments are the solution and nothing needs proof.
"""

import numpy as np

from controller.core.allocate.block import Block, Memory, blocks_of
from controller.core.allocate.bound import Bounded, Keys, bound
from controller.core.allocate.concave import is_concave, take_increments
from controller.core.allocate.exchange import exchange, fill
from controller.core.allocate.problem import NOTHING, Ints, Problem, Solution, Status
from controller.core.allocate.search import Open, joined, search, survivors

BUDGET = 1 << 28  # states times options of one host's search: about half a second
ENTRIES_AT_ONCE = 3 << 19  # of a block: so many that what is done once per block costs little
LOOSE = 16  # hosts with more than this part of their room left over are filled first
SURVIVORS_AT_ONCE = 1 << 19  # bounds what waits for the search


def solve(problem: Problem, *, warm: Solution | None = None, budget: int = BUDGET) -> Solution:
    """Exact and deterministic: a host's solution depends on nothing but its own numbers.

    `warm`: prices of an earlier solution of the same hosts, which save evaluations; of several
    optima it may lead to another. `budget` caps the search per host; beyond it the best found so
    far comes back with its bound. ProblemError where numbers exceed 62 bits together.
    """
    solving = _Solving(problem, budget)
    size = hosts_at_once(problem)
    for start in range(0, problem.hosts, size):
        for hosts, block in blocks_of(problem, start, start + size, solving.memory):
            solving.add(hosts, block, None if warm is None else _prices(warm.of(hosts), block))
    return solving.finish()


def hosts_at_once(problem: Problem) -> int:
    """Hosts of one block."""
    # Levels of their own for every host are as much again to go through, in every pass.
    own = problem.level.shape[2] > 1
    return max(1, ENTRIES_AT_ONCE // (problem.bins * max(problem.slots, 1) * (3 if own else 1)))


class _Solving:
    """A solution as it fills, and the open hosts that wait for the search."""

    def __init__(self, problem: Problem, budget: int) -> None:
        n, h = problem.slots, problem.hosts
        self.budget, self.memory = budget, Memory()
        self.bin = np.zeros((n, h), dtype=np.uint8)
        self.gain, self.base, self.bound, self.price, self.shift = np.zeros((5, h), dtype=np.int64)
        self.status = np.full(h, Status.OPTIMAL_BY_BOUND, dtype=np.uint8)
        self.open: list[Open] = []

    def add(self, hosts: Ints, block: Block, warm: Ints | None) -> None:
        """Hosts of one block: closed by the bound, or kept for the search."""
        self.base[hosts], self.shift[hosts] = block.base, block.shift
        self.status[hosts[block.room < 0]] = Status.INFEASIBLE
        concave = is_concave(block)
        if concave.any():
            chosen = np.flatnonzero(concave)
            whole = chosen.size == hosts.size
            self._concave(hosts[chosen], block if whole else block.select(chosen))
            if concave.all():
                return
            rest = np.flatnonzero(~concave)
            hosts, block = hosts[rest], block.select(rest)
            warm = None if warm is None else warm[rest]
        self._bound(hosts, block, warm)

    def _concave(self, hosts: Ints, block: Block) -> None:
        self.bin[:, hosts], self.gain[hosts], self.price[hosts] = take_increments(block)
        self.bound[hosts] = self.gain[hosts]

    def _bound(self, hosts: Ints, block: Block, warm: Ints | None) -> None:
        keys = Keys(block, self.memory)
        first = bound(block, keys, warm)
        most = first.bound >> block.shift
        bins, gain = first.bin, first.gain
        still = np.flatnonzero((gain < most) & (block.room >= 0))
        if still.size:
            self._improve(block, keys, first, still)
            still = still[gain[still] < most[still]]
        self.bin[:, hosts], self.gain[hosts] = bins, gain
        self.bound[hosts], self.price[hosts] = most, first.price
        if still.size:
            some, price, target = keys.select(still), first.price[still], first.bound[still]
            self._wait(survivors(block, some, still, price, target, gain[still], hosts[still]))

    def _improve(self, block: Block, keys: Keys, first: Bounded, still: Ints) -> None:
        """Better solutions of some hosts, written into `first`."""
        left = block.room - first.weight
        loose = still[LOOSE * left[still] > block.room[still]]
        if loose.size:
            some = keys.select(loose)
            heavier = some.bins(some.best(first.lower[loose])[0])
            fill(block, loose, first.bin, first.weight, first.gain, heavier)
        exchange(block, still, first.bin, first.weight, first.gain)

    def _wait(self, opened: Open) -> None:
        self.open.append(opened)
        if sum(part.of.size for part in self.open) > SURVIVORS_AT_ONCE:
            self._search()

    def _search(self) -> None:
        opened = joined(self.open)
        self.open.clear()
        hosts = opened.host
        gain, bins = self.gain[hosts], self.bin[:, hosts].T.astype(np.int64)
        proven = search(opened, gain, bins, self.budget)
        self.gain[hosts], self.bin[:, hosts] = gain, bins.T
        self.bound[hosts] = np.where(proven, gain, self.bound[hosts])
        self.status[hosts] = np.where(proven, Status.OPTIMAL_BY_SEARCH, Status.BUDGET)

    def finish(self) -> Solution:
        if self.open:
            self._search()
        infeasible = self.status == Status.INFEASIBLE
        self.bin[:, infeasible] = 0
        self.price[infeasible] = 0
        return Solution(
            bin=self.bin,
            value=np.where(infeasible, NOTHING, self.base + self.gain),
            bound=np.where(infeasible, NOTHING, self.base + self.bound),
            price=self.price,
            shift=self.shift,
            status=self.status,
        )


def _prices(warm: Solution, block: Block) -> Ints:
    """(h,) earlier prices in the block's fixed point."""
    return np.asarray(np.ldexp(warm.price_per_quantum(), block.shift), dtype=np.int64)
