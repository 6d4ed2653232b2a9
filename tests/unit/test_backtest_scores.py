"""Scores against their definitions, and what must hold for any predictions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.forecast.backtest.scores import MARGINS, PROBABILITY_FLOOR, Tally
from controller.forecast.moment import LEVELS, bin_of

ONE = np.ones((1, 1), dtype=bool)


def certain(share):
    mass = np.zeros((1, 21))
    mass[0, bin_of(np.array(share))] = 1.0
    return mass


def score(mass, quantile, target, peak=None, groups=("all",)):
    target = np.asarray(target, dtype=float)
    tally = Tally(groups)
    member = np.ones((len(target), len(groups)), dtype=bool)
    peak = target if peak is None else np.asarray(peak, dtype=float)
    tally.add(np.asarray(mass), np.asarray(quantile, dtype=float), target, peak, member)
    return tally.result()["all"]


def test_certainty_that_was_right_costs_nothing():
    found = score(certain(0.42), [[0.42] * 4], [0.42])
    for name in ("rps", "nll", "pinball", "ece", "ece_all_bins", "slack_0.95", "violated_0.95"):
        assert found[name] == pytest.approx(0), name
    assert found["top1"] == found["near"] == 1
    assert found["savings"] == found["savings_oracle"] == pytest.approx(0.58)


def test_rps_of_a_certainty_is_how_many_bins_it_was_off():
    found = score(certain(0.12), [[0.12] * 4], [0.31])
    assert found["rps"] == 4
    assert found["nll"] == pytest.approx(-np.log(PROBABILITY_FLOOR))
    assert found["top1"] == found["near"] == 0
    assert score(certain(0.12), [[0.12] * 4], [0.17])["near"] == 1


def test_rps_of_two_halves_by_hand():
    mass = (certain(0.02) + certain(0.12)) / 2  # bins 0 and 2
    assert score(mass, [[0.02] * 4], [0.07])["rps"] == pytest.approx(0.5)  # .25 at both edges
    assert score(mass, [[0.02] * 4], [5.0])["rps"] == pytest.approx(0.25 * 2 + 18)


def test_pinball_coverage_violations_slack_by_hand():
    quantile = np.tile([0.2, 0.3, 0.4, 0.5], (4, 1))
    found = score(np.repeat(certain(0.2), 4, 0), quantile, [0.1, 0.2, 0.45, 0.6])
    assert found["pinball_0.5"] == pytest.approx(0.5 * (0.1 + 0 + 0.25 + 0.4) / 4)
    assert found["pinball_0.95"] == pytest.approx((0.05 * (0.3 + 0.2) + 0.95 * (0.05 + 0.2)) / 4)
    assert found["coverage_0.5"] == 0.5
    assert found["strictly_below_0.5"] == 0.25
    assert found["coverage_error_0.95"] == pytest.approx(0.45)
    assert found["violated_0.95"] == 0.5
    assert found["violated_0.99"] == 0.25
    assert found["slack_0.95"] == pytest.approx((0.3 + 0.2) / 4)


def test_violations_are_of_the_peak_and_not_of_the_target():
    found = score(certain(0.2), [[0.2] * 4], [0.2], peak=[0.5])
    assert found["coverage_0.99"] == 1
    assert found["violated_0.99"] == 1
    assert found["savings_oracle"] == 0.5


def test_ece_is_how_far_probability_is_from_frequency():
    mass = np.zeros((10, 21))
    mass[:, 0], mass[:, 1] = 0.9, 0.1
    came = [0.02] * 7 + [0.07] * 3
    found = score(mass, np.zeros((10, 4)), came)
    assert found["ece"] == pytest.approx(0.2)
    assert found["ece_all_bins"] == pytest.approx(0.4)


def test_savings_take_the_cheapest_level_and_margin_with_one_percent_of_violations():
    quantile = np.tile([0.2, 0.5, 0.6, 0.7], (100, 1))
    peak = np.full(100, 0.225)
    found = score(np.repeat(certain(0.2), 100, 0), quantile, peak)
    assert found["savings"] == pytest.approx(1 - 0.23)
    peak[0] = 3.0  # one of a hundred may be above
    assert score(np.repeat(certain(0.2), 100, 0), quantile, peak)["savings"] == pytest.approx(0.77)
    peak[1] = 3.0
    assert np.isnan(score(np.repeat(certain(0.2), 100, 0), quantile, peak)["savings"])
    assert MARGINS[0] == 0


def test_groups_are_apart_and_empty_ones_are_left_out():
    tally = Tally(("all", "some", "none"))
    member = np.array([[True, True, False], [True, False, False]])
    mass = np.repeat(certain(0.2), 2, 0)
    target = np.array([0.2, 0.9])
    tally.add(mass, np.full((2, 4), 0.2), target, target, member)
    found = tally.result()
    assert set(found) == {"all", "some"}
    assert found["some"]["top1"] == 1
    assert found["all"]["top1"] == 0.5
    said, came, windows = tally.reliability("all")
    np.testing.assert_array_equal([said, came, windows], [[1], [0.5], [2]])


@st.composite
def predictions(draw):
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(2, 40))
    sharp = draw(st.sampled_from([0.05, 1.0, 20.0]))
    mass = random.gamma(sharp, size=(count, 21)) + 1e-12
    mass /= mass.sum(axis=1, keepdims=True)
    quantile = np.sort(random.uniform(0, 1.2, (count, len(LEVELS))), axis=1)
    target = random.uniform(0, 1.2, count)
    return mass, quantile, target, target + random.exponential(0.1, count)


@settings(max_examples=60, deadline=None)
@given(predictions(), st.integers(1, 39))
def test_it_does_not_matter_how_windows_come(made, cut):
    """Bit by bit or at once: the sums are the same, and within their bounds."""
    whole, parts = Tally(("all",)), Tally(("all",))
    member = np.ones((len(made[0]), 1), dtype=bool)
    whole.add(*made, member)
    for part in (slice(0, cut), slice(cut, None)):
        if len(made[0][part]):
            parts.add(*(each[part] for each in made), member[part])
    one, two = whole.result()["all"], parts.result()["all"]
    assert one == pytest.approx(two, nan_ok=True)
    assert 0 <= one["rps"] <= 20
    assert 0 <= one["nll"] <= -np.log(PROBABILITY_FLOOR) + 1e-9
    assert one["top1"] <= one["near"] <= 1
    assert one["strictly_below_0.95"] <= one["coverage_0.95"] <= one["coverage_0.99"]
    assert one["violated_0.99"] <= one["violated_0.95"]
    assert 0 <= one["ece"] <= 1
    if np.isfinite(one["savings"]):
        assert one["savings"] <= 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_truth_is_never_beaten(seed):
    """Proper scores: over outcomes weighted by their probability, saying it is best."""
    random = np.random.default_rng(seed)
    truth, other = (random.dirichlet(np.full(21, 0.5)) for _ in range(2))
    centres = (np.arange(21) + 0.5) / 20
    for name in ("rps", "nll"):
        cost = [
            sum(
                p * score(said[None], [[0] * 4], [share])[name]
                for p, share in zip(truth, centres, strict=True)
            )
            for said in (truth, other)
        ]
        assert cost[0] <= cost[1] + 1e-2 * (name == "nll")  # the floor is not proper, by a little
