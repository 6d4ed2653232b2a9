"""The mixture: proper distributions, weights that find the better member, nothing of the future."""

from dataclasses import replace

import numpy as np
import pytest

from controller.forecast.buckets import encode
from controller.forecast.grid import OF_BINS, snap
from controller.forecast.learnt import LearntError, combined
from controller.forecast.mixture import Habits, Mixture, _descend
from controller.forecast.moment import BINS, LEVELS, Moment, bin_of
from controller.forecast.predictor import make_predictor

_STEP_S, _HORIZON, _WINDOW = 300, 2, 36


def _moments(values, start=0):
    series = len(values)
    padded = np.concatenate([np.full((series, _WINDOW - 1), np.nan), values], axis=1)
    others = np.full((series, 3, _WINDOW), np.nan)
    for at in range(start, values.shape[1]):
        window = padded[:, at : at + _WINDOW]
        yield Moment((at + 1) * _STEP_S, _STEP_S, window, window, others)


def _score(mass, share):
    """Ranked probability score, (s,)."""
    below = np.cumsum(mass, axis=1)[:, :BINS]
    return ((below - (bin_of(share)[:, None] <= np.arange(BINS))) ** 2).mean(axis=1)


class _Knows:
    """Says that all lies within a twentieth around a share that it is given per step."""

    count = 1

    def __init__(self, middle):
        self._middle = middle

    def begin(self, series, waiting): ...

    def turn(self, seconds, slot): ...

    def remember(self, sight, rows): ...

    def arrange(self, places):
        self._middle = self._middle[np.maximum(places, 0)]

    def learn(self, sight, rows): ...

    def cdf(self, sight, grid, rows):
        at = sight.moment.end_s // _STEP_S - 1 + sight.horizon_steps
        middle = self._middle[rows, min(at, self._middle.shape[1] - 1)]
        return np.clip((grid.edges - middle[:, None]) * 10 + 0.5, 0, 1)[:, None, :]


def test_predictions_are_distributions_whatever_is_missing():
    random = np.random.default_rng(1)
    values = random.uniform(0, 1.3, (6, 80))
    values[1] = 0.0
    values[2] = np.nan
    values[3, random.uniform(size=80) < 0.6] = np.nan
    values[4] = 1.0
    for target in ("value", "peak"):
        predictor = make_predictor(_HORIZON, target)
        for moment in _moments(values):
            made = predictor.step(moment)
            assert made.mass.shape == (6, BINS + 1) and made.quantile.shape == (6, len(LEVELS))
            assert (made.mass >= 0).all()
            assert np.allclose(made.mass.sum(axis=1), 1)
            assert (np.diff(made.quantile, axis=1) >= 0).all()
            assert np.isfinite(made.quantile).all()
    assert made.mass[1, 0] > 0.99
    assert made.mass[4, BINS - 1] > 0.9


def test_each_series_finds_the_member_that_knows_it():
    random = np.random.default_rng(2)
    values = random.uniform(0, 1, (8, 120))
    left, right = values.copy(), random.uniform(0, 1, values.shape)
    left[4:], right[4:] = right[4:].copy(), values[4:]
    mixture = Mixture([_Knows(left), _Knows(right)], _HORIZON)
    for moment in _moments(values):
        mixture.step(moment)
    assert (mixture._weighing._own[:4, 0] > 0.8).all()
    assert (mixture._weighing._own[4:, 1] > 0.8).all()


def test_a_new_series_starts_from_what_works_for_the_fleet():
    random = np.random.default_rng(3)
    values = random.uniform(0, 1, (8, 60))
    mixture = Mixture([_Knows(random.uniform(0, 1, (8, 60))), _Knows(values)], _HORIZON)
    for moment in _moments(values):
        mixture.step(moment)
    mixture.arrange(np.array([0, 1, -1]))
    assert mixture._weighing._own.shape == (3, 2)
    assert mixture._weighing._own[2, 1] > 0.8
    mixture.step(next(_moments(values[:3], 59)))


def test_the_mixture_is_no_worse_than_its_best_member_on_mixed_series():
    random = np.random.default_rng(4)
    steps = 300
    noise = np.clip(random.normal(0.4, 0.15, (6, steps)), 0, None)
    walk = np.abs(0.5 + np.cumsum(random.normal(0, 0.03, (6, steps)), axis=1))
    values = np.concatenate([noise, walk])
    mixture = make_predictor(_HORIZON, "value")
    own, members = 0.0, np.zeros(7)
    for at, moment in enumerate(_moments(values[:, :-_HORIZON])):
        made = mixture.step(moment)
        if at < 100:
            continue
        share = values[:, at + _HORIZON]
        own += _score(made.mass, share).mean()
        weighing, slot = mixture._weighing, mixture._weighing._slot
        codes = weighing._codes[:, slot]
        came = encode(snap(share.astype(np.float32)))[:, None] < codes
        bins = np.isin(codes, OF_BINS)
        bins[:, 1:] &= codes[:, 1:] != codes[:, :-1]
        error = (weighing._said[:, slot] / 255 - came[:, None]) ** 2 * bins[:, None]
        members += error.sum(axis=2).mean(axis=0) / BINS
    assert own < members.min() * 1.01


