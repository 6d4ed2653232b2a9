"""Histograms of targets that came true, plain and conditional on the value before. Pure."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from controller.core.state import Floats, Ints
from controller.forecast.buckets import LEVELS_OF_USE, Buckets, read
from controller.forecast.grid import FLOOR
from controller.forecast.sight import EVERY, Rows, Sight, arranged, kept_over_step

_DAMPING = 1e-12
_LEARNT = 500.0  # outcomes of all series until they count as much as going on does


class Levels:
    """Targets that came true, fading by half-lives; and those that followed a like value.

    The conditional tables (one of the series, one of all series) are Markov tables of the
    horizon itself: what came after a value of this height, between a half-hour of that one.
    """

    _STATES = Buckets(np.array([0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.55, 0.8, 4]))
    _LOW = (0, 5e-4, 1e-3, 2e-3, 3.5e-3, 5e-3, 7e-3, 0.01, 0.014, 0.02, 0.03, 0.04)
    _MIDDLE = (0.05, 0.075, 0.1, 0.125)
    _OF_ALL = Buckets(np.array([*_LOW, *_MIDDLE, *np.arange(3, 21) / 20, 4]))
    _TREND = Buckets(np.array([0, 0.4, 0.75, 0.95, 1.05, 1.4, 2.5, 1e9]))

    def __init__(self, half_lives_s: Sequence[float], table_half_life_s: float) -> None:
        self._half_lives_s = half_lives_s
        self._table_half_life_s = table_half_life_s
        self.count = len(half_lives_s) + 2
        self._waiting: deque[tuple[Ints, Ints]] = deque()
        self._of_all = np.zeros(
            (self._OF_ALL.count * self._TREND.count, LEVELS_OF_USE.count), dtype=np.float64
        )
        self.begin(0)

    def begin(self, series: int) -> None:
        size = LEVELS_OF_USE.count
        self._mass = [np.zeros((series, size), dtype=np.float32) for _ in self._half_lives_s]
        self._table = np.zeros((series, self._STATES.count, size), dtype=np.float32)
        self._waiting.clear()

    def arrange(self, places: Ints) -> None:
        self._mass = [arranged(each, places) for each in self._mass]
        self._table = arranged(self._table, places)
        self._waiting = deque(
            (arranged(state, places, -1), arranged(state_of_all, places, -1))
            for state, state_of_all in self._waiting
        )

    def learn(self, sight: Sight) -> None:
        known = np.flatnonzero(np.isfinite(sight.outcome))
        cell = LEVELS_OF_USE.of(sight.outcome[known])
        for mass, half_life_s in zip(self._mass, self._half_lives_s, strict=True):
            mass[known] *= np.float32(kept_over_step(sight, half_life_s))
            mass[known, cell] += 1
        if len(self._waiting) == sight.horizon_steps:
            self._learn_tables(sight, *self._waiting.popleft())
        self._waiting.append(self._states(sight))

    def cdf(self, sight: Sight, edges: Floats, rows: Rows = EVERY) -> Floats:
        cell, part = LEVELS_OF_USE.place(edges)
        prior = self._prior(sight)
        found = [read(mass[rows] + 0.5 * prior, cell, part) for mass in self._mass]
        state, state_of_all = self._states(sight)
        of_all = self._of_all[np.maximum(state_of_all, 0)]
        of_all = of_all + 3.0 * prior
        of_all /= of_all.sum(axis=1, keepdims=True)
        every = np.arange(len(self._table))[rows]
        table = self._table[every, np.maximum(state, 0)] + 2.0 * of_all
        found.extend((read(table, cell, part), read(of_all, cell, part)))
        return np.stack(found, axis=1)

    def _prior(self, sight: Sight) -> Floats:
        """(s, b) what all series did; while that is little, that a series goes on as it is."""
        total = self._of_all.sum()
        learnt = total / (total + _LEARNT)
        even = np.diff(LEVELS_OF_USE.bounds) * 1e-3
        marginal = learnt * self._of_all.sum(axis=0) / (total + _DAMPING) + even
        prior = np.tile(marginal, (len(sight.newest), 1))
        prior[np.arange(len(prior)), LEVELS_OF_USE.of(np.nan_to_num(sight.newest))] += 1.01 - learnt
        return np.asarray(prior / prior.sum(axis=1, keepdims=True))

    def _states(self, sight: Sight) -> tuple[Ints, Ints]:
        """(s,) states of now, -1 where nothing was seen."""
        known = np.isfinite(sight.newest)
        value = np.nan_to_num(sight.newest)
        trend = value / np.maximum(np.nan_to_num(sight.short_mean), FLOOR)
        of_all = self._OF_ALL.of(value) * self._TREND.count + self._TREND.of(trend)
        return np.where(known, self._STATES.of(value), -1), np.where(known, of_all, -1)

    def _learn_tables(self, sight: Sight, state: Ints, state_of_all: Ints) -> None:
        known = np.flatnonzero(np.isfinite(sight.outcome) & (state >= 0))
        cell = LEVELS_OF_USE.of(sight.outcome[known])
        at = state[known]
        self._table[known, at] *= np.float32(kept_over_step(sight, self._table_half_life_s))
        self._table[known, at, cell] += 1
        self._of_all *= kept_over_step(sight, self._table_half_life_s)
        np.add.at(self._of_all, (state_of_all[known], cell), 1.0)
