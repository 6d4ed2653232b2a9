"""Corrections of a mixture from what became of its predictions. Pure. s series, e edges, q levels.

`Reliability` asks of every edge: of all the times that its probability was said to be near p, so
far from the newest value, how often did the target of any series fall below? The difference is
added, and only as far as it would have lowered the score so far (the best step along the
correction, in closed form, never outside 0 to 1). `Conformal` moves the level at which a quantile
is read so that the share of targets above it tends to what was promised (adaptive conformal
inference, Gibbs and Candes 2021), whatever the series does.
"""

import numpy as np

from controller.core.state import Floats, Ints
from controller.forecast.buckets import Buckets, Small
from controller.forecast.grid import Grid, quantile_at
from controller.forecast.learnt import Learnt, taken
from controller.forecast.moment import LEVELS
from controller.forecast.sight import EVERY, Rows, arranged

_DAMPING = 1e-12
_KNOTS = Buckets(
    np.array([0, 0.004, 0.015, 0.04, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.96, 0.985, 0.996, 1]),
    0.001,
)
_DISTANCE = Buckets(np.array([-5, -4, -1.5, -0.5, 0, 0.5, 1.5, 4, 5]), 0.5)
_SIZE = len(_KNOTS.bounds)


class Reliability:
    """How often what was said came true, by probability and by the distance from the newest."""

    def __init__(self, kept: float = 0.998) -> None:
        self._kept = kept
        self.table = np.zeros((_DISTANCE.count * _SIZE, 2))  # missed, seen
        self.gain = np.zeros(2)  # what the correction would have won, and its size

    def turn(self) -> None:
        """Once per step that learns."""
        self.table *= self._kept
        self.gain *= self._kept

    def correct(self, cdf: Small, edges: Small, newest: Small, spread: Small) -> Small:
        """(s, e) CDFs with as much of the correction as it was worth so far; ascending."""
        worth = float(np.clip(self.gain[0] / (self.gain[1] + _DAMPING), 0, 1))
        if worth == 0:
            return ascending(cdf)
        knot, part, distance = _cells(cdf, edges, newest, spread)
        return ascending(cdf + np.float32(worth) * self._whole(knot, part, distance))

    def learn(
        self, cdf: Small, edges: Small, newest: Small, spread: Small, came: Small, weight: Small
    ) -> None:
        """Of what was said: whether the target came below each edge, and weights, (s, e) each."""
        knot, part, distance = _cells(cdf, edges, newest, spread)
        missed = (came - cdf) * weight
        change = ascending(cdf + self._whole(knot, part, distance)) - cdf
        self.gain += (change * missed).sum(), (change**2 * weight).sum()
        nearest = (distance * _SIZE + knot + (part > 0.5)).ravel()  # noqa: PLR2004 - half of the way
        for kind, amount in enumerate((missed, weight)):
            self.table[:, kind] += np.bincount(nearest, amount.ravel(), len(self.table))

    def _whole(self, knot: Ints, part: Small, distance: Ints) -> Small:
        known = (self.table[:, 0] / (self.table[:, 1] + 1.0)).astype(np.float32)
        place = distance * _SIZE + knot
        low = np.take(known, place)
        return np.asarray(low + part * (np.take(known, place + 1) - low))


def ascending(cdf: Small) -> Small:
    """The mean of the least ascending line above and the highest below, within 0 and 1."""
    above = np.maximum.accumulate(cdf, axis=1)
    below = np.minimum.accumulate(cdf[:, ::-1], axis=1)[:, ::-1]
    return np.clip((above + below) / 2, 0, 1)


def _cells(cdf: Small, edges: Small, newest: Small, spread: Small) -> tuple[Ints, Small, Ints]:
    knot, part = _KNOTS.place(cdf)
    apart = edges - np.nan_to_num(newest)[:, None]
    return knot, part, _DISTANCE.of(apart / spread[:, None])


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
        self.fleet = np.zeros(len(LEVELS))
        self.begin(0, 1)

    def begin(self, series: int, waiting: int) -> None:
        self._moved: Small = np.zeros((series, len(LEVELS)), dtype=np.float32)
        self._missed, self._counted = np.zeros(len(LEVELS)), 0
        shape = (series, waiting, len(LEVELS))
        self._waiting: Small = np.full(shape, np.nan, dtype=np.float32)

    def turn(self, slot: int) -> None:
        """Once per step that learns."""
        self._slot = slot
        if self._counted:
            missed = self._missed / self._counted
            self.fleet = np.clip(self.fleet + self._fleet_rate * missed, -2.0, 2.0)
        self._missed, self._counted = np.zeros(len(LEVELS)), 0

    def arrange(self, places: Ints) -> None:
        self._moved = arranged(self._moved, places)
        self._waiting = arranged(self._waiting, places, np.nan)

    def learnt(self) -> Learnt:
        return {"moved": self.fleet.copy()}

    def start_from(self, learnt: Learnt) -> None:
        self.fleet = taken(learnt, "moved", self.fleet.shape)

    def read(self, cdf: Small, grid: Grid, rows: Rows = EVERY) -> Small:
        """(s, q) quantiles at the moved `levels`, ascending."""
        moved = (self.fleet + self._moved[rows]) @ self._between
        return _read(cdf, grid, self._odds + moved)

    def remember(self, cdf: Small, grid: Grid, rows: Rows = EVERY) -> None:
        """Learn from what this says at `LEVELS` when the outcome comes."""
        quantile = _read(cdf, grid, _odds(LEVELS) + self.fleet + self._moved[rows])
        self._waiting[rows, self._slot] = quantile

    def forget(self, rows: Rows) -> None:
        """Nothing was said of these."""
        self._waiting[rows, self._slot] = np.nan

    def learn(self, outcome: Small, rows: Rows = EVERY) -> None:
        quantile = self._waiting[rows, self._slot]
        known = np.isfinite(outcome) & np.isfinite(quantile[:, 0])
        # In log odds a step is as far for every level when it is taken relative to its room.
        over = (outcome[:, None] > quantile) * known[:, None]
        missed = (over - (1 - LEVELS) * known[:, None]) / (1 - LEVELS)
        step = self._rate * np.minimum(missed, 5.0 / (1 - LEVELS)) * (1 - LEVELS) * 4
        self._moved[rows] = np.clip(self._moved[rows] + step, -1.0, 1.5)
        self._missed += missed.sum(axis=0)
        self._counted += int(known.sum())


def _odds(level: Floats) -> Floats:
    return np.asarray(np.log(level / (1 - level)))


def _between(known: Floats, wanted: Floats) -> Floats:
    """(k, q) what each known place counts at the wanted ones: linear, the outermost beyond."""
    return np.stack([np.interp(wanted, known, one) for one in np.eye(len(known))])


def _read(cdf: Small, grid: Grid, odds: Floats) -> Small:
    level = np.maximum.accumulate(1 / (1 + np.exp(-odds)), axis=1)
    return np.asarray(np.maximum.accumulate(quantile_at(cdf, grid, level), axis=1))
