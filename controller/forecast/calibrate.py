"""Corrections of a mixture from what became of its predictions. Pure. s series, e edges, q levels.

`Reliability` asks of every edge: of all the times that its probability was said to be near p,
how often did the target fall below? The difference is added, from the series and from all series,
and only as far as it would have lowered the score so far (the best step along the correction, in
closed form, never outside 0 to 1). `Conformal` moves the level at which a quantile is read so that
the share of targets above it tends to what was promised (adaptive conformal inference, Gibbs and
Candes 2021), whatever the series does.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from controller.core.state import Floats, Ints
from controller.forecast.buckets import Buckets
from controller.forecast.grid import quantile_at
from controller.forecast.moment import LEVELS
from controller.forecast.sight import EVERY, Rows, Sight, Small, arranged

_DAMPING = 1e-12
_KNOTS = Buckets(
    np.array([0, 0.004, 0.015, 0.04, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.96, 0.985, 0.996, 1]),
    0.001,
)
_DISTANCE = Buckets(np.array([-5, -4, -1.5, -0.5, 0, 0.5, 1.5, 4, 5]), 0.5)
_SIZE = len(_KNOTS.bounds)


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """A mixture's CDF at edges, as it was before and after correction. (s, e) each."""

    cdf: Small
    corrected: Small
    edges: Small
    newest: Small  # (s,)
    spread: Small  # (s,)

    @classmethod
    def packed(cls, cdf: Floats, corrected: Floats, edges: Floats, sight: Sight) -> "Said":
        small = [each.astype(np.float32) for each in (cdf, corrected, sight.newest, sight.spread)]
        # Edges of the bins are rounded up: no share that was below one may come to lie above.
        rounded = np.nextafter(edges.astype(np.float32), np.float32(9))
        return cls(small[0], small[1], rounded, small[2], small[3])

    def of(self, rows: Ints) -> "Said":
        return Said(
            self.cdf[rows],
            self.corrected[rows],
            self.edges[rows],
            self.newest[rows],
            self.spread[rows],
        )

    def arranged(self, places: Ints) -> "Said":
        return self.of(np.maximum(places, 0))


class Reliability:
    """How often what was said came true, by probability and by the distance from the newest."""

    def __init__(
        self, kept: float = 0.998, kept_of_all: float = 0.998, prior_outcomes: float = 100.0
    ) -> None:
        self._kept, self._kept_of_all, self._prior = kept, kept_of_all, prior_outcomes
        self._fleet = np.zeros((_DISTANCE.count * _SIZE, 2))
        self._fleet_gain = np.zeros(2)
        self.begin(0)

    def begin(self, series: int) -> None:
        self._own: Small = np.zeros((series, 2, 2 * _SIZE), dtype=np.float32)
        self._gain: Small = np.zeros((series, 2), dtype=np.float32)

    def arrange(self, places: Ints) -> None:
        self._own, self._gain = arranged(self._own, places), arranged(self._gain, places)

    def correct(
        self, cdf: Floats, edges: Floats, newest: Floats, spread: Floats, rows: Rows = EVERY
    ) -> Floats:
        """(s, e) CDFs of which all of the correction is made; ascending."""
        knot, part, side, distance = _cells(cdf, edges, newest, spread)
        fleet = self._fleet[:, 0] / (self._fleet[:, 1] + 1.0)
        place = distance * _SIZE + knot
        prior = fleet[place] * (1 - part) + fleet[place + 1] * part
        mine = self._own[rows]
        own = mine[:, 0] / (mine[:, 1] + self._prior)
        place = side * _SIZE + knot
        low = np.take_along_axis(own, place, axis=1)
        high = np.take_along_axis(own, place + 1, axis=1)
        return ascending(cdf + prior + low * (1 - part) + high * part)

    def mixed(self, cdf: Floats, corrected: Floats, rows: Rows = EVERY) -> Floats:
        """The CDFs with as much of the correction as it was worth so far."""
        gain = self._gain[rows]
        worth = gain + self._fleet_gain * (20 / (self._fleet_gain[1] + _DAMPING)) * (
            gain[:, 1:] / 20 + 1e-6
        )
        part = np.clip(worth[:, 0] / (worth[:, 1] + _DAMPING), 0, 1)
        return np.asarray(cdf + part[:, None] * (corrected - cdf))

    def learn(self, known: Ints, said: Said, came: Small, weight: Small) -> None:
        """`said` of the rows `known`, whether the target came below each edge (0, 1), weights."""
        cdf, edges = said.cdf, said.edges
        missed = (came - cdf) * weight
        change = said.corrected - cdf
        gain = np.stack([(change * missed).sum(axis=1), (change**2 * weight).sum(axis=1)], axis=1)
        self._gain[known] = self._gain[known] * np.float32(self._kept) + gain
        self._fleet_gain = self._fleet_gain * self._kept_of_all + gain.sum(axis=0)
        knot, part, side, distance = _cells(
            *(np.asarray(each, dtype=np.float64) for each in (cdf, edges, said.newest, said.spread))
        )
        left = (came - said.corrected) * weight
        nearest = knot + (part > 0.5)  # noqa: PLR2004 - half of the way to the next
        row = np.arange(len(known))[:, None] * (2 * _SIZE)
        own = (row + side * _SIZE + nearest).ravel()
        fleet = (distance * _SIZE + nearest).ravel()
        kept = np.float32(self._kept)
        for kind, amount, of_all in ((0, left, missed), (1, weight, weight)):
            added = np.bincount(own, amount.ravel(), len(known) * 2 * _SIZE)
            self._own[known, kind] *= kept
            self._own[known, kind] += added.reshape(len(known), 2 * _SIZE)
            seen = np.bincount(fleet, of_all.ravel(), len(self._fleet))
            self._fleet[:, kind] = self._fleet[:, kind] * self._kept_of_all + seen


