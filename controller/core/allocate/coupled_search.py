"""All selections of a core that lose no more than D, as a list of partial ones, host by host.

A dynamic programme over the core VMs whose states are kept as a sparse list (Kellerer, Pferschy,
Pisinger, "Knapsack Problems", 2004, section 3.4 and chapter 9): quanta left and loss so far. A
state goes where its VMs to come cannot keep within capacity or within D, or where another state
of the host leaves at least as much of everything and is worth at least as much. Nothing that could
be the best with T <= D is lost, so what is found is optimal, and finding nothing proves that there
is nothing, unless the host's budget of states ran out (`complete`).
"""

from dataclasses import dataclass

import numpy as np

from controller.core.allocate.coupled_core import Core
from controller.core.allocate.problem import AnyInts, Bools, Ints

NEVER = 1 << 62  # a total that no selection has
_TOGETHER = 1 << 18  # states made at once, where more than one host shares them
_CROWD = 48  # states of a host from which on looking for dominated ones pays
_BEAM = 64  # states that go on where the budget is spent


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Per host the best selection of the core."""

    total: Ints  # (h,) T in units of 2**-shift; NEVER: none with T <= D was found
    option: AnyInts  # (n, h)
    complete: Bools  # (h,) nothing was left out
    spent: Ints  # (h,) states made


@dataclass(frozen=True, slots=True, eq=False)
class _Trail:
    """How the states of one step came about: each from which before, by which option."""

    before: "_Trail | None"
    parent: Ints  # (s,)
    entry: Ints  # (s,) place among the core's options


@dataclass(frozen=True, slots=True, eq=False)
class _States:
    """s partial selections, ordered by host: the first `step` core VMs of each have chosen."""

    step: int
    host: Ints  # (s,)
    room: Ints  # (r, s) quanta left
    loss: Ints  # (s,)
    trail: _Trail | None

    def only(self, which: AnyInts | slice) -> "_States":
        trail = self.trail
        if trail is not None:
            trail = _Trail(trail.before, trail.parent[which], trail.entry[which])
        room, loss = self.room[:, which], self.loss[which]
        return _States(self.step, self.host[which], room, loss, trail)


def search(core: Core, most: Ints, budget: Ints) -> Found:
    """The best selection with T <= most, (h,); no host makes more than `budget`, (h,), states.

    A host whose budget is spent goes on with few states, so it makes at most `_BEAM` times its
    options more.
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
        host = np.flatnonzero((self.core.room >= 0).all(axis=0))
        nothing = np.zeros(len(host), dtype=np.int64)
        stack = [_States(0, host, self.core.room[:, host], nothing, None)]
        while stack:
            states = self._finish(stack.pop())
            if not len(states.host):
                continue
            if self._grows(states).sum() > _TOGETHER and states.host[0] != states.host[-1]:
                stack += _halves(states)
            else:
                stack.append(self._grow(states))
        return Found(self.total, self.option, self.complete, self.spent)

    def _grows(self, states: _States) -> Ints:
        """(s,) how many states each makes."""
        return self.core.size[self.core.start[states.host] + states.step]

    def _grow(self, states: _States) -> _States:
        """One more VM chooses."""
        core = self.core
        states = self._within_budget(states)
        vm = core.start[states.host] + states.step
        size = core.size[vm]
        parent = np.repeat(np.arange(len(vm)), size)
        entry = np.arange(len(parent)) + np.repeat(core.first[vm] - np.cumsum(size) + size, size)
        room = states.room[:, parent] - core.extra[:, entry]
        loss = states.loss[parent] + core.loss[entry]
        trail = _Trail(states.trail, parent, entry)
        grown = _States(states.step + 1, states.host[parent], room, loss, trail)
        able = (room >= 0).all(axis=0) & (self._least(grown) <= self.most[grown.host])
        return self._undominated(grown.only(np.flatnonzero(able)))

    def _least(self, states: _States) -> Ints:
        """(s,) the least T that a state can end with: what its VMs to come cannot use is lost."""
        core, host = self.core, states.host
        more = core.count[host] > states.step
        vm = np.where(more, core.start[host] + states.step, len(core.size))
        least = states.loss
        for resource in range(len(states.room)):
            idle = np.maximum(states.room[resource] - core.tail[resource, vm], 0)
            least = least + core.price[resource, host] * idle
        return least

    def _within_budget(self, states: _States) -> _States:
        """The states themselves, or the most promising few where a host's budget ends."""
        hosts = len(self.most)
        made = np.bincount(states.host, self._grows(states), hosts).astype(np.int64)
        over = self.spent + made > self.budget
        if over.any():
            self.complete &= ~over
            order = np.lexsort((self._least(states), states.host))
            rank = np.arange(len(order)) - np.searchsorted(states.host, states.host)
            states = states.only(np.sort(order[~over[states.host] | (rank < _BEAM)]))
            made = np.bincount(states.host, self._grows(states), hosts).astype(np.int64)
        self.spent += made
        return states

    def _undominated(self, states: _States) -> _States:
        """Without states that leave no more of anything and are worth no more than another.

        Only states are compared that leave the same of all resources but one, which one changes
        with the step: a full comparison would cost more than it saves.
        """
        crowd = np.bincount(states.host, minlength=len(self.most))[states.host] > _CROWD
        some = np.flatnonzero(crowd)
        if not len(some):
            return states
        host, room = states.host[some], states.room[:, some]
        # Equal choices from here on add the same, so this compares what states end with.
        total = states.loss[some] + (self.core.price[:, host] * room).sum(axis=0)
        last = states.step % len(room)
        same = [host, *(row for resource, row in enumerate(room) if resource != last)]
        order = np.lexsort((total, -room[last], *same))
        starts = np.zeros(len(order), dtype=np.bool_)
        for key in same:
            starts[1:] |= key[order[1:]] != key[order[:-1]]
        rank = np.unique(total, return_inverse=True)[1][order]
        # Later groups stand lower than earlier ones, so a running minimum starts anew in each.
        rank -= np.cumsum(starts) * len(order)
        lowest = np.minimum.accumulate(rank)
        keep = np.ones(len(states.host), dtype=np.bool_)
        keep[some[order[1:][lowest[:-1] <= rank[1:]]]] = False
        return states.only(np.flatnonzero(keep))

    def _finish(self, states: _States) -> _States:
        """Note the best of each host whose core VMs have all chosen; the others go on."""
        done = self.core.count[states.host] == states.step
        if not done.any():
            return states
        last = np.flatnonzero(done)
        host = states.host[last]
        slack = self.core.price[:, host] * states.room[:, last]
        total = states.loss[last] + slack.sum(axis=0)
        order = np.lexsort((total, host))
        best = order[np.flatnonzero(np.diff(host[order], prepend=-1))]
        best = best[total[best] <= self.most[host[best]]]
        self.total[host[best]] = total[best]
        self._follow(states.trail, last[best], host[best], states.step)
        return states.only(np.flatnonzero(~done))

    def _follow(self, trail: _Trail | None, state: Ints, host: Ints, step: int) -> None:
        """Write down how states came about."""
        while trail is not None:
            step -= 1
            slot = self.core.slot[self.core.start[host] + step]
            self.option[slot, host] = self.core.place[trail.entry[state]]
            state, trail = trail.parent[state], trail.before


def _halves(states: _States) -> list[_States]:
    """Two parts with different hosts."""
    middle = int(np.searchsorted(states.host, states.host[len(states.host) // 2]))
    if middle == 0:
        middle = int(np.searchsorted(states.host, states.host[0], side="right"))
    return [states.only(slice(middle, None)), states.only(slice(None, middle))]
