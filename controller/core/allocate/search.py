"""The proof for hosts that the bound leaves open: what could still be better, and whether it is.

At the bound's price every choice of a VM has a loss, its distance to the VM's best reduced gain.
The losses of a solution, and the price of the quanta that it leaves over, add up to its distance
from the bound. A solution better than the incumbent therefore holds no bin whose loss exceeds
D = bound - (incumbent + 1), and leaves no more than D / price quanta over (reduced-cost fixing).
What survives is a small core (Pisinger 1995), solved exactly by `windows`. First only for a part
of D: what is found there often closes the gap, or makes D smaller for the next turn.
"""

from dataclasses import dataclass, fields

import numpy as np

from controller.core.allocate.block import Block, picked
from controller.core.allocate.bound import Keys
from controller.core.allocate.problem import NOTHING, AnyInts, Bools, Ints
from controller.core.allocate.windows import LISTED, Core, log_of, solve_core

DEEPENING = (32, 4, 1)  # parts of D; the last is all of it
HOSTS_AT_ONCE = 256
CELLS_AT_ONCE = 1 << 21  # of a table; bounds the memory
_UNLIMITED = 1 << 40


@dataclass(frozen=True, slots=True, eq=False)
class Open:
    """k open hosts, and flat arrays of the e bins that survive where a VM has a choice.

    The flat arrays are sorted by host, slot and bin.
    """

    host: Ints  # (k,) place in the problem
    room: Ints  # (k,) that VMs without a choice leave
    gain: Ints  # (k,) of VMs without a choice
    target: Ints  # (k,) 2**-shift: the bound
    price: Ints  # (k,) 2**-shift
    shift: Ints  # (k,)
    bin: Ints  # (k, n) of VMs without a choice; best at the price elsewhere
    of: Ints  # (e,) place in the arrays above
    slot: Ints  # (e,)
    option: Ints  # (e,) bin
    loss: Ints  # (e,) 2**-shift
    worth: Ints  # (e,) gain of the bin
    weight: Ints  # (e,)


def survivors(
    block: Block, keys: Keys, hosts: Ints, price: Ints, target: Ints, gain: Ints, place: Ints
) -> Open:
    """What a solution that gains more than `gain` can hold: all (k,), for `hosts` of the block.

    `keys` are of these hosts alone; `place`: where they stand in the problem.
    """
    shift = block.shift[hosts]
    reduced = keys.reduced(price)
    best = reduced.max(axis=0)
    top = best >> keys.bits
    survives = reduced >= _least_key(top, target - ((gain + 1) << shift), keys.bits)
    _drop_repeated(survives, block, hosts)
    choice = survives.sum(axis=0, dtype=np.uint16) > 1
    survives &= choice
    entry = np.flatnonzero(np.ascontiguousarray(survives.transpose(2, 1, 0)))
    vm, option = np.divmod(entry, survives.shape[0])
    of, slot = np.divmod(vm, survives.shape[1])
    bins = keys.bins(best)
    weight, worth = picked(block.weight, bins, hosts), picked(block.gain, bins, hosts)
    at = slot if block.weight.shape[1] > 1 else 0
    column = hosts[of] if block.weight.shape[2] > 1 else 0
    return Open(
        host=place,
        room=block.room[hosts] - np.where(choice, 0, weight).sum(axis=0, dtype=np.int64),
        gain=np.where(choice, 0, worth).sum(axis=0, dtype=np.int64),
        target=target,
        price=price,
        shift=shift,
        bin=bins.T,
        of=of,
        slot=slot,
        option=option,
        loss=(top[slot, of] - (reduced[option, slot, of] >> keys.bits)).astype(np.int64),
        worth=block.gain[option, slot, hosts[of]].astype(np.int64),
        weight=block.weight[option, at, column].astype(np.int64),
    )


def joined(parts: list[Open]) -> Open:
    """Several batches of open hosts as one."""
    offsets = np.cumsum([0] + [part.host.size for part in parts[:-1]])
    columns = {
        each.name: np.concatenate([getattr(part, each.name) for part in parts])
        for each in fields(Open)
    }
    columns["of"] = np.concatenate(
        [part.of + offset for part, offset in zip(parts, offsets, strict=True)]
    )
    return Open(**columns)


def search(opened: Open, gain: Ints, bins: Ints, budget: int) -> Bools:
    """Improves incumbents, gain (k,) and bins (k, n), in place; (k,) which are proven optimal.

    `budget` caps the work of a host, in states times options.
    """
    proven = np.zeros(gain.size, dtype=np.bool_)
    spent = np.zeros(gain.size, dtype=np.int64)
    for part in DEEPENING:
        allowed = (opened.target - ((gain + 1) << opened.shift)) // part
        stage = _Stage(opened, ~proven & (allowed >= 0), allowed)
        spent += stage.cost
        within = stage.considered & (spent <= budget)
        for hosts in stage.buckets(within):
            stage.solve(hosts, gain, bins)
        left = opened.target - ((gain + 1) << opened.shift)
        proven |= (left < 0) | (within & (left <= allowed))
    return proven


