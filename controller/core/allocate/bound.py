"""An upper bound and a first solution for many hosts at once: the Lagrangian of the capacity.

For any price p >= 0, each VM takes the bin of greatest gain - p x weight; the sum, plus p x room,
is at least the optimum (weak duality), and where the weights fit it is also a solution. The best
price is bracketed per host and narrowed where the two lines that its ends stand for meet.

Packed argmax: a key holds gain x 2**shift in its high bits and the bin, counted from the end,
below. One subtraction and one maximum give the best reduced gain of every VM and its bin, the
smallest of equals, without a second pass.
"""

from dataclasses import dataclass

import numpy as np

from controller.core.allocate.block import Block, Memory, columns, picked
from controller.core.allocate.problem import AnyInts, Bools, Ints

ROW_LEAST = 1 << 12  # slots times hosts from which rows are evaluated one by one
BISECT_EVERY = 4  # turns; the meeting point alone can creep along one end
CLOSE_ENOUGH = 4  # stop where the bound cannot fall by more than a unit over this


@dataclass(frozen=True, slots=True, eq=False)
class Bounded:
    """All (h,), in units of 2**-shift where said so; gains are above the block's base."""

    bin: Ints  # (n, h) a solution within the room; meaningless where room < 0
    weight: Ints  # of that solution
    gain: Ints  # of that solution, whole units
    bound: Ints  # 2**-shift: no solution gains more
    price: Ints  # 2**-shift per quantum: where the bound was found
    lower: Ints  # 2**-shift: the highest price seen at which more is taken than fits


class Keys:
    """Packed keys of a block, and the reduced problem at one price per host."""

    def __init__(self, block: Block, memory: Memory) -> None:
        bins, dtype = block.gain.shape[0], block.gain.dtype
        self.bits = block.index_bits
        self.mask = (1 << self.bits) - 1
        self.weight, self.step = block.weight, block.step
        self.more = np.diff(block.weight, axis=0)  # from one bin to the next
        self._memory, self._depth = memory, 0
        self.key = memory.array("key", block.gain.shape, dtype)
        factor = (np.int64(1) << (block.shift + self.bits)).astype(dtype)
        np.multiply(block.gain, factor, out=self.key)
        self.key += (self.mask - np.arange(bins, dtype=dtype))[:, None, None]

    def select(self, hosts: Ints) -> "Keys":
        """The keys of some of the hosts; overwrites what was selected from these before."""
        chosen = object.__new__(Keys)
        chosen.bits, chosen.mask, chosen.step = self.bits, self.mask, self.step
        chosen._memory, chosen._depth = self._memory, self._depth + 1
        shared = self.weight.shape[2] == 1
        chosen.weight = self.weight if shared else columns(self.weight, hosts)
        chosen.more = self.more if shared else columns(self.more, hosts)
        shape = (*self.key.shape[:2], hosts.size)
        place = self._memory.array(f"key {chosen._depth}", shape, self.key.dtype)
        chosen.key = columns(self.key, hosts, out=place)
        return chosen

    def reduced(self, price: Ints) -> AnyInts:
        """(b, n, h) keys less price x weight; overwritten by the next call on any keys."""
        scratch = self._memory.array("reduced", self.key.shape, self.key.dtype)
        below = (price << self.bits).astype(self.key.dtype)
        if self.weight.shape[2] == 1:
            np.subtract(self.key, self.weight * below, out=scratch)
        else:
            np.multiply(self.weight, below, out=scratch)
            np.subtract(self.key, scratch, out=scratch)
        return scratch

    def best(self, price: Ints | None = None) -> tuple[AnyInts, Ints, Ints]:
        """(n, h) best keys at a price, or at none; (h,) their weight and their reduced gain."""
        best = np.maximum.reduce(self.key) if price is None else self._highest(price)
        index = best & self.mask
        places = np.add.reduce(index, dtype=np.int64)
        gain = (np.add.reduce(best, dtype=np.int64) - places) >> self.bits
        if self.step is None:
            hosts = np.arange(best.shape[1])
            weight = picked(self.weight, self.mask - index, hosts).sum(axis=0, dtype=np.int64)
        else:
            weight = self.step * (best.shape[0] * self.mask - places)
        return best, weight, gain

    def _highest(self, price: Ints) -> AnyInts:
        """(n, h) what `reduced` has at most over the bins.

        From the heaviest bin down, as a polynomial is evaluated: what is best from a bin on is that
        bin, or what was best from the next on less the price of the quanta between them. Reads
        every key once and writes only this row; for few hosts more calls cost more than that saves.
        """
        if self.key[0].size < ROW_LEAST:
            return np.asarray(np.maximum.reduce(self.reduced(price)))
        best: AnyInts = self.key[-1].copy()
        below = (price << self.bits).astype(best.dtype)
        less = np.empty_like(best)
        if self.step is not None:
            less[:] = self.step * below
        for place in range(self.key.shape[0] - 2, -1, -1):
            if self.step is None:
                np.multiply(self.more[place], below, out=less)
            np.subtract(best, less, out=best)
            np.maximum(best, self.key[place], out=best)
        return best

    def bins(self, best: AnyInts) -> Ints:
        return np.asarray(self.mask - (best & self.mask), dtype=np.int64)


