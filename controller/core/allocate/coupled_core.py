"""What may still change once multipliers have a bound: the core of each host.

With L the bound of multipliers lam, every selection x is worth (L - T(x)) / 2**shift, where
T(x) = sum_i loss_i,x(i) + lam slack(x): each option loses what the best reduced value of its VM
is above its own, and quanta left over lose their price. All parts are non-negative integers. So
selections with T <= D are made of options with loss <= D (reduced-cost fixing). Most VMs have but
one of those; the others are the core.
"""

from dataclasses import dataclass

import numpy as np

from controller.core.allocate.problem import AnyInts, Ints

_TYPICAL = 8  # core VMs aimed at first


@dataclass(frozen=True, slots=True, eq=False)
class Core:
    """Options that may take part, and the core VMs, dealt out to two halves per host.

    e options in all, g core VMs in all. Half 2 i and half 2 i + 1 are host i's. A VM's options
    take what its smallest levels do, and `extra` on top.
    """

    room: Ints  # (r, h) quanta above all VMs' smallest levels; negative: nothing fits
    price: Ints  # (r, h)
    option: AnyInts  # (n, h) the only option of each VM outside the core
    count: Ints  # (2 h,) core VMs of the half
    start: Ints  # (2 h,) the half's first core VM among the g
    slot: Ints  # (g,)
    first: Ints  # (g,) the VM's first option among the e
    size: Ints  # (g,) how many options it has
    place: Ints  # (e,) the option's place in the problem
    loss: Ints  # (e,) in units of 2**-shift
    extra: Ints  # (r, e) quanta


def losses(value: AnyInts, level: AnyInts, price: Ints, shift: Ints) -> Ints:
    """(k, n, h) what each option loses against the best of its VM, in units of 2**-shift."""
    cost = level[0] * price[0]
    for resource in range(1, len(level)):
        cost = cost + level[resource] * price[resource]
    reduced = (value.astype(np.int64) << shift) - cost
    return np.asarray(np.subtract(reduced.max(axis=0), reduced, out=reduced))


def typical_loss(loss: Ints) -> Ints:
    """(h,) the loss that about `_TYPICAL` VMs of the host can take and change their option."""
    change = np.where(loss > 0, loss, np.iinfo(np.int64).max >> 4).min(axis=0)
    place = min(_TYPICAL, len(change)) - 1
    return np.asarray(np.partition(change, place, axis=0)[place])


def core_of(loss: Ints, level: AnyInts, capacity: AnyInts, price: Ints, most: Ints) -> Core:
    """The core where no option may lose more than `most`, (h,)."""
    slots, hosts = loss.shape[1:]
    host, slot, place, lost = _survivors(loss, most)
    taken = np.stack([_at(table, place, slot, host) for table in level])  # (r, e)
    vm = host * slots + slot  # every VM has its best option left, so these are all of them
    first = np.flatnonzero(np.diff(vm, prepend=-1))
    size = np.diff(first, append=len(vm))
    least = np.minimum.reduceat(taken, first, axis=1)
    extra = taken - least[:, vm]
    room = capacity - least.reshape(len(level), hosts, slots).sum(axis=2)

    inner = np.flatnonzero(size > 1)
    leeway = np.add.reduceat(_leeway(lost, most[host]), first)[inner]
    half = _halves(inner // slots, leeway)
    # Who has the most leeway goes last: the lists stay short for long.
    order = np.lexsort((leeway, half))
    inner, count = inner[order], np.bincount(half, minlength=2 * hosts)
    return Core(
        room=room,
        price=price,
        option=place[first].reshape(hosts, slots).T,
        count=count,
        start=np.cumsum(count) - count,
        slot=inner % slots,
        first=first[inner],
        size=size[inner],
        place=place,
        loss=lost,
        extra=extra,
    )


def _survivors(loss: Ints, most: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """(e,) host, slot, place and loss of the options left, in this order."""
    options, slots, hosts = loss.shape
    found = np.flatnonzero(loss <= most)
    place, rest = np.divmod(found, slots * hosts)
    slot, host = np.divmod(rest, hosts)
    ordered = np.sort((host * slots + slot) * options + place)
    vm, place = np.divmod(ordered, options)
    host, slot = np.divmod(vm, slots)
    return host, slot, place, loss[place, slot, host]


def _at(table: AnyInts, place: Ints, slot: Ints, host: Ints) -> Ints:
    """(e,) entries of a table (k, n | 1, h | 1)."""
    one_slot, one_host = table.shape[1] == 1, table.shape[2] == 1
    return np.asarray(table[place, 0 if one_slot else slot, 0 if one_host else host])


def _leeway(loss: Ints, most: Ints) -> Ints:
    """(e,) how much of `most` an option leaves to others, in 1024ths."""
    return (most - loss) // (most // 1024 + 1)


def _halves(owner: Ints, leeway: Ints) -> Ints:
    """(g,) a half for each core VM: those of much leeway dealt out evenly, first to both."""
    order = np.lexsort((-leeway, owner))
    rank = np.empty_like(owner)
    rank[order] = np.arange(len(owner)) - np.searchsorted(owner, owner)
    return 2 * owner + ((rank + 1) // 2) % 2
