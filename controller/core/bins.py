"""Forecast and bounds to candidate grants: adaptive bins, fine where the demand's mass lies.

The present limit is always a candidate, exactly as it stands, so a new grid alone moves nothing.
"""

import numpy as np

from controller.core.state import (
    MISSING,
    Bins,
    Bools,
    Floats,
    Forecast,
    Hold,
    Ints,
    Mode,
    Policy,
    Snapshot,
)
from shared.resources import Resource

FIXED_PLACES = 4  # lowest, present limit, needed, highest
COARSE_PLACES = 8  # evenly spread, so that scarcity finds something between limit and demand
_FAR = np.iinfo(np.int64).max


def to_bins(snapshot: Snapshot, forecast: Forecast, policy: Policy, lowest_mode: Mode) -> Bins:
    """Candidates for every machine and resource; DESIGN section 4, "Bins".

    What may not move has its present limit as the only candidate; what has no known limit has none.
    """
    quantile = _demand(snapshot, forecast, policy)
    movable = can_move(snapshot, policy, lowest_mode) & ~np.isnan(quantile).any(axis=2)
    lowest, highest = _range(snapshot, policy, movable)
    own = _own(snapshot, policy)
    needed = _needed(quantile, forecast.probability, snapshot, policy, lowest, highest)
    level = _grid(snapshot, policy, quantile, lowest, highest, needed)
    level = _pinned(snapshot, movable, lowest, highest, level)
    level = np.where(movable[:, :, None], level, MISSING)
    level[:, :, 0] = np.where(movable, level[:, :, 0], snapshot.limit)
    count = (level != MISSING).sum(axis=2)
    probability = _mass(level, quantile, forecast.probability)
    return Bins(
        level=level,
        count=count,
        probability=probability,
        needed=np.where(movable, needed, MISSING),
        lowest=np.where(movable, lowest, snapshot.limit),
        own=own,
    )


def can_move(snapshot: Snapshot, policy: Policy, lowest_mode: Mode) -> Bools:
    """(n, 3): VM, allowed by its mode, not held, with a lever, with fresh readings (I6, I8)."""
    vm = (
        (snapshot.parent >= 0)
        & (snapshot.mode >= lowest_mode)
        & (snapshot.hold == Hold.NONE)
        & (snapshot.sample_age_ns != MISSING)
        & (snapshot.sample_age_ns <= policy.sample_age_ns_max)
    )
    movable: Bools = vm[:, None] & snapshot.lever & (snapshot.limit != MISSING)
    movable &= snapshot.floor <= snapshot.ceiling
    movable[:, Resource.MEMORY] &= (
        (snapshot.memory_stats_age_ns != MISSING)
        & (snapshot.memory_stats_age_ns <= policy.stats_age_ns_max)
        & (snapshot.used[:, Resource.MEMORY] != MISSING)
        & (snapshot.memory_free != MISSING)
    )
    return movable


def _demand(snapshot: Snapshot, forecast: Forecast, policy: Policy) -> Floats:
    """Quantiles of what a grant must cover; memory needs its margin above the working set."""
    quantile = forecast.quantile.copy()
    stale = (forecast.age_ns == MISSING) | (forecast.age_ns > policy.forecast_age_ns_max)
    quantile[stale] = np.nan
    memory = Resource.MEMORY
    # Whatever the present limit is: what a grant must be must not follow from what it was.
    quantile[:, memory] = policy.with_margin(quantile[:, memory])
    # What a VM was lent, or could not be lent, is demand that no forecast knew of.
    return np.maximum(quantile, snapshot.wanted[:, :, None])


