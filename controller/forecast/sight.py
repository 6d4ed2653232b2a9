"""What the members of the mixture see of a moment, and the helpers of their states. Pure.

s series, w steps of the window, h steps of the horizon, k steps of two hours.
"""

from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from controller.core.state import Bools, Floats, Ints
from controller.forecast.grid import FLOOR, snap
from controller.forecast.moment import Moment

Target = Literal["value", "peak"]
Small = NDArray[np.float32]  # of states that every series has
Kind = TypeVar("Kind", Floats, Small, Ints)
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
    newest: Floats  # (s,) the last value seen in the window; NaN: none
    past: Floats  # (s, k) targets that came true within the last two hours, the newest last
    outcome: Floats  # (s,) the newest of them; NaN: not seen
    short_mean: Floats  # (s,) of half an hour
    long_mean: Floats  # (s,) of two hours
    spread: Floats  # (s,) mean absolute change over the horizon within two hours, not below FLOOR
    still: Bools  # (s,) whether neither mean nor peak moved within two hours


def look(moment: Moment, horizon_steps: int, target: Target) -> Sight:
    """The sight of a moment; shares are snapped to the side of an edge on which they count."""
    steps = max(1, WINDOW_S // moment.step_s)
    recent = snap(moment.window[:, -steps - horizon_steps :])
    past = recent[:, -steps:] if target == "value" else _block_maxima(moment, horizon_steps, steps)
    values = recent[:, -steps:]
    newest = _newest(values)
    change = np.abs(recent[:, horizon_steps:] - recent[:, :-horizon_steps])
    # One change more than was seen: a tenth of the value, for series that are still new.
    usual = _NEW_CHANGE * np.nan_to_num(newest)[:, None]
    spread = _mean(np.concatenate([change, usual], axis=1), np.zeros(len(newest)))
    half_hour = values[:, -max(1, _HALF_HOUR_S // moment.step_s) :]
    return Sight(
        moment=moment,
        horizon_steps=horizon_steps,
        newest=newest,
        past=past,
        outcome=past[:, -1],
        short_mean=_mean(half_hour, newest),
        long_mean=_mean(values, newest),
        spread=np.maximum(spread, FLOOR),
        still=_still(values) & _still(moment.peak[:, -steps:]),
    )


def arranged(state: Kind, places: Ints, fresh: float = 0.0) -> Kind:
    """Rows of a state at `places`; `fresh` in rows that are new (-1)."""
    if len(state) == 0:
        return np.full((len(places), *state.shape[1:]), fresh, dtype=state.dtype)
    found = state[np.maximum(places, 0)]
    found[places < 0] = fresh
    return found


def kept_over_step(sight: Sight, half_life_s: float) -> float:
    return float(0.5 ** (sight.moment.step_s / half_life_s))


def _block_maxima(moment: Moment, horizon: int, steps: int) -> Floats:
    """(s, k) highest peak of every stretch of a horizon; NaN where less than half was seen."""
    peak = snap(moment.peak[:, -steps - horizon + 1 :])
    stretch = sliding_window_view(peak, min(horizon, peak.shape[1]), axis=1)
    known = np.isfinite(stretch)
    highest = np.where(known, stretch, -np.inf).max(axis=2)
    return np.where(2 * known.sum(axis=2) >= horizon, highest, np.nan)


def _still(values: Floats) -> Bools:
    """(s,) whether all that was seen is the same, and at least half was."""
    known = np.isfinite(values)
    highest = np.where(known, values, -np.inf).max(axis=1)
    lowest = np.where(known, values, np.inf).min(axis=1)
    return np.asarray((highest - lowest < FLOOR) & (2 * known.sum(axis=1) >= values.shape[1]))


def _newest(values: Floats) -> Floats:
    """(s,) the last value seen, NaN where there is none."""
    known: Bools = np.isfinite(values)
    last = values.shape[1] - 1 - np.argmax(known[:, ::-1], axis=1)
    return np.take_along_axis(values, last[:, None], axis=1)[:, 0]


def _mean(values: Floats, otherwise: Floats) -> Floats:
    known = np.isfinite(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), otherwise)
