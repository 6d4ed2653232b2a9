"""Where every step up gains a VM no more than the step before: the greatest increments win.

Selection of the R greatest of all increments (Fox 1966; Frederickson and Johnson 1982). Within a
VM increments never grow, so whatever is chosen is a prefix, and the choice is optimal for integers.
"""

import numpy as np

from controller.core.allocate.block import Block
from controller.core.allocate.problem import AnyInts, Bools, Ints


def is_concave(block: Block) -> Bools:
    """(h,) whether the host can be solved by `take_increments`: an even grid, concave VMs, room."""
    if block.step is None:
        return np.zeros(block.hosts, dtype=np.bool_)
    concave = block.room >= 0
    # The first VM sorts out most hosts that are not, before all are looked at.
    for slots in (slice(0, 1), slice(1, None)):
        if concave.any() and block.gain[:, slots].size:
            steps = np.diff(block.gain[:, slots], axis=0)
            concave &= ~(steps[1:] > steps[:-1]).any(axis=(0, 1))
    return concave


def take_increments(block: Block) -> tuple[Ints, Ints, Ints]:
    """(n, h) optimal bins, (h,) their gain, (h,) the price per quantum in units of 2**-shift.

    Increments of the same worth go to the first VMs; one that gains nothing is not taken.
    """
    step = block.step
    assert step is not None, "is_concave said that the grid is even"
    steps = np.diff(block.gain, axis=0)
    taken = block.room // step
    least = _kth_greatest(np.maximum(steps, 0), taken)
    above = (steps > least).sum(axis=0)
    level = ((steps == least) & (least > 0)).sum(axis=0)
    left = taken - above.sum(axis=0)
    bins = above + np.clip(left - (np.cumsum(level, axis=0) - level), 0, level)
    hosts, slots = np.arange(block.hosts), np.arange(block.slots)[:, None]
    gain = block.gain[bins, slots, hosts].sum(axis=0, dtype=np.int64)
    scarce = (steps > 0).sum(axis=(0, 1)) > taken
    least = np.where(taken > 0, least, steps.max(axis=(0, 1)))
    return bins, gain, (np.where(scarce, least, 0) << block.shift) // step


def _kth_greatest(steps: AnyInts, k: Ints) -> Ints:
    """(h,) the k-th greatest entry of each host's steps (b, n, h); above all of them for k = 0."""
    rows = np.ascontiguousarray(steps.reshape(-1, steps.shape[2]).T)
    size = rows.shape[1]
    place = size - np.minimum(k, size)
    if (place == place[0]).all() and place[0] < size:
        rows.partition(int(place[0]), axis=1)
    else:
        rows.sort(axis=1)
    beyond = np.concatenate([rows, np.full((rows.shape[0], 1), np.iinfo(rows.dtype).max)], axis=1)
    return np.asarray(beyond[np.arange(place.size), place], dtype=np.int64)
