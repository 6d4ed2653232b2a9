"""What the last day tells of now: the same time, the same minute of the hour, the like moments.

One ring per series holds the targets of a day in slots of five minutes. From it are read a point
forecast (the same time yesterday) and histograms of what came: at the same minute of every hour,
and after the moments that were most like this one (nearest neighbours in the values of the last
three slots; Lorenz's analogues, 1969). Pure. s series, e edges, n slots.
"""

import numpy as np
from numpy.typing import NDArray

from controller.core.state import Bools, Floats, Ints
from controller.forecast.buckets import LEVELS_OF_USE, read
from controller.forecast.sight import EVERY, Rows, Sight, Small, arranged

SLOT_S = 300
SLOTS = 86_400 // SLOT_S
_SLOTS_OF_HOUR = 3600 // SLOT_S
_RECENT_SLOTS = 9.0  # half-life of the histogram that stands in where nothing is alike
_RECENT_MAX = 48
_HOUR_SLOTS = 96.0  # half-life of hours gone by
_NEAR = 0.4  # of the local spread: how near is alike
_NEAR_SHARE = 0.05  # of the value: nearer is not told apart
_LAG_WEIGHTS = (1.0, 0.5, 0.25)  # of the value now, one slot before, two before


class Day:
    """The targets of a day. `Analogues` keep it; `Yesterday`, learning after them, reads it."""

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, series: int) -> None:
        self._ring: Small = np.full((series, SLOTS), np.nan, dtype=np.float32)
        self._cell = np.zeros((series, SLOTS), dtype=np.uint8)  # of `LEVELS_OF_USE`
        self._last = 0  # slot that was put last

    def arrange(self, places: Ints) -> None:
        self._ring = arranged(self._ring, places, np.nan)
        self._cell = self._cell[np.maximum(places, 0)]

    def put(self, sight: Sight) -> None:
        slot = self._last = _slot(sight)
        self._ring[:, slot] = sight.outcome
        self._cell[:, slot] = LEVELS_OF_USE.of(np.nan_to_num(sight.outcome))

    def yesterday(self, sight: Sight, rows: Rows) -> Floats:
        """(s,) what the target was a day before the one that is asked for; NaN: not seen."""
        slot = (self._last + _ahead(sight)) % SLOTS
        return np.asarray(self._ring[rows, slot], dtype=np.float64)

    def ordered(self, rows: Rows) -> tuple[Small, NDArray[np.uint8]]:
        """(s, n) targets and their cells, the newest last."""
        back = -(self._last + 1)
        return np.roll(self._ring[rows], back, axis=1), np.roll(self._cell[rows], back, axis=1)


class Analogues:
    """Histograms of the day: after like moments, and at the same minute of every hour."""

    count = 2

    def __init__(self, day: Day) -> None:
        self._day = day

    def begin(self, series: int) -> None:
        self._day.begin(series)

    def arrange(self, places: Ints) -> None:
        self._day.arrange(places)

    def learn(self, sight: Sight) -> None:
        self._day.put(sight)

    def cdf(self, sight: Sight, edges: Floats, rows: Rows = EVERY) -> Floats:
        values, cell = self._day.ordered(rows)
        known = np.isfinite(values)
        values = np.where(known, values, np.float32(0))
        age = np.arange(SLOTS)[::-1]
        behind = age + _ahead(sight)
        hours = np.flatnonzero(behind % _SLOTS_OF_HOUR == 0)
        near = slice(-_RECENT_MAX, None)
        recent = _histogram(cell[:, near], known[:, near] * 0.5 ** (age[near] / _RECENT_SLOTS))
        recent += 1e-3 * np.diff(LEVELS_OF_USE.bounds)
        recent /= recent.sum(axis=1, keepdims=True)
        alike = _histogram(cell, known * _alike(values, known, sight))
        same_minute = known[:, hours] * 0.5 ** (behind[hours] / _HOUR_SLOTS)
        hourly = _histogram(cell[:, hours], same_minute)
        at, part = LEVELS_OF_USE.place(edges)
        return np.stack([read(each + recent, at, part) for each in (alike, hourly)], axis=1)


class Yesterday:
    """A `Centre`: the same time a day before; the mean of two hours where that was not seen."""

    def __init__(self, day: Day) -> None:
        self._day = day

    def begin(self, series: int) -> None:
        """The day is not its own."""

    def arrange(self, places: Ints) -> None:
        """The day is not its own."""

    def learn(self, sight: Sight) -> None:
        """The day was told already."""

    def remember(self, sight: Sight) -> None:
        """Nothing is learnt."""

    def place(self, sight: Sight, rows: Rows = EVERY) -> tuple[Floats, Floats]:
        before = self._day.yesterday(sight, rows)
        return np.where(np.isfinite(before), before, sight.long_mean), sight.spread


def _alike(values: Small, known: Bools, sight: Sight) -> Small:
    """(s, n) how like now each moment was whose outcome, a horizon later, lies in the slot."""
    unit = _NEAR * np.maximum(sight.spread, _NEAR_SHARE * np.nan_to_num(sight.newest))
    scaled = values / unit.astype(np.float32)[:, None]
    ahead = _ahead(sight)
    apart = np.zeros_like(scaled)
    for lag, weight in enumerate(_LAG_WEIGHTS):
        now = scaled[:, -1 - lag, None]
        apart[:, ahead + lag :] += np.float32(weight) * (
            (scaled[:, : SLOTS - ahead - lag] - now) ** 2
        )
    alike = np.exp(np.float32(-0.5) * apart)
    alike[:, : ahead + len(_LAG_WEIGHTS)] = 0
    alike[:, ahead:] *= known[:, :-ahead]
    return alike


def _histogram(cell: NDArray[np.uint8], weight: Floats | Small) -> Floats:
    series, size = len(cell), LEVELS_OF_USE.count
    place = cell + np.arange(series)[:, None] * size
    counted = np.bincount(place.ravel(), weight.ravel(), series * size)
    return np.asarray(counted, dtype=np.float64).reshape(series, size)


def _slot(sight: Sight) -> int:
    return int((sight.moment.end_s - 1) // SLOT_S % SLOTS)


def _ahead(sight: Sight) -> int:
    """Slots to the target."""
    return max(1, sight.horizon_steps * sight.moment.step_s // SLOT_S)
