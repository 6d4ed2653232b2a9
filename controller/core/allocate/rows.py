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
HOSTS_SHARED = 1024  # long slices, while three arrays of some hundred states fit the cache
CELLS_AT_ONCE = 1 << 20  # of rows; bounds the memory
NARROW = 1 << 30  # sums of values below it take 32 bits


def best_within(problem: Problem, state: Ints, host: Ints) -> AnyInts:
    """(k,) the most that the children of host (k,) gain above their first bins within state (k,)
    quanta beyond their least, of which the host has at most its `room_of`."""
    if problem.level.shape[2] > 1 or int(state.max()) >= WIDE:
        return np.asarray(core_rows(_whole(problem))[host, state])
    asked = np.bincount(state) > 0
    found = _side_by_side(problem, np.flatnonzero(asked))
    row = np.cumsum(asked) - 1
    return found.ravel().take(row[state] * problem.hosts + host)


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


def _side_by_side(problem: Problem, states: Ints) -> AnyInts:
    """(k, h) the best within k states, ascending, of all hosts.

    Two programmes, each over some of the slots, are joined at these states alone.
    """
    bins, slots, _ = problem.value.shape
    gain = _gains(problem.value)
    weight = np.broadcast_to(problem.level - problem.level[:1], (bins, slots, 1))[:, :, 0].T
    most = int(states[-1]) + 1
    cut = _cut(weight, most, states.size)
    left = _rows(gain[:, :cut], weight[:cut], most)
    right = _rows(gain[:, cut:], weight[cut:], most)
    found = np.empty((states.size, gain.shape[2]), dtype=gain.dtype)
    joined = np.empty_like(left)
    for row, state in zip(found, states.tolist(), strict=True):
        first, last = max(0, state - len(right) + 1), min(state, len(left) - 1)
        part, rest = joined[first : last + 1], right[state - last : state - first + 1]
        np.add(left[first : last + 1], rest[::-1], out=part)
        part.max(axis=0, out=row)
    return found


def _cut(weight: AnyInts, most: int, asked: int) -> int:
    """How many slots make the left programme, so that both and their union are the least work."""
    bins = weight.shape[1]
    span = weight[:, -1]
    left = np.minimum(np.cumsum(np.append(0, span)) + 1, most)  # states after each slot
    right = np.minimum(np.cumsum(np.append(0, span[::-1])) + 1, most)
    work = [bins * np.append(0, np.cumsum(states[:-1])) for states in (left, right)]
    union = asked * np.minimum(left, right[::-1])
    return int(np.argmin(work[0] + work[1][::-1] + union))


def _rows(gain: AnyInts, weight: AnyInts, most: int) -> AnyInts:
    """(r, h) the best of these slots within 0 to r - 1 quanta, slot by slot and bin by bin.

    r is all that they can take, or `most`.
    """
    bins, _, hosts = gain.shape
    states = min(most, int(weight[:, -1].sum()) + 1)
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
