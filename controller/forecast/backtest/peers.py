"""What ours must beat: simple predictors, each as its users know it, vectorised over series.

All learn online from moments alone. A series whose newest step is missing gets equal probabilities:
such windows are not scored. n live series, s series, w steps of a window.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from controller.core.state import Bools, Floats, Ints
from controller.forecast.backtest.peers_math import (
    Ring,
    normal_mass,
    order_statistics,
    point,
    quantile_of_mass,
)
from controller.forecast.moment import BINS, EDGES, LEVELS, Moment, Prediction, Predictor, bin_of

Z: Floats = np.array([0.0, 1.2815516, 1.6448536, 2.3263479])  # normal quantiles at LEVELS
DAY_S = 86_400
_SPREAD_MIN = 0.0025  # of a normal distribution: a constant past is no certainty


class Peer(ABC):
    """Hears of every moment, then is asked for the series whose newest step was seen."""

    name = ""

    def step(self, moment: Moment) -> Prediction:
        series = moment.window.shape[0]
        live = np.flatnonzero(np.isfinite(moment.window[:, -1]))
        self.learn(moment, live)
        mass = np.full((series, BINS + 1), 1 / (BINS + 1))
        quantile = np.tile(LEVELS, (series, 1))
        if len(live):
            mass[live], quantile[live] = self.predict(moment, live)
        return Prediction(mass, quantile)

    def learn(self, moment: Moment, live: Ints) -> None:  # noqa: B027 - no part of what all must have
        """From the newest step; most have nothing to learn."""

    @abstractmethod
    def predict(self, moment: Moment, live: Ints) -> tuple[Floats, Floats]:
        """(n, 21) and (n, 4) of the `live` series."""


class Persistence(Peer):
    """It will be as it is now: all in the newest value's bin, all quantiles that value."""

    name = "persistence"

    def predict(self, moment: Moment, live: Ints) -> tuple[Floats, Floats]:
        return point(moment.window[live, -1])


class WindowHistogram(Peer):
    """What the last two hours were: shares of the steps in each bin, and their order statistics."""

    name = "window-histogram"

    def predict(self, moment: Moment, live: Ints) -> tuple[Floats, Floats]:
        window = moment.window[live]
        seen = np.isfinite(window)
        rows = np.broadcast_to(np.arange(len(live))[:, None], window.shape)[seen]
        place = rows * (BINS + 1) + bin_of(window[seen])
        counts = np.bincount(place, minlength=len(live) * (BINS + 1)).reshape(-1, BINS + 1)
        return counts / counts.sum(axis=1, keepdims=True), order_statistics(window, seen)


class WindowMaximum(Peer):
    """The highest of the last two hours, and that is that."""

    name = "window-maximum"

    def predict(self, moment: Moment, live: Ints) -> tuple[Floats, Floats]:
        return point(np.nanmax(moment.window[live], axis=1))


class SigmaAbove(Peer):
    """Mean and standard deviation of the last two hours, taken for a normal distribution.

    N-sigma as published for machine peaks (Bashir et al., EuroSys 2021) is `sigmas` above the mean,
    one number: all quantiles are that. Without `sigmas` quantiles are those of the distribution.
    """

    name = "n-sigma"

    def __init__(self, sigmas: float | None = None) -> None:
        self._sigmas = Z if sigmas is None else np.full(len(LEVELS), sigmas)

    def predict(self, moment: Moment, live: Ints) -> tuple[Floats, Floats]:
        window = moment.window[live]
        mean, spread = np.nanmean(window, axis=1), np.nanstd(window, axis=1)
        quantile = np.maximum(mean[:, None] + self._sigmas * spread[:, None], 0)
        return normal_mass(mean, np.maximum(spread, _SPREAD_MIN)), quantile


