"""The dynamic programme over what the bounds left open: few VMs, few bins, a narrow window.

A state is how many quanta the VMs so far took above their lightest open bins. Which states can
still matter is known beforehand: later VMs can take no more than their spans, and a solution worth
finding leaves no more than `slack` quanta over. Two kernels give the same results: one for many
hosts with narrow windows, one for a single host with a wide window.
"""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from controller.core.allocate.problem import NOTHING, AnyInts, Ints

WIDE = 1024  # states: from here on slices of one host beat gathers for many
_Width = type[np.int32 | np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Core:
    """h hosts, m VMs with a choice at most, k options at most."""

    weight: Ints  # (m, k, h) quanta above the VM's lightest open bin, ascending
    gain: Ints  # (m, k, h) above that bin's; NOTHING in places that no option uses
    room: Ints  # (h,) at least 0
    slack: Ints  # (h,) quanta that may be left over


def solve_core(core: Core) -> tuple[Ints, Ints]:
    """(h,) best gain, NOTHING where there is none, and (m, h) the option of each VM.

    Of equal solutions the lightest; on the way back, the smallest option of each VM.
    """
    low, width = windows(core)
    dtype, nothing = _width(core.gain)
    if int(width.max(initial=0)) < WIDE:
        gain, option = _many(core, low, width, dtype, nothing)
    else:
        each = [
            _one(core, host, low[:, host].tolist(), width[:, host].tolist(), dtype, nothing)
            for host in range(core.room.size)
        ]
        gain = np.array([one[0] for one in each], dtype=np.int64)
        option = np.stack([one[1] for one in each], axis=1)
    return np.where(gain <= nothing // 2, NOTHING, gain), option


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


def _many(core: Core, low: Ints, width: Ints, dtype: _Width, nothing: int) -> tuple[Ints, Ints]:
    """All hosts side by side; each host's window is moved by gathering a stretch of its row."""
    m, _, h = core.weight.shape
    pad = int(width.max(initial=0)) + 1
    gain: AnyInts = np.maximum(core.gain, nothing).astype(dtype)
    options = (core.gain > NOTHING).sum(axis=1).max(axis=1)
    # A row is its window with as much of nothing on both sides, so that no shift leaves it.
    table: AnyInts = np.full((m + 1, h, 3 * pad), nothing, dtype=dtype)
    table[0, :, pad] = np.where(width[0] < 0, nothing, 0)
    start = np.clip(pad + (low[1:] - low[:-1])[:, None] - core.weight, 0, 2 * pad)
    hosts, states = np.arange(h), np.arange(pad)
    for vm in range(m):
        size = int(width[vm + 1].max()) + 1
        stretches = sliding_window_view(table[vm], max(size, 1), axis=1)
        row = table[vm + 1, :, pad : pad + size]
        for option in range(int(options[vm]) if size else 0):
            moved = stretches[hosts, start[vm, option]]
            moved += gain[vm, option, :, None]
            np.maximum(row, moved, out=row)
        row[states[None, :size] > width[vm + 1, :, None]] = nothing
    last = table[m, :, pad : 2 * pad]
    state = last.argmax(axis=1)
    best = last[hosts, state].astype(np.int64)
    return best, _back(core, table, gain, low, state + low[m], pad)


def _back(core: Core, table: AnyInts, gain: AnyInts, low: Ints, state: Ints, pad: int) -> Ints:
    """(m, h) the options that led to each host's state, by trying all of them at one state."""
    m, _, h = core.weight.shape
    chosen, hosts = np.zeros((m, h), dtype=np.int64), np.arange(h)
    for vm in reversed(range(m)):
        place = np.clip(state - core.weight[vm] - low[vm] + pad, 0, 3 * pad - 1)
        reached = table[vm][hosts, place].astype(np.int64) + gain[vm]
        chosen[vm] = reached.argmax(axis=0)
        state = state - core.weight[vm, chosen[vm], hosts]
    return chosen


def _one(
    core: Core, host: int, low: list[int], width: list[int], dtype: _Width, nothing: int
) -> tuple[int, Ints]:
    """One host: every option is one shifted slice of the row before."""
    m = core.weight.shape[0]
    chosen = np.zeros(m, dtype=np.int64)
    if min(width) < 0:
        return NOTHING, chosen
    rows = [np.zeros(1, dtype=dtype)]
    for vm in range(m):
        row = np.full(width[vm + 1] + 1, nothing, dtype=dtype)
        for weight, gain in _options(core, vm, host):
            shift = low[vm] + weight - low[vm + 1]  # of the row before, in places of this one
            begin, end = max(shift, 0), min(shift + len(rows[vm]), len(row))
            if begin < end:
                part = row[begin:end]
                np.maximum(part, rows[vm][begin - shift : end - shift] + dtype(gain), out=part)
        rows.append(row)
    place = int(rows[m].argmax())
    best, state = int(rows[m][place]), place + low[m]
    for vm in reversed(range(m)):
        reached = []
        for weight, gain in _options(core, vm, host):
            source = state - weight - low[vm]
            inside = 0 <= source < len(rows[vm])
            reached.append(int(rows[vm][source]) + gain if inside else NOTHING)
        chosen[vm] = reached.index(max(reached))
        state -= int(core.weight[vm, chosen[vm], host])
    return best, chosen


def _options(core: Core, vm: int, host: int) -> list[tuple[int, int]]:
    pairs = zip(core.weight[vm, :, host].tolist(), core.gain[vm, :, host].tolist(), strict=True)
    return [(weight, gain) for weight, gain in pairs if gain > NOTHING]
