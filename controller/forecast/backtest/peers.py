"""What ours must beat: simple predictors, each as its users know it, vectorised over series.

A series whose newest step is missing gets equal probabilities: such windows are not scored.
"""

from collections.abc import Callable

import numpy as np

from controller.core.state import Floats, Ints
from controller.forecast.moment import BINS, EDGES, LEVELS, Moment, Prediction, Predictor, bin_of

LOWER: Floats = np.arange(BINS + 1) / BINS  # (21,) lower edges of the bins
UPPER: Floats = np.append(EDGES, 1.0 + 1 / BINS)  # the last bin, where it must end, is as wide


class Peer:
    """Asks `_predict` for the series whose newest step was seen, and learns before that."""

    name = ""

    def step(self, moment: Moment) -> Prediction:
        series = moment.window.shape[0]
        live = np.flatnonzero(np.isfinite(moment.window[:, -1]))
        mass = np.full((series, BINS + 1), 1 / (BINS + 1))
        quantile = np.tile(LEVELS, (series, 1))
        mass[live], quantile[live] = self._predict(moment, live)
        return Prediction(mass, quantile)

    def _predict(self, moment: Moment, live: Ints) -> tuple[Floats, Floats]:
        """(n, 21) and (n, 4) of the `live` series."""
        raise NotImplementedError


class Persistence(Peer):
    """It will be as it is now: all in the newest value's bin, all quantiles that value."""

    name = "persistence"

    def _predict(self, moment: Moment, live: Ints) -> tuple[Floats, Floats]:
        return _point(moment.window[live, -1])


class WindowHistogram(Peer):
    """What the last two hours were: shares of the steps in each bin, and their order statistics."""

    name = "window histogram"

    def _predict(self, moment: Moment, live: Ints) -> tuple[Floats, Floats]:
        window = moment.window[live]
        seen = np.isfinite(window)
        rows = np.broadcast_to(np.arange(len(live))[:, None], window.shape)[seen]
        place = rows * (BINS + 1) + bin_of(window[seen])
        counts = np.bincount(place, minlength=len(live) * (BINS + 1)).reshape(-1, BINS + 1)
        return counts / counts.sum(axis=1, keepdims=True), _order_statistics(window, seen)


def _point(value: Floats) -> tuple[Floats, Floats]:
    """All probability on (n,) values."""
    mass = np.zeros((len(value), BINS + 1))
    mass[np.arange(len(value)), bin_of(value)] = 1.0
    return mass, np.repeat(value[:, None], len(LEVELS), axis=1)


def _order_statistics(window: Floats, seen: np.ndarray) -> Floats:
    """(n, 4) linear between order statistics (Hyndman and Fan's type 7), NaN left out."""
    ordered = np.sort(window, axis=1)  # NaN last
    last = (seen.sum(axis=1) - 1)[:, None]
    at = LEVELS * last
    below = np.floor(at).astype(np.int64)
    low = np.take_along_axis(ordered, below, axis=1)
    high = np.take_along_axis(ordered, np.minimum(below + 1, last), axis=1)
    return np.asarray(low + (high - low) * (at - below))


PEERS: dict[str, Callable[[int], Predictor]] = {
    "persistence": lambda _: Persistence(),
    "window-histogram": lambda _: WindowHistogram(),
}
