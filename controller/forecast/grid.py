"""Where a distribution is written down: edges per series, dense where its values are. Pure.

A distribution of one series is its CDF at ascending edges, the probability of a share below each.
Edges are places among `buckets.BOUNDS`. Between edges the CDF is linear, from 0 at a share of 0;
above the last edge it is all gone. The 20 edges of `moment.EDGES` are among the edges of every
series, so the mass of a bin is a plain difference. s series, e edges, k steps of a window.
"""

from dataclasses import dataclass

import numpy as np

from controller.core.state import Floats, Ints
from controller.forecast.buckets import BOUNDS, CODES, UNSEEN, Codes, Small, encode
from controller.forecast.moment import BINS, EDGES

FLOOR = 1e-4  # shares: nothing finer is told apart
_ROUNDING = 1e-6  # that of `moment.bin_of`
_NEAR = np.array([-8, -3, 0, 1, 4, 9])  # bounds around the newest value's code
_ORDERED = 4  # order statistics of the window, above each of which is an edge
_COARSE = np.searchsorted(BOUNDS, [0.0044])  # tells idle from nearly idle
_ABOVE = 4  # bounds above the highest value of the window
OF_BINS = np.searchsorted(BOUNDS, EDGES - 1e-9).astype(np.uint8)
_OWN = len(_NEAR) + _ORDERED + len(_COARSE) + 1
EDGE_COUNT = BINS + _OWN
_DAMPING = 1e-9
_SHARES = BOUNDS.astype(np.float32)
_ENDS = np.append(_SHARES, _SHARES[-1] * np.float32(1.2))
_HAIR = np.float32(FLOOR / 2)


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Edges of s series at one moment."""

    codes: Codes  # (s, e) ascending; equal ones are allowed
    places: Ints  # (s, 20) where `moment.EDGES` stand among them
    here: Codes  # (s,) the cell of the newest value
    spot: Small  # (s, 2) the lowest and the highest of the window within that cell

    @property
    def edges(self) -> Small:
        """(s, e) in shares."""
        return shares(self.codes)


def shares(codes: Codes) -> Small:
    """The bounds at these places, any shape."""
    return np.asarray(np.take(_SHARES, codes))


def snap(share: Small) -> Small:
    """Shares moved by a millionth so that `share < edge` says what `moment.bin_of` says."""
    tiny = np.float32(_ROUNDING)
    moved = share + tiny
    moved[np.abs(share - 1) < tiny] = 1 - 2 * tiny
    return moved


def make_grid(newest: Small, window: Small, codes: Codes) -> Grid:
    """Edges for s series from their newest value (s,), their window and its codes (s, k)."""
    newest = np.nan_to_num(newest)
    here = encode(newest).astype(np.int64)[:, None]
    ordered = _order_statistics(codes, here)
    highest = np.maximum(ordered[:, -1:], here)
    series = len(newest)
    own = np.concatenate(
        [here + _NEAR, ordered + 1, highest + _ABOVE, np.tile(_COARSE, (series, 1))],
        axis=1,
    )
    own = np.sort(np.clip(own, 1, CODES - 1).astype(np.uint8), axis=1)
    before = (own[:, :, None] < OF_BINS).sum(axis=1)  # (s, 20) own edges below each of the bins
    edges = np.concatenate([own, np.tile(OF_BINS, (series, 1))], axis=1)
    within = codes == here
    lowest = np.where(within, window, newest[:, None]).min(axis=1)
    highest_within = np.where(within, window, newest[:, None]).max(axis=1)
    spot = np.stack([np.minimum(lowest, newest), np.maximum(highest_within, newest)], axis=1)
    return Grid(np.sort(edges, axis=1), before + np.arange(BINS), here[:, 0].astype(np.uint8), spot)


def bin_mass(cdf: Small, grid: Grid) -> Floats:
    """(s, 21) mass of the bins from a CDF (s, e) on the grid; sums to 1 exactly up to rounding."""
    below = np.take_along_axis(cdf, grid.places, axis=1).astype(np.float64)
    return np.diff(below, axis=1, prepend=0.0, append=1.0)


def quantile_at(cdf: Small, grid: Grid, probability: Floats | Small) -> Small:
    """(s, q) shares below which `probability` lies, (q,) or (s, q); at most the last edge.

    Within the cell of the newest value there is nothing but what the window had there.
    """
    edges = grid.edges
    given = probability.astype(np.float32)
    wanted: Small = np.broadcast_to(given, (cdf.shape[0], given.shape[-1]))
    upper = (cdf[:, None, :] < wanted[:, :, None]).sum(axis=2)
    low_edge, high_edge = _around(edges, upper)
    low, high = _around(cdf, upper)
    part = (wanted - low) / np.maximum(high - low, _DAMPING)
    part = np.clip(part, 0, 1)
    found = low_edge + (high_edge - low_edge) * part
    here = grid.here.astype(np.int64)[:, None]
    low, high = np.take(_ENDS, here), np.take(_ENDS, here + 1)
    at = np.clip((found - low) / (high - low), 0, 1)
    spot = grid.spot[:, :1] + (grid.spot[:, 1:] - grid.spot[:, :1] + _HAIR) * at
    spotted = np.where((found >= low) & (found <= high), spot, found)
    return np.asarray(spotted, dtype=np.float32)


def _around(values: Small, upper: Ints) -> tuple[Small, Small]:
    """The values before and at `upper`; 0 before the first, the last one beyond it."""
    last = values.shape[1] - 1
    low = np.take_along_axis(values, np.maximum(upper - 1, 0), axis=1)
    high = np.take_along_axis(values, np.minimum(upper, last), axis=1)
    return np.where(upper == 0, np.float32(0), low), high


def _order_statistics(window: Codes, otherwise: Ints) -> Ints:
    """(s, 4) codes of the window from lowest to highest, evenly by rank; the unseen left out."""
    ordered = np.sort(window, axis=1)  # the unseen last
    count = (window != UNSEEN).sum(axis=1)[:, None]
    rank = np.rint(np.linspace(0, 1, _ORDERED) * np.maximum(count - 1, 0)).astype(np.int64)
    found = np.take_along_axis(ordered, rank, axis=1)
    return np.where(count > 0, found.astype(np.int64), otherwise)
