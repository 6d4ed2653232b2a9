"""Each peer on a case whose answer is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.forecast.backtest.peers import (
    DAY_S,
    PEERS,
    DecayedHistogram,
    Markov,
    Persistence,
    SeasonalNaive,
    SigmaAbove,
    Smoothing,
    WindowHistogram,
    WindowMaximum,
)
from controller.forecast.backtest.peers_math import Ring, normal_mass, quantile_of_mass
from controller.forecast.moment import Moment

STEP_S, WIDE = 300, 24


def moments(values, step_s=STEP_S, start=0):
    """As a backtest shows them; (s, t) or (t,)."""
    values = np.atleast_2d(np.asarray(values, dtype=float))
    for step in range(values.shape[1]):
        window = np.full((len(values), WIDE), np.nan)
        part = values[:, max(0, step - WIDE + 1) : step + 1]
        window[:, WIDE - part.shape[1] :] = part
        others = np.full((len(values), 3, WIDE), np.nan)
        yield Moment(start + (step + 1) * step_s, step_s, window, window, others)


def last(peer, values, **more):
    for moment in moments(values, **more):
        said = peer.step(moment)
    return said


def test_persistence_is_the_newest_value():
    said = last(Persistence(), [0.9, 0.42])
    assert said.mass[0, 8] == 1
    np.testing.assert_array_equal(said.quantile[0], [0.42] * 4)


def test_window_histogram_counts_what_was_seen():
    said = last(WindowHistogram(), [0.02, 0.02, np.nan, 0.12, 1.5])
    assert said.mass[0, [0, 2, 20]] == pytest.approx([0.5, 0.25, 0.25])
    assert said.quantile[0, 0] == pytest.approx(0.07)  # between .02 and .12


def test_window_maximum_forgets_after_the_window():
    peak = [0.9] + [0.1] * (WIDE - 1)
    assert last(WindowMaximum(), peak).quantile[0, 0] == 0.9
    assert last(WindowMaximum(), [*peak, 0.1]).quantile[0, 0] == 0.1


def test_n_sigma_is_mean_and_deviation():
    values = [0.2, 0.4] * 12
    said = last(SigmaAbove(), values)
    np.testing.assert_allclose(said.quantile[0], 0.3 + 0.1 * np.array([0, 1.2816, 1.6449, 2.3263]),
                               atol=1e-4)  # fmt: skip
    np.testing.assert_allclose(last(SigmaAbove(5.0), values).quantile[0], 0.8)
    below_half = math.erfc(-2 / math.sqrt(2)) / 2
    assert said.mass[0, :10].sum() == pytest.approx(below_half, abs=1e-6)


def test_seasonal_naive_is_that_time_yesterday():
    day = DAY_S // STEP_S
    values = np.arange(day + 10) / (day + 10)
    said = last(SeasonalNaive(2), values)
    assert said.quantile[0, 0] == pytest.approx(values[len(values) - 1 + 2 - day], abs=1e-6)
    early = last(SeasonalNaive(2), values[:50])
    assert early.quantile[0, 0] == values[49]  # no yesterday: as now


@pytest.mark.parametrize(("direct", "horizon"), [(True, 2), (False, 2), (False, 3), (True, 1)])
def test_markov_learns_a_cycle(direct, horizon):
    cycle = [0.02, 0.42, 0.82]
    peer = Markov(horizon, direct=direct)
    said = last(peer, cycle * 300)
    place = [0, 8, 16][(2 + horizon) % 3]
    assert said.mass[0, place] > 0.97
    assert said.mass[0].sum() == pytest.approx(1)
    assert place / 20 <= said.quantile[0, 0] <= (place + 1) / 20


def test_markov_stays_where_it_never_was_and_counts_no_pair_over_a_gap():
    peer = Markov(1, direct=True)
    said = last(peer, [0.1, 0.1, np.nan, 0.9])
    assert said.mass[0, 18] == 1


def test_the_histogram_of_the_autoscaler_has_its_buckets_and_half_life():
    peer = DecayedHistogram()
    said = last(peer, [0.005])
    assert said.quantile[0] == pytest.approx([0.01] * 4)  # the end of the first bucket
    np.testing.assert_allclose(peer._start[:4], [0, 0.01, 0.0205, 0.031525])
    day = DAY_S // STEP_S
    peer = DecayedHistogram()
    last(peer, [0.005] + [np.nan] * (day - 1))
    said = last(peer, [0.9], start=DAY_S)
    assert said.mass[0, 0] == pytest.approx(1 / 3)  # half of what the newest sample weighs
    assert said.mass[0, 17:19].sum() == pytest.approx(2 / 3)


def test_smoothing_takes_the_parameter_that_erred_least():
    random = np.random.default_rng(1)
    noise = np.clip(random.normal(0.5, 0.05, 400), 0, 1)
    still = last(Smoothing(2), noise)
    assert still.quantile[0, 0] == pytest.approx(0.5, abs=0.03)
    assert still.quantile[0, 2] - still.quantile[0, 0] == pytest.approx(1.645 * 0.05, rel=0.2)
    walk = 0.5 + np.cumsum(random.normal(0, 0.01, 400))
    assert last(Smoothing(2), walk).quantile[0, 0] == pytest.approx(walk[-1], abs=1e-6)


def test_rings_do_not_mistake_an_old_step_for_a_new_one():
    ring = Ring(2, 3)
    ring.put(7, np.array([0.5, np.nan]))
    np.testing.assert_array_equal(ring.get(7), [0.5, np.nan])
    assert np.isnan(ring.get(4)).all()
    assert np.isnan(ring.get(10)).all()


def test_quantiles_of_masses():
    mass = np.zeros((2, 21))
    mass[0, [0, 1]] = 0.5
    mass[1, 20] = 1
    np.testing.assert_allclose(quantile_of_mass(mass)[0], [0.05, 0.09, 0.095, 0.099])
    np.testing.assert_allclose(quantile_of_mass(mass)[1], [1.025, 1.045, 1.0475, 1.0495])


@given(st.floats(-0.5, 2), st.floats(0.002, 2))
def test_a_normal_distribution_over_bins(mean, spread):
    mass = normal_mass(np.array([mean]), np.array([spread]))[0]
    below = [math.erfc(-(edge / 20 - mean) / spread / math.sqrt(2)) / 2 for edge in range(1, 21)]
    np.testing.assert_allclose(np.cumsum(mass)[:20], below, atol=1e-6)
    assert mass.sum() == pytest.approx(1)


@pytest.mark.parametrize("name", PEERS)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_whatever_comes_a_peer_says_a_distribution_and_looks_at_each_series_alone(name, seed):
    random = np.random.default_rng(seed)
    values = random.gamma(0.4, size=(4, 40))
    values[random.uniform(size=values.shape) < 0.3] = np.nan
    values[3] = 0.0
    together, alone = PEERS[name](2), PEERS[name](2)
    for all_of_them, one in zip(moments(values), moments(values[2]), strict=True):
        said, single = together.step(all_of_them), alone.step(one)
        assert (said.mass >= 0).all()
        np.testing.assert_allclose(said.mass.sum(axis=1), 1)
        assert (np.diff(said.quantile, axis=1) >= 0).all()
        assert np.isfinite(said.quantile).all()
        np.testing.assert_allclose(said.mass[2], single.mass[0])
        np.testing.assert_allclose(said.quantile[2], single.quantile[0])
