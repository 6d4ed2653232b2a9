"""The two kernels of the core search: same results, and no window cuts an optimum off."""

import itertools
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core.allocate.problem import NOTHING
from controller.core.allocate.windows import (
    Core,
    _Listed,
    _Many,
    _One,
    _width,
    core_rows,
    solve_core,
    windows,
)


def drawn(seed, scale):
    rng = np.random.default_rng(seed)
    m, k, h = int(rng.integers(0, 5)), int(rng.integers(1, 5)), int(rng.integers(1, 6))
    weight = np.cumsum(rng.integers(1, 5, (m, k, h)), axis=1)
    weight -= weight[:, :1]
    gain = rng.integers(-scale, scale + 1, (m, k, h))
    used = np.arange(k)[None, :, None] < rng.integers(1, k + 1, (m, 1, h))
    return Core(
        weight=np.where(used, weight, 0),
        gain=np.where(used, gain, NOTHING),
        room=rng.integers(0, 20, h),
        slack=rng.integers(0, 20, h),
    )


def by_enumeration(core, host):
    """Best gain of a selection that fits and leaves no more than the slack."""
    m, k, _ = core.weight.shape
    best = NOTHING
    for pick in itertools.product(range(k), repeat=m):
        gains = [int(core.gain[vm, option, host]) for vm, option in enumerate(pick)]
        weight = sum(int(core.weight[vm, option, host]) for vm, option in enumerate(pick))
        left = int(core.room[host]) - weight
        if NOTHING not in gains and 0 <= left <= core.slack[host]:
            best = max(best, sum(gains))
    return best


@settings(deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from([3, 1000, 1 << 40]))
def test_both_kernels_find_what_enumeration_finds(seed, scale):
    core = drawn(seed, scale)
    low, width = windows(core)
    dtype, nothing = _width(core.gain)
    gain, option = _Many(core, low, width, dtype, nothing).solve()
    for host in range(core.room.size):
        best = by_enumeration(core, host)
        alone, chosen = _One(core, host, low, width, dtype, nothing).solve()
        if best == NOTHING:
            assert max(alone, int(gain[host])) <= nothing // 2
            continue
        assert (alone, int(gain[host])) == (best, best)
        np.testing.assert_array_equal(chosen, option[:, host])
        vms = np.arange(core.weight.shape[0])
        assert core.gain[vms, chosen, host].sum() == best
    np.testing.assert_array_equal(solve_core(core)[0] == NOTHING, gain <= nothing // 2)


@settings(deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from([3, 1000, 1 << 40]))
def test_rows_hold_the_best_within_every_room(seed, scale):
    core = drawn(seed, scale)
    core = Core(core.weight, core.gain, core.room, core.room)
    low, width = windows(core)
    dtype, nothing = _width(core.gain)
    rows = core_rows(core)
    for host, room in enumerate(core.room.tolist()):
        best = [
            by_enumeration(replace(core, room=np.full_like(core.room, r)), host)
            for r in range(room + 1)
        ]
        assert rows[host, : room + 1].tolist() == best
        alone = np.maximum.accumulate(_One(core, host, low, width, dtype, nothing).last_row())
        assert alone.tolist() == best[: alone.size]


@settings(deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from([3, 1000, 1 << 40]), st.sampled_from([1, 1 << 28]))
def test_listed_states_hold_the_best_too(seed, scale, quantum):
    core = drawn(seed, scale)
    core = Core(core.weight * quantum, core.gain, core.room * quantum, core.room * quantum)
    for host in range(core.room.size):
        best, chosen = _Listed(core, host).solve()
        assert best == by_enumeration(core, host)
        vms = np.arange(core.weight.shape[0])
        assert core.gain[vms, chosen, host].sum() == best
        assert core.weight[vms, chosen, host].sum() <= core.room[host]


def test_few_choices_of_vast_weights_need_no_vast_rows():
    rng = np.random.default_rng(2)
    weight = np.cumsum(rng.integers(1, 1 << 30, (6, 3, 40)), axis=1)
    weight -= weight[:, :1]
    room = np.full(40, 1 << 31)
    core = Core(weight, rng.integers(0, 1000, weight.shape), room, room)
    gain, _ = solve_core(core)
    assert gain.tolist() == [by_enumeration(core, host) for host in range(40)]
