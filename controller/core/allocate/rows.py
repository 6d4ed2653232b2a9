"""The best that children can have of every size: the plain dynamic programme, for many parents.

Where all parents' children share their levels, a row of states is moved by the same distance for
all parents: with states first and parents last in memory, that is one slice, and no gather. A
state then means "at most so many quanta", so that each of them can be reached. Elsewhere the
kernels of `windows` do the work.
"""

import numpy as np

from controller.core.allocate.problem import NOTHING, AnyInts, Ints, Problem
from controller.core.allocate.windows import WIDE, Core, core_rows

HOSTS_AT_ONCE = 128
HOSTS_SHARED = 512  # long slices, while three arrays of some hundred states fit the cache
CELLS_AT_ONCE = 1 << 20  # of rows; bounds the memory
NARROW = 1 << 30  # sums of values below it take 32 bits


def best_within(problem: Problem) -> AnyInts:
    """(r + 1, h) the children's best gain above their first bins, within 0 to r quanta beyond the
    least; r is the widest `room_of`, and what lies beyond a host's own is not to be read."""
    if problem.level.shape[2] == 1 and int(room_of(problem).max()) < WIDE:
        return _side_by_side(problem)
    return core_rows(_whole(problem)).T


def least_of(problem: Problem) -> Ints:
    """(h,) quanta that the children take at least."""
    least = np.broadcast_to(problem.level[0], problem.value.shape[1:])
    return np.asarray(least.sum(axis=0, dtype=np.int64))


def room_of(problem: Problem) -> Ints:
    """(h,) quanta that they can take beyond that."""
    most = np.broadcast_to(problem.level[-1], problem.value.shape[1:]).sum(axis=0, dtype=np.int64)
    least = least_of(problem)
    return np.asarray(np.clip(problem.capacity - least, 0, most - least))


def alike(problem: Problem, room: Ints, hosts: Ints) -> list[Ints | slice]:
    """Hosts of like room together, so that rows are little padded, and few enough at once."""
    hosts = hosts[np.argsort(room[hosts], kind="stable")]
    most = HOSTS_SHARED if problem.level.shape[2] == 1 else HOSTS_AT_ONCE
    found, start = [], 0
    while start < hosts.size:
        size = most
        while (
            size > 1 and 6 * size * int(room[hosts[start : start + size][-1]] + 1) > CELLS_AT_ONCE
        ):
            size //= 2
        found.append(_run(hosts[start : start + size]))
        start += size
    return found


def _run(places: Ints) -> Ints | slice:
    """As a slice, which copies nothing, where they follow one another."""
    start = int(places[0])
    stop = start + places.size
    return slice(start, stop) if (places == np.arange(start, stop)).all() else places


def _side_by_side(problem: Problem) -> AnyInts:
    """All hosts at once, slot by slot and bin by bin."""
    bins, slots, hosts = problem.value.shape
    gain = _gains(problem.value)
    weight = np.broadcast_to(problem.level - problem.level[:1], (bins, slots, 1))[:, :, 0].T
    states = int(room_of(problem).max()) + 1
    before, after, moved = (np.empty((states, hosts), dtype=gain.dtype) for _ in range(3))
    before[0], reach = 0, 1  # states in use; beyond them nothing is gained
    for slot, weights in enumerate(weight.tolist()):
        reached = min(states, reach + weights[-1])
        after[:reach] = before[:reach]
        after[reach:reached] = before[reach - 1]
        for option in range(1, bins):
            size = min(reach, reached - weights[option])
            if size <= 0:
                break
            part = after[weights[option] : weights[option] + size]
            np.add(before[:size], gain[option, slot], out=moved[:size])
            np.maximum(part, moved[:size], out=part)
        before, after, reach = after, before, reached
    before[reach:] = before[reach - 1]
    for state in range(1, states):  # faster than an accumulation along the first axis
        np.maximum(before[state], before[state - 1], out=before[state])
    return before


def _gains(value: AnyInts) -> AnyInts:
    """(b, n, h) above the first bin, contiguous, as narrow as their sums allow."""
    most = (int(value.max()) - int(value.min())) * value.shape[1]
    dtype = np.int32 if most < NARROW else np.int64
    return np.subtract(value, value[:1], dtype=dtype, order="C", casting="same_kind")


def _whole(problem: Problem) -> Core:
    """The programme over everything that the children can take beyond the least."""
    level = np.broadcast_to(problem.level, problem.value.shape).transpose(1, 0, 2).astype(np.int64)
    value = problem.value.transpose(1, 0, 2).astype(np.int64)
    weight, gain = level - level[:, :1], value - value[:, :1]
    repeated = (weight[:, 1:] == weight[:, :-1]) & (gain[:, 1:] == gain[:, :-1])
    gain[:, 1:][repeated] = NOTHING
    room = room_of(problem)
    return Core(weight, gain, room, room)
