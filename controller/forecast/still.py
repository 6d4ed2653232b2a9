"""Series that stood still for two hours: they stay, or they leap as still ones do. Pure.

Most series of a fleet are such, and no member knows more of them: they cost a fraction of what the
others cost. How often one leaps is learnt of each and of all at its height, where to of all.
s series, e edges, h heights.
"""

import numpy as np
from numpy.typing import NDArray

from controller.core.state import Ints
from controller.forecast.buckets import CODES, MIDDLES, UNSEEN, Small, encode
from controller.forecast.grid import FLOOR, Grid
from controller.forecast.learnt import Learnt, lightened, taken
from controller.forecast.sight import Rows, Sight, arranged

_HEIGHTS = np.array([FLOOR / 2, 0.02, 0.1, 0.3, 0.6, 0.99])
HEIGHTS = len(_HEIGHTS) + 1
_HEIGHT_OF_CODE = np.searchsorted(_HEIGHTS, np.nan_to_num(MIDDLES), side="right")
_HALF_LIFE_S = 2 * 86_400.0
_OWN_MIN = 300.0  # outcomes of all that count as much as those of the series
_ODD = 0.004  # probability of a leap before one was seen
_ODD_COUNT = 500.0
_AT_FIRST = 2000.0  # outcomes per height that what others taught counts as
_EVEN = 0.02  # of a leap to each cell


class Still:
    """What becomes of series that do not move."""

    def __init__(self) -> None:
        self.leapt = np.zeros((HEIGHTS, CODES))  # outcomes of leaps
        self.stayed = np.zeros(HEIGHTS)
        self.begin(0, 1)

    def begin(self, series: int, waiting: int) -> None:
        self._own: NDArray[np.float16] = np.zeros((series, 2), dtype=np.float16)  # leapt, stayed
        self._waiting: Small = np.full((series, waiting), np.nan, dtype=np.float32)

    def arrange(self, places: Ints) -> None:
        self._own = arranged(self._own, places)
        self._waiting = arranged(self._waiting, places, np.nan)

    def turn(self, seconds: float, slot: int) -> None:
        self._slot = slot
        self._kept = 0.5 ** (seconds / _HALF_LIFE_S)
        self.leapt *= self._kept
        self.stayed *= self._kept

    def learn(self, sight: Sight, rows: Rows) -> None:
        was = self._waiting[rows, self._slot]
        known = np.isfinite(was) & np.isfinite(sight.outcome)
        leapt = known & (np.abs(sight.outcome - was) >= FLOOR)
        now = np.stack([leapt, known & ~leapt], axis=1)
        kept = np.where(known, np.float16(self._kept), np.float16(1))[:, None]
        self._own[rows] = self._own[rows] * kept + now
        height = np.take(_HEIGHT_OF_CODE, encode(was))
        outcome = sight.past[:, -1]
        self.stayed += np.bincount(height[now[:, 1]], minlength=HEIGHTS)
        np.add.at(self.leapt, (height[leapt], outcome[leapt]), 1.0)

    def remember(self, sight: Sight, rows: Rows) -> None:
        level = np.where(sight.still, sight.newest, np.float32(np.nan))
        self._waiting[rows, self._slot] = level

    def cdf(self, sight: Sight, grid: Grid, rows: Rows) -> Small:
        """(s, e)"""
        here = np.where(sight.newest_code == UNSEEN, 0, sight.newest_code)
        height = np.take(_HEIGHT_OF_CODE, here)
        leapt = self.leapt.sum(axis=1)
        usual = (leapt + _ODD * _ODD_COUNT) / (leapt + self.stayed + _ODD_COUNT)
        own = self._own[rows].astype(np.float32)
        leap = (own[:, 0] + _OWN_MIN * usual[height]) / (own.sum(axis=1) + _OWN_MIN)
        mass = self.leapt + _EVEN
        where_to = np.cumsum(mass, axis=1) / mass.sum(axis=1, keepdims=True)
        going = where_to[height[:, None], grid.codes - 1] * leap[:, None]
        staying = (here[:, None] < grid.codes) * (1 - leap)[:, None]
        return np.asarray(going + staying, dtype=np.float32)

    def learnt(self) -> Learnt:
        both = lightened(np.column_stack([self.leapt, self.stayed]), _AT_FIRST, axis=1)
        return {"leapt": both[:, :-1], "stayed": both[:, -1]}

    def start_from(self, learnt: Learnt) -> None:
        leapt = taken(learnt, "leapt", self.leapt.shape)
        stayed = taken(learnt, "stayed", self.stayed.shape)
        both = lightened(np.maximum(np.column_stack([leapt, stayed]), 0), _AT_FIRST, axis=1)
        self.leapt, self.stayed = both[:, :-1], both[:, -1]
