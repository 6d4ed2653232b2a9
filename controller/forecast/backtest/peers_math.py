"""What the peers share: points, quantiles, a normal distribution over bins, values of the past."""

import numpy as np

from controller.core.state import Bools, Floats
from controller.forecast.moment import BINS, EDGES, LEVELS, bin_of

_LOWER: Floats = np.append(0.0, EDGES)  # (21,)
_WIDTH = 1 / BINS  # of the last bin too, which must end somewhere


class Ring:
    """Values (s,) of the last steps by number of the step; NaN where a step was not put."""

    def __init__(self, series: int, length: int) -> None:
        self._values = np.full((length, series), np.nan, dtype=np.float32)
        self._slots = np.full(length, -1, dtype=np.int64)

    def put(self, slot: int, values: Floats) -> None:
        place = slot % len(self._slots)
        self._slots[place] = slot
        self._values[place] = values

    def get(self, slot: int) -> Floats:
        place = slot % len(self._slots)
        if self._slots[place] != slot:
            return np.full(self._values.shape[1], np.nan)
        return np.asarray(self._values[place], dtype=np.float64)


def point(value: Floats) -> tuple[Floats, Floats]:
    """All probability on (n,) values: (n, 21) and (n, 4)."""
    mass = np.zeros((len(value), BINS + 1))
    mass[np.arange(len(value)), bin_of(value)] = 1.0
    return mass, np.repeat(value[:, None], len(LEVELS), axis=1)


def quantile_of_mass(mass: Floats) -> Floats:
    """(n, 4) at LEVELS, probability spread evenly within a bin."""
    above = np.cumsum(mass, axis=1)
    reached = above[:, :, None] >= LEVELS - 1e-9  # (n, 21, 4)
    place = np.where(reached.any(axis=1), reached.argmax(axis=1), BINS)
    inside = np.take_along_axis(mass, place, axis=1)
    before = np.take_along_axis(above, place, axis=1) - inside
    part = np.clip((LEVELS - before) / np.maximum(inside, 1e-12), 0, 1)
    return np.asarray(_LOWER[place] + part * _WIDTH)


def order_statistics(window: Floats, seen: Bools) -> Floats:
    """(n, 4) at LEVELS, linear between them (Hyndman and Fan's type 7), NaN left out."""
    ordered = np.sort(window, axis=1)  # NaN last
    last = (seen.sum(axis=1) - 1)[:, None]
    at = LEVELS * last
    below = np.floor(at).astype(np.int64)
    low = np.take_along_axis(ordered, below, axis=1)
    high = np.take_along_axis(ordered, np.minimum(below + 1, last), axis=1)
    return np.asarray(low + (high - low) * (at - below))


def normal_mass(mean: Floats, spread: Floats) -> Floats:
    """(n, 21) of normal distributions; what lies below 0 counts as 0."""
    below = _normal_cdf((EDGES - mean[:, None]) / spread[:, None])
    ends = (np.zeros((len(mean), 1)), below, np.ones((len(mean), 1)))
    return np.diff(np.concatenate(ends, axis=1), axis=1)


def _normal_cdf(z: Floats) -> Floats:
    """Within 1e-7 (Abramowitz and Stegun 26.2.17)."""
    size = np.abs(z)
    t = 1 / (1 + 0.2316419 * size)
    series = t * (
        0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429)))
    )
    tail = np.exp(-0.5 * np.minimum(size, 40.0) ** 2) / np.sqrt(2 * np.pi) * series
    return np.asarray(np.where(z > 0, 1 - tail, tail))
