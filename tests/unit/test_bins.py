"""Candidate grants: what must be among them, what may not, and the mass between them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core.bins import distribution, to_bins
from controller.core.state import MISSING, Hold, Mode
from controller.testing import (
    MINUTE_NS,
    SMALL_POLICY,
    Machine,
    host,
    make_forecast,
    make_snapshot,
    random_fleet,
)
from shared.resources import MIB, Resource

MEMORY = Resource.MEMORY


def bins_of(*vms):
    machines = [host("h"), *vms]
    return to_bins(make_snapshot(machines), make_forecast(machines), SMALL_POLICY, Mode.ENFORCE)


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_grids_ascend_hold_the_present_limit_and_keep_all_mass(seed):
    machines = random_fleet(seed)
    snapshot = make_snapshot(machines)
    bins = to_bins(snapshot, make_forecast(machines), SMALL_POLICY, Mode.ENFORCE)
    for machine in range(len(machines)):
        for resource in Resource:
            count = bins.count[machine, resource]
            level = bins.level[machine, resource]
            assert count <= SMALL_POLICY.bins_max
            assert (np.diff(level[:count]) > 0).all()
            assert (level[count:] == MISSING).all()
            if count:
                assert snapshot.limit[machine, resource] in level[:count]
                np.testing.assert_allclose(bins.probability[machine, resource].sum(), 1.0)
            if count > 1:
                step = level[:count][level[:count] != snapshot.limit[machine, resource]]
                assert (step % SMALL_POLICY.quantum[resource] == 0).all()


def test_the_lowest_candidate_keeps_working_set_and_margin():
    bins = bins_of(Machine("v", "h", used=(50, 120 * MIB, 0), memory_free=136 * MIB))
    assert bins.level[1, MEMORY, 0] == 184 * MIB  # 120 + 64


def test_cache_is_taken_in_small_steps_and_free_pages_at_once():
    plenty = Machine("v", "h", used=(50, 10 * MIB, 0), memory_free=40 * MIB, memory_cache=200 * MIB)
    bins = bins_of(plenty)
    # 256 - 40 free - 5 % of 256 rounds up to whole quanta of 8 MiB
    assert bins.level[1, MEMORY, 0] == 208 * MIB


def test_what_the_violation_budget_asks_for_is_a_candidate():
    bins = bins_of(Machine("v", "h", demand=(50, 200 * MIB, 0), spread=0.2, violation_ppm=50_000))
    # p95 of 160..240 MiB is 236 MiB, plus 64 MiB margin, in whole quanta of 8 MiB
    assert bins.needed[1, MEMORY] == 304 * MIB
    assert 304 * MIB in bins.level[1, MEMORY]


def test_what_may_not_move_has_one_candidate():
    still = [
        Machine("observed", "h", mode=Mode.OBSERVE),
        Machine("frozen", "h", hold=Hold.FROZEN),
        Machine("stale", "h", stats_age_ns=MINUTE_NS),
        Machine("silent", "h", sample_age_ns=MINUTE_NS),
        Machine("unread", "h", used=(50, None, None)),
        Machine("leverless", "h", lever=(True, False, True)),
    ]
    bins = bins_of(*still)
    assert (bins.count[1:, MEMORY] == 1).all()
    assert (bins.level[1:, MEMORY, 0] == 256 * MIB).all()


def test_no_forecast_means_no_candidates():
    machines = [host("h"), Machine("v", "h", demand=(float("nan"),) * 3)]
    bins = to_bins(make_snapshot(machines), make_forecast(machines), SMALL_POLICY, Mode.ENFORCE)
    assert (bins.count[1] == 1).all()


def test_a_pin_leaves_one_candidate_as_near_as_bounds_allow():
    reachable = Machine("a", "h", pin=(None, 400 * MIB, None))
    too_low = Machine("b", "h", pin=(None, 32 * MIB, None), memory_free=64 * MIB, memory_cache=0)
    bins = bins_of(reachable, too_low)
    assert bins.level[1, MEMORY, 0] == 400 * MIB
    assert bins.level[2, MEMORY, 0] == 192 * MIB
    assert (bins.count[1:, MEMORY] == 1).all()


@given(st.lists(st.integers(0, 1000), min_size=3, max_size=6), st.integers(0, 1100))
def test_the_distribution_is_linear_between_quantiles(amounts, level):
    quantile = np.sort(np.array(amounts, dtype=np.float64))
    probability = np.linspace(0, 1, len(quantile))
    found = distribution(np.array([[[level]]]), quantile[None, None], probability)[0, 0, 0]
    if level < quantile[0]:
        assert found == 0
    elif level >= quantile[-1]:
        assert found == 1
    else:
        right = np.searchsorted(quantile, level, side="right")
        low, high = quantile[right - 1], quantile[right]
        share = (level - low) / (high - low)
        expected = probability[right - 1] + share * (probability[1])
        np.testing.assert_allclose(found, expected, atol=1e-12)
