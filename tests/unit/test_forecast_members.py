"""The simple members, each by what it must say of series whose law is known."""

import numpy as np
import pytest

from controller.forecast.buckets import CHANGES, DEVIATIONS, LEVELS_OF_USE, Buckets, read
from controller.forecast.centres import Newest, Regression
from controller.forecast.grid import make_grid
from controller.forecast.levels import Levels
from controller.forecast.members import External, Residuals, WindowHistograms
from controller.forecast.moment import EDGES, Moment
from controller.forecast.seasonal import Analogues, Day, Yesterday
from controller.forecast.sight import look

_STEP_S, _HORIZON = 300, 2


def _moments(values, steps=36):
    """One moment per step of values (s, n); the window begins with what was not seen."""
    series = len(values)
    padded = np.concatenate([np.full((series, steps - 1), np.nan), values], axis=1)
    others = np.full((series, 3, steps), np.nan)
    for at in range(values.shape[1]):
        window = padded[:, at : at + steps]
        yield Moment((at + 1) * _STEP_S, _STEP_S, window, window, others)


def _families():
    return [
        WindowHistograms([900.0]),
        Levels([7200.0, 86_400.0], 604_800.0),
        Residuals(Newest(scaled=False), CHANGES, 86_400.0),
        Residuals(Newest(scaled=True), DEVIATIONS, 86_400.0),
        Residuals(Regression(86_400.0), DEVIATIONS, 86_400.0),
        Analogues(Day()),
    ]


def _last(family, values, target="value"):
    """What a family says after it saw all values: the sight, the edges and the CDFs."""
    family.begin(len(values))
    for moment in _moments(values):
        sight = look(moment, _HORIZON, target)
        family.learn(sight)
        edges = make_grid(sight.newest, sight.past).edges
        cdf = family.cdf(sight, edges)
    return sight, edges, cdf


@pytest.mark.parametrize("target", ["value", "peak"])
@pytest.mark.parametrize("which", range(6))
def test_every_member_says_a_distribution_whatever_is_missing(which, target):
    random = np.random.default_rng(which)
    values = random.uniform(0, 1.2, (5, 60))
    values[1, random.uniform(size=60) < 0.5] = np.nan
    values[2] = np.nan
    values[3] = 0.0
    values[4, 20:] = np.nan
    family = _families()[which]
    _, edges, cdf = _last(family, values, target)
    assert cdf.shape == (5, family.count, edges.shape[1])
    assert np.isfinite(cdf).all()
    assert (cdf > -1e-9).all() and (cdf < 1 + 1e-9).all()
    assert (np.diff(cdf, axis=2) > -1e-6).all()


def test_the_window_histogram_counts_two_hours():
    values = np.concatenate([np.full((1, 30), 0.9), np.full((1, 24), 0.22)], axis=1)
    _, edges, cdf = _last(WindowHistograms([]), values)
    assert cdf[0, 0, np.searchsorted(edges[0], 0.2)] < 0.02
    assert cdf[0, 0, np.searchsorted(edges[0], 0.25)] > 0.95


def test_the_conditional_table_knows_what_follows():
    """Blocks of two steps alternate: what is high now is low in two steps."""
    values = np.tile([0.13, 0.13, 0.73, 0.73], 60)[None]
    _, edges, cdf = _last(Levels([86_400.0], 604_800.0), values)
    half = np.searchsorted(edges[0], 0.5)
    plain, table, of_all = cdf[0, :, half]
    assert abs(plain - 0.5) < 0.1
    assert table > 0.95 and of_all > 0.9


def test_persistence_learns_how_far_a_series_moves():
    random = np.random.default_rng(4)
    calm = 0.3 + random.normal(0, 0.001, (1, 200))
    wild = 0.3 + random.normal(0, 0.1, (1, 200))
    _, edges, cdf = _last(
        Residuals(Newest(scaled=False), CHANGES, 86_400.0), np.concatenate([calm, wild])
    )
    width = [
        np.interp(0.9, cdf[row, 0], edges[row]) - np.interp(0.1, cdf[row, 0], edges[row])
        for row in (0, 1)
    ]
    assert width[0] < 0.02
    assert width[1] > 0.1


