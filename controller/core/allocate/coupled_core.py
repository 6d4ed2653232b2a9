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
    """Options that may take part, host by host, and the core VMs in the order of the search.

    e options in all, g core VMs in all. A VM's options take what its smallest levels together do,
    and `extra` on top.
    """

    room: Ints  # (r, h) quanta above all VMs' smallest levels; negative: nothing fits
    price: Ints  # (r, h)
    option: AnyInts  # (n, h) the only option of each VM outside the core
    count: Ints  # (h,) core VMs of the host
    start: Ints  # (h,) the host's first core VM among the g
    slot: Ints  # (g,)
    first: Ints  # (g,) the VM's first option among the e
    size: Ints  # (g,) how many options it has
    tail: Ints  # (r, g + 1) the most extra quanta from this core VM of the host on; 0 at the end
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
    span = np.maximum.reduceat(extra, first, axis=1)  # (r, n h)
    room = capacity - least.reshape(len(level), hosts, slots).sum(axis=2)

    inner = np.flatnonzero(size > 1)
    owner = inner // slots
    # Who can move most of the resources' worth goes first: what is left then closes the room.
    weight = (span[:, inner] * price[:, owner]).sum(axis=0)
    order = np.lexsort((-weight, owner))
    inner, owner = inner[order], owner[order]
    count = np.bincount(owner, minlength=hosts)
    return Core(
        room=room,
        price=price,
        option=place[first].reshape(hosts, slots).T,
        count=count,
        start=np.cumsum(count) - count,
        slot=inner % slots,
        first=first[inner],
        size=size[inner],
        tail=_tails(span[:, inner], count, owner),
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


def _tails(span: Ints, count: Ints, owner: Ints) -> Ints:
    """(r, g + 1) per resource the sum of spans from here to the host's last."""
    after = np.zeros((len(span), len(owner) + 1), dtype=np.int64)
    after[:, :-1] = np.cumsum(span[:, ::-1], axis=1)[:, ::-1]
    end = np.cumsum(count)[owner]
    after[:, :-1] -= after[:, end]
    return after
