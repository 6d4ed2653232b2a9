"""Simple ways to predict, each a family of distributions that learns from what comes. Pure.

A family says `cdf(sight, edges, rows)`, (s, m, e): the probability of a target below each edge,
from each of its m members, after `learn(sight)` took the newest outcome in; of some rows of the
series when only those are looked at. Every state has the series as its first axis; `arrange`
reorders it when series come and go. No member sees what is not in a `Sight`. s series, e edges, k
steps of two hours.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from controller.core.state import Floats, Ints
from controller.forecast.buckets import Buckets, read
from controller.forecast.centres import Centre
from controller.forecast.moment import Moment
from controller.forecast.sight import EVERY, Rows, Sight, arranged, kept_over_step

_EVEN = 0.04
_ODD = 0.002  # the probability that a series that stood still does something else


class Family(Protocol):
    count: int  # members

    def begin(self, series: int) -> None: ...

    def learn(self, sight: Sight) -> None: ...

    def cdf(self, sight: Sight, edges: Floats, rows: Rows = EVERY) -> Floats: ...

    def arrange(self, places: Ints) -> None: ...


class Distribution(Protocol):
    """Anything that gives a CDF from a moment alone, such as a network."""

    def cdf(self, moment: Moment, edges: Floats) -> Floats: ...


class WindowHistograms:
    """The targets of the last two hours as they were, alike and fading with age (half-lives)."""

    def __init__(self, half_lives_s: Sequence[float]) -> None:
        self._half_lives_s = np.array([np.inf, *half_lives_s])
        self.count = len(self._half_lives_s)

    def begin(self, series: int) -> None:
        """Nothing is kept."""

    def arrange(self, places: Ints) -> None:
        """Nothing is kept."""

    def learn(self, sight: Sight) -> None:
        """The window is all there is."""

    def cdf(self, sight: Sight, edges: Floats, rows: Rows = EVERY) -> Floats:
        steps = sight.past.shape[1]
        age_s = np.arange(steps)[::-1] * sight.moment.step_s
        known = np.isfinite(sight.past)
        weight = 0.5 ** (age_s / self._half_lives_s[:, None])  # (m, k)
        weights = (known[:, None, :] * weight).astype(np.float32)  # (s, m, k)
        below = np.less(np.nan_to_num(sight.past)[:, :, None], edges[:, None, :])
        mass = np.matmul(weights, below.astype(np.float32)).astype(np.float64)
        # A small part of an observation lies evenly over the allotment: nothing is impossible.
        even = np.minimum(edges, 1.0)[:, None, :]
        total = weights.sum(axis=2, dtype=np.float64)[:, :, None]
        return np.asarray(np.minimum((mass + _EVEN * even) / (total + _EVEN), 1.0))


class Residuals:
    """A point forecast with the distribution of its own errors, those of all series as prior."""

    count = 1

    def __init__(self, centre: Centre, buckets: Buckets, half_life_s: float) -> None:
        self._centre, self._buckets, self._half_life_s = centre, buckets, half_life_s
        self._waiting: deque[tuple[Floats, Floats]] = deque()
        # A narrow triangle around 0 until errors were seen.
        middle = (buckets.bounds[1:] + buckets.bounds[:-1]) / 2
        self._of_all = np.exp(-np.abs(middle) / np.abs(middle).max() * 20)
        self.begin(0)

    def begin(self, series: int) -> None:
        self._mass = np.zeros((series, self._buckets.count), dtype=np.float32)
        self._waiting.clear()
        self._centre.begin(series)

    def arrange(self, places: Ints) -> None:
        self._mass = arranged(self._mass, places)
        self._waiting = deque(
            (arranged(centre, places, np.nan), arranged(unit, places, np.nan))
            for centre, unit in self._waiting
        )
        self._centre.arrange(places)

    def learn(self, sight: Sight) -> None:
        self._centre.learn(sight)
        if len(self._waiting) == sight.horizon_steps:
            centre, unit = self._waiting.popleft()
            error = (sight.outcome - centre) / unit
            known = np.flatnonzero(np.isfinite(error))
            # A hair up: errors that are exactly a bound belong above it in spite of rounding.
            cell = self._buckets.of(error[known] + 1e-9)
            kept = np.float32(kept_over_step(sight, self._half_life_s))
            self._mass[known] *= kept
            self._mass[known, cell] += 1
            self._of_all *= kept
            np.add.at(self._of_all, cell, 1.0)
        self._waiting.append(self._centre.place(sight))
        self._centre.remember(sight)

    def cdf(self, sight: Sight, edges: Floats, rows: Rows = EVERY) -> Floats:
        centre, unit = self._centre.place(sight, rows)
        error = (edges - np.nan_to_num(centre)[:, None]) / np.nan_to_num(unit, nan=1.0)[:, None]
        cell, part = self._buckets.place(error)
        prior = self._of_all / self._of_all.sum()
        found = read(self._mass[rows] + 4.0 * prior, cell, part)
        # No share lies below 0: what errors would put there lies just above it.
        return np.asarray(found[:, None, :])


class External:
    """A distribution from outside, such as the network's, as a family of one."""

    count = 1

    def __init__(self, source: Distribution) -> None:
        self._source = source

    def begin(self, series: int) -> None:
        """Its state is its own."""

    def arrange(self, places: Ints) -> None:
        """Its state is its own."""

    def learn(self, sight: Sight) -> None:
        """It was taught elsewhere."""

    def cdf(self, sight: Sight, edges: Floats, rows: Rows = EVERY) -> Floats:
        """Series that stood still for two hours are not worth its time: they go on as they are."""
        even = np.minimum(edges, 1.0)
        found = (1 - _ODD) * (np.nan_to_num(sight.newest)[:, None] < edges) + _ODD * even
        busy = np.flatnonzero(~sight.still)
        if len(busy):
            found[busy] = self._source.cdf(_rows(sight.moment, busy), edges[busy])
        return np.asarray(found[:, None, :])


def _rows(moment: Moment, rows: Ints) -> Moment:
    if len(rows) == len(moment.window):
        return moment
    return replace(
        moment, window=moment.window[rows], peak=moment.peak[rows], others=moment.others[rows]
    )
