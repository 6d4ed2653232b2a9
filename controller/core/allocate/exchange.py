"""Better solutions from the one that the bound left: what the room left over still allows.

Two prices next to each other, one at which the choices fit and one at which they do not, often
differ in many VMs when these are alike. `fill` moves as many of them as fit; `exchange` then gives
one VM at a time the best bin that the room allows.
"""

import itertools

import numpy as np

from controller.core.allocate.block import Block, columns, picked
from controller.core.allocate.problem import AnyInts, Ints

ROUNDS = 6  # after that almost nothing is gained


def fill(block: Block, hosts: Ints, bins: Ints, weight: Ints, gain: Ints, heavier: Ints) -> None:
    """Puts the first VMs of k of the hosts at heavier bins (n, k), as far as these fit.

    Improves the solutions of the block in place: bins (n, h), their weights and gains (h,).
    """
    now = bins[:, hosts]
    more = picked(block.weight, heavier, hosts) - picked(block.weight, now, hosts)
    taken = np.cumsum(more, axis=0, dtype=np.int64) <= (block.room - weight)[hosts]
    step = picked(block.gain, heavier, hosts) - picked(block.gain, now, hosts)
    bins[:, hosts] = np.where(taken, heavier, now)
    weight[hosts] += np.where(taken, more, 0).sum(axis=0, dtype=np.int64)
    gain[hosts] += np.where(taken, step, 0).sum(axis=0, dtype=np.int64)


def exchange(block: Block, hosts: Ints, bins: Ints, weight: Ints, gain: Ints) -> None:
    """Gives k of the hosts better bins; all of the block, in place: bins (n, h), the others (h,).

    Each round moves, per host, the one VM that gains most; the first of equals, to the lightest
    bin of that gain.
    """
    bits, mask = block.index_bits, (1 << block.index_bits) - 1
    best_up_to = _best_up_to(block, hosts)
    active = np.flatnonzero(weight[hosts] < block.room[hosts])
    for _ in range(ROUNDS):
        there = hosts[active]
        now = bins[:, there]
        heavy = picked(block.weight, now, there).astype(np.int64)
        reach = _last_within(block, heavy + (block.room - weight)[there], there)
        found = picked(best_up_to, reach, active)
        more = (found >> bits) - picked(block.gain, now, there)
        columns = np.arange(active.size)
        slot = more.argmax(axis=0)
        better = more[slot, columns] > 0
        if not better.any():
            break
        slot, columns, active, there = slot[better], columns[better], active[better], there[better]
        chosen = mask - (found[slot, columns] & mask)
        bins[slot, there] = chosen
        gain[there] += more[slot, columns]
        at = slot if block.weight.shape[1] > 1 else 0
        host = there if block.weight.shape[2] > 1 else 0
        weight[there] += block.weight[chosen, at, host] - heavy[slot, columns]


def _best_up_to(block: Block, hosts: Ints) -> AnyInts:
    """(b, n, k) the greatest gain of a bin and all before it, packed with the first such bin."""
    bits, dtype = block.index_bits, block.gain.dtype
    places = (1 << bits) - 1 - np.arange(block.gain.shape[0], dtype=dtype)
    packed = columns(block.gain, hosts)
    packed <<= dtype.type(bits)
    packed |= places[:, None, None]
    for before, here in itertools.pairwise(packed):  # many times faster than accumulate
        np.maximum(before, here, out=here)
    return packed


def _last_within(block: Block, limit: Ints, hosts: AnyInts) -> Ints:
    """(n, k) the last bin that weighs no more than the limit (n, k)."""
    weight = block.weight
    if block.step is not None:
        return np.asarray(np.minimum(limit // block.step, weight.shape[0] - 1))
    if weight.shape[1:] == (1, 1):
        return np.searchsorted(weight[:, 0, 0], limit, side="right") - 1
    table = weight[:, :, hosts] if weight.shape[2] > 1 else weight
    return np.asarray((table <= limit).sum(axis=0) - 1)
