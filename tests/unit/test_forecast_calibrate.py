"""Corrections learn from what came true, and coverage tends to what was promised."""

import numpy as np
import pytest

from controller.forecast.buckets import encode
from controller.forecast.calibrate import Conformal, Reliability, ascending
from controller.forecast.grid import make_grid
from controller.forecast.moment import LEVELS

_SERIES = 40


def _grid(window):
    window = np.asarray(window, dtype=np.float32)
    return make_grid(window[:, -1], window, encode(window))


def _rounds(shift, rounds=150):
    """Score without and with the correction where the truth lies `shift` above what was said."""
    random = np.random.default_rng(1)
    reliability = Reliability()
    scores = []
    newest, spread = np.full((2, _SERIES), 0.5, dtype=np.float32)
    window = random.uniform(0, 1, (_SERIES, 24))
    window[:, -1] = 0.5
    edges = _grid(window).edges
    said = np.clip(edges * 2 - 0.5 + shift, 0, 1).astype(np.float32)  # between 0.25 and 0.75
    for _ in range(rounds):
        reliability.turn()
        final = reliability.correct(said, edges, newest, spread)
        assert (np.diff(final, axis=1) >= -1e-6).all()
        outcome = random.uniform(0.25, 0.75, _SERIES)
        came = outcome[:, None] < edges
        scores.append([((each - came) ** 2).mean() for each in (said, final)])
        reliability.learn(said, edges, newest, spread, came, np.ones_like(edges))
    return np.array(scores[rounds // 3 :]).mean(axis=0)


def test_what_is_said_wrongly_is_corrected():
    plain, corrected = _rounds(0.3)
    assert corrected < 0.9 * plain


def test_what_is_said_rightly_is_left_alone():
    plain, corrected = _rounds(0.0)
    assert corrected < 1.003 * plain


def test_a_correction_never_descends():
    found = ascending(np.array([[0.1, 0.5, 0.3, 0.9, 1.2]], dtype=np.float32))
    assert np.allclose(found, [[0.1, 0.4, 0.4, 0.9, 1.0]])


def test_coverage_tends_to_the_promise_though_the_distribution_is_wrong():
    random = np.random.default_rng(2)
    conformal = Conformal()
    conformal.begin(_SERIES, 1)
    grid = _grid(random.uniform(0, 0.5, (_SERIES, 24)))
    said = np.clip(grid.edges * 2.5, 0, 1)  # promises that all lies below 0.4
    wide = random.uniform(0.3, 0.45, _SERIES)[:, None]
    covered = []
    for _ in range(800):
        conformal.turn(0)
        quantile = conformal.read(said, grid)
        conformal.remember(said, grid)
        assert (np.diff(quantile, axis=1) >= 0).all()
        outcome = random.uniform(0, wide[:, 0]).astype(np.float32)
        covered.append(outcome[:, None] <= quantile)
        conformal.learn(outcome)
    mean = np.array(covered)[300:].mean(axis=(0, 1))
    assert np.abs(mean - LEVELS).max() < 0.02


def test_series_that_come_and_go_take_their_corrections_along():
    conformal = Conformal()
    conformal.begin(2, 1)
    conformal._moved[1] = 0.5
    conformal.arrange(np.array([1, -1]))
    assert np.array_equal(conformal._moved[:, 0], [0.5, 0.0])


def test_what_was_not_seen_or_not_said_teaches_nothing():
    grid = _grid(np.linspace(0, 1, 48).reshape(2, 24))
    conformal = Conformal()
    conformal.begin(2, 1)
    conformal.turn(0)
    conformal.remember(grid.edges, grid)
    conformal.forget(np.array([1]))
    conformal.learn(np.array([np.nan, 3.0], dtype=np.float32))
    conformal.turn(0)
    assert (conformal._moved == 0).all() and (conformal.fleet == 0).all()


def test_moves_reach_the_levels_between_those_at_which_they_are_learnt():
    grid = _grid(np.linspace(0.0, 0.999, 24)[None])
    wanted = np.array([0.25, 0.5, 0.93, 0.99, 0.999])
    conformal = Conformal(wanted)
    conformal.begin(1, 1)
    conformal._moved[0] = [-0.2, 0.0, 0.4, 0.6]
    moved = (conformal.fleet + conformal._moved) @ conformal._between
    assert np.allclose(moved[0, [0, 1, 3, 4]], [-0.2, -0.2, 0.6, 0.6])
    assert 0.1 < moved[0, 2] < 0.3
    plain = Conformal(wanted)
    plain.begin(1, 1)
    less = (plain.read(grid.edges, grid) - conformal.read(grid.edges, grid))[0]
    assert less[0] > 0 > less[3]


@pytest.mark.parametrize("levels", [[], [0.5, 0.5], [0.9, 0.5], [0.0, 0.5], [0.5, 1.0]])
def test_levels_that_are_none_are_refused(levels):
    with pytest.raises(ValueError, match="ascend between 0 and 1"):
        Conformal(np.array(levels))