class SeasonalNaive(Peer):
    """As it was at that time yesterday; where yesterday was not seen, as it is now."""

    name = "seasonal-naive"

    def __init__(self, horizon: int) -> None:
        self._horizon = horizon
        self._ring: Ring | None = None

    def learn(self, moment: Moment, live: Ints) -> None:
        if self._ring is None:
            self._ring = Ring(moment.window.shape[0], DAY_S // moment.step_s)
        self._ring.put(slot_of(moment), moment.window[:, -1])

    def predict(self, moment: Moment, live: Ints) -> tuple[Floats, Floats]:
        assert self._ring is not None
        slot = slot_of(moment) + self._horizon - DAY_S // moment.step_s
        before = self._ring.get(slot)[live]
        return point(np.where(np.isfinite(before), before, moment.window[live, -1]))


class Markov(Peer):
    """Transitions between the 21 bins, counted per series.

    `direct` counts pairs of steps that lie a horizon apart; otherwise pairs of neighbours are
    counted and the table is applied once per step of the horizon. One pseudo-count says that a bin
    never seen is stayed in.
    """

    name = "markov"

    def __init__(self, horizon: int, *, direct: bool) -> None:
        self._apart = horizon if direct else 1
        self._times = 1 if direct else horizon
        self._ring = Ring(0, 1)
        self._count: Floats = np.zeros((0, BINS + 1, BINS + 1))

    def learn(self, moment: Moment, live: Ints) -> None:
        series = moment.window.shape[0]
        if not len(self._count):
            self._ring = Ring(series, self._apart + 1)
            self._count = np.broadcast_to(np.eye(BINS + 1), (series, BINS + 1, BINS + 1)).copy()
        slot = slot_of(moment)
        self._ring.put(slot, moment.window[:, -1])
        before = self._ring.get(slot - self._apart)[live]
        both = np.isfinite(before)
        now = bin_of(moment.window[live[both], -1])
        self._count[live[both], bin_of(before[both]), now] += 1

    def predict(self, moment: Moment, live: Ints) -> tuple[Floats, Floats]:
        here = bin_of(moment.window[live, -1])
        mass = self._count[live, here]
        mass = mass / mass.sum(axis=1, keepdims=True)
        if self._times > 1:
            table = self._count[live]
            table /= table.sum(axis=2, keepdims=True)
            for _ in range(self._times - 1):
                mass = np.matmul(mass[:, None], table)[:, 0]
        return mass, quantile_of_mass(mass)


class DecayedHistogram(Peer):
    """The histogram of the Kubernetes vertical pod autoscaler, from its documented constants.

    Exponential buckets (the first .01 wide, each 5 % wider than the one before; here of the
    allotment, where it counts cores), samples weighted by a half-life of 24 h, a quantile is the
    upper end of its bucket. Probabilities take a bucket's weight as spread evenly over it. Its
    margin of 15 % and its confidence bounds belong to its policy and are left out.
    """

    name = "decayed-histogram"
    first, ratio, top = 0.01, 1.05, 8.0
    half_life_s = float(DAY_S)

    def __init__(self) -> None:
        grows = self.ratio - 1
        count = int(np.ceil(np.log1p(self.top * grows / self.first) / np.log(self.ratio)))
        powers = np.power(self.ratio, np.arange(count + 1))
        self._start: Floats = np.asarray(self.first * (powers - 1) / grows, dtype=np.float64)
        self._into_bins = _overlap(self._start)  # (buckets, 21)
        self._weight: Floats = np.zeros((0, count))
        self._slot = 0

    def learn(self, moment: Moment, live: Ints) -> None:
        if not len(self._weight):
            self._weight = np.zeros((moment.window.shape[0], self._weight.shape[1]))
            self._slot = slot_of(moment)
        passed_s = (slot_of(moment) - self._slot) * moment.step_s
        self._weight *= 0.5 ** (passed_s / self.half_life_s)
        self._slot = slot_of(moment)
        value = moment.window[live, -1]
        bucket = np.searchsorted(self._start, value, side="right") - 1
        self._weight[live, np.minimum(bucket, self._weight.shape[1] - 1)] += 1

    def predict(self, moment: Moment, live: Ints) -> tuple[Floats, Floats]:
        weight = self._weight[live]
        weight = weight / weight.sum(axis=1, keepdims=True)
        reached = np.cumsum(weight, axis=1)[:, :, None] >= LEVELS - 1e-9  # (n, buckets, 4)
        return weight @ self._into_bins, self._start[1:][reached.argmax(axis=1)]


class Smoothing(Peer):
    """Simple exponential smoothing, ETS(A,N,N): a level, and errors taken for normal.

    Per series the smoothing parameter of `alphas` whose forecasts a horizon ahead erred least so
    far (errors fade with a half-life of a day).
    """

    name = "smoothing"
    alphas: Floats = np.array([0.05, 0.15, 0.35, 0.65, 1.0])

    def __init__(self, horizon: int) -> None:
        self._horizon = horizon
        self._rings: list[Ring] = []
        self._level: Floats = np.zeros((0, len(self.alphas)))
        self._error: Floats = np.zeros((0, len(self.alphas)))  # faded sum of squares
        self._weight: Floats = np.zeros((0, len(self.alphas)))

    def learn(self, moment: Moment, live: Ints) -> None:
        if not self._rings:
            shape = (moment.window.shape[0], len(self.alphas))
            self._level = np.full(shape, np.nan)
            self._error, self._weight = np.zeros(shape), np.zeros(shape)
            self._rings = [Ring(shape[0], self._horizon + 1) for _ in self.alphas]
        slot, value = slot_of(moment), moment.window[:, -1][:, None]
        said = np.stack([ring.get(slot - self._horizon) for ring in self._rings], axis=1)
        known: Bools = np.isfinite(said) & np.isfinite(value)
        fade = 0.5 ** (moment.step_s / DAY_S)
        self._error = np.where(known, fade * self._error + (value - said) ** 2, self._error)
        self._weight = np.where(known, fade * self._weight + 1, self._weight)
        level = np.where(np.isfinite(self._level), self._level, value)
        self._level = np.where(np.isfinite(value), level + self.alphas * (value - level), level)
        for place, ring in enumerate(self._rings):
            ring.put(slot, self._level[:, place])

    def predict(self, moment: Moment, live: Ints) -> tuple[Floats, Floats]:
        variance = self._error[live] / np.maximum(self._weight[live], 1)
        best = variance.argmin(axis=1)
        rows = np.arange(len(live))
        level = self._level[live, best]
        spread = np.maximum(np.sqrt(variance[rows, best]), _SPREAD_MIN)
        return normal_mass(level, spread), np.maximum(level[:, None] + Z * spread[:, None], 0)


def slot_of(moment: Moment) -> int:
    """Number of the newest step; all series of a backtest end together."""
    return int(np.max(moment.end_s)) // moment.step_s


def _overlap(start: Floats) -> Floats:
    """(buckets, 21) share of each bucket that lies in each bin."""
    low, high = start[:-1, None], start[1:, None]
    lower = np.append(0.0, EDGES)
    upper = np.append(EDGES, np.inf)
    return np.asarray(np.clip(np.minimum(high, upper) - np.maximum(low, lower), 0, None)) / (
        high - low
    )


# By name, made for a horizon in steps.
PEERS: dict[str, Callable[[int], Predictor]] = {
    "persistence": lambda _: Persistence(),
    "window-histogram": lambda _: WindowHistogram(),
    "window-maximum": lambda _: WindowMaximum(),
    "markov": lambda horizon: Markov(horizon, direct=True),
    "markov-power": lambda horizon: Markov(horizon, direct=False),
    "decayed-histogram": lambda _: DecayedHistogram(),
    "n-sigma": lambda _: SigmaAbove(),
    "5-sigma": lambda _: SigmaAbove(5.0),
    "seasonal-naive": SeasonalNaive,
    "smoothing": Smoothing,
}
