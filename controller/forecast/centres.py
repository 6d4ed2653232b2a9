"""Point forecasts whose own errors make a distribution (`members.Residuals`). Pure. s series."""

from collections import deque
from typing import Protocol

import numpy as np

from controller.core.state import Floats, Ints
from controller.forecast.grid import FLOOR, snap
from controller.forecast.sight import EVERY, Rows, Sight, arranged, kept_over_step

_HOUR_S, _DAY_S = 3600, 86_400
_FACTS = 6
_CLIP = 12.0  # deviations beyond are leaps, nothing to fit a line to


class Centre(Protocol):
    """A point forecast and the unit in which its errors are counted."""

    def begin(self, series: int) -> None: ...

    def learn(self, sight: Sight) -> None: ...

    def place(self, sight: Sight, rows: Rows = EVERY) -> tuple[Floats, Floats]: ...

    def remember(self, sight: Sight) -> None:
        """What `place` was told, to learn from when its outcome comes."""

    def arrange(self, places: Ints) -> None: ...


class Newest:
    """As now; errors in shares, or in units of the local spread."""

    def __init__(self, *, scaled: bool) -> None:
        self._scaled = scaled

    def begin(self, series: int) -> None:
        """Nothing is kept."""

    def arrange(self, places: Ints) -> None:
        """Nothing is kept."""

    def learn(self, sight: Sight) -> None:
        """There is nothing to learn."""

    def place(self, sight: Sight, rows: Rows = EVERY) -> tuple[Floats, Floats]:
        unit = sight.spread if self._scaled else np.ones_like(sight.spread)
        return sight.newest, unit

    def remember(self, sight: Sight) -> None:
        """Nothing is learnt."""


class Regression:
    """A line through what was seen, its coefficients from the series and from all series.

    Facts, as deviations from the slow mean in units of the local spread: the newest value, the
    means of half an hour and two hours, the value one hour before the target, the mean of its
    hour of the day, and a constant. Least squares, recursive and fading, with the fleet's normal
    equations as prior.
    """

    def __init__(self, half_life_s: float, prior_outcomes: float = 20.0) -> None:
        self._half_life_s, self._prior_outcomes = half_life_s, prior_outcomes
        self._fleet_square = np.eye(_FACTS)
        self._fleet_product = np.zeros(_FACTS)
        self._fleet_product[1] = 1.0
        self._fleet_count = 1.0
        self._waiting: deque[tuple[Floats, Floats, Floats]] = deque()
        self.begin(0)

    def begin(self, series: int) -> None:
        self._square = np.zeros((series, _FACTS, _FACTS), dtype=np.float32)
        self._product = np.zeros((series, _FACTS), dtype=np.float32)
        self._slow = np.full((series, 2), 0.0, dtype=np.float32)  # weighted sum and weight
        self._hours = np.zeros((series, 24, 2), dtype=np.float32)
        self._waiting.clear()

    def arrange(self, places: Ints) -> None:
        self._square, self._product = (
            arranged(self._square, places),
            arranged(self._product, places),
        )
        self._slow, self._hours = arranged(self._slow, places), arranged(self._hours, places)
        self._waiting = deque(
            (arranged(facts, places, np.nan), arranged(slow, places), arranged(unit, places, 1.0))
            for facts, slow, unit in self._waiting
        )

    def learn(self, sight: Sight) -> None:
        known = np.flatnonzero(np.isfinite(sight.outcome))
        value = sight.outcome[known]
        self._remember(sight, known, value)
        if len(self._waiting) < sight.horizon_steps:
            return
        facts, slow, unit = self._waiting.popleft()
        known = known[np.isfinite(facts[known, 1])]
        fact = facts[known]
        goal = np.clip((sight.outcome[known] - slow[known]) / unit[known], -_CLIP, _CLIP)
        kept = np.float32(kept_over_step(sight, self._half_life_s))
        square, product = fact[:, :, None] * fact[:, None, :], fact * goal[:, None]
        self._square[known] = self._square[known] * kept + square
        self._product[known] = self._product[known] * kept + product
        self._fleet_square = self._fleet_square * kept + square.sum(axis=0)
        self._fleet_product = self._fleet_product * kept + product.sum(axis=0)
        self._fleet_count = self._fleet_count * float(kept) + len(known)

    def place(self, sight: Sight, rows: Rows = EVERY) -> tuple[Floats, Floats]:
        slow = self._slow_mean(sight, rows)
        facts = self._facts(sight, slow, rows)
        part = self._prior_outcomes / self._fleet_count
        square = self._square[rows] + part * self._fleet_square + 1e-3 * np.eye(_FACTS)
        product = self._product[rows] + part * self._fleet_product
        line = np.linalg.solve(square, product[:, :, None])[:, :, 0]
        ahead = np.clip((line * facts).sum(axis=1), -_CLIP, _CLIP)
        return np.maximum(slow + ahead * sight.spread, 0.0), sight.spread

    def remember(self, sight: Sight) -> None:
        slow = self._slow_mean(sight, EVERY)
        self._waiting.append((self._facts(sight, slow, EVERY), slow, sight.spread))

    def _remember(self, sight: Sight, known: Ints, value: Floats) -> None:
        """The slow mean, and the mean of this hour of the day."""
        kept = np.float32(kept_over_step(sight, _DAY_S))
        self._slow[known] *= kept
        self._slow[known] += np.stack([value, np.ones(len(known))], axis=1)
        hour = (sight.moment.end_s - 1) % _DAY_S // _HOUR_S
        kept = np.float32(kept_over_step(sight, 2 * _HOUR_S))
        self._hours[known, hour] *= kept
        self._hours[known, hour] += np.stack([value, np.ones(len(known))], axis=1)

    def _slow_mean(self, sight: Sight, rows: Rows) -> Floats:
        """(s,) of about a day; of two hours as long as that is all there is."""
        total, weight = self._slow[rows, 0], self._slow[rows, 1]
        return np.asarray((total + 3 * np.nan_to_num(sight.long_mean)) / (weight + 3))

    def _facts(self, sight: Sight, slow: Floats, rows: Rows) -> Floats:
        """(s, 6) NaN in the second place where nothing was seen."""
        ahead_s = sight.horizon_steps * sight.moment.step_s
        back = _HOUR_S // sight.moment.step_s - sight.horizon_steps
        window = sight.moment.window
        hour_ago = snap(window[:, -1 - back]) if 0 <= back < window.shape[1] else sight.newest
        hour = (sight.moment.end_s - 1 + ahead_s) % _DAY_S // _HOUR_S
        total, weight = self._hours[rows, hour, 0], self._hours[rows, hour, 1]
        usual = (total + slow) / (weight + 1)
        values = np.stack(
            [
                sight.newest,
                sight.short_mean,
                sight.long_mean,
                np.where(np.isfinite(hour_ago), hour_ago, sight.long_mean),
                usual,
            ],
            axis=1,
        )
        deviation = (values - slow[:, None]) / np.maximum(sight.spread, FLOOR)[:, None]
        return np.concatenate([np.ones((len(slow), 1)), np.clip(deviation, -_CLIP, _CLIP)], axis=1)
