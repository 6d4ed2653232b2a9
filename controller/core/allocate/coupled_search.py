"""All selections of a core that lose no more than D, host by host, met in the middle.

The core VMs of a host are dealt out to two halves. Each half lists its own selections with
loss <= D as states, quanta taken and loss, one VM at a time; a state goes where another takes no
more of anything and is worth at least as much. Pairs of states, one of each half, are the host's
selections (Horowitz, Sahni, "Computing partitions with applications to the knapsack problem",
1974): the lists are about the square root of all selections long, and `coupled_pairs` looks at
few of the pairs.

Nothing that could be the best with T <= D is lost, so what is found is optimal and finding nothing
proves that there is nothing, unless the host's budget ran out (`complete`).
"""

from dataclasses import dataclass

import numpy as np

from controller.core.allocate.coupled_core import Core
from controller.core.allocate.coupled_pairs import NEVER, best_pairs
from controller.core.allocate.problem import AnyInts, Bools, Ints

_TOGETHER = 1 << 16  # states made at once, where hosts share them
_CROWD = 48  # states of a half from which on looking for dominated ones pays
_BEAM, _BEAMS = 64, 64  # where the budget is spent, this many states go on, or this part of it
_PAIRS = 1 << 12  # pairs that are looked at whatever the budget


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Per host the best selection."""

    total: Ints  # (h,) T in units of 2**-shift; NEVER: none with T <= D was found
    option: AnyInts  # (n, h)
    complete: Bools  # (h,) nothing was left out
    spent: Ints  # (h,) states and pairs made


@dataclass(frozen=True, slots=True, eq=False)
class _Trail:
    """How the states of one step came about: each from which before, by which option."""

    before: "_Trail | None"
    parent: Ints  # (s,)
    entry: Ints  # (s,) place among the core's options


@dataclass(frozen=True, slots=True, eq=False)
class _States:
    """s partial selections, ordered by half: the first `step` core VMs of each have chosen."""

    step: int
    half: Ints  # (s,)
    taken: Ints  # (r, s) quanta
    loss: Ints  # (s,)
    trail: _Trail | None

    def only(self, which: AnyInts | slice) -> "_States":
        trail = self.trail
        if trail is not None:
            trail = _Trail(trail.before, trail.parent[which], trail.entry[which])
        taken, loss = self.taken[:, which], self.loss[which]
        return _States(self.step, self.half[which], taken, loss, trail)


def search(core: Core, most: Ints, budget: Ints) -> Found:
    """The best selection with T <= most, (h,).

    A host makes `budget`, (h,), states and looks at as many pairs; where that is spent it goes on
    with few states.
    """
    return _Search(core, most, budget).run()


class _Search:
    def __init__(self, core: Core, most: Ints, budget: Ints) -> None:
        hosts = len(most)
        self.core, self.most, self.budget = core, most, budget
        self.total = np.full(hosts, NEVER)
        self.option = core.option.copy()
        self.complete = np.ones(hosts, dtype=np.bool_)
        self.spent = np.zeros(hosts, dtype=np.int64)

    def run(self) -> Found:
        # Each entry is the lists of some hosts: finished ones, and last the one that grows.
        able = np.flatnonzero((self.core.room >= 0).all(axis=0))
        half = np.repeat(2 * able, 2) + np.arange(2 * len(able)) % 2
        taken = np.zeros((len(self.core.room), len(half)), dtype=np.int64)
        stack = [[_States(0, half, taken, taken[0], None)]]
        while stack:
            self._advance(stack.pop(), stack)
        return Found(self.total, self.option, self.complete, self.spent)

    def _advance(self, lists: list[_States], stack: list[list[_States]]) -> None:
        """Grow the last of the lists, or pair the finished ones; what remains goes on the stack."""
        states = lists.pop()
        done = self.core.count[states.half] == states.step
        lists.append(states.only(np.flatnonzero(done)))
        states = states.only(np.flatnonzero(~done))
        if not len(states.half):
            self._pair(lists)
        elif self._grows(states).sum() > _TOGETHER and states.half[0] >> 1 < states.half[-1] >> 1:
            middle = _middle(states.half)
            for low, high in ((middle, 2 * len(self.most)), (0, middle)):
                stack.append([_between(some, low, high) for some in (*lists, states)])
        else:
            stack.append([*lists, self._grow(states)])

    def _grows(self, states: _States) -> Ints:
        """(s,) how many states each makes."""
        return self.core.size[self.core.start[states.half] + states.step]

    def _grow(self, states: _States) -> _States:
        """One more VM of each half chooses."""
        core = self.core
        states = self._within_budget(states)
        vm = core.start[states.half] + states.step
        size = core.size[vm]
        parent = np.repeat(np.arange(len(vm)), size)
        entry = np.arange(len(parent)) + np.repeat(core.first[vm] - np.cumsum(size) + size, size)
        loss = states.loss[parent] + core.loss[entry]
        half = states.half[parent]
        taken = states.taken[:, parent] + core.extra[:, entry]
        able = loss <= self.most[half >> 1]
        able &= (taken <= core.room[:, half >> 1]).all(axis=0)
        trail = _Trail(states.trail, parent, entry)
        grown = _States(states.step + 1, half, taken, loss, trail)
        return self._undominated(grown.only(np.flatnonzero(able)))

    def _within_budget(self, states: _States) -> _States:
        """The states themselves, or few of them where a host's budget ends."""
        made = self._made(states)
        over = self.spent + made > self.budget
        if over.any():
            self.complete &= ~over
            order = np.lexsort((states.loss, states.half))
            rank = np.arange(len(order)) - np.searchsorted(states.half, states.half)
            size = np.bincount(states.half, minlength=len(self.core.count))
            beam = np.maximum(self.budget // _BEAMS, _BEAM)
            # The best and, as those are much the same selections, some from best to worst.
            every = (2 * size // beam.repeat(2) + 1)[states.half]
            best = rank < (beam // 2)[states.half >> 1]
            stay = ~over[states.half >> 1] | best | (rank % every == 0)
            states = states.only(np.sort(order[stay]))
            made = self._made(states)
        self.spent += made
        return states

    def _made(self, states: _States) -> Ints:
        """(h,) how many states the next step makes."""
        made = np.bincount(states.half >> 1, self._grows(states), len(self.most))
        return made.astype(np.int64)

    def _undominated(self, states: _States) -> _States:
        """Without states that take no less of anything and are worth no more than another.

        Only states are compared that take the same of all resources but one, which one changes
        with the step: a full comparison would cost more than it saves.
        """
        crowd = np.bincount(states.half, minlength=len(self.core.count))[states.half] > _CROWD
        some = np.flatnonzero(crowd)
        if not len(some):
            return states
        half, taken = states.half[some], states.taken[:, some]
        # With the same partner this is what they differ by in T.
        total = states.loss[some] - (self.core.price[:, half >> 1] * taken).sum(axis=0)
        last = states.step % len(taken)
        same = [half, *(row for resource, row in enumerate(taken) if resource != last)]
        order = np.lexsort((total, taken[last], *same))
        starts = np.zeros(len(order), dtype=np.bool_)
        for key in same:
            starts[1:] |= key[order[1:]] != key[order[:-1]]
        rank = np.unique(total, return_inverse=True)[1][order]
        # Later groups stand lower than earlier ones, so a running minimum starts anew in each.
        rank -= np.cumsum(starts) * len(order)
        lowest = np.minimum.accumulate(rank)
        keep = np.ones(len(states.half), dtype=np.bool_)
        keep[some[order[1:][lowest[:-1] <= rank[1:]]]] = False
        return states.only(np.flatnonzero(keep))

    def _pair(self, lists: list[_States]) -> None:
        """Join the halves' finished lists; note each host's best pair and how it came about."""
        half = np.concatenate([states.half for states in lists])
        taken = np.concatenate([states.taken for states in lists], axis=1)
        loss = np.concatenate([states.loss for states in lists])
        budget = np.maximum(self.budget, _PAIRS)
        pairs = best_pairs(self.core, half, taken, loss, self.most, budget)
        self.spent += pairs.spent
        self.complete &= pairs.complete
        self.total[pairs.host] = pairs.total
        begin = 0
        for states in lists:
            end = begin + len(states.half)
            for chosen in (pairs.one, pairs.other):
                mine = chosen[(begin <= chosen) & (chosen < end)] - begin
                if len(mine):
                    self._follow(states.trail, mine, states.half[mine], states.step)
            begin = end

    def _follow(self, trail: _Trail | None, state: Ints, half: Ints, step: int) -> None:
        """Write down what the states have chosen."""
        while trail is not None:
            step -= 1
            slot = self.core.slot[self.core.start[half] + step]
            self.option[slot, half >> 1] = self.core.place[trail.entry[state]]
            state, trail = trail.parent[state], trail.before


def _middle(half: Ints) -> int:
    """An even half such that some states are below it and some are not."""
    middle = half[len(half) // 2] & ~1
    return int(middle if half[0] < middle else middle + 2)


def _between(states: _States, low: int, high: int) -> _States:
    return states.only(np.flatnonzero((low <= states.half) & (states.half < high)))
