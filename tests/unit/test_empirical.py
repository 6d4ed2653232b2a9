"""The empirical forecaster: shape, honesty about what it does not know, and its measured skill."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from controller.core.state import MISSING
from controller.forecast.empirical import PROBABILITY, EmpiricalForecaster
from controller.forecast.protocol import Arrays, History
from controller.forecast.skill import (
    COVERAGE_OUTCOMES_MIN,
    OUTCOMES_MIN,
    SkillBook,
    _actual,
    update,
)

MINUTE_NS = 60_000_000_000
HORIZON_NS = 10 * MINUTE_NS
MEDIAN = int(PROBABILITY.searchsorted(0.5))
P95 = int(PROBABILITY.searchsorted(0.95))


def history(values, limit=MISSING, peak=None, at=0, ids=None):
    """One machine whose three resources did the same; or (n, 3, w) as given. `at`: minutes."""
    mean = np.asarray(values, dtype=np.float64)
    if mean.ndim == 1:
        mean = np.tile(mean, (1, 3, 1))
    return History(
        made_at_unix_ns=at * MINUTE_NS,
        newest_step=at,
        step_ns=MINUTE_NS,
        steps=mean.shape[-1],
        ids=ids or tuple(f"vm {place}" for place in range(len(mean))),
        limit=np.full(mean.shape[:2], limit, dtype=np.int64),
        maximum=np.full(mean.shape[:2], MISSING, dtype=np.int64),
        age_ns=np.zeros(mean.shape[0], dtype=np.int64),
        windows=Arrays(mean, mean if peak is None else peak),
    )


def predict(*said, **more):
    return EmpiricalForecaster().predict(history(*said, **more), HORIZON_NS).forecast


def test_levels_are_those_of_the_protocol():
    assert len(PROBABILITY) == 33
    assert (PROBABILITY[0], PROBABILITY[-1]) == (0, 1)
    assert (np.diff(PROBABILITY) > 0).all()
    assert np.sum(PROBABILITY >= 0.9) > np.sum(PROBABILITY <= 0.1)  # denser above


def test_where_nothing_was_seen_nothing_is_said():
    seen = np.full((2, 3, 30), np.nan)
    seen[1, 0] = 5.0
    forecast = predict(seen)
    assert np.isnan(forecast.quantile[0]).all()
    assert np.isnan(forecast.quantile[1, 1:]).all()
    assert np.isfinite(forecast.quantile[1, 0]).all()
    assert forecast.age_ns.tolist() == [MISSING, 0]
    assert forecast.samples.tolist() == [[0, 0, 0], [30, 0, 0]]
    assert np.isnan(forecast.skill).all()
    assert forecast.method == "empirical"


def test_quantiles_are_those_of_the_peaks_over_the_horizon():
    """With a narrow long history the widening is small: against an independent computation."""
    rng = np.random.default_rng(7)
    values = rng.uniform(100, 200, 5000)
    blocks = [values[i : i + 10].max() for i in range(len(values) - 9)]
    values[-10:] = 150  # nothing newer than usual, no rise
    forecaster = EmpiricalForecaster(spread_wider=0, level_wider=0)
    forecast = forecaster.predict(history(values), HORIZON_NS).forecast
    expected = np.quantile(blocks, PROBABILITY)
    np.testing.assert_allclose(forecast.quantile[0, 0, 1:], expected[1:], rtol=0.01)


def test_little_history_means_wide_and_more_means_narrower():
    rng = np.random.default_rng(3)
    widths = []
    for steps in (1, 4, 20, 100):
        values = np.full(120, np.nan)
        values[-steps:] = rng.uniform(95, 105, steps)
        quantile = predict(values).quantile[0, 0]
        widths.append((quantile[-1] - quantile[0]) / quantile[MEDIAN])
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 1.0  # a single sample says little


def test_the_same_peaks_seen_more_often_are_trusted_more():
    pattern = 100 - 50 * np.sin(np.arange(40) / 40 * 2 * np.pi)  # falls at its end
    forecaster = EmpiricalForecaster(level_wider=0)
    few, many = (
        forecaster.predict(history(np.tile(pattern, times)), HORIZON_NS).forecast.quantile[0, 0]
        for times in (2, 20)
    )
    assert few[-1] - few[MEDIAN] > 1.2 * (many[-1] - many[MEDIAN])


def test_a_new_level_is_believed_at_once_and_a_rise_goes_on():
    stepped = [100.0] * 60 + [400.0]
    assert predict(stepped).quantile[0, 0, MEDIAN] >= 400
    rising = [100.0] * 50 + [110.0, 120.0, 130.0, 140.0, 150.0, 160.0]
    assert predict(rising).quantile[0, 0, P95] >= 160 + 10 * 5 - 1e-9
    falling = rising[::-1]
    assert predict(falling).quantile[0, 0, MEDIAN] < 175


def test_demand_that_touches_its_limit_is_more_than_was_seen():
    calm = predict([80.0] * 60, limit=1000).quantile[0, 0]
    cut = predict([80.0] * 60, limit=85).quantile[0, 0]
    assert cut[P95] == pytest.approx(1.5 * calm[P95])
    assert cut[MEDIAN] == pytest.approx(calm[MEDIAN])
    peaks = np.full((1, 3, 60), 80.0)
    peaks[..., -3] = 990
    touched = predict([80.0] * 60, limit=1000, peak=peaks).quantile[0, 0]
    assert touched[P95] == pytest.approx(1.5 * calm[P95])
    unlimited = predict([80.0] * 60, limit=MISSING).quantile[0, 0]
    assert unlimited[P95] == pytest.approx(calm[P95])


values = st.floats(0, 1e12) | st.just(np.nan)


@settings(max_examples=120, deadline=None)
@given(
    arrays(
        np.float64, st.tuples(st.integers(0, 3), st.just(3), st.integers(1, 30)), elements=values
    ),
    st.integers(1, 40),
)
def test_any_history_gives_ascending_quantiles_or_none(mean, horizon):
    said = EmpiricalForecaster().predict(history(mean), horizon * MINUTE_NS)
    forecast = said.forecast
    seen = np.isfinite(mean).any(axis=-1)
    assert forecast.quantile.shape == (*mean.shape[:2], len(PROBABILITY))
    assert np.isfinite(forecast.quantile[seen]).all()
    assert np.isnan(forecast.quantile[~seen]).all()
    assert (np.diff(forecast.quantile[seen], axis=-1) >= 0).all()
    assert (forecast.quantile[seen] >= 0).all()


def test_a_history_with_more_gaps_than_values_still_gives_a_forecast():
    gaps = np.full((1, 3, 7), np.nan)
    gaps[..., [0, 3, 6]] = 80.0  # as many steps as a horizon, no three of which hold two
    said = EmpiricalForecaster().predict(history(gaps), 3 * MINUTE_NS)
    quantile = said.forecast.quantile
    assert quantile[0, 0, MEDIAN] == pytest.approx(80.0)


def test_rows_do_not_depend_on_each_other_nor_on_how_many_there_are():
    rng = np.random.default_rng(1)
    mean = rng.uniform(0, 100, (9000, 3, 20))
    whole = predict(mean).quantile
    part = predict(mean[8500:8503]).quantile
    np.testing.assert_array_equal(whole[8500:8503], part)


# ---- skill ----


def run_book(series, minutes, scale=1.0):
    """Forecasts of one machine every minute over `series`, learned as outcomes arrive."""
    book = SkillBook()
    for now in range(60, 60 + minutes):
        past = history(series[now - 60 : now], at=now)
        forecast = EmpiricalForecaster().predict(past, HORIZON_NS).forecast
        object.__setattr__(forecast, "quantile", forecast.quantile * scale)
        book = update(book, ("vm",), past, forecast)
    return book


def bursts(length):
    """Calm with a burst every seventh minute: persistence misses most of them."""
    rng = np.random.default_rng(5)
    return np.where(np.arange(length) % 7 == 0, 500.0, 100.0) + rng.uniform(0, 5, length)


def test_an_outcome_is_the_highest_step_of_the_horizon_that_was_forecast():
    past = history(np.arange(60.0))
    assert _actual(past, 15, 10).tolist() == [[54.0] * 3]
    assert _actual(past, 10, 10).tolist() == [[59.0] * 3]
    assert np.isnan(_actual(past, 61, 10)).all()  # fell out of the window
    unseen = np.arange(60.0)
    unseen[50:56] = np.nan
    assert np.isnan(_actual(history(unseen), 10, 10)).all()


def test_skill_is_not_known_before_enough_outcomes_came():
    # One forecast per five minutes, the first in the first; each waits for ten.
    minutes = 10 + 5 * (OUTCOMES_MIN - 1)
    assert np.isnan(run_book(bursts(200), minutes).skill(("vm",))).all()
    assert np.isfinite(run_book(bursts(200), minutes + 1).skill(("vm",))).all()


def test_skill_tells_a_good_forecast_from_a_bad_one():
    good = run_book(bursts(200), 90).skill(("vm",))[0, 0]
    bad = run_book(bursts(200), 90, scale=30.0).skill(("vm",))[0, 0]
    assert good > 0.5
    assert bad < 0


def test_a_machine_at_rest_is_neither_praised_nor_blamed():
    """Persistence is perfect there: a millicore too much would be infinitely worse."""
    resting = run_book(np.full(200, 20.0), 90, scale=1.05)
    assert resting.loss[0, 0] > 100 * resting.loss_of_persistence[0, 0]
    assert resting.skill(("vm",)).tolist() == [[0.0] * 3]


def test_skill_of_a_machine_follows_its_id_and_the_rest_is_unknown():
    book = run_book(bursts(200), 60)
    found = book.skill(("new", "vm"))
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1]).all()
    past = history(np.full((1, 3, 60), 5.0), at=200)
    forecast = EmpiricalForecaster().predict(past, HORIZON_NS).forecast
    other = update(book, ("new",), past, forecast)
    assert np.isnan(other.skill(("vm",))).all()


def test_coverage_is_the_share_of_outcomes_below_the_promised_quantile():
    """Quantiles so high, or so low, that all outcomes lie below or above; and too few outcomes."""
    minutes = 11 + 5 * (COVERAGE_OUTCOMES_MIN - 1)
    values = bursts(minutes + 60)
    assert np.isnan(run_book(values, minutes - 1).coverage(("vm",))).all()
    high, low = (run_book(values, minutes, scale=scale) for scale in (30.0, 0.001))
    assert high.coverage(("vm",)).tolist() == [[1.0] * 3]
    assert low.coverage(("vm",)).tolist() == [[0.0] * 3]
    assert high.compared(("vm", "new")).tolist() == [[COVERAGE_OUTCOMES_MIN] * 3, [0] * 3]


def test_a_wall_clock_that_is_set_does_not_end_what_is_learnt():
    """Outcomes follow the receiver's grid: an hour back on the wall changes nothing."""
    book, skill = SkillBook(), []
    values = bursts(300)
    for now in range(60, 300):
        past = history(values[now - 60 : now], at=now)
        object.__setattr__(past, "made_at_unix_ns", (now - 60 * (now > 100)) * MINUTE_NS)
        forecast = EmpiricalForecaster().predict(past, HORIZON_NS).forecast
        book = update(book, ("vm",), past, forecast)
        skill.append(int(book.outcomes[0, 0]))
    assert skill[-1] == (300 - 61 - 10) // 5 + 1
