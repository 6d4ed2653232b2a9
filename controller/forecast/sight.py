"""What the members of the mixture see of a moment, and the helpers of their states. Pure.

s series, w steps of the window, h steps of the horizon, k steps of two hours, n slots of a day.
"""

from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from controller.core.state import Bools, Floats, Ints
from controller.forecast.buckets import Codes, Small, encode
from controller.forecast.grid import FLOOR, snap
from controller.forecast.moment import Moment

Target = Literal["value", "peak"]
Kind = TypeVar("Kind", Floats, Small, Ints, Codes, NDArray[np.int16], NDArray[np.float16])
Rows = slice | Ints  # of the series, whose states are read
EVERY = slice(None)
WINDOW_S = 7200  # of the window histogram and of the local mean and spread
_HALF_HOUR_S = 1800
_NEW_CHANGE = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Sight:
    """What members see: a moment, and what follows from it alone."""

    moment: Moment
    horizon_steps: int
    newest: Small  # (s,) the last value seen in the window; NaN: none
    past: Codes  # (s, k) targets that came true within the last two hours, the newest last
    values: Small  # (s, k) they themselves; NaN: not seen
    outcome: Small  # (s,) the newest of them; NaN: not seen
    short_mean: Small  # (s,) of half an hour
    long_mean: Small  # (s,) of two hours
    spread: Small  # (s,) mean absolute change over the horizon within two hours, not below FLOOR
    still: Bools  # (s,) whether neither mean nor peak moved within two hours
    newest_code: Codes  # (s,)
    day: Codes  # (s, n) targets of a day by slots (`seasonal.Day`), the newest last

    @property
    def ahead_s(self) -> int:
        """Seconds from now to the target."""
        return self.horizon_steps * self.moment.step_s

    def on(self, day: Codes) -> "Sight":
        """With what the last day was."""
        return replace(self, day=day)

    def of(self, rows: Ints) -> "Sight":
        """Of some series alone."""
        moment = self.moment
        return replace(
            self,
            moment=rows_of(moment, rows),
            newest=self.newest[rows],
            past=self.past[rows],
            values=self.values[rows],
            outcome=self.outcome[rows],
            short_mean=self.short_mean[rows],
            long_mean=self.long_mean[rows],
            spread=self.spread[rows],
            still=self.still[rows],
            newest_code=self.newest_code[rows],
            day=self.day[rows],
        )


def look(moment: Moment, horizon_steps: int, target: Target) -> Sight:
    """The sight of a moment, its day empty; shares are snapped to the side on which they count."""
    steps = max(1, WINDOW_S // moment.step_s)
    recent = snap(moment.window[:, -steps - horizon_steps :].astype(np.float32))
    values = recent[:, -steps:]
    past = values if target == "value" else _block_maxima(moment, horizon_steps, steps)
    known = np.isfinite(recent)
    newest = _newest(values, known[:, -steps:])
    half_hour = max(1, _HALF_HOUR_S // moment.step_s)
    filled = np.where(known, recent, np.float32(0))
    short_mean = _mean(filled[:, -half_hour:], known[:, -half_hour:], newest)
    long_mean = _mean(filled[:, -steps:], known[:, -steps:], newest)
    return Sight(
        moment=moment,
        horizon_steps=horizon_steps,
        newest=newest,
        past=encode(past),
        values=past,
        outcome=past[:, -1],
        short_mean=short_mean,
        long_mean=long_mean,
        spread=_spread(filled, known, horizon_steps, newest),
        still=_still(values) & _still(moment.peak[:, -steps:]),
        newest_code=encode(newest),
        day=np.zeros((len(newest), 0), dtype=np.uint8),
    )


def rows_of(moment: Moment, rows: Ints | slice) -> Moment:
    """The moment of some series alone."""
    return replace(
        moment,
        window=moment.window[rows],
        peak=moment.peak[rows],
        others=moment.others[rows],
        kind=moment.kind if isinstance(moment.kind, int) else moment.kind[rows],
    )


def arranged(state: Kind, places: Ints, fresh: float = 0.0) -> Kind:
    """Rows of a state at `places`; `fresh` in rows that are new (-1)."""
    if len(state) == 0:
        return np.full((len(places), *state.shape[1:]), fresh, dtype=state.dtype)
    found = state[np.maximum(places, 0)]
    found[places < 0] = fresh
    return found


def _spread(filled: Small, known: Bools, horizon: int, newest: Small) -> Small:
    """(s,) with one change more than was seen: a tenth of the value, for series still new."""
    change = np.abs(filled[:, horizon:] - filled[:, :-horizon])
    both = known[:, horizon:] & known[:, :-horizon]
    total = (change * both).sum(axis=1) + np.float32(_NEW_CHANGE) * np.nan_to_num(newest)
    spread = total / (both.sum(axis=1) + np.float32(1))
    return np.asarray(np.maximum(spread, np.float32(FLOOR)), dtype=np.float32)


def _block_maxima(moment: Moment, horizon: int, steps: int) -> Small:
    """(s, k) highest peak of every stretch of a horizon; NaN where less than half was seen."""
    peak = snap(moment.peak[:, -steps - horizon + 1 :].astype(np.float32))
    width = peak.shape[1] - min(horizon, peak.shape[1]) + 1
    highest = peak[:, :width].copy()
    count = np.isfinite(highest).astype(np.int16)
    for later in range(1, peak.shape[1] - width + 1):
        stretch = peak[:, later : later + width]
        np.fmax(highest, stretch, out=highest)
        count += np.isfinite(stretch)
    highest[2 * count < horizon] = np.nan
    return highest


def _still(values: Floats | Small) -> Bools:
    """(s,) whether all that was seen is the same, and at least half was."""
    apart = np.fmax.reduce(values, axis=1) - np.fmin.reduce(values, axis=1)
    seen = np.isfinite(values).sum(axis=1)
    return np.asarray((apart < FLOOR) & (2 * seen >= values.shape[1]))


def _newest(values: Small, known: Bools) -> Small:
    """(s,) the last value seen, NaN where there is none."""
    last = values.shape[1] - 1 - np.argmax(known[:, ::-1], axis=1)
    return np.take_along_axis(values, last[:, None], axis=1)[:, 0]


def _mean(filled: Small, known: Bools, otherwise: Small) -> Small:
    count = known.sum(axis=1)
    total = filled.sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1).astype(np.float32), otherwise)
