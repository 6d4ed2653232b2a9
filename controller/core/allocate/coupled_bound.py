"""An upper bound with one multiplier per resource, in integers, for a block of hosts.

For any lam >= 0 the Lagrangian  L(lam) = sum_i max_j (v_ij - lam w_ij) + lam C  is at least the
optimum (weak duality). Multipliers are integers in units of 2**-shift, so L is an exact integer in
those units. The search takes a step half way from the best multipliers so far to the lowest point
of the planes seen (Ben-Ameur, Neto, "Acceleration of cutting-plane and column generation
algorithms", 2007), which needs about a dozen evaluations for two resources.

An evaluation is one subtraction and one maximum over the options: the option's place is packed
into the low bits of its value, so the maximum says which option it was; of equals the first.
"""

from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from controller.core.allocate.coupled_master import Floats, Master
from controller.core.allocate.problem import NOTHING, AnyInts, Bools, Bytes, Ints

Lane = np.dtype[np.int32] | np.dtype[np.int64]
SHORT, LONG = np.dtype(np.int32), np.dtype(np.int64)
_EVALUATIONS = 16  # per resource, at most
# Stop where what the dual could still fall is this part of the known gap and of the fall so far.
_NARROW, _SMALL = 256, 1 << 15


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """Per host the best multipliers, what they prove, and the best selection met that fits."""

    price: Ints  # (r, h) multipliers in units of 2**-shift
    total: Ints  # (h,) L in the same units
    shift: Ints  # (h,)
    value: Ints  # (h,) NOTHING where no selection met fits
    option: Bytes  # (n, h)
    leaning: Bools  # (h,) whether higher multipliers than the lane can hold would prove more

    @classmethod
    def empty(cls, resources: int, slots: int, shift: Ints) -> Self:
        hosts = len(shift)
        return cls(
            price=np.zeros((resources, hosts), dtype=np.int64),
            total=np.full(hosts, np.iinfo(np.int64).max),
            shift=shift.copy(),
            value=np.full(hosts, NOTHING),
            option=np.zeros((slots, hosts), dtype=np.uint8),
            leaning=np.zeros(hosts, dtype=np.bool_),
        )

    def put(self, hosts: Ints, other: "Bound") -> None:
        """Take over what another says of these hosts."""
        for field in fields(self):
            getattr(self, field.name)[..., hosts] = getattr(other, field.name)


def value_bits(value: AnyInts) -> Ints:
    """(h,) binary digits of each host's largest value, whatever its sign."""
    highest, lowest = value.max(axis=0).max(axis=0), value.min(axis=0).min(axis=0)
    return bit_length(np.maximum(highest, -lowest.astype(np.int64)))


def shifts(bits: Ints, level: AnyInts, options: int, slots: int) -> tuple[Ints, Ints, Ints]:
    """(h,) binary places that multipliers should have, can in the short lane, and in the long.

    Wanted are so many that rounding moves the bound by less than one. A reduced value is at most
    4 times the largest value, of which 3 parts are left to prices; what it is packed with, or the
    sum over the VMs, needs room above.
    """
    widest = np.broadcast_to(level.max(axis=(0, 1, 2)), bits.shape)
    wanted = bit_length(widest) + slots.bit_length() + 2
    index = (options - 1).bit_length()
    long = 60 - max(index, slots.bit_length()) - bits
    return wanted, np.minimum(wanted, 29 - index - bits), np.minimum(wanted, long)


def bit_length(number: AnyInts) -> Ints:
    """How many binary digits; exact below 2**53."""
    return np.asarray(np.frexp(number.astype(np.float64))[1], dtype=np.int64)


def take(table: AnyInts, option: AnyInts) -> Ints:
    """(n, h) entries of a table (k, n | 1, h | 1) at the options (n, h)."""
    if table.shape[1:] == (1, 1):
        return np.asarray(table[:, 0, 0].take(option))
    slot = np.arange(option.shape[0])[:, None] if table.shape[1] > 1 else 0
    host = np.arange(option.shape[1]) if table.shape[2] > 1 else 0
    return np.asarray(table[option, slot, host])


def bound(
    value: AnyInts, level: AnyInts, capacity: AnyInts, lane: Lane, shift: Ints, bits: Ints
) -> Bound:
    """Bounds for a block of hosts; `bits` are `value_bits`, `shift` is what `shifts` says."""
    return _Descent(value, level, capacity, lane, shift, bits).run()