def _range(snapshot: Snapshot, policy: Policy, movable: Bools) -> tuple[Ints, Ints]:
    """Lowest and highest amounts that I2, I3 and I4 allow, both on this side of the limit.

    What guests can give back in the same plan their host can give back after them: that it does
    not give more than they do is for the solver to see to, by `Bins.own`.
    """
    limit = snapshot.limit
    takeable = np.zeros_like(limit)
    takeable[:, Resource.CPU] = limit[:, Resource.CPU] * policy.cpu_shrink_share
    takeable[:, Resource.IO] = limit[:, Resource.IO] * policy.io_shrink_share
    quantum = np.array(policy.quantum)
    lowest = np.maximum(snapshot.floor, limit - takeable)
    lowest = np.minimum(_ceil(lowest, quantum), limit)
    lowest[:, Resource.MEMORY] = _lowest_memory(snapshot, policy, movable[:, Resource.MEMORY])
    known = snapshot.maximum != MISSING
    highest = np.where(known, np.minimum(snapshot.ceiling, snapshot.maximum), limit)
    highest = np.maximum(highest // quantum * quantum, limit)
    return np.where(movable, lowest, limit), np.where(movable, highest, limit)


def _lowest_memory(snapshot: Snapshot, policy: Policy, movable: Bools) -> Ints:
    """(n,) guests before their hosts, which give back what these give."""
    limit = snapshot.limit[:, Resource.MEMORY]
    floor = snapshot.floor[:, Resource.MEMORY]
    alone = np.maximum(_working(snapshot, policy), limit - _takeable(snapshot, policy))
    quantum = policy.quantum[Resource.MEMORY]
    lowest = limit.copy()
    relief = np.zeros_like(limit)
    for level in reversed(_levels(snapshot)):
        bound = np.maximum(floor[level], alone[level] - relief[level])
        bound = np.minimum(-(-bound // quantum) * quantum, limit[level])
        lowest[level] = np.where(movable[level], bound, limit[level])
        guests = level[snapshot.parent[level] >= 0]
        np.add.at(relief, snapshot.parent[guests], limit[guests] - lowest[guests])
    return lowest


def _own(snapshot: Snapshot, policy: Policy) -> Ints:
    """(n, 3) at nested hosts: the least that their limit must exceed the sum of their guests' by
    once it shrinks, so that I3 and I4 hold when the guests have given back their part; else 0.

    Both say `limit >= amount - what the guests give back`, which is `limit >= sum of the guests'
    grants + (amount - sum of the guests' limits)`.
    """
    limit = snapshot.limit[:, Resource.MEMORY]
    own = np.zeros_like(snapshot.limit)
    guest = snapshot.parent >= 0
    below = np.zeros_like(limit)
    np.add.at(below, snapshot.parent[guest], np.maximum(limit[guest], 0))
    alone = np.maximum(_working(snapshot, policy), limit - _takeable(snapshot, policy))
    nested = guest & (below > 0)
    own[nested, Resource.MEMORY] = np.maximum(alone - below, 0)[nested]
    return own


def _working(snapshot: Snapshot, policy: Policy) -> Ints:
    """(n,) the working set and its margin (I3)."""
    used: Ints = snapshot.used[:, Resource.MEMORY]
    return used + policy.margin_bytes(snapshot.limit[:, Resource.MEMORY])


def _takeable(snapshot: Snapshot, policy: Policy) -> Ints:
    """(n,) free pages, and as much of the cache as one step may take (I4)."""
    cache_step = (snapshot.limit[:, Resource.MEMORY] * policy.memory_cache_share).astype(np.int64)
    cache: Ints = np.minimum(np.maximum(snapshot.memory_cache, 0), cache_step)
    return np.maximum(snapshot.memory_free, 0) + cache


def _levels(snapshot: Snapshot) -> list[Ints]:
    """Machines by their depth, roots first."""
    levels = [np.flatnonzero(snapshot.parent < 0)]
    waiting = np.flatnonzero(snapshot.parent >= 0)
    while waiting.size:
        above = np.zeros(len(snapshot.ids), dtype=np.bool_)
        above[levels[-1]] = True
        next_down = above[snapshot.parent[waiting]]
        levels.append(waiting[next_down])
        waiting = waiting[~next_down]
    return levels


def _needed(
    quantile: Floats,
    probability: Floats,
    snapshot: Snapshot,
    policy: Policy,
    lowest: Ints,
    highest: Ints,
) -> Ints:
    """Lowest whole-quantum amount with P(demand > amount) <= violation budget, within range.

    Or the present limit, where it is so little below that forecasts do not tell them apart.
    """
    wanted = 1.0 - snapshot.violation_ppm / 1e6
    place = np.clip(np.searchsorted(probability, wanted), 1, len(probability) - 1)
    below, above = probability[place - 1], probability[place]
    share = np.clip((wanted - below) / (above - below), 0.0, 1.0)[:, None]
    rows = np.arange(len(place))
    left, right = quantile[rows, :, place - 1], quantile[rows, :, place]
    amount = np.nan_to_num(left + (right - left) * share)
    needed = _ceil(np.ceil(amount).astype(np.int64), np.array(policy.quantum))
    enough = (snapshot.limit < needed) & (amount * (1 - policy.floor_tolerance) <= snapshot.limit)
    return np.clip(np.where(enough, snapshot.limit, needed), lowest, highest)


def _grid(
    snapshot: Snapshot, policy: Policy, quantile: Floats, lowest: Ints, highest: Ints, needed: Ints
) -> Ints:
    """(n, 3, b) ascending candidates; the quantiles give equal mass between neighbours."""
    places = min(policy.bins_max - FIXED_PLACES - COARSE_PLACES, quantile.shape[2])
    chosen = np.linspace(0, quantile.shape[2] - 1, places).astype(int)
    quantum = np.array(policy.quantum)[:, None]
    amounts = np.ceil(np.nan_to_num(quantile[:, :, chosen])).astype(np.int64)
    amounts = np.clip(_ceil(amounts, quantum), lowest[:, :, None], highest[:, :, None])
    fixed = np.stack([lowest, snapshot.limit, needed, highest], axis=2)
    even = np.linspace(lowest, highest, COARSE_PLACES + 2, axis=2)[:, :, 1:-1].astype(np.int64)
    coarse = np.clip(_ceil(even, quantum), lowest[:, :, None], highest[:, :, None])
    level = np.sort(np.concatenate([amounts, fixed, coarse], axis=2), axis=2)
    level[:, :, 1:][level[:, :, 1:] == level[:, :, :-1]] = _FAR
    level.sort(axis=2)
    return np.where(level == _FAR, MISSING, level)


def _pinned(snapshot: Snapshot, movable: Bools, lowest: Ints, highest: Ints, level: Ints) -> Ints:
    """A pin leaves one candidate: its amount, or as near as this cycle's bounds let it come."""
    pinned = movable & (snapshot.pin != MISSING)
    level[pinned] = MISSING
    level[:, :, 0] = np.where(pinned, np.clip(snapshot.pin, lowest, highest), level[:, :, 0])
    return level


def _mass(level: Ints, quantile: Floats, probability: Floats) -> Floats:
    """(n, 3, b + 1) mass between neighbouring levels, from the piecewise linear distribution."""
    used: Bools = level > MISSING
    at_level = np.where(used, distribution(level, quantile, probability), 1.0)
    edges = np.concatenate([np.zeros((*level.shape[:2], 1)), at_level], axis=2)
    mass = np.diff(edges, axis=2)
    last = np.where(used, at_level, 0.0).max(axis=2)
    # Unused places stand at 1.0; what lies between the last level and 1.0 is the overflow.
    mass[~used] = 0.0
    mass = np.concatenate([mass, (1.0 - last)[:, :, None]], axis=2)
    return np.where(np.isnan(quantile).any(axis=2, keepdims=True), 0.0, mass)


def distribution(level: Ints, quantile: Floats, probability: Floats) -> Floats:
    """P(demand <= level), shape of `level` (n, 3, b), linear between the quantiles."""
    last = quantile.shape[2] - 1
    place = (quantile[:, :, None, :] <= level[:, :, :, None]).sum(axis=3) - 1
    here = np.clip(place, 0, last)
    after = np.clip(place + 1, 0, last)
    low = np.take_along_axis(quantile, here, axis=2)
    high = np.take_along_axis(quantile, after, axis=2)
    span = np.where(high > low, high - low, 1.0)
    inside = probability[here] + (level - low) / span * (probability[after] - probability[here])
    return np.where(place < 0, 0.0, np.where(place >= last, 1.0, inside))


def _ceil(amount: Ints, quantum: Ints) -> Ints:
    return -(-amount // quantum) * quantum
