"""Simple ways to predict, each a family of distributions that learns from what comes. Pure.

A family says `cdf(sight, grid, rows)`, (s, m, e): the probability of a target below each edge, from
each of its m members, after `learn(sight, rows)` took the newest outcome in. `rows` are those of
the series whose sight it is. Once per step `turn` comes before. Every state has the series as its
first axis; `arrange` reorders it when series come and go. No member sees what is not in a `Sight`.
s series, e edges, k steps of two hours, n slots of a day.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from controller.core.state import Floats, Ints
from controller.forecast.buckets import MIDDLES, UNSEEN, Buckets, Codes, Small, read
from controller.forecast.centres import Centre
from controller.forecast.grid import Grid
from controller.forecast.learnt import Learnt, lightened, taken
from controller.forecast.levels import Followed
from controller.forecast.moment import Moment
from controller.forecast.seasonal import SLOT_S, SLOTS, slots_ahead
from controller.forecast.sight import Rows, Sight, arranged


class Family(Protocol):
    count: int  # members

    def begin(self, series: int, waiting: int) -> None:
        """For so many series; outcomes come so many learning steps after what was said."""

    def turn(self, seconds: float, slot: int) -> None:
        """A step that learns begins, so long after the last: what it says waits in this slot."""

    def learn(self, sight: Sight, rows: Rows) -> None: ...

    def cdf(self, sight: Sight, grid: Grid, rows: Rows) -> Small: ...

    def remember(self, sight: Sight, rows: Rows) -> None:
        """What is said now of the series that move: to be learnt from when the outcome comes."""

    def arrange(self, places: Ints) -> None: ...

    def learnt(self) -> Learnt:
        """What all series share."""

    def start_from(self, learnt: Learnt) -> None: ...


class Distribution(Protocol):
    """Anything that gives a CDF from a moment and its day (s, n), such as a network."""

    def cdf(self, moment: Moment, day: Small, edges: Floats) -> Floats: ...


_NEAR = 0.4  # of the local spread: how near is alike
_NEAR_SHARE = 0.1  # of the value: nearer is not told apart
_LAG_WEIGHTS = (1.0, 0.5, 0.25)  # of the value now, one slot before, two before
_WINDOW_HALF_LIFE_S = 1800.0
_HOUR_SLOTS = 96.0  # half-life of hours gone by
_STATES = np.array([0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.55, 0.8])
_STATE_OF_CODE = np.searchsorted(_STATES, MIDDLES, side="right").astype(np.uint8)
_STATE_OF_CODE[UNSEEN] = UNSEEN
_FAR_IF_UNSEEN = np.nan_to_num(MIDDLES, nan=1e6)
# Three histograms are counted in one pass: whole parts of weights, in digits of one double each.
_PARTS = 255.0
_DIGITS = 17  # 2**17 > 288 slots * 255
_MASK = (1 << _DIGITS) - 1


class Past:
    """What the past says, without a state of its own but what all series share. Five members:

    what followed a value of this height in all series; the last two hours as a fading histogram;
    what followed such a height in the last day of the series; what followed the moments most like
    this one, by the values of three slots (analogues, Lorenz 1969); the same minute of every hour.
    Each is the prior of the next, as far as little was counted.
    """

    count = 5

    def __init__(self, half_life_s: float) -> None:
        self.followed = Followed(half_life_s)

    def begin(self, series: int, waiting: int) -> None:
        self._states: NDArray[np.int16] = np.full((series, waiting), -1, dtype=np.int16)

    def turn(self, seconds: float, slot: int) -> None:
        self._slot = slot
        self.followed.turn(seconds)

    def arrange(self, places: Ints) -> None:
        self._states = arranged(self._states, places, -1)

    def learn(self, sight: Sight, rows: Rows) -> None:
        states = self._states[rows, self._slot].astype(np.int64)
        self.followed.learn(states, sight.past[:, -1])

    def remember(self, sight: Sight, rows: Rows) -> None:
        states = np.where(sight.still, -1, self.followed.states(sight))
        self._states[rows, self._slot] = states

    def cdf(self, sight: Sight, grid: Grid, rows: Rows) -> Small:
        found = np.empty((len(sight.newest), 5, grid.codes.shape[1]), dtype=np.float32)
        found[:, 0] = followed = self.followed.cdf(sight, grid.codes)
        steps = sight.past.shape[1]
        age_s = np.arange(steps)[::-1] * sight.moment.step_s
        fading = (0.5 ** (age_s / _WINDOW_HALF_LIFE_S)).astype(np.float32)
        window, seen = _below(sight.past, fading, grid.codes)
        found[:, 1] = (window + np.float32(0.04) * followed) / (seen + np.float32(0.04))[:, None]
        (like, alike, hourly), of_day = self._of_day(sight, grid.codes)
        found[:, 2] = (like + 2 * followed) / (of_day[0] + 2)[:, None]
        found[:, 3] = (alike + found[:, 1]) / (of_day[1] + 1)[:, None]
        found[:, 4] = (hourly + found[:, 1]) / (of_day[2] + 1)[:, None]
        return found

    def _of_day(self, sight: Sight, codes: Codes) -> tuple[list[Small], list[Small]]:
        """Counts below each edge, (s, e), and in all, (s,), of three ways to weigh a day."""
        ahead = slots_ahead(sight)
        weight = np.zeros(sight.day.shape, dtype=np.float64)
        weight[:, ahead:] = _alike(sight, ahead)
        weight[:, ahead:] += _like_height(sight, ahead) * float(1 << _DIGITS)
        behind = np.arange(SLOTS)[::-1] + ahead
        same_minute = np.rint(0.5 ** (behind / _HOUR_SLOTS) * _PARTS)
        same_minute[behind % (3600 // SLOT_S) != 0] = 0
        weight += same_minute * float(1 << 2 * _DIGITS)
        below, total = _counted(sight.day, weight, codes)
        digits = (_DIGITS, 0, 2 * _DIGITS)
        return (
            [_digit(below, shift) for shift in digits],
            [_digit(total, shift) for shift in digits],
        )

    def learnt(self) -> Learnt:
        """Nothing: what follows what tells fleets apart."""
        return {}

    def start_from(self, learnt: Learnt) -> None:
        """It begins with going on as it is."""


def _like_height(sight: Sight, ahead: int) -> Floats:
    """(s, n - ahead) `_PARTS` where the slot a horizon before was of the height of now."""
    state = np.take(_STATE_OF_CODE, sight.day[:, :-ahead])
    now = np.take(_STATE_OF_CODE, sight.newest_code)
    return np.where(state == now[:, None], _PARTS, 0.0)


def _alike(sight: Sight, ahead: int) -> Small:
    """(s, n - ahead) whole parts: how like now each moment was whose outcome lies in the slot."""
    unit = _NEAR * np.maximum(sight.spread, _NEAR_SHARE * np.nan_to_num(sight.newest))
    scaled = np.take(_FAR_IF_UNSEEN, sight.day[:, :-ahead])
    scaled *= (1 / unit).astype(np.float32)[:, None]
    apart = np.zeros_like(scaled)
    stride = max(1, SLOT_S // sight.moment.step_s)
    for lag, weight in enumerate(_LAG_WEIGHTS):
        at = min(1 + lag * stride, sight.past.shape[1])
        now = np.take(MIDDLES, sight.past[:, -at]) / unit
        gap = scaled[:, : scaled.shape[1] - lag] - np.nan_to_num(now, nan=-1e6)[:, None]
        gap *= gap
        apart[:, lag:] += gap if weight == 1 else np.float32(weight) * gap
    apart *= np.float32(-0.5)
    alike = np.exp(apart, out=apart)
    alike[:, : len(_LAG_WEIGHTS) - 1] = 0
    alike *= np.float32(_PARTS)
    return np.rint(alike, out=alike)


def _counted(cells: Codes, weight: Floats, codes: Codes) -> tuple[Floats, Floats]:
    """(s, e) weight below each edge and (s,) of all that was seen."""
    series = len(cells)
    size = UNSEEN + 1
    place = cells + np.arange(series)[:, None] * size
    counted = np.bincount(place.ravel(), weight.ravel(), series * size)
    upto: Floats = np.cumsum(counted.reshape(series, size), axis=1, dtype=np.float64)
    at = np.arange(series)[:, None] * size + codes
    return np.take(upto, at - 1), upto[:, UNSEEN - 1]


def _below(cells: Codes, weight: Small, codes: Codes) -> tuple[Small, Small]:
    """(s, e) weight (k,) below each edge and (s,) of all that was seen, of few cells (s, k)."""
    below = np.less(cells[:, None, :], codes[:, :, None]).astype(np.float32)
    seen = (cells != UNSEEN).astype(np.float32)
    return below @ weight, seen @ weight


def _digit(packed: Floats, shift: int) -> Small:
    """One of the counts that were packed into doubles, in outcomes."""
    whole = packed.astype(np.int64) >> shift
    return np.asarray((whole & _MASK) * np.float32(1 / _PARTS), dtype=np.float32)


_PRIOR_ERRORS = 4.0
_RESCALED = 8.0
_ERRORS_AT_FIRST = 1000.0  # outcomes that what others taught counts as


class Residuals:
    """Point forecasts with the distributions of their own errors, those of all series as prior."""

    def __init__(self, centres: Sequence[Centre], buckets: Buckets, half_life_s: float) -> None:
        self._centres, self._buckets, self._half_life_s = centres, buckets, half_life_s
        self.count = len(centres)
        # A narrow triangle around 0 until errors were seen.
        middle = (buckets.bounds[1:] + buckets.bounds[:-1]) / 2
        self._of_all = np.tile(np.exp(-np.abs(middle) / np.abs(middle).max() * 20), (self.count, 1))
        # Instead of fading all that was counted, what is counted grows: one cell is written.
        self._one = 1.0
        self.begin(0, 1)

    def begin(self, series: int, waiting: int) -> None:
        shape = (series, self.count, self._buckets.count)
        self._mass: NDArray[np.float16] = np.zeros(shape, dtype=np.float16)
        self._waiting: Small = np.full((series, waiting, self.count + 1), np.nan, dtype=np.float32)

    def turn(self, seconds: float, slot: int) -> None:
        self._slot = slot
        kept = 0.5 ** (seconds / self._half_life_s)
        self._of_all *= kept
        self._one /= kept
        if self._one > _RESCALED:
            self._mass *= np.float16(1 / self._one)
            self._one = 1.0

    def arrange(self, places: Ints) -> None:
        self._mass = arranged(self._mass, places)
        self._waiting = arranged(self._waiting, places, np.nan)

    def learn(self, sight: Sight, rows: Rows) -> None:
        waiting = self._waiting[rows, self._slot]
        unit, centre = waiting[:, :1], waiting[:, 1:]
        error = (sight.outcome[:, None] - centre) / unit
        known = np.flatnonzero(np.isfinite(error).all(axis=1))
        # A hair up: errors that are exactly a bound belong above it in spite of rounding.
        cell = self._buckets.of(error[known] + np.float32(1e-6))
        every = np.arange(self.count)
        of_all = np.bincount(
            (cell + every * self._buckets.count).ravel(), minlength=self._of_all.size
        )
        self._of_all += of_all.reshape(self._of_all.shape)
        where = _numbers(rows, len(waiting))[known, None]
        self._mass[where, every, cell] += np.float16(self._one)

    def remember(self, sight: Sight, rows: Rows) -> None:
        unit = np.where(sight.still, np.float32(np.nan), sight.spread)
        said = [unit, *(centre(sight) for centre in self._centres)]
        self._waiting[rows, self._slot] = np.stack(said, axis=1)

    def cdf(self, sight: Sight, grid: Grid, rows: Rows) -> Small:
        mass = self._mass[rows].astype(np.float32)
        prior = self._of_all / self._of_all.sum(axis=1, keepdims=True)
        mass += (self._one * _PRIOR_ERRORS * prior).astype(np.float32)
        found = np.empty((len(mass), self.count, grid.codes.shape[1]), dtype=np.float32)
        edges = grid.edges
        for number, centre in enumerate(self._centres):
            error = (edges - np.nan_to_num(centre(sight))[:, None]) / sight.spread[:, None]
            found[:, number] = read(mass[:, number], *self._buckets.place(error))
        return found

    def learnt(self) -> Learnt:
        return {"errors": lightened(self._of_all, _ERRORS_AT_FIRST, axis=1)}

    def start_from(self, learnt: Learnt) -> None:
        errors = taken(learnt, "errors", self._of_all.shape)
        self._of_all = lightened(np.maximum(errors, 0), _ERRORS_AT_FIRST, axis=1)


class External:
    """A distribution from outside, such as the network's, as a family of one."""

    count = 1

    def __init__(self, source: Distribution) -> None:
        self._source = source

    def begin(self, series: int, waiting: int) -> None:
        """Its state is its own."""

    def turn(self, seconds: float, slot: int) -> None:
        """It was taught elsewhere."""

    def arrange(self, places: Ints) -> None:
        """Its state is its own."""

    def learn(self, sight: Sight, rows: Rows) -> None:
        """It was taught elsewhere."""

    def remember(self, sight: Sight, rows: Rows) -> None:
        """It was taught elsewhere."""

    def cdf(self, sight: Sight, grid: Grid, rows: Rows) -> Small:
        edges = grid.edges.astype(np.float64)
        found = self._source.cdf(sight.moment, np.take(MIDDLES, sight.day), edges)
        return np.asarray(found[:, None, :], dtype=np.float32)

    def learnt(self) -> Learnt:
        return {}

    def start_from(self, learnt: Learnt) -> None:
        """It was taught elsewhere."""


def _numbers(rows: Rows, count: int) -> Ints:
    if isinstance(rows, slice):
        return np.arange(count) + (rows.start or 0)
    return rows
