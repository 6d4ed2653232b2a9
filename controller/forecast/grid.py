"""Where a distribution is written down: edges per series, dense where its values are. Pure.

A distribution of one series is its CDF at ascending edges, the probability of a share below each.
Between edges it is linear, from 0 at a share of 0; above the last edge it is all gone. The 20
edges of `moment.EDGES` are among the edges of every series, so the mass of a bin is a plain
difference. s series, e edges, k steps of a window.
"""

from dataclasses import dataclass

import numpy as np

from controller.core.state import Floats, Ints
from controller.forecast.moment import BINS, EDGES

EDGE_COUNT = 48
FLOOR = 1e-4  # shares: nothing finer is told apart
_ROUNDING = 1e-6  # that of `moment.bin_of`
# Around the newest value, as parts of it and as multiples of the floor where it is near 0.
_NEAR = np.array([0.04, 0.15, 0.4, 0.9])
_ORDERED = 9  # order statistics of the window that become edges
_COARSE = np.array([FLOOR, 0.001, 0.004, 0.015, 0.9995, 1.1, 1.3, 2.0])
_TOP = np.array([1.02, 1.3])  # times the highest value seen
_SPOT = 6e-4
_DAMPING = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Edges of s series at one moment."""

    edges: Floats  # (s, e) ascending; equal ones are allowed
    places: Ints  # (s, 20) where `moment.EDGES` stand among them


def snap(share: Floats) -> Floats:
    """Shares moved by a millionth so that `share < edge` says what `moment.bin_of` says."""
    return np.where(np.abs(share - 1.0) < _ROUNDING, 1.0 - 2 * _ROUNDING, share + _ROUNDING)


def make_grid(newest: Floats, window: Floats) -> Grid:
    """Edges for s series from their newest value (s,) and their window (s, k); NaN: not seen."""
    series = newest.shape[0]
    here = np.nan_to_num(newest)[:, None]
    spread = here * _NEAR + FLOOR * np.arange(1, len(_NEAR) + 1)
    ordered = _order_statistics(window, here)
    highest = np.maximum(ordered[:, -1:], here)
    parts = [
        np.broadcast_to(EDGES, (series, BINS)),
        np.broadcast_to(_COARSE, (series, len(_COARSE))),
        here - spread,
        here + spread,
        here + FLOOR / 4,
        ordered + FLOOR / 2,
        np.maximum(highest, 2 * FLOOR) * _TOP,
    ]
    missing = EDGE_COUNT - sum(part.shape[1] for part in parts)
    assert missing == 0
    edges = np.maximum(np.concatenate(parts, axis=1), FLOOR / 2)
    order = np.argsort(edges, axis=1, kind="stable")
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.arange(EDGE_COUNT)[None, :], axis=1)
    return Grid(np.take_along_axis(edges, order, axis=1), places[:, :BINS])


def bin_mass(cdf: Floats, grid: Grid) -> Floats:
    """(s, 21) mass of the bins from a CDF (s, e) on the grid; sums to 1 exactly up to rounding."""
    below = np.take_along_axis(cdf, grid.places, axis=1)
    return np.diff(below, axis=1, prepend=0.0, append=1.0)


def cdf_at(cdf: Floats, edges: Floats, at: Floats) -> Floats:
    """(s, q) probability below `at` (s, q) of distributions given at edges (s, e)."""
    upper = (edges[:, None, :] <= at[:, :, None]).sum(axis=2)
    low_edge, high_edge = _around(edges, upper, 0.0, None)
    low, high = _around(cdf, upper, 0.0, 1.0)
    part = (at - low_edge) / np.maximum(high_edge - low_edge, _DAMPING)
    return np.where(upper == edges.shape[1], 1.0, low + (high - low) * np.clip(part, 0, 1))


def quantile_at(cdf: Floats, edges: Floats, probability: Floats) -> Floats:
    """(s, q) shares below which `probability` lies, (q,) or (s, q); at most the last edge."""
    wanted = np.broadcast_to(probability, (cdf.shape[0], probability.shape[-1]))
    upper = (cdf[:, None, :] < wanted[:, :, None]).sum(axis=2)
    low_edge, high_edge = _around(edges, upper, 0.0, None)
    low, high = _around(cdf, upper, 0.0, 1.0)
    part = (wanted - low) / np.maximum(high - low, _DAMPING)
    # Values that stand on one spot fill a cell as narrow as the floor: its end covers them all.
    part = np.where(high_edge - low_edge <= _SPOT, 1.0, part)
    return np.asarray(low_edge + (high_edge - low_edge) * np.clip(part, 0, 1))


def _around(
    values: Floats, upper: Ints, first: float, beyond: float | None
) -> tuple[Floats, Floats]:
    """The values before and at `upper`; `first` before the first, `beyond` after the last.

    Without `beyond` the last value stands for all after it.
    """
    last = values.shape[1] - 1
    low = np.take_along_axis(values, np.maximum(upper - 1, 0), axis=1)
    high = np.take_along_axis(values, np.minimum(upper, last), axis=1)
    if beyond is not None:
        high = np.where(upper > last, beyond, high)
    return np.where(upper == 0, first, low), high


def _order_statistics(window: Floats, otherwise: Floats) -> Floats:
    """(s, 9) values of the window from lowest to highest, evenly by rank; NaN left out."""
    ordered = np.sort(window, axis=1)  # NaN last
    count = np.isfinite(window).sum(axis=1)[:, None]
    rank = np.rint(np.linspace(0, 1, _ORDERED) * np.maximum(count - 1, 0)).astype(np.int64)
    return np.where(count > 0, np.take_along_axis(ordered, rank, axis=1), otherwise)
