"""Shares as codes of one byte, and histograms over fixed cells. Pure. s series, e edges, b cells.

A code names a cell between two of `BOUNDS`. An edge is one of `BOUNDS` too, written as its place
among them: a share lies below an edge exactly when its code is less. So what is kept per series
takes a byte, and counting needs no floating point. The edges of the bins (`moment.EDGES`) are
bounds.
"""

import numpy as np
from numpy.typing import NDArray

from controller.core.state import Floats, Ints

Codes = NDArray[np.uint8]
Small = NDArray[np.float32]  # of states that every series has
UNSEEN = 255
_UNIT = 5e-5  # all bounds are multiples of it


_ABOVE = (1.005, 1.02, 1.04, 1.06, 1.08, 1.1, 1.13, 1.16, 1.2, 1.24, 1.28, 1.33, 1.38, 1.44,
          1.5, 1.6, 1.7, 1.8, 2.0, 2.25, 2.5, 3.0, 4.0)  # fmt: skip

_FAR = (6.0, 9.0, 13.0, 20.0, 30.0, 45.0, 70.0, 100.0, 150.0, 250.0, 400.0, 700.0, 1000.0)


def _bounds() -> Floats:
    """A tenth apart below 5 %, an eighth of a bin above, in leaps over the allotment."""
    low = np.unique(np.rint(np.geomspace(1e-4, 0.05, 75) / _UNIT))[:-1] * _UNIT
    return np.array([0.0, *low, *np.arange(8, 161) / 160, *_ABOVE, *_FAR])


BOUNDS: Floats = _bounds()
CODES = len(BOUNDS)  # the last one is of all above the last bound
assert CODES < UNSEEN
# The middle of each cell, to count with; NaN for what was not seen.
MIDDLES: Small = np.full(UNSEEN + 1, np.nan, dtype=np.float32)
MIDDLES[:CODES] = np.append((BOUNDS[1:] + BOUNDS[:-1]) / 2, BOUNDS[-1] * 1.1)


class Buckets:
    """Fixed cells of a line; a histogram over them is read as linear within a cell.

    `bounds` (b + 1,) ascend. Where all are multiples of a `unit`, cells are looked up in a table,
    several times faster than by search; values within a millionth below a bound count as on it.
    """

    def __init__(self, bounds: Floats, unit: float | None = None) -> None:
        self.bounds, self.count = bounds, len(bounds) - 1
        self._unit = unit
        self._low = bounds.astype(np.float32)
        self._per_share = (1 / np.diff(bounds)).astype(np.float32)
        if unit is not None:
            units = round((bounds[-1] - bounds[0]) / unit)
            found = self._search(bounds[0] + (np.arange(units + 1) + 0.5) * unit)
            self._table = found.astype(np.int32)
            self._first = np.float32(bounds[0] - 1e-6 * unit)
            self._units = np.float32(1 / unit)

    def of(self, values: Floats | Small) -> Ints:
        """The cell of each value; those outside lie in the first or the last."""
        if self._unit is None:
            return self._search(values)
        units = (values - self._first) * self._units
        np.clip(units, 0, len(self._table) - 1, out=units)
        return np.asarray(np.take(self._table, units.astype(np.int32)))

    def place(self, values: Small) -> tuple[Ints, Small]:
        """The cell of each value and how far into it the value lies, 0 to 1."""
        cell = self.of(values)
        part = (values - np.take(self._low, cell)) * np.take(self._per_share, cell)
        return cell, np.clip(part, 0, 1, out=part)

    def _search(self, values: Floats | Small) -> Ints:
        return np.clip(np.searchsorted(self.bounds, values, side="right") - 1, 0, self.count - 1)


def read(mass: Small, cell: Ints, part: Small) -> Small:
    """(s, e) CDF of histograms (s, b) at places (s, e) that `Buckets.place` found."""
    series, size = mass.shape
    upto = np.zeros((series, size + 1), dtype=np.float32)
    np.cumsum(mass, axis=1, out=upto[:, 1:])
    upto /= upto[:, -1:]
    place = cell + np.arange(series)[:, None] * (size + 1)  # a plain take is the fastest
    low = np.take(upto, place)
    return np.asarray(low + part * (np.take(upto, place + 1) - low))


_CODE = Buckets(np.append(BOUNDS[: CODES - len(_FAR)], _ABOVE[-1] + _UNIT), _UNIT)


def encode(share: Small) -> Codes:
    """The codes of shares that `grid.snap` moved off the bounds, any shape; NaN: `UNSEEN`."""
    known = np.isfinite(share)
    found = _CODE.of(np.where(known, share, np.float32(0))).astype(np.uint8)
    far = share >= _FAR[0]
    if far.any():  # of rates, whose scale is a guess
        found[far] = np.searchsorted(BOUNDS, share[far], side="right") - 1
    return np.where(known, found, np.uint8(UNSEEN))


_DEVIATION_HALF = np.array(
    [0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1, 1.3, 1.6, 2, 2.5, 3.5, 5, 8, 16, 40]
)
DEVIATIONS = Buckets(np.array([*-_DEVIATION_HALF[::-1], 0.0, *_DEVIATION_HALF]), 0.05)
