"""Corrections learn from what came true, and coverage tends to what was promised."""

import numpy as np
import pytest

from controller.forecast.calibrate import Conformal, Reliability, Said, ascending
from controller.forecast.grid import make_grid
from controller.forecast.moment import LEVELS, Moment
from controller.forecast.sight import look

_SERIES, _HORIZON = 40, 1


def _sight(values):
    """Of s series with two steps each, the newest last."""
    others = np.full((len(values), 3, values.shape[1]), np.nan)
    return look(Moment(300, 300, values, values, others), _HORIZON, "value")


def _rounds(shift, rounds=150):
    """Score without and with the correction where the truth lies `shift` above what was said."""
    random = np.random.default_rng(1)
    reliability = Reliability()
    reliability.begin(_SERIES)
    known, scores = np.arange(_SERIES), []
    newest = np.full(_SERIES, 0.5)
    sight = _sight(np.full((_SERIES, 2), 0.5))
    edges = make_grid(newest, random.uniform(0, 1, (_SERIES, 24))).edges
    for _ in range(rounds):
        said = np.clip(edges * 2 - 0.5 + shift, 0, 1)  # even between 0.25 and 0.75
        corrected = reliability.correct(said, edges, newest, sight.spread)
        final = reliability.mixed(said, corrected)
        assert (np.diff(final, axis=1) >= -1e-9).all()
        outcome = random.uniform(0.25, 0.75, _SERIES)
        came = (outcome[:, None] < edges).astype(np.float32)
        scores.append([((each - came) ** 2).mean() for each in (said, final)])
        packed = Said.packed(said, corrected, edges, sight)
        reliability.learn(known, packed, came, np.ones_like(came))
    return np.array(scores[rounds // 3 :]).mean(axis=0)


def test_what_is_said_wrongly_is_corrected():
    plain, corrected = _rounds(0.3)
    assert corrected < 0.9 * plain


def test_what_is_said_rightly_is_left_alone():
    plain, corrected = _rounds(0.0)
    assert corrected < 1.003 * plain


def test_a_correction_never_descends():
    found = ascending(np.array([[0.1, 0.5, 0.3, 0.9, 1.2]]))
    assert np.allclose(found, [[0.1, 0.4, 0.4, 0.9, 1.0]])


def test_coverage_tends_to_the_promise_though_the_distribution_is_wrong():
    random = np.random.default_rng(2)
    conformal = Conformal()
    conformal.begin(_SERIES)
    edges = np.tile(np.linspace(0.01, 2, 64), (_SERIES, 1))
    said = np.clip(edges * 2.5, 0, 1)  # promises that all lies below 0.4
    wide = random.uniform(0.3, 0.45, _SERIES)[:, None]
    covered, values = [], np.full((_SERIES, 2), np.nan)
    for _ in range(800):
        quantile = conformal.read(said, edges)
        conformal.remember(said, edges)
        assert (np.diff(quantile, axis=1) >= 0).all()
        outcome = random.uniform(0, wide[:, 0])
        covered.append(outcome[:, None] <= quantile)
        values = np.stack([values[:, 1], outcome], axis=1)
        conformal.learn(_sight(values))
    mean = np.array(covered)[300:].mean(axis=(0, 1))
    assert np.abs(mean - LEVELS).max() < 0.02


def test_series_that_come_and_go_take_their_corrections_along():
    conformal, reliability = Conformal(), Reliability()
    conformal.begin(2)
    reliability.begin(2)
    conformal._moved[1], reliability._gain[1] = 0.5, 3.0
    conformal.arrange(np.array([1, -1]))
    reliability.arrange(np.array([1, -1]))
    assert np.array_equal(conformal._moved[:, 0], [0.5, 0.0])
    assert np.array_equal(reliability._gain[:, 0], [3.0, 0.0])


def test_what_was_not_seen_teaches_nothing():
    conformal = Conformal()
    conformal.begin(1)
    conformal.remember(np.linspace(0, 1, 64)[None], np.linspace(0, 1, 64)[None])
    conformal.learn(_sight(np.full((1, 2), np.nan)))
    assert (conformal._moved == 0).all() and (conformal._fleet == 0).all()


def test_moves_reach_the_levels_between_those_at_which_they_are_learnt():
    edges = np.linspace(0.001, 1, 999)[None]
    conformal = Conformal(np.array([0.25, 0.5, 0.93, 0.99, 0.999]))
    conformal.begin(1)
    conformal._moved[0] = [-0.2, 0.0, 0.4, 0.6]
    found = conformal.read(edges, edges)[0]
    moved = np.log(found / (1 - found)) - np.log(
        1 / (1 / np.array([0.25, 0.5, 0.93, 0.99, 0.999]) - 1)
    )
    assert np.allclose(moved[[0, 1, 3, 4]], [-0.2, -0.2, 0.6, 0.6], atol=0.02)
    assert 0.1 < moved[2] < 0.3


@pytest.mark.parametrize("levels", [[], [0.5, 0.5], [0.9, 0.5], [0.0, 0.5], [0.5, 1.0]])
def test_levels_that_are_none_are_refused(levels):
    with pytest.raises(ValueError, match="ascend between 0 and 1"):
        Conformal(np.array(levels))
