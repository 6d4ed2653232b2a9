"""The simple members, each by what it must say of series whose law is known."""

from dataclasses import replace

import numpy as np
import pytest

from controller.forecast import centres
from controller.forecast.buckets import BOUNDS, CODES, DEVIATIONS, UNSEEN, Buckets, encode, read
from controller.forecast.grid import make_grid
from controller.forecast.levels import CELLS, STATES, Followed
from controller.forecast.members import External, Past, Residuals
from controller.forecast.moment import Moment
from controller.forecast.seasonal import SLOTS, Day, yesterday
from controller.forecast.sight import EVERY, look
from controller.forecast.still import Still

_STEP_S, _HORIZON = 300, 2
FOLLOWED, WINDOW, HEIGHT, ALIKE, HOURLY = range(5)


def _moments(values, steps=36):
    """One moment per step of values (s, n); the window begins with what was not seen."""
    series = len(values)
    padded = np.concatenate([np.full((series, steps - 1), np.nan), values], axis=1)
    others = np.full((series, 3, steps), np.nan)
    for at in range(values.shape[1]):
        window = padded[:, at : at + steps]
        yield Moment((at + 1) * _STEP_S, _STEP_S, window, window, others)


def _past():
    return Past(604_800.0)


def _residuals():
    return Residuals([centres.newest, centres.day_before], DEVIATIONS, 86_400.0)


def _last(family, values, target="value"):
    """What a family says after it saw all values: the sight, the grid and the CDFs."""
    day = Day()
    day.begin(len(values))
    family.begin(len(values), _HORIZON)
    for at, moment in enumerate(_moments(values)):
        sight = look(moment, _HORIZON, target)
        day.turn(moment.end_s)
        day.put(sight, EVERY)
        family.turn(_STEP_S, at % _HORIZON)
        family.learn(sight, EVERY)
        sight = sight.on(day.ordered(EVERY))
        grid = make_grid(sight.newest, sight.values, sight.past)
        cdf = family.cdf(sight, grid, EVERY)
        family.remember(sight, EVERY)
    return sight, grid, cdf


def _at(grid, row, share):
    return np.searchsorted(grid.edges[row], share - 1e-6)


@pytest.mark.parametrize("target", ["value", "peak"])
@pytest.mark.parametrize("make", [_past, _residuals])
def test_every_member_says_a_distribution_whatever_is_missing(make, target):
    random = np.random.default_rng(1)
    values = random.uniform(0, 1.2, (5, 60))
    values[1, random.uniform(size=60) < 0.5] = np.nan
    values[2] = np.nan
    values[3] = 0.0
    values[4, 20:] = np.nan
    family = make()
    _, grid, cdf = _last(family, values, target)
    assert cdf.shape == (5, family.count, grid.codes.shape[1])
    assert np.isfinite(cdf).all()
    assert (cdf > -1e-6).all() and (cdf < 1 + 1e-6).all()
    assert (np.diff(cdf, axis=2) > -1e-6).all()


def test_the_window_histogram_counts_two_hours():
    values = np.concatenate([np.full((1, 30), 0.9), np.full((1, 24), 0.22)], axis=1)
    _, grid, cdf = _last(_past(), values)
    assert cdf[0, WINDOW, _at(grid, 0, 0.2)] < 0.02
    assert cdf[0, WINDOW, _at(grid, 0, 0.25)] > 0.95


def test_what_followed_is_known_of_heights_and_of_like_moments():
    """Blocks of two steps alternate: what is high now is low in two steps."""
    values = np.tile([0.13, 0.13, 0.73, 0.73], 60)[None]
    _, grid, cdf = _last(_past(), values)
    found = cdf[0, :, _at(grid, 0, 0.5)]
    assert 0.3 < found[WINDOW] < 0.7
    assert (found[[FOLLOWED, HEIGHT, ALIKE]] > 0.9).all()


def test_the_same_minute_of_every_hour_tells_of_what_is_hourly():
    values = np.tile([0.8, *[0.1] * 11], 20)[None, :-1]  # the step after next is high
    _, grid, cdf = _last(_past(), values)
    assert cdf[0, HOURLY, _at(grid, 0, 0.5)] < 0.2
    assert cdf[0, WINDOW, _at(grid, 0, 0.5)] > 0.8


def test_histograms_of_a_day_are_plain_counts():
    """Packed into one pass or not: here each is counted one by one."""
    values = np.random.default_rng(9).uniform(0, 0.3, (1, 200))
    values[0, 30:50] = np.nan
    sight, grid, _ = _last(_past(), values)
    (height, _, hourly), (height_seen, _, hourly_seen) = _past()._of_day(sight, grid.codes)
    heights = np.searchsorted([0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35], values[0])
    now, codes = heights[-1], encode(values[0].astype(np.float32))
    pairs = [
        after
        for before, after, code in zip(heights, codes[2:], codes, strict=False)
        if before == now and UNSEEN not in {after, code}
    ]
    assert round(float(height_seen[0])) == len(pairs)
    assert np.allclose(height[0], [(np.array(pairs) < edge).sum() for edge in grid.codes[0]])
    behind = [at for at in range(200) if (199 - at + _HORIZON) % 12 == 0 and codes[at] != UNSEEN]
    weight = [np.rint(0.5 ** ((199 - at + _HORIZON) / 96) * 255) / 255 for at in behind]
    assert np.allclose(hourly_seen[0], sum(weight))
    below = [sum(w for at, w in zip(behind, weight, strict=True) if codes[at] < edge)
             for edge in grid.codes[0]]  # fmt: skip
    assert np.allclose(hourly[0], below, atol=1e-5)