def test_nothing_of_the_future_is_used():
    values = np.random.default_rng(5).uniform(0, 1, (4, 60))
    changed = values.copy()
    changed[:, 40:] = 0.5
    made = []
    for each in (values, changed):
        predictor = make_predictor(_HORIZON, "value")
        made.append([predictor.step(moment) for moment in _moments(each[:, :50])])
    for at in range(40):
        assert np.array_equal(made[0][at].mass, made[1][at].mass)
        assert np.array_equal(made[0][at].quantile, made[1][at].quantile)
    assert not np.array_equal(made[0][45].mass, made[1][45].mass)


def test_weights_go_to_the_least_of_the_quadratic_form():
    form = np.array([[[1.0, 0.0], [0.0, 3.0]]])
    weights = _descend(np.array([[0.5, 0.5]]), form, Habits(rate=0.5, steps=200))
    assert np.allclose(weights, [[0.75, 0.25]], atol=0.01)


def test_the_network_is_a_member_that_is_favoured():
    class Even:
        def cdf(self, moment, day, edges):
            return np.clip(edges, 0, 1)

    values = np.full((2, 5), 0.5)
    mixture = make_predictor(_HORIZON, "value", Even())
    for moment in _moments(values[:, :1]):
        mixture.step(moment)
    assert mixture._weighing._own[0].argmax() == mixture._weighing._own.shape[1] - 1


def test_before_anything_was_learnt_a_series_is_expected_to_stay_near_where_it_is():
    values = np.array([[0.02], [0.33], [0.97]])
    made = make_predictor(_HORIZON, "value").step(next(_moments(values)))
    assert (made.mass.argmax(axis=1) == bin_of(values[:, 0])).all()
    assert (_score(made.mass, values[:, 0]) < 0.01).all()


def _some(moment, rows):
    return replace(
        moment, window=moment.window[rows], peak=moment.peak[rows], others=moment.others[rows]
    )


def test_the_same_moment_again_is_predicted_the_same():
    values = np.random.default_rng(6).uniform(0, 1.2, (6, 60))
    values[2], values[3, 20:] = 0.3, np.nan
    for target in ("value", "peak"):
        mixture = make_predictor(_HORIZON, target)
        rows = np.array([4, 2, 0, 3])
        for moment in _moments(values):
            made = mixture.step(moment)
            again = mixture.again(_some(moment, rows), rows)
            assert np.allclose(again.mass, made.mass[rows], atol=1e-9)
            assert np.allclose(again.quantile, made.quantile[rows], atol=1e-9)


def test_what_is_predicted_again_changes_nothing_that_comes_later():
    values = np.random.default_rng(7).uniform(0, 1.2, (4, 60))
    calm, asked = (make_predictor(_HORIZON, "peak") for _ in range(2))
    rows = np.array([1, 3])
    for moment in _moments(values):
        asked_made, made = asked.step(moment), calm.step(moment)
        assert np.array_equal(made.mass, asked_made.mass)
        assert np.array_equal(made.quantile, asked_made.quantile)
        later = replace(_some(moment, rows), end_s=moment.end_s + 60)
        asked.again(replace(later, window=later.window * 1.5), rows)


def test_quantiles_are_at_the_levels_that_are_asked_for():
    values = np.random.default_rng(8).uniform(0, 1, (5, 80))
    levels = np.array([0.05, 0.3, 0.5, 0.8, 0.95, 0.995])
    usual, asked = (
        make_predictor(_HORIZON, "value"),
        make_predictor(_HORIZON, "value", None, levels),
    )
    for moment in _moments(values):
        made, asked_made = usual.step(moment), asked.step(moment)
    assert asked_made.quantile.shape == (5, 6)
    assert np.allclose(asked_made.quantile[:, [2, 4]], made.quantile[:, [0, 2]])
    assert (np.diff(asked_made.quantile, axis=1) >= 0).all()


def test_series_that_stood_still_are_not_asked_of_the_network_until_they_wake():
    class Counts:
        asked = 0

        def cdf(self, moment, day, edges):
            self.asked += len(moment.window)
            return np.clip(edges, 0, 1)

    values = np.random.default_rng(8).uniform(0, 1, (3, 60))
    values[1, :59] = 0.3
    source = Counts()
    mixture = make_predictor(_HORIZON, "value", source)
    for at, moment in enumerate(_moments(values)):
        if at in {58, 59}:
            source.asked = 0
        made = mixture.step(moment)
        if at == 58:
            assert source.asked == 2
            assert made.mass[1, 6] > 0.99
            assert np.allclose(made.quantile[1], 0.3, atol=2e-4)
    assert source.asked == 3


def test_a_large_fleet_is_gone_through_in_parts_that_tell_the_same():
    values = np.random.default_rng(9).uniform(0, 1, (530, 30))
    values[5:9] = 0.2
    values[520:] = values[:10]
    mixture = make_predictor(_HORIZON, "value")
    for moment in _moments(values):
        made = mixture.step(moment)
    assert np.allclose(made.mass[520:], made.mass[:10], atol=0.02)
    assert (made.mass[525:529, 4] > 0.98).all()


