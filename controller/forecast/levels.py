"""What followed a value of this height, in all series: a Markov table of the horizon itself. Pure.

s series, e edges, t states, b cells.
"""

import numpy as np

from controller.core.state import Ints
from controller.forecast.buckets import BOUNDS, CODES, UNSEEN, Buckets, Codes, Small
from controller.forecast.grid import FLOOR
from controller.forecast.sight import Sight

_DAMPING = 1e-12
_LEARNT = 500.0  # outcomes until they count as much as going on does
_PRIOR = 3.0  # outcomes that a state has at first, by what is known of all states
_EVEN = 1e-3  # of an outcome, evenly over the allotment: nothing is impossible
_AT_MOST = 20_000.0  # outcomes that are remembered per state: another fleet overcomes them
_LOW = (0, 5e-4, 1e-3, 2e-3, 3.5e-3, 5e-3, 7e-3, 0.01, 0.014, 0.02, 0.03, 0.04)
_MIDDLE = (0.05, 0.075, 0.1, 0.125)
_VALUE = Buckets(np.array([*_LOW, *_MIDDLE, *np.arange(3, 21) / 20, 4]))
_TREND = Buckets(np.array([0, 0.4, 0.75, 0.95, 1.05, 1.4, 2.5, 1e9]))
STATES = _VALUE.count * _TREND.count
# Cells of outcomes: every third code where codes are fine, else steps of a fortieth.
_FINE, _WHOLE = (int(np.searchsorted(BOUNDS, share - FLOOR / 2)) for share in (0.05, 1.0))
_CELL_BOUNDS = np.array([*range(0, _FINE, 3), *range(_FINE, _WHOLE, 4), *range(_WHOLE, CODES)])
CELLS = len(_CELL_BOUNDS)
_CELL_OF_CODE = np.searchsorted(_CELL_BOUNDS, np.arange(UNSEEN + 1), side="right") - 1
_TOP = BOUNDS[-1] * 1.2
_CELL_SHARES = np.append(BOUNDS[_CELL_BOUNDS], _TOP)
_PART = ((BOUNDS - _CELL_SHARES[_CELL_OF_CODE[:CODES]])
         / np.diff(_CELL_SHARES)[_CELL_OF_CODE[:CODES]])  # fmt: skip


class Followed:
    """How often what followed which state: height, and height relative to half an hour."""

    def __init__(self, half_life_s: float) -> None:
        self._half_life_s = half_life_s
        self.table = np.zeros((STATES, CELLS))
        self._refresh()

    def turn(self, seconds: float) -> None:
        """Once per step, before it learns: fades what was learnt."""
        self.table *= 0.5 ** (seconds / self._half_life_s)
        heavy = self.table.sum(axis=1, keepdims=True)
        self.table *= np.minimum(1, _AT_MOST / (heavy + _DAMPING))
        self._refresh()

    def states(self, sight: Sight) -> Ints:
        """(s,) -1 where nothing was seen."""
        value = np.nan_to_num(sight.newest)
        trend = value / np.maximum(np.nan_to_num(sight.short_mean), np.float32(FLOOR))
        found = _VALUE.of(value) * _TREND.count + _TREND.of(trend)
        return np.where(np.isfinite(sight.newest), found, -1)

    def learn(self, states: Ints, outcome: Codes) -> None:
        known = np.flatnonzero((states >= 0) & (outcome != UNSEEN))
        place = states[known] * CELLS + _CELL_OF_CODE[outcome[known]]
        self.table += np.bincount(place, minlength=STATES * CELLS).reshape(STATES, CELLS)

    def cdf(self, sight: Sight, codes: Codes) -> Small:
        """(s, e) at edges; while little is known, that a series goes on as it is."""
        state = np.maximum(self.states(sight), 0)
        place = state[:, None] * CODES + codes
        found = np.take(self._cdf, place)
        goes_on = np.where(sight.newest_code == UNSEEN, 0, sight.newest_code)[:, None] < codes
        return np.asarray(found + self._goes_on[state, None] * goes_on)

    def _refresh(self) -> None:
        """The parts of all CDFs that do not depend on the series."""
        total = self.table.sum()
        learnt = total / (total + _LEARNT)
        shares = np.minimum(_CELL_SHARES, 1.0)
        even = np.diff(shares) * _EVEN
        marginal = learnt * self.table.sum(axis=0) / (total + _DAMPING) + even
        goes_on = 1.01 - learnt
        whole = marginal.sum() + goes_on
        mass = self.table + _PRIOR / whole * marginal
        size = self.table.sum(axis=1) + _PRIOR
        below = np.concatenate([np.zeros((STATES, 1)), np.cumsum(mass, axis=1)], axis=1)
        cell = _CELL_OF_CODE[:CODES]
        cdf = below[:, cell] + _PART * mass[:, cell]
        self._cdf: Small = (cdf / size[:, None]).astype(np.float32)
        self._goes_on: Small = (_PRIOR / whole * goes_on / size).astype(np.float32)
