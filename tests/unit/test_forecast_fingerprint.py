"""Fingerprints: of the day alone, whatever is missing; archetypes and how novel a series is."""

import numpy as np
import pytest

from controller.forecast.fingerprint import FIELDS, SIZE, archetypes, fingerprint
from controller.forecast.seasonal import SLOTS


def _days(random, count):
    """Idle, steady, restless and bursty machines in turn."""
    base = np.array([0.01, 0.5, 0.3, 0.05])[np.arange(count) % 4, None]
    noise = np.array([0.001, 0.01, 0.2, 0.01])[np.arange(count) % 4, None]
    day = base + noise * random.standard_normal((count, SLOTS))
    bursts = random.uniform(size=day.shape) < 0.05
    day = np.where(bursts & (np.arange(count) % 4 == 3)[:, None], 0.8, day)
    return np.maximum(day, 0).astype(np.float32)


def _field(prints, name):
    return prints[:, FIELDS.index(name)]


def test_it_tells_idle_from_busy_and_still_from_restless():
    prints = fingerprint(_days(np.random.default_rng(1), 4))
    idle, steady, restless, bursty = range(4)
    assert _field(prints, "mean").argmin() == idle
    assert _field(prints, "leaps")[restless] > _field(prints, "leaps")[steady]
    assert _field(prints, "rank 0.98")[bursty] > _field(prints, "rank 0.9")[bursty]
    assert (_field(prints, "seen") == 1).all()


def test_a_series_that_repeats_each_hour_is_like_itself_an_hour_ago():
    wave = 0.4 + 0.3 * np.sin(2 * np.pi * np.arange(SLOTS) / 12)
    prints = fingerprint(np.stack([wave, np.roll(wave, 3)]).astype(np.float32))
    assert (_field(prints, "like an hour ago") > 0.99).all()
    assert (_field(prints, "change over an hour") < _field(prints, "change over a horizon")).all()
    np.testing.assert_allclose(prints[0], prints[1], atol=0.05)  # no moment of the day is in it


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_what_was_hardly_seen_gives_finite_numbers(share):
    day = np.full((3, SLOTS), np.nan, dtype=np.float32)
    day[1, -1] = share
    day[2, ::7] = share
    prints = fingerprint(day)
    assert prints.shape == (3, SIZE)
    assert np.isfinite(prints).all()
    assert (np.abs(prints) < 4).all()
    assert (prints[0] == 0).all()
    assert _field(prints, "rank 0.5")[1] == pytest.approx(_field(prints, "rank 0.5")[2])


def test_a_row_does_not_see_its_neighbours():
    day = _days(np.random.default_rng(2), 8)
    day[3, :100] = np.nan
    alone = np.concatenate([fingerprint(day[row : row + 1]) for row in range(8)])
    np.testing.assert_allclose(fingerprint(day), alone, rtol=1e-5, atol=1e-6)


def test_what_is_unlike_all_that_was_learnt_is_novel():
    random = np.random.default_rng(3)
    known = archetypes(fingerprint(_days(random, 400)), np.random.default_rng(1), 8)
    place, novelty = known.nearest(fingerprint(_days(random, 40)))
    assert len(set(place[:4].tolist())) == 4  # four kinds of machines, four archetypes
    assert np.quantile(novelty, 0.8) < 1.2
    odd = np.where(np.arange(SLOTS) % 2, 0.0, 3.0)[None].astype(np.float32)
    assert known.nearest(fingerprint(odd))[1][0] > 2


def test_the_same_seed_finds_the_same_archetypes():
    prints = fingerprint(_days(np.random.default_rng(4), 60))
    one, other = (archetypes(prints, np.random.default_rng(5), 6) for _ in range(2))
    np.testing.assert_array_equal(one.centre, other.centre)
    few = archetypes(np.repeat(prints[:2], 5, axis=0), np.random.default_rng(5), 6)
    assert len(few.centre) == 2
    assert np.isfinite(few.nearest(prints)[1]).all()