def _taught(seed, steps=60, **more):
    values = np.random.default_rng(seed).uniform(0.2, 0.6, (12, steps))
    values[:3] = 0.4
    mixture = make_predictor(_HORIZON, "value", **more)
    for moment in _moments(values):
        mixture.step(moment)
    return mixture


class _Even:
    def cdf(self, moment, day, edges):
        return np.clip(edges, 0, 1)


def test_a_fleet_begins_with_what_others_taught():
    learnt = _taught(1).learnt()
    assert sum(array.nbytes for array in learnt.values()) < 20_000
    values = np.random.default_rng(2).uniform(0.2, 0.6, (12, 12))
    scores = []
    for given in (None, learnt, combined([learnt, _taught(3).learnt()])):
        mixture = make_predictor(_HORIZON, "value", learnt=given)
        made = [mixture.step(moment) for moment in _moments(values[:, :-_HORIZON])]
        scores.append(np.mean([_score(one.mass, values[:, at + _HORIZON]).mean()
                               for at, one in enumerate(made)]))  # fmt: skip
    assert max(scores[1:]) < 0.98 * scores[0]


def test_what_others_taught_is_overcome_within_hours():
    """Others were noise; these wander. After six hours it is as if nothing had been given."""
    random = np.random.default_rng(4)
    values = np.abs(0.5 + np.cumsum(random.normal(0, 0.02, (40, 120)), axis=1))
    late = []
    for given in (None, _taught(1, 200).learnt()):
        mixture = make_predictor(_HORIZON, "value", learnt=given)
        made = [mixture.step(moment) for moment in _moments(values[:, :-_HORIZON])]
        late.append(np.mean([_score(made[at].mass, values[:, at + _HORIZON]).mean()
                             for at in range(72, 118)]))  # fmt: skip
    assert late[1] < 1.02 * late[0]


def test_without_the_network_the_rest_of_what_was_learnt_with_it_serves():
    learnt = _taught(1, network=_Even()).learnt()
    mixture = make_predictor(_HORIZON, "value", learnt=learnt)
    assert np.isclose(mixture._weighing.weights.sum(), 1)


def test_what_does_not_fit_is_refused_by_name():
    learnt = _taught(1).learnt()
    other = {name: array for name, array in learnt.items() if name != "stayed"}
    with pytest.raises(LearntError, match="stayed is missing"):
        make_predictor(_HORIZON, "value", learnt=other)
    with pytest.raises(LearntError, match="errors has the shape"):
        make_predictor(_HORIZON, "value", learnt=learnt | {"errors": np.ones((2, 3))})
    with pytest.raises(LearntError, match="no number"):
        make_predictor(_HORIZON, "value", learnt=learnt | {"moved": np.full(4, np.nan)})
    with pytest.raises(LearntError, match="weights are of 3 members"):
        make_predictor(_HORIZON, "value", learnt=learnt | {"weights": np.ones(3)})


def test_predictions_are_the_same_every_time():
    made = [_taught(7).learnt() for _ in range(2)]
    assert all(np.array_equal(made[0][name], made[1][name]) for name in made[0])


@pytest.mark.parametrize("level", [0.3, 0.05])
def test_a_burst_does_not_send_quantiles_to_the_end_of_the_scale_for_hours(level):
    """Most of the series is low; a few bursts to 0.7 of the allotment."""
    random = np.random.default_rng(10)
    values = np.clip(level + random.normal(0, 0.01, (20, 400)), 0, None)
    values[:, 200:203] = values[:, 230:232] = values[:, 260:262] = 0.7
    mixture = make_predictor(_HORIZON, "peak")
    made = [mixture.step(moment).quantile for moment in _moments(values)]
    top = np.array(made)[:, :, -1]  # of each step, at .99
    assert (top[240:] <= 1.0 + 1e-6).all()
    assert (np.median(top[270:330], axis=0) < 0.85).all()


def test_nothing_is_learnt_from_what_was_said_in_the_dark():
    """After two hours of which nothing was seen, the first outcomes settle no prediction."""
    values = np.random.default_rng(11).uniform(0.2, 0.8, (3, 60))
    mixture = make_predictor(_HORIZON, "value")
    moments = list(_moments(values))
    for moment in moments[:40]:
        mixture.step(moment)
    dark = np.full((3, _WINDOW), np.nan)
    for moment in moments[40 : 40 + _HORIZON]:
        mixture.step(replace(moment, window=dark, peak=dark))
    before = mixture._weighing._outcomes.copy()
    assert (before > 5).all()
    for moment in moments[40 + _HORIZON : 40 + 2 * _HORIZON]:
        mixture.step(moment)
        np.testing.assert_array_equal(mixture._weighing._outcomes, before)
    mixture.step(moments[40 + 2 * _HORIZON])
    assert (mixture._weighing._outcomes != before).all()
