"""The first forecaster: the past as it was, made wider by how little of it there is.

Demand over the horizon is the highest of the step means, so its distribution is taken from the
highest means of every stretch of that length in the window (block maxima, overlapping). What is
added to it, and where the idea is from:

- Few samples: the spread is widened by the root of how many horizons were seen, as the standard
  error of a quantile is; without a single whole horizon the steps themselves are taken.
- The newest value is never below the median and above: persistence, the forecast to beat.
- A rise of the last steps goes on for half a horizon in the upper quantiles (damped trend,
  Gardner and McKenzie 1985).
- Use that touches its limit is demand cut off: the upper quantiles are stretched, as the vertical
  pod autoscaler and Autopilot (Rzadca et al. 2020) stretch their peaks by a margin.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from controller.core.state import MISSING, RESOURCES, Bools, Floats, Forecast, Ints
from controller.forecast.protocol import History, Said, Standing, made_now

METHOD = "empirical"
BORROWED = "empirical+neighbours"
# Denser in the upper tail, where shortage is decided. 33 of them, first 0, last 1.
_LOWER = (0, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65)
_UPPER = (0.7, 0.75, 0.8, 0.85, 0.875, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99)
PROBABILITY: Floats = np.array([*_LOWER, *_UPPER, 0.995, 0.999, 1])
_TREND_STEPS = 3  # on both sides of a rise: less is noise
_RAMP = np.clip((PROBABILITY - 0.5) / 0.45, 0, 1)  # 0 at the median, 1 from 95 % up
_NORMAL = np.array([NormalDist().inv_cdf(min(max(p, 0.001), 0.999)) for p in PROBABILITY])


@dataclass(frozen=True, slots=True)
class EmpiricalForecaster:
    """A `Forecaster`; skill is NaN here, `controller.forecast.skill` knows it."""

    spread_wider: float = 1.0  # times the spread, over the root of the horizons seen
    level_wider: float = 0.25  # times the level per deviation, over the root of the steps seen
    cut_share: float = 0.9  # of the limit: peaks above it are demand cut off
    cut_stretch: float = 1.5  # times the upper quantiles of such demand

    @property
    def standing(self) -> Standing:
        return Standing(METHOD)

    def predict(self, history: History, horizon_ns: int) -> Said:
        machines = len(history.ids)
        quantile = np.full((machines, RESOURCES, len(PROBABILITY)), np.nan)
        seen = np.zeros((machines, RESOURCES), dtype=np.int64)
        for rows in history.batches():
            quantile[rows], seen[rows] = self.quantiles(history, rows, horizon_ns)
        forecast = Forecast(
            made_at_unix_ns=history.made_at_unix_ns,
            horizon_ns=horizon_ns,
            method=METHOD,
            probability=PROBABILITY,
            quantile=quantile,
            age_ns=np.where((seen > 0).any(axis=-1), history.age_ns, MISSING),
            samples=seen,
            skill=np.full((machines, RESOURCES), np.nan),
        )
        nowhere = np.zeros((machines, RESOURCES), dtype=np.bool_)
        return Said(forecast, nowhere, nowhere, made_now(history))

    def quantiles(self, history: History, rows: Ints, horizon_ns: int) -> tuple[Floats, Ints]:
        """(k, 3, q) at PROBABILITY of some rows, and (k, 3) of how many steps seen they are."""
        horizon = max(1, horizon_ns // history.step_ns)
        mean = history.windows.mean(rows, history.steps).astype(np.float64)
        touches = self.touches(history, rows, horizon_ns)
        quantile = self._quantiles(mean, horizon)
        return self.stretched(quantile, touches), np.isfinite(mean).sum(axis=-1)

    def touches(self, history: History, rows: Ints, horizon_ns: int) -> Bools:
        """(k, 3) whether a peak of the last horizon came near the limit in force now."""
        recent = history.windows.peak(rows, max(1, horizon_ns // history.step_ns))
        highest = np.where(np.isfinite(recent), recent, -np.inf).max(axis=-1)
        limit = history.limit[rows]
        return np.asarray((limit > 0) & (highest >= self.cut_share * limit))

    def stretched(self, quantile: Floats, cut: Bools) -> Floats:
        """Quantiles (k, 3, q) at PROBABILITY of demand that was `cut` off, or not, as seen."""
        return quantile * np.where(cut[..., None], 1 + (self.cut_stretch - 1) * _RAMP, 1.0)

    def _quantiles(self, mean: Floats, horizon: int) -> Floats:
        """(n, 3, q) from (n, 3, w) means; `horizon` in steps."""
        seen = np.isfinite(mean).sum(axis=-1)
        quantile = _sorted_quantiles(_outcomes(mean, seen, horizon))
        median = quantile[..., PROBABILITY.searchsorted(0.5)][..., None]
        blocks = np.maximum(seen / horizon, 1 / horizon)[..., None]
        steps = np.maximum(seen, 1)[..., None]
        quantile = median + (quantile - median) * (1 + self.spread_wider / np.sqrt(blocks))
        quantile += median * _NORMAL * self.level_wider / np.sqrt(steps)
        expected = _newest(mean)[..., None] + _rise(mean)[..., None] * (horizon / 2) * _RAMP
        upper = PROBABILITY >= 0.5  # noqa: PLR2004 - the median
        quantile[..., upper] = np.fmax(quantile[..., upper], expected[..., upper])
        return np.maximum.accumulate(np.maximum(quantile, 0), axis=-1)


def _outcomes(mean: Floats, seen: Ints, horizon: int) -> Floats:
    """(n, 3, w) what demand over a horizon was, NaN in places without one.

    Stretches of which less than half was seen say nothing. Where a whole horizon was not seen
    yet, or gaps leave no stretch, the steps stand for themselves.
    """
    if horizon > mean.shape[-1]:
        return mean
    stretches = sliding_window_view(np.where(np.isfinite(mean), mean, -np.inf), horizon, axis=-1)
    known = sliding_window_view(np.isfinite(mean), horizon, axis=-1).sum(axis=-1)
    highest = np.where(2 * known >= horizon, stretches.max(axis=-1), np.nan)
    outcomes = np.full_like(mean, np.nan)
    outcomes[..., : highest.shape[-1]] = highest
    too_few = (seen < horizon) | ~np.isfinite(outcomes).any(axis=-1)
    return np.where(too_few[..., None], mean, outcomes)


def _sorted_quantiles(values: Floats) -> Floats:
    """Linear between order statistics (Hyndman and Fan's type 7), NaN left out; (n, 3, q)."""
    ordered = np.sort(values, axis=-1)  # NaN last
    count = np.isfinite(values).sum(axis=-1)[..., None]
    at = PROBABILITY * np.maximum(count - 1, 0)
    below = np.floor(at).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    low = np.take_along_axis(ordered, below, axis=-1)
    high = np.take_along_axis(ordered, above, axis=-1)
    return np.asarray(low + (high - low) * (at - below))


def _newest(mean: Floats) -> Floats:
    """(n, 3) the last value seen, NaN where there is none."""
    known = np.isfinite(mean)
    last = mean.shape[-1] - 1 - np.argmax(known[..., ::-1], axis=-1)
    return np.take_along_axis(mean, last[..., None], axis=-1)[..., 0]


def _rise(mean: Floats) -> Floats:
    """(n, 3) growth per step from the means of the last steps and of those before; at least 0."""
    if mean.shape[-1] < 2 * _TREND_STEPS:
        return np.zeros(mean.shape[:-1])
    now = _plain_mean(mean[..., -_TREND_STEPS:])
    before = _plain_mean(mean[..., -2 * _TREND_STEPS : -_TREND_STEPS])
    rise = (now - before) / _TREND_STEPS
    return np.where(np.isfinite(rise), np.maximum(rise, 0), 0)


def _plain_mean(values: Floats) -> Floats:
    known = np.isfinite(values)
    count = known.sum(axis=-1)
    total = np.where(known, values, 0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