class _Bracket:
    """Hosts whose best price is still sought, side by side; state of the h hosts of a batch.

    An end is three rows: a price, what all take at it together, and what that gains without the
    price (2**-shift). The low end takes too much; the high end fits, and its bins are kept.
    """

    def __init__(
        self, hosts: Ints, room: Ints, one: Ints, low: Ints, high: Ints, best: AnyInts
    ) -> None:
        self.hosts, self.room, self.one = hosts, room, one
        self.low, self.high = low, high  # (3, h)
        self.best = best  # (n, h) keys at the high end
        # The lowest bound so far, and its price: without room, already that of the high end.
        tops = high[2] + high[0] * (room - high[1])
        self.least, self.at = np.minimum(low[2], tops), np.where(tops < low[2], high[0], low[0])
        self.live = np.ones(hosts.size, dtype=np.bool_)
        self._meet()

    def select(self, chosen: Bools) -> "_Bracket":
        some = object.__new__(_Bracket)
        for name, value in vars(self).items():
            setattr(some, name, value[..., chosen])
        return some

    def next_price(self, turn: int, warm: Ints | None) -> Ints:
        """Strictly between the ends: where their lines meet, or now and then the middle."""
        below, above = self.low[0], self.high[0]
        middle = (below + above) >> 1
        price = middle if turn % BISECT_EVERY == 0 else self.meeting
        if warm is not None and turn <= 2:  # noqa: PLR2004 - the old price, then its neighbourhood
            price = _near(warm[self.hosts], below, above, turn, price)
        return np.asarray(np.where((price <= below) | (price >= above), middle, price))

    def move(self, keys: Keys, price: Ints) -> None:
        """Asks what is taken at the prices; hosts that are done stay as they are."""
        best, weight, reduced = keys.best(price)
        found = np.array([price, weight, reduced + price * weight])
        value = reduced + price * self.room
        fits = self.live & (weight <= self.room)
        np.copyto(self.high, found, where=fits)
        np.copyto(self.best, best, where=fits)
        np.copyto(self.low, found, where=self.live & ~fits)
        lower = self.live & (value < self.least)
        np.copyto(self.least, value, where=lower)
        np.copyto(self.at, price, where=lower)
        self._meet()

    def report(self, keys: Keys, found: Bounded) -> None:
        """Writes down what is known of hosts that are done."""
        found.bin[:, self.hosts] = keys.bins(self.best)
        found.weight[self.hosts], found.gain[self.hosts] = self.high[1], self.high[2] // self.one
        found.bound[self.hosts], found.price[self.hosts] = self.least, self.at
        found.lower[self.hosts] = self.low[0]

    def _meet(self) -> None:
        """Where the lines of both ends meet: no price between them has a lower bound than there.

        A host is done where that could not lower its bound by enough, or fits exactly.
        """
        lighter = np.maximum(self.low[1] - self.high[1], 1)
        self.meeting = (self.low[2] - self.high[2]) // lighter
        floor = self.high[2] + self.meeting * (self.room - self.high[1])
        self.live &= self.high[0] - self.low[0] > 1
        self.live &= self.high[1] != self.room
        self.live &= CLOSE_ENOUGH * (self.least - floor) > self.one


def bound(block: Block, keys: Keys, warm: Ints | None = None) -> Bounded:
    """The least upper bound that a price proves, to a quarter of a unit, and the solution there.

    `warm`: (h,) prices to try first, from an earlier solution.
    """
    room, one = block.room, np.int64(1) << block.shift
    best, weight, gain = keys.best()
    free = np.zeros_like(room)
    found = Bounded(keys.bins(best), weight, gain // one, gain, free, free.copy())
    active = np.flatnonzero((weight > room) & (room >= 0))
    low = np.stack([free, weight, gain])[:, active]
    part = keys if active.size == room.size else keys.select(active)
    lightest, high = _lightest(part, (block.steepest * one + one)[active])
    state = _Bracket(active, room[active], one[active], low, high, lightest)
    turn = 0
    while state.hosts.size:
        if 2 * np.count_nonzero(state.live) <= state.hosts.size:
            state.select(~state.live).report(keys, found)
            part, state = part.select(np.flatnonzero(state.live)), state.select(state.live)
        turn += 1
        state.move(part, state.next_price(turn, warm))
    return found


def _lightest(keys: Keys, price: Ints) -> tuple[AnyInts, Ints]:
    """(n, h) best keys at a price that no quantum is worth, and that end of a bracket, (3, h)."""
    if bool((keys.weight[1:2] == 0).any()):  # a better bin may be as light as the first
        best, weight, reduced = keys.best(price)
        return best, np.stack([price, weight, reduced + price * weight])
    best = np.full(keys.key.shape[1:], keys.mask, dtype=keys.key.dtype)
    return best, np.stack([price, np.zeros_like(price), np.zeros_like(price)])


def _near(warm: Ints, below: Ints, above: Ints, turn: int, otherwise: Ints) -> Ints:
    if turn > 1:  # a thirtieth to the other side of it
        aside = (warm >> 5) + 1
        warm = np.where(above <= warm, warm - aside, warm + aside)
    return np.where((warm > below) & (warm < above), warm, otherwise)
