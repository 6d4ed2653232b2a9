"""The best pair of states, one of each half of a host, without looking at all pairs.

A pair loses what its states lose and the price of what it leaves, T = loss + loss' + lam slack,
and with T <= D it leaves little. So with one half's states in the order of the price of what they
take, the partners that a state of the other half can have are a short stretch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from controller.core.allocate.coupled_core import Core
from controller.core.allocate.problem import Bools, Ints

NEVER = 1 << 62  # a total that no selection has
_TOGETHER = 1 << 16  # pairs looked at together
_PRICE_BITS = 50  # of a priced amount in the order of states


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """The best pair of each host that has one with T <= D, p in all."""

    host: Ints  # (p,)
    one: Ints  # (p,) place of the state of the even half
    other: Ints  # (p,) place of the state of the odd half
    total: Ints  # (p,) T
    spent: Ints  # (h,) pairs looked at
    complete: Bools  # (h,) whether that were all that matter


def best_pairs(core: Core, half: Ints, taken: Ints, loss: Ints, most: Ints, budget: Ints) -> Pairs:
    """The states have a half (s,), take quanta (r, s) and lose (s,); D is `most`, (h,).

    No more than `budget`, (h,), pairs of a host are looked at, those of the least loss first.
    """
    host = half >> 1
    priced = (core.price[:, host] * taken).sum(axis=0)
    whole = (core.price * np.maximum(core.room, 0)).sum(axis=0)
    partners = _partners(half, priced, loss, whole, most)
    one, (count, complete) = partners.one, _within(partners, host, budget)
    total = np.full(len(most), NEVER)
    pair = np.zeros((2, len(most)), dtype=np.int64)
    for some in _parts(count):
        left = np.repeat(one[some], count[some])
        skip = partners.begin[some] - np.cumsum(count[some]) + count[some]
        right = partners.other[np.arange(len(left)) + np.repeat(skip, count[some])]
        at = host[left]
        loses = loss[left] + loss[right] + whole[at] - priced[left] - priced[right]
        fitting = (taken[:, left] + taken[:, right] <= core.room[:, at]).all(axis=0)
        good = np.flatnonzero(fitting & (loses <= most[at]))
        good = good[np.lexsort((loses[good], at[good]))]
        good = good[np.flatnonzero(np.diff(at[good], prepend=-1))]
        good = good[loses[good] < total[at[good]]]
        total[at[good]] = loses[good]
        pair[:, at[good]] = left[good], right[good]
    found = np.flatnonzero(total < NEVER)
    spent = np.bincount(host[one], count, len(most)).astype(np.int64)
    return Pairs(found, pair[0, found], pair[1, found], total[found], spent, complete)


@dataclass(frozen=True, slots=True, eq=False)
class _Partners:
    """Which states of the odd halves each state of the even ones may go with."""

    one: Ints  # (a,) places of the even halves' states, by host and loss
    other: Ints  # (b,) places of the odd halves' states, by host and price of what they take
    begin: Ints  # (a,) where among the others the stretch begins
    count: Ints  # (a,) and how long it is


def _partners(half: Ints, priced: Ints, loss: Ints, whole: Ints, most: Ints) -> _Partners:
    """Partners take no more than is left, priced, and leave no more than D allows."""
    host = half >> 1
    one, other = np.flatnonzero(half % 2 == 0), np.flatnonzero(half % 2)
    one = one[np.lexsort((loss[one], host[one]))]
    # One number per host and price, rounded down where it would not fit.
    coarse = np.maximum(np.frexp(whole.astype(np.float64))[1] - _PRICE_BITS, 0)[host]
    base = host << (_PRICE_BITS + 1)
    key = (base + (priced >> coarse))[other]
    order = np.argsort(key, kind="stable")
    other, key = other[order], key[order]
    free = whole[host[one]] - priced[one]
    least = np.maximum(free - (most[host[one]] - loss[one]), 0)
    begin = np.searchsorted(key, base[one] + (least >> coarse[one]), side="left")
    end = np.searchsorted(key, base[one] + (free >> coarse[one]), side="right")
    return _Partners(one, other, begin, end - begin)


def _within(partners: _Partners, host: Ints, budget: Ints) -> tuple[Ints, Bools]:
    """(a,) how many partners of each state to look at, and (h,) whether that is all of them."""
    one, count = partners.one, partners.count
    upto = np.cumsum(count)
    first = np.searchsorted(host[one], host[one])  # place of the host's first state
    fits = upto - (upto - count)[first] <= budget[host[one]]
    complete = np.ones(len(budget), dtype=np.bool_)
    complete[host[one][~fits]] = False
    return np.where(fits, count, 0), complete


def _parts(count: Ints) -> Iterator[slice]:
    """Runs of states with about `_TOGETHER` pairs each."""
    part = np.cumsum(count) // _TOGETHER
    edges = np.flatnonzero(np.diff(part, prepend=-1, append=-1))
    for begin, end in pairwise(edges):
        yield slice(int(begin), int(end))
