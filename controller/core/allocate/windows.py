"""The dynamic programme over what the bounds left open: few VMs, few bins, a narrow window.

A state is how many quanta the VMs so far took above their lightest open bins. Which states can
still matter is known beforehand: later VMs can take no more than their spans, and a solution worth
finding leaves no more than `slack` quanta over. Two kernels give the same results: one for many
hosts with narrow windows, one for a single host with a wide window. With all bins open and any
slack they are the plain dynamic programme, and `core_rows` its last row. A third lists states one
by one, for hosts with a vast window and few choices.
"""

from dataclasses import dataclass

import numpy as np

from controller.core.allocate.problem import NOTHING, AnyInts, Bools, Ints

WIDE = 1024  # states: from here on slices of one host beat gathers for many
CELLS_IN_CACHE = 1 << 16  # of several options at once
LISTED = 32  # states of a window that cost as much as one that is listed
_Width = type[np.int32 | np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Core:
    """h hosts, m VMs with a choice at most, k options at most."""

    weight: Ints  # (m, k, h) quanta above the VM's lightest open bin, ascending
    gain: Ints  # (m, k, h) above that bin's; NOTHING in places that no option uses
    room: Ints  # (h,) at least 0
    slack: Ints  # (h,) quanta that may be left over

    def count(self) -> Ints:
        """(m, h) options in use."""
        return np.asarray((self.gain > NOTHING).sum(axis=1))


def solve_core(core: Core) -> tuple[Ints, Ints]:
    """(h,) best gain, NOTHING where there is none, and (m, h) the option of each VM.

    Of equal solutions the lightest; on the way back, the smallest option of each VM.
    """
    low, width = windows(core)
    dtype, nothing = _width(core.gain)
    if int(width.max(initial=0)) < WIDE:
        gain, option = _Many(core, low, width, dtype, nothing).solve()
    else:
        few = _few(core, width)
        each = [
            _Listed(core, host).solve()
            if few[host]
            else _One(core, host, low, width, dtype, nothing).solve()
            for host in range(core.room.size)
        ]
        gain = np.array([one[0] for one in each], dtype=np.int64)
        option = np.stack([one[1] for one in each], axis=1)
    return np.where(gain <= nothing // 2, NOTHING, gain), option


def core_rows(core: Core) -> Ints:
    """(h, r + 1) best gain of each host within 0 to r quanta, r the widest room; never falls.

    With a slack of at least the room.
    """
    low, width = windows(core)
    dtype, nothing = _width(core.gain)
    rows = np.full((core.room.size, int(core.room.max(initial=0)) + 1), nothing, dtype=dtype)
    if int(width.max(initial=0)) < WIDE:
        last = _Many(core, low, width, dtype, nothing).last_row()
        rows[:, : last.shape[1]] = last
    else:
        for host in range(core.room.size):
            last = _One(core, host, low, width, dtype, nothing).last_row()
            rows[host, : last.size] = last
    return np.asarray(np.maximum.accumulate(rows, axis=1), dtype=np.int64)


def log_of(number: Ints | int) -> Ints:
    """64 times the binary logarithm, upwards: integers add up the same in any order."""
    return np.asarray(np.ceil(np.log2(number) * 64), dtype=np.int64)


def _few(core: Core, width: Ints) -> Bools:
    """(h,) wide hosts with so few combinations that listing them is less work."""
    combinations = log_of(np.maximum(core.count(), 1)).sum(axis=0)
    most = width.max(axis=0, initial=0)
    return np.asarray((most >= WIDE) & (combinations + log_of(LISTED) < log_of(most + 1)))


def windows(core: Core) -> tuple[Ints, Ints]:
    """(m + 1, h) lowest state that matters after each VM, and how many more do; -1: none does."""
    span = np.where(core.gain > NOTHING, core.weight, 0).max(axis=1)
    before = np.zeros((span.shape[0] + 1, span.shape[1]), dtype=np.int64)
    np.cumsum(span, axis=0, out=before[1:])
    low = np.maximum(core.room - core.slack - (before[-1] - before), 0)
    return low, np.maximum(np.minimum(before, core.room) - low, -1)


def _width(gain: Ints) -> tuple[_Width, int]:
    """Integers that hold every sum of gains, and what stands for none at all."""
    most = np.abs(np.where(gain > NOTHING, gain, 0)).max(axis=1).sum(axis=0)
    return (np.int32, -(1 << 29)) if (most < 1 << 27).all() else (np.int64, NOTHING)


class _Many:
    """All hosts side by side; each host's window is moved by gathering a stretch of its row.

    A row (h, 3 pad) is a window with as much of nothing on both sides, so that no shift leaves it.
    """

    def __init__(self, core: Core, low: Ints, width: Ints, dtype: _Width, nothing: int) -> None:
        self.core, self.low, self.width, self.nothing = core, low, width, nothing
        self.pad = pad = int(width.max(initial=0)) + 1
        self.gain: AnyInts = np.maximum(core.gain, nothing).astype(dtype)
        # Up to the last place in use: a place before it may be free, as of a bin that is repeated.
        used = (core.gain > NOTHING).any(axis=2)
        places = np.arange(1, used.shape[1] + 1)
        self.options = np.where(used, places, 0).max(axis=1, initial=0).tolist()
        self.start = np.clip(pad + (low[1:] - low[:-1])[:, None] - core.weight, 0, 2 * pad)
        self.hosts = np.arange(core.room.size)
        self.first: AnyInts = np.full((core.room.size, 3 * pad), nothing, dtype=dtype)
        self.first[:, pad] = np.where(width[0] < 0, nothing, 0)

    def solve(self) -> tuple[Ints, Ints]:
        m = len(self.options)
        rows = np.full((m + 1, *self.first.shape), self.nothing, dtype=self.first.dtype)
        rows[0] = self.first
        for vm in range(m):
            self._advance(vm, rows[vm], rows[vm + 1])
        last = self._last(rows[m])
        state = last.argmax(axis=1)
        best = last[self.hosts, state].astype(np.int64)
        return best, self._back(rows, state + self.low[m])

    def last_row(self) -> AnyInts:
        """(h, w) of the last VM's window, two rows at a time in memory."""
        now, after = self.first, np.empty_like(self.first)
        for vm in range(len(self.options)):
            after[:] = self.nothing
            self._advance(vm, now, after)
            now, after = after, now
        return self._last(now)

    def _advance(self, vm: int, before: AnyInts, after: AnyInts) -> None:
        """`after`, all nothing, becomes the best of every option of the VM.

        States above the room may keep values: no later VM brings them back below it.
        """
        size = int(self.width[vm + 1].max()) + 1
        if size == 0:
            return
        stretches = _stretches(before, size)
        best: AnyInts = np.full((self.hosts.size, size), self.nothing, dtype=before.dtype)
        together = max(1, CELLS_IN_CACHE // (size * self.hosts.size))
        for option in range(0, self.options[vm], together):
            some = slice(option, min(option + together, self.options[vm]))
            moved = stretches[self.hosts, self.start[vm, some]]
            moved += self.gain[vm, some, :, None]
            for each in moved:
                np.maximum(best, each, out=best)
        after[:, self.pad : self.pad + size] = best

    def _last(self, row: AnyInts) -> AnyInts:
        """(h, w) the last VM's window, each host's own and nothing beyond."""
        size = int(self.width[-1].max(initial=0)) + 1
        window = row[:, self.pad : self.pad + size]
        window[np.arange(size) > self.width[-1, :, None]] = self.nothing
        return window

    def _back(self, rows: AnyInts, state: Ints) -> Ints:
        """(m, h) the options that led to each host's state, by trying all of them there."""
        m, weight = len(self.options), self.core.weight
        chosen = np.zeros((m, self.hosts.size), dtype=np.int64)
        for vm in reversed(range(m)):
            source = state - weight[vm]
            place = np.maximum(source + (self.pad - self.low[vm]), 0)
            reached = rows[vm][self.hosts, np.minimum(place, 3 * self.pad - 1)]
            reached += self.gain[vm]
            chosen[vm] = reached.argmax(axis=0)
            state = source[chosen[vm], self.hosts]
        return chosen


class _One:
    """One host: every option is one shifted slice of the row before."""

    def __init__(
        self, core: Core, host: int, low: Ints, width: Ints, dtype: _Width, nothing: int
    ) -> None:
        self.low, self.width = low[:, host].tolist(), width[:, host].tolist()
        self.dtype, self.nothing = dtype, nothing
        self.options = _options(core, host)

    def solve(self) -> tuple[int, Ints]:
        chosen = np.zeros(len(self.options), dtype=np.int64)
        if min(self.width) < 0:
            return NOTHING, chosen
        rows: list[AnyInts] = [np.zeros(1, dtype=self.dtype)]
        for vm in range(len(self.options)):
            rows.append(self._after(vm, rows[vm]))
        place = int(rows[-1].argmax())
        best, state = int(rows[-1][place]), place + self.low[-1]
        for vm in reversed(range(len(self.options))):
            reached = []
            for weight, gain in self.options[vm]:
                source = state - weight - self.low[vm]
                inside = 0 <= source < len(rows[vm])
                reached.append(int(rows[vm][source]) + gain if inside else NOTHING)
            chosen[vm] = reached.index(max(reached))
            state -= self.options[vm][chosen[vm]][0]
        return best, chosen

    def last_row(self) -> AnyInts:
        """(w,) of the last VM's window."""
        row: AnyInts = np.zeros(1, dtype=self.dtype)
        for vm in range(len(self.options)):
            row = self._after(vm, row)
        return row

    def _after(self, vm: int, before: AnyInts) -> AnyInts:
        row = np.full(self.width[vm + 1] + 1, self.nothing, dtype=self.dtype)
        for weight, gain in self.options[vm]:
            shift = self.low[vm] + weight - self.low[vm + 1]  # of `before`, in places of this row
            begin, end = max(shift, 0), min(shift + len(before), len(row))
            if begin < end:
                part = row[begin:end]
                np.maximum(part, before[begin - shift : end - shift] + self.dtype(gain), out=part)
        return row


class _Listed:
    """One host: the states that no lighter one beats, listed (Nemhauser and Ullmann 1969).

    Looks at no slack: a state that dominates another is never farther from the bound.
    """

    def __init__(self, core: Core, host: int) -> None:
        self.room = int(core.room[host])
        self.options = _options(core, host)

    def solve(self) -> tuple[int, Ints]:
        zero = np.zeros(1, dtype=np.int64)
        lists = [(zero, zero)]
        for options in self.options:
            lists.append(self._after(lists[-1], options))
        weight, gain = lists[-1]
        best, state = int(gain[-1]), int(weight[-1])  # gains rise with weights
        left, chosen = best, np.zeros(len(self.options), dtype=np.int64)
        for vm in reversed(range(len(self.options))):
            weight, gain = lists[vm]
            for option, (w, g) in enumerate(self.options[vm]):
                place = int(np.searchsorted(weight, state - w))
                if place < weight.size and (weight[place], gain[place]) == (state - w, left - g):
                    chosen[vm], state, left = option, state - w, left - g
                    break
        return best, chosen

    def _after(
        self, before: tuple[Ints, Ints], options: list[tuple[int, int]]
    ) -> tuple[Ints, Ints]:
        steps = np.array(options, dtype=np.int64)
        weight = (before[0] + steps[:, :1]).ravel()
        gain = (before[1] + steps[:, 1:]).ravel()
        fits = weight <= self.room
        weight, gain = weight[fits], gain[fits]
        order = np.lexsort((-gain, weight))
        weight, gain = weight[order], gain[order]
        highest = np.maximum.accumulate(gain)
        better = np.concatenate([[True], gain[1:] > highest[:-1]])
        return weight[better], gain[better]


def _stretches(rows: AnyInts, size: int) -> AnyInts:
    """(h, w, size) every stretch of rows (h, w + size - 1), as a view.

    As sliding_window_view, whose checks take longer than a small row.
    """
    hosts, places = rows.shape
    return np.ndarray(
        (hosts, places - size + 1, size),
        rows.dtype,
        buffer=rows,
        strides=(*rows.strides, rows.strides[1]),
    )


def _options(core: Core, host: int) -> list[list[tuple[int, int]]]:
    """Weight and gain of each option of each VM."""
    weight, gain = core.weight[:, :, host].tolist(), core.gain[:, :, host].tolist()
    return [
        [(w, g) for w, g in zip(*pair, strict=True) if g > NOTHING]
        for pair in zip(weight, gain, strict=True)
    ]