def ascending(cdf: Floats) -> Floats:
    """The mean of the least ascending line above and the highest below, within 0 and 1."""
    above = np.maximum.accumulate(cdf, axis=1)
    below = np.minimum.accumulate(cdf[:, ::-1], axis=1)[:, ::-1]
    return np.clip((above + below) / 2, 0, 1)


def _cells(
    cdf: Floats, edges: Floats, newest: Floats, spread: Floats
) -> tuple[Ints, Floats, Ints, Ints]:
    knot, part = _KNOTS.place(cdf)
    apart = edges - np.nan_to_num(newest)[:, None]
    distance = _DISTANCE.of(apart / spread[:, None])
    return knot, part, (apart > 0).astype(np.int64), distance


class Conformal:
    """Levels at which quantiles are read, moved by what each series did; and all of them.

    Moves are learnt at `moment.LEVELS`; other `levels`, ascending, lie between them in log odds.
    """

    def __init__(
        self, levels: Floats = LEVELS, rate: float = 0.03, fleet_rate: float = 0.05
    ) -> None:
        within = len(levels) > 0 and levels[0] > 0 and levels[-1] < 1
        if not within or (np.diff(levels) <= 0).any():
            raise ValueError(f"levels of quantiles must ascend between 0 and 1: {levels}")
        self._odds = _odds(levels)
        self._between = _between(_odds(LEVELS), self._odds)
        self._rate, self._fleet_rate = rate, fleet_rate
        self._fleet = np.zeros(len(LEVELS))
        self._waiting: deque[Floats] = deque()
        self.begin(0)

    def begin(self, series: int) -> None:
        self._moved: Small = np.zeros((series, len(LEVELS)), dtype=np.float32)
        self._waiting.clear()

    def arrange(self, places: Ints) -> None:
        self._moved = arranged(self._moved, places)
        self._waiting = deque(arranged(each, places, np.nan) for each in self._waiting)

    def read(self, cdf: Floats, edges: Floats, rows: Rows = EVERY) -> Floats:
        """(s, q) quantiles at the moved `levels`, ascending."""
        moved = (self._fleet + self._moved[rows]) @ self._between
        return _read(cdf, edges, self._odds + moved)

    def remember(self, cdf: Floats, edges: Floats) -> None:
        """Learn from what this said at `LEVELS` when the outcome comes."""
        self._waiting.append(_read(cdf, edges, _odds(LEVELS) + self._fleet + self._moved))

    def learn(self, sight: Sight) -> None:
        if len(self._waiting) < sight.horizon_steps:
            return
        quantile = self._waiting.popleft()
        known = np.flatnonzero(np.isfinite(sight.outcome) & np.isfinite(quantile[:, 0]))
        if not len(known):
            return
        # In log odds a step is as far for every level when it is taken relative to its room.
        missed = ((sight.outcome[known, None] > quantile[known]) - (1 - LEVELS)) / (1 - LEVELS)
        step = self._rate * np.minimum(missed, 5.0 / (1 - LEVELS)) * (1 - LEVELS) * 4
        self._moved[known] = np.clip(self._moved[known] + step, -1.0, 1.5)
        self._fleet = np.clip(self._fleet + self._fleet_rate * missed.mean(axis=0), -2.0, 2.0)


def _odds(level: Floats) -> Floats:
    return np.asarray(np.log(level / (1 - level)))


def _between(known: Floats, wanted: Floats) -> Floats:
    """(k, q) what each known place counts at the wanted ones: linear, the outermost beyond."""
    return np.stack([np.interp(wanted, known, one) for one in np.eye(len(known))])


def _read(cdf: Floats, edges: Floats, odds: Floats) -> Floats:
    level = np.maximum.accumulate(1 / (1 + np.exp(-odds)), axis=1)
    return np.asarray(np.maximum.accumulate(quantile_at(cdf, edges, level), axis=1))