def test_the_regression_finds_that_a_series_returns_to_its_mean():
    random = np.random.default_rng(5)
    values = np.clip(random.normal(0.5, 0.1, (20, 300)), 0, None)
    centre = Regression(604_800.0)
    centre.begin(20)
    for moment in _moments(values):
        sight = look(moment, _HORIZON, "value")
        centre.learn(sight)
        middle, unit = centre.place(sight)
        centre.remember(sight)
    assert np.abs(middle - 0.5).mean() < 0.5 * np.abs(sight.newest - 0.5).mean()
    assert (unit > 0).all()


def test_bounds_of_use_hold_the_edges_of_the_bins():
    assert np.isin(np.round(EDGES, 9), np.round(LEVELS_OF_USE.bounds, 9)).all()


def test_a_histogram_is_linear_within_its_cells():
    buckets = Buckets(np.array([0.0, 1.0, 3.0]))
    cell, part = buckets.place(np.array([[0.5, 1.0, 2.0, 3.0, 9.0]]))
    found = read(np.array([[1.0, 3.0]]), cell, part)
    assert np.allclose(found, [[0.125, 0.25, 0.625, 1.0, 1.0]])


def test_states_follow_their_series_when_some_come_and_go():
    values = np.random.default_rng(6).uniform(0, 1, (3, 60))
    places = np.array([2, -1, 0])
    for family, twin in zip(_families(), _families(), strict=True):
        _last(family, values)
        family.arrange(places)
        kept = np.concatenate([values[[2]], np.full((1, 60), np.nan), values[[0]]])
        moments = [list(_moments(each))[-1] for each in (values, kept)]
        sight = look(moments[1], _HORIZON, "value")
        edges = make_grid(sight.newest, sight.past).edges
        arranged = family.cdf(sight, edges)
        _, edges_before, cdf_before = _last(twin, values)
        assert np.allclose(edges[[2, 0]], edges_before[[0, 2]])
        assert np.allclose(arranged[[2, 0]], cdf_before[[0, 2]], atol=1e-5)


def test_what_comes_from_outside_is_one_member():
    class Even:
        def cdf(self, moment, edges):
            return np.clip(edges, 0, 1)

    values = np.random.default_rng(7).uniform(0, 1, (2, 30))
    _, edges, cdf = _last(External(Even()), values)
    assert np.array_equal(cdf[:, 0], np.clip(edges, 0, 1))


def test_series_that_stood_still_are_not_asked_of_the_outside():
    class Counts:
        asked = 0

        def cdf(self, moment, edges):
            self.asked += len(moment.window)
            return np.clip(edges, 0, 1)

    values = np.random.default_rng(8).uniform(0, 1, (3, 30))
    values[1] = 0.3
    source = Counts()
    _, edges, cdf = _last(External(source), values)
    assert source.asked < 3 * 30 - 15
    assert cdf[1, 0, np.searchsorted(edges[1], 0.31)] > 0.99


def test_the_day_before_and_like_moments_tell_of_a_daily_rise():
    """Two quiet days with one hour of work each: before the third, its beginning is foreseen."""
    day = np.full(288, 0.1)
    day[120:132] = 0.8
    values = np.tile(day, 3)[None, : 2 * 288 + 119] + np.arange(2 * 288 + 119) % 2 * 0.001
    memory = Day()
    analogues, yesterday = Analogues(memory), Yesterday(memory)
    analogues.begin(1)
    for moment in _moments(values):
        sight = look(moment, _HORIZON, "value")
        analogues.learn(sight)
    assert abs(yesterday.place(sight)[0][0] - 0.8) < 0.01


def test_like_moments_tell_what_follows():
    values = np.tile([0.13, 0.13, 0.73, 0.73], 60)[None]
    _, edges, cdf = _last(Analogues(Day()), values)
    assert cdf[0, 0, np.searchsorted(edges[0], 0.5)] > 0.95