def test_persistence_learns_how_far_a_series_moves():
    random = np.random.default_rng(4)
    drift = np.cumsum(random.normal(0, 0.004, (1, 200)), axis=1)
    leaps = np.where(np.arange(200) % 9 == 0, 0.2, 0)
    _, grid, cdf = _last(_residuals(), np.concatenate([0.5 + drift, 0.3 + drift + leaps]))
    wide = [
        np.interp(0.95, cdf[row, 0], grid.edges[row]) - np.interp(0.5, cdf[row, 0], grid.edges[row])
        for row in (0, 1)
    ]
    assert wide[0] < 0.03
    assert wide[1] > 2 * wide[0]


def test_errors_fade_and_the_state_does_not_overflow():
    """Instead of fading what was counted, new counts grow; now and then all is brought back."""
    family = _residuals()
    values = np.random.default_rng(5).uniform(0.2, 0.4, (2, 40))
    _last(family, values)
    for _ in range(10):
        family.turn(86_400.0, 0)
    assert np.isfinite(family._mass).all() and family._one <= 8
    assert (family._mass / family._one).sum() < 0.01 * 2 * 2 * 40


def test_a_histogram_is_linear_within_its_cells():
    buckets = Buckets(np.array([0.0, 1.0, 3.0]))
    cell, part = buckets.place(np.array([[0.5, 1.0, 2.0, 3.0, 9.0]], dtype=np.float32))
    found = read(np.array([[1.0, 3.0]], dtype=np.float32), cell, part)
    assert np.allclose(found, [[0.125, 0.25, 0.625, 1.0, 1.0]])


@pytest.mark.parametrize("make", [_past, _residuals])
def test_states_follow_their_series_when_some_come_and_go(make):
    values = np.random.default_rng(6).uniform(0, 1, (3, 60))
    family = make()
    sight, grid, cdf = _last(family, values)
    family.arrange(np.array([2, -1, 0]))
    some = sight.of(np.array([2, 0]))
    grid = make_grid(some.newest, some.values, some.past)
    assert np.allclose(family.cdf(some, grid, np.array([0, 2])), cdf[[2, 0]], atol=1e-5)


def test_what_comes_from_outside_is_one_member():
    class Even:
        def cdf(self, moment, day, edges):
            return np.clip(edges, 0, 1)

    values = np.random.default_rng(7).uniform(0, 1, (2, 30))
    _, grid, cdf = _last(External(Even()), values)
    assert np.array_equal(cdf[:, 0], np.clip(grid.edges, 0, 1))


def test_the_day_is_told_from_its_newest_slot_back():
    values = np.concatenate([np.full(288, 0.1), np.full(300, 0.2)])
    values[130:140] = 0.8
    day = Day()
    day.begin(1)
    for moment in _moments(values[None, : 288 + 129]):
        sight = look(moment, _HORIZON, "value")
        day.turn(moment.end_s)
        day.put(sight, EVERY)
    ordered = day.ordered(EVERY)
    assert ordered.shape == (1, SLOTS)
    assert ordered[0, -1] == encode(np.array([0.2], dtype=np.float32))[0]
    assert abs(yesterday(sight.on(ordered))[0] - 0.8) < 0.01


def test_slots_that_were_passed_over_were_not_seen():
    day = Day()
    day.begin(1)
    moments = list(_moments(np.full((1, 600), 0.3)))
    for moment in (*moments[:300], *moments[310:320]):
        day.turn(moment.end_s)
        day.put(look(moment, _HORIZON, "value"), EVERY)
    assert (day.ordered(EVERY)[0, -20:] == UNSEEN).tolist() == [True] * 10 + [False] * 10


def test_a_table_of_what_followed_begins_with_going_on_and_learns():
    followed = Followed(604_800.0)
    sight = look(next(_moments(np.array([[0.33]]))), _HORIZON, "value")
    codes = np.arange(1, CODES, dtype=np.uint8)[None]
    half = np.searchsorted(BOUNDS, 0.5) - 1
    assert followed.cdf(sight, codes)[0, half] > 0.99
    outcome = encode(np.full(1000, 0.7, dtype=np.float32))
    followed.learn(np.repeat(followed.states(sight), 1000), outcome)
    followed.turn(0.0)
    assert followed.cdf(sight, codes)[0, half] < 0.02
    assert followed.table.shape == (STATES, CELLS)


def test_still_series_leap_as_often_as_still_ones_did():
    still = Still()
    still.begin(400, 1)
    random = np.random.default_rng(8)
    calm = look(list(_moments(np.full((400, 30), 0.2)))[-1], _HORIZON, "value")
    for _ in range(50):
        still.turn(_STEP_S, 0)
        leaps = np.where(random.uniform(size=400) < 0.1, 0.9, 0.2).astype(np.float32)
        outcome = np.concatenate([calm.values[:, :-1], leaps[:, None]], axis=1)
        still.remember(calm, EVERY)
        still.learn(_seen(calm, outcome), EVERY)
    grid = make_grid(calm.newest, calm.values, calm.past)
    cdf = still.cdf(calm, grid, EVERY)
    assert np.allclose(cdf[:, _at(grid, 0, 0.5)], 0.9, atol=0.05)
    assert (cdf[:, _at(grid, 0, 0.95)] > 0.95).all()


def _seen(sight, values):
    return replace(sight, values=values, past=encode(values), outcome=values[:, -1])