class _Descent:
    """The search for multipliers. Arrays shrink to the hosts that go on; results stay in place."""

    def __init__(
        self,
        value: AnyInts,
        level: AnyInts,
        capacity: AnyInts,
        lane: Lane,
        shift: Ints,
        bits: Ints,
    ) -> None:
        options, slots, hosts = value.shape
        self.resources, self.index = len(level), (options - 1).bit_length()
        self.mask = (1 << self.index) - 1
        self.level, self.narrow = level, level.astype(lane)
        self.capacity, self.shift = capacity, shift
        self.key = value.astype(lane) << (shift + self.index).astype(lane)
        self.key |= (self.mask - np.arange(options)).astype(lane)[:, None, None]
        self.scratch = np.empty_like(self.key)
        largest = np.maximum(np.broadcast_to(level.max(axis=(1, 2)), capacity.shape), 1)
        self.limit = (3 << (bits + shift)) // (self.resources * largest)  # (r, h) of multipliers
        self.host = np.arange(hosts)
        self.active = np.ones(hosts, dtype=np.bool_)
        self.best = Bound.empty(self.resources, slots, shift)
        self.master = self._first(value)

    def _first(self, value: AnyInts) -> Master:
        """Two selections to start from: the best whatever it takes, and the smallest."""
        worth, left = self._evaluate(np.zeros_like(self.best.price))
        scale = np.maximum(self.level.max(axis=1, keepdims=True), 1)
        smallest = (self.level / scale).sum(axis=0).argmin(axis=0)
        smallest = np.broadcast_to(smallest, self.best.option.shape)
        low = np.take_along_axis(value, smallest[None], 0)[0].sum(axis=0, dtype=np.int64)
        low_left = self._left(smallest)
        self._accept(low, low_left, smallest)
        # No useful multiplier is far above what the way from one to the other pays on average.
        fall = np.maximum(worth - (low << self.shift), 1 << self.shift)
        cap = np.minimum(4.0 * fall / np.maximum(low_left - left, 1), self.limit)
        self.base = worth  # the master is told worths relative to this: fewer digits
        rounds = _EVALUATIONS * self.resources
        master = Master(np.zeros(len(worth)), left.astype(np.float64), cap, rounds + 1)
        master.add((low << self.shift) - worth, low_left)
        return master

    def run(self) -> Bound:
        """Evaluate half way between the best multipliers and the lowest point, until they meet."""
        bold = np.zeros(len(self.host), dtype=np.bool_)  # try the lowest point itself
        for _ in range(_EVALUATIONS * self.resources):
            height, lowest = self.master.lowest(self.active)
            self._retire(height)
            if not self.active.any():
                break
            if 4 * np.count_nonzero(self.active) <= 3 * len(self.active):
                going = np.flatnonzero(self.active)
                self._keep(going)
                height, lowest, bold = height[going], lowest[:, going], bold[going]
            middle = np.where(bold, lowest, 0.5 * (lowest + self.best.price[:, self.host]))
            price = np.minimum(np.rint(middle).astype(np.int64), self.limit)
            before = self.best.total[self.host]
            worth, left = self._evaluate(price)
            worth -= self.base
            self.master.add(worth, left)
            higher = self._height(worth, left, lowest) > height + 0.5
            moved = (self.best.total[self.host] < before) | higher
            self.active &= moved | ~bold
            bold = ~moved
        return self.best

    def _height(self, worth: Ints, left: Ints, lam: Floats) -> Floats:
        """(h,) a selection's plane at the multipliers."""
        height = worth.astype(np.float64)
        for resource in range(self.resources):
            height = height + lam[resource] * left[resource]
        return height

    def _retire(self, height: Floats) -> None:
        """Leave hosts whose dual cannot fall much any more, or whose best selection is proven."""
        total, value, one = self.best.total[self.host], self.best.value[self.host], 1 << self.shift
        gap = np.where(value > NOTHING, total - (value << self.shift), 0)
        fall = (total - self.base) - height
        near = fall <= np.maximum(0.5 * one, np.minimum(gap / _NARROW, -height / _SMALL))
        leans = self.master.leans()
        self.best.leaning[self.host] = (leans & (self.master.cap >= self.limit)).any(axis=0)
        wider = near & (leans & (self.master.cap < self.limit)).any(axis=0)
        self.master.widen(leans & wider & self.active, self.limit)
        self.active &= (wider | ~near) & (total >> self.shift != value)

    def _keep(self, going: Ints) -> None:
        self.key = self.key.take(going, axis=-1)
        self.scratch = np.empty_like(self.key)
        if self.level.shape[3] > 1:
            self.level = self.level.take(going, axis=-1)
            self.narrow = self.narrow.take(going, axis=-1)
        self.capacity = self.capacity.take(going, axis=-1)
        self.limit = self.limit.take(going, axis=-1)
        self.shift, self.base = self.shift[going], self.base[going]
        self.host, self.active = self.host[going], self.active[going]
        self.master.keep(going)

    def _evaluate(self, price: Ints) -> tuple[Ints, Ints]:
        """What is selected at the multipliers is worth, and leaves; L is noted where lowest."""
        lam = price.astype(self.narrow.dtype) << self.index
        cost = self.narrow[0] * lam[0]
        for resource in range(1, self.resources):
            cost = cost + self.narrow[resource] * lam[resource]
        best = np.subtract(self.key, cost, out=self.scratch).max(axis=0)
        option = self.mask - (best & self.mask)
        left = self._left(option)
        total = (best >> self.index).sum(axis=0, dtype=np.int64)
        total += (price * self.capacity).sum(axis=0)
        worth = total - (price * left).sum(axis=0)
        lower = self.active & (total < self.best.total[self.host])
        self.best.total[self.host[lower]] = total[lower]
        self.best.price[:, self.host[lower]] = price[:, lower]
        self._accept(worth >> self.shift, left, option)
        return worth, left

    def _left(self, option: AnyInts) -> Ints:
        taken = [take(level, option).sum(axis=0) for level in self.level]
        return np.asarray(self.capacity - np.stack(taken))

    def _accept(self, value: Ints, left: Ints, option: AnyInts) -> None:
        better = self.active & (left >= 0).all(axis=0) & (value > self.best.value[self.host])
        if better.any():
            self.best.value[self.host[better]] = value[better]
            self.best.option[:, self.host[better]] = option[:, better]
