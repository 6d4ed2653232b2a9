"""The two kernels of the core search: same results, and no window cuts an optimum off."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core.allocate.problem import NOTHING
from controller.core.allocate.windows import Core, _many, _one, _width, solve_core, windows


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
    gain, option = _many(core, low, width, dtype, nothing)
    for host in range(core.room.size):
        best = by_enumeration(core, host)
        alone, chosen = _one(
            core, host, low[:, host].tolist(), width[:, host].tolist(), dtype, nothing
        )
        if best == NOTHING:
            assert max(alone, int(gain[host])) <= nothing // 2
            continue
        assert (alone, int(gain[host])) == (best, best)
        np.testing.assert_array_equal(chosen, option[:, host])
        vms = np.arange(core.weight.shape[0])
        assert core.gain[vms, chosen, host].sum() == best
    np.testing.assert_array_equal(solve_core(core)[0] == NOTHING, gain <= nothing // 2)