class _Stage:
    """One turn: the bins whose loss is allowed, grouped by VM."""

    def __init__(self, opened: Open, hosts: Bools, allowed: Ints) -> None:
        keep = hosts[opened.of] & (opened.loss <= allowed[opened.of])
        self.opened, self.considered = opened, hosts
        self.of, self.slot, self.option = opened.of[keep], opened.slot[keep], opened.option[keep]
        worth, weight = opened.worth[keep], opened.weight[keep]
        self.slack = np.where(opened.price > 0, allowed // np.maximum(opened.price, 1), _UNLIMITED)
        changes = (self.of[1:] != self.of[:-1]) | (self.slot[1:] != self.slot[:-1])
        self.first = np.flatnonzero(np.concatenate([[True], changes])[: self.of.size])
        self.count = np.diff(self.first, append=self.of.size)
        self.owner = self.of[self.first]
        self.worth = worth - np.repeat(worth[self.first], self.count)
        self.weight = weight - np.repeat(weight[self.first], self.count)
        self.room = opened.room - self._per_host(weight[self.first])
        self.base = opened.gain + self._per_host(worth[self.first])
        self.rank, self.depth = self._ranks()
        span = self._per_host(self.weight[self.first + self.count - 1])
        self.width = np.minimum(span, np.maximum(self.room, 0))
        options = self._per_host(np.where(self.count > 1, self.count, 0))
        # Where combinations are few, they are listed instead, each at the price of many states.
        few = self._per_host(log_of(self.count)) + log_of(LISTED)
        listed = np.exp2(np.minimum(few, log_of(_UNLIMITED)) / 64).astype(np.int64)
        self.cost = np.where(hosts, options * np.minimum(self.width + 1, listed), 0)

    def _per_host(self, amount: Ints) -> Ints:
        """(k,) sums of what each VM has."""
        sums = np.concatenate([[0], np.cumsum(amount)])
        hosts = np.arange(self.considered.size + 1)
        return np.diff(sums[np.searchsorted(self.owner, hosts)])

    def _ranks(self) -> tuple[Ints, Ints]:
        """Per VM its place in its host's programme, most options first, -1 without a choice;
        and how many VMs have one per host."""
        choice = np.flatnonzero(self.count > 1)
        order = choice[np.lexsort((-self.count[choice], self.owner[choice]))]
        depth = np.bincount(self.owner[choice], minlength=self.considered.size)
        start = np.cumsum(depth) - depth
        rank = np.full(self.count.size, -1, dtype=np.int64)
        rank[order] = np.arange(order.size) - start[self.owner[order]]
        return rank, depth

    def buckets(self, within: Bools) -> list[Ints]:
        """Hosts of like size together, so that little is padded."""
        hosts = np.flatnonzero(within & (self.room >= 0))
        hosts = hosts[np.lexsort((self.depth[hosts], self.width[hosts]))]
        found, start = [], 0
        while start < hosts.size:
            size = HOSTS_AT_ONCE
            while size > 1 and self._cells(hosts[start : start + size]) > CELLS_AT_ONCE:
                size //= 2
            found.append(hosts[start : start + size])
            start += size
        return found

    def _cells(self, hosts: Ints) -> int:
        rows = int(self.depth[hosts].max()) + 1
        return 3 * rows * (int(self.width[hosts].max()) + 1) * hosts.size

    def solve(self, hosts: Ints, gain: Ints, bins: Ints) -> None:
        """The best that each of the hosts can have from the stage's bins; kept where better."""
        column = np.full(self.considered.size, -1, dtype=np.int64)
        column[hosts] = np.arange(hosts.size)
        vms = np.flatnonzero(column[self.owner] >= 0)
        picks = vms[self.count[vms] > 1]
        best, chosen = solve_core(self._core(hosts, picks, column))
        better = (best > NOTHING) & (best + self.base[hosts] > gain[hosts])
        improved = hosts[better]
        gain[improved] = best[better] + self.base[improved]
        bins[improved] = self.opened.bin[improved]
        entry = self.first.copy()
        entry[picks] += chosen[self.rank[picks], column[self.owner[picks]]]
        entry = entry[vms[better[column[self.owner[vms]]]]]
        bins[self.of[entry], self.slot[entry]] = self.option[entry]

    def _core(self, hosts: Ints, picks: Ints, column: Ints) -> Core:
        rows = int(self.depth[hosts].max(initial=0))
        options = int(self.count[picks].max(initial=1))
        weight = np.zeros((rows, options, hosts.size), dtype=np.int64)
        gain = np.full((rows, options, hosts.size), NOTHING, dtype=np.int64)
        gain[:, 0] = 0  # a place without a VM takes nothing and gains nothing
        count = self.count[picks]
        within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        entry = np.repeat(self.first[picks], count) + within
        rank, place = np.repeat(self.rank[picks], count), column[self.of[entry]]
        weight[rank, within, place] = self.weight[entry]
        gain[rank, within, place] = self.worth[entry]
        return Core(weight, gain, self.room[hosts], self.slack[hosts])


def _least_key(top: AnyInts, limit: Ints, bits: int) -> AnyInts:
    """(n, k) the smallest key whose loss is within the limit."""
    least = np.iinfo(top.dtype).min
    farthest = 1 << ((32 if top.dtype == np.int32 else 62) - bits)  # no loss exceeds it
    key = (top.astype(np.int64) - np.minimum(limit, farthest)) << bits
    return np.asarray(np.maximum(key, least).astype(top.dtype))


def _drop_repeated(survives: Bools, block: Block, hosts: Ints) -> None:
    """Bins that repeat the one before, which pad a VM with fewer of them, are no choice."""
    if block.weight.shape[0] == 1 or block.weight.shape[1:] == (1, 1):
        return
    weight = block.weight if block.weight.shape[2] == 1 else block.weight[:, :, hosts]
    same = weight[1:] == weight[:-1]
    if bool(same.any()):
        gain = block.gain[:, :, hosts]
        survives[1:] &= ~(same & (gain[1:] == gain[:-1]))
