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

from controller.core.allocate.block import Block, picked
from controller.core.allocate.problem import AnyInts, Bools, Ints

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


class Keys:
    """Packed keys of a block, and the reduced problem at one price per host."""

    def __init__(self, block: Block) -> None:
        bins = block.gain.shape[0]
        self.bits = block.index_bits
        self.mask = (1 << self.bits) - 1
        self.weight = block.weight
        dtype = block.gain.dtype
        self.key = block.gain * (np.int64(1) << (block.shift + self.bits)).astype(dtype)
        self.key += (self.mask - np.arange(bins, dtype=dtype))[:, None, None]
        self._scratch = np.empty_like(self.key)
        self._step = block.step

    def select(self, hosts: AnyInts) -> "Keys":
        """The keys of some of the hosts."""
        chosen = object.__new__(Keys)
        chosen.bits, chosen.mask, chosen._step = self.bits, self.mask, self._step
        shared = self.weight.shape[2] == 1
        chosen.weight = self.weight if shared else np.ascontiguousarray(self.weight[:, :, hosts])
        chosen.key = np.ascontiguousarray(self.key[:, :, hosts])
        chosen._scratch = np.empty_like(chosen.key)
        return chosen

    def reduced(self, price: Ints) -> AnyInts:
        """(b, n, h) keys less price x weight; overwritten by the next call."""
        below = (price << self.bits).astype(self.key.dtype)
        if self.weight.shape[2] == 1:
            np.subtract(self.key, self.weight * below, out=self._scratch)
        else:
            np.multiply(self.weight, below, out=self._scratch)
            np.subtract(self.key, self._scratch, out=self._scratch)
        return self._scratch

    def best(self, price: Ints) -> tuple[AnyInts, Ints, Ints]:
        """(n, h) best keys; (h,) their weight and their reduced gain."""
        best: AnyInts = self.reduced(price).max(axis=0)
        index = best & self.mask
        places = index.sum(axis=0, dtype=np.int64)
        gain = (best.sum(axis=0, dtype=np.int64) - places) >> self.bits
        if self._step is None:
            hosts = np.arange(best.shape[1])
            weight = picked(self.weight, self.mask - index, hosts).sum(axis=0, dtype=np.int64)
        else:
            weight = self._step * (best.shape[0] * self.mask - places)
        return best, weight, gain

    def bins(self, best: AnyInts) -> Ints:
        return np.asarray(self.mask - (best & self.mask), dtype=np.int64)


class _Ends:
    """One end of each host's bracket: a price, what is taken there, and what that gains."""

    def __init__(self, price: Ints, weight: Ints, gain: Ints) -> None:
        self.price, self.weight, self.gain = price, weight, gain  # gain in 2**-shift, unreduced

    def move(self, hosts: AnyInts | Bools, price: Ints, weight: Ints, gain: Ints) -> None:
        self.price[hosts], self.weight[hosts], self.gain[hosts] = price, weight, gain


def bound(block: Block, keys: Keys, warm: Ints | None = None) -> Bounded:
    """The least upper bound that a price proves, to a quarter of a unit, and the solution there.

    `warm`: (h,) prices to try first, from an earlier solution.
    """
    room, one = block.room, np.int64(1) << block.shift
    _, weight, gain = keys.best(np.zeros_like(room))
    free = weight <= room
    least, at = gain.copy(), np.zeros_like(room)  # the bound, and its price
    low = _Ends(np.zeros_like(room), weight, gain)  # takes too much, unless it is free
    high = _Ends((block.steepest + 1) * one, np.zeros_like(room), np.zeros_like(room))  # fits
    high.move(free, at[free], weight[free], gain[free])
    active = np.flatnonzero(~free & (room >= 0))
    columns, part, turn = np.arange(block.hosts), keys, 0
    while active.size:
        turn += 1
        if 2 * active.size <= columns.size:
            part, columns = keys.select(active), active
        price = _next_price(low, high, columns, turn, warm)
        _, weight, reduced = part.best(price)
        gain, value = reduced + price * weight, reduced + price * room[columns]
        working = np.zeros(block.hosts, dtype=np.bool_)
        working[active] = True
        working = working[columns]
        fits = weight <= room[columns]
        for chosen, move in ((working & fits, high.move), (working & ~fits, low.move)):
            move(columns[chosen], price[chosen], weight[chosen], gain[chosen])
        lower = working & (value < least[columns])
        least[columns[lower]], at[columns[lower]] = value[lower], price[lower]
        active = active[_can_fall(low, high, active, room, least, one)]
    best, weight, reduced = keys.best(high.price)
    return Bounded(keys.bins(best), weight, (reduced + high.price * weight) // one, least, at)


def _next_price(low: _Ends, high: _Ends, hosts: AnyInts, turn: int, warm: Ints | None) -> Ints:
    """Strictly between the ends: where their lines meet, or now and then the middle."""
    below, above = low.price[hosts], high.price[hosts]
    middle = (below + above) >> 1
    price = middle if turn % BISECT_EVERY == 0 else _meeting(low, high, hosts)
    if warm is not None and turn <= 2:  # noqa: PLR2004 - the old price, then its neighbourhood
        price = _near(warm[hosts], below, above, turn, price)
    return np.where((price <= below) | (price >= above), middle, price)


def _meeting(low: _Ends, high: _Ends, hosts: AnyInts) -> Ints:
    """The price at which both ends' choices are worth the same."""
    lighter = np.maximum(low.weight[hosts] - high.weight[hosts], 1)
    return np.asarray((low.gain[hosts] - high.gain[hosts]) // lighter)


def _near(warm: Ints, below: Ints, above: Ints, turn: int, otherwise: Ints) -> Ints:
    if turn > 1:  # a thirtieth to the other side of it
        aside = (warm >> 5) + 1
        warm = np.where(above <= warm, warm - aside, warm + aside)
    return np.where((warm > below) & (warm < above), warm, otherwise)


def _can_fall(low: _Ends, high: _Ends, hosts: AnyInts, room: Ints, least: Ints, one: Ints) -> Bools:
    """Whether a price between the ends could still lower the bound by enough to matter."""
    meeting = _meeting(low, high, hosts)
    floor = high.gain[hosts] + meeting * (room[hosts] - high.weight[hosts])
    narrow = high.price[hosts] - low.price[hosts] <= 1
    exact = high.weight[hosts] == room[hosts]
    return np.asarray(~narrow & ~exact & (CLOSE_ENOUGH * (least[hosts] - floor) > one[hosts]))
