"""Histograms over fixed cells, read as CDFs at any edge. Pure. s series, e edges, b cells."""

import numpy as np
from numpy.typing import NDArray

from controller.core.state import Floats, Ints


class Buckets:
    """Fixed cells of a line; a histogram over them is read as linear within a cell.

    `bounds` (b + 1,) ascend. Where all are multiples of a `unit`, cells are looked up in a table,
    several times faster than by search; values within a millionth below a bound count as on it.
    """

    def __init__(self, bounds: Floats, unit: float | None = None) -> None:
        self.bounds, self.count = bounds, len(bounds) - 1
        self._unit = unit
        self._part_per_share = 1 / np.diff(bounds)
        if unit is not None:
            units = round((bounds[-1] - bounds[0]) / unit)
            self._table = self._search(bounds[0] + (np.arange(units + 1) + 0.5) * unit)

    def of(self, values: Floats | NDArray[np.float32]) -> Ints:
        """The cell of each value; those outside lie in the first or the last."""
        if self._unit is None:
            return self._search(values)
        units = (values - (self.bounds[0] - 1e-6 * self._unit)) * (1 / self._unit)
        within = np.clip(units, 0, len(self._table) - 1)
        return np.asarray(self._table[within.astype(np.int32)])

    def place(self, values: Floats) -> tuple[Ints, Floats]:
        """The cell of each value and how far into it the value lies, 0 to 1."""
        cell = self.of(values)
        part = (values - self.bounds[cell]) * self._part_per_share[cell]
        return cell, np.clip(part, 0, 1)

    def _search(self, values: Floats | NDArray[np.float32]) -> Ints:
        return np.clip(np.searchsorted(self.bounds, values, side="right") - 1, 0, self.count - 1)


def read(mass: Floats, cell: Ints, part: Floats) -> Floats:
    """(s, e) CDF of histograms (s, b) at places (s, e) that `Buckets.place` found."""
    total = np.cumsum(mass, axis=1)
    place = cell + np.arange(len(mass))[:, None] * mass.shape[1]  # a plain take is the fastest
    inside, upto = mass.ravel()[place], total.ravel()[place]
    return np.asarray((upto - (1 - part) * inside) / total[:, -1:])


def _level_bounds() -> Floats:
    """Logarithmic below 5 %, then fine steps; every edge of `moment.EDGES` is one."""
    low = [0, 1e-4, 2e-4, 4e-4, 7e-4, 1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6.5e-3, 8e-3]
    middle = [0.01, 0.0125, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, *np.arange(5, 10) / 100]
    upper = [*np.arange(4, 41) / 40, 1.05, 1.1, 1.2, 1.35, 1.6, 2.0, 4.0]
    return np.array([*low, *middle, *upper])


def _change_bounds() -> Floats:
    """Around 0: logarithmic, with the multiples of 1 % in which some sources count."""
    low = [1e-4, 2e-4, 3e-4, 5e-4, 7e-4, 1e-3, 1.4e-3, 2e-3, 3e-3, 4e-3, 5.5e-3, 7.5e-3]
    upper = [*np.arange(1, 11) / 100, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0, 2.0]
    positive = np.array([*low, *upper])
    return np.array([*-positive[::-1], 0.0, *positive])


LEVELS_OF_USE = Buckets(_level_bounds(), 1e-4)
CHANGES = Buckets(_change_bounds(), 1e-4)
_DEVIATION_HALF = np.array(
    [0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1, 1.3, 1.6, 2, 2.5, 3.5, 5, 8, 16, 40]
)
DEVIATIONS = Buckets(np.array([*-_DEVIATION_HALF[::-1], 0.0, *_DEVIATION_HALF]), 0.05)
