"""Members mixed per series by what their mixture would have scored. Pure.

The mixture is a linear pool: a weighted mean of the members' CDFs. Its ranked probability score is
a quadratic form of the weights, w' A w, where A holds the products of the members' errors at every
edge. A is kept per series and for all series, both fading; the weights follow its gradient by
exponentiated steps (Kivinen and Warmuth 1997), a part of them returning to those that serve all
series best (fixed share, Herbster and Warmuth 1998), so that a new series starts from what works
for the fleet. Predictions wait until the horizon has passed. s series, m members, e edges.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.core.state import Bools, Floats, Ints
from controller.forecast.calibrate import Conformal, Reliability, Said, ascending
from controller.forecast.grid import Grid, bin_mass, make_grid
from controller.forecast.members import Family
from controller.forecast.moment import BINS, LEVELS, Moment, Prediction
from controller.forecast.sight import EVERY, Rows, Sight, Small, Target, arranged, look

_DAMPING = 1e-12
_PACKED = 65_535


@dataclass(frozen=True, slots=True)
class Habits:
    """How fast the weights learn."""

    kept: float = 0.99  # of what was learnt per step of a series
    kept_of_all: float = 0.99
    prior_outcomes: float = 15.0  # the fleet's errors count as much as so many of the series' own
    rate: float = 1.0
    steps: int = 10  # along the gradient per outcome
    back: float = 0.02  # of the weights, per step, to those of the fleet
    fine_weight: float = 0.05  # of an edge that only this series has, beside one of the 20


_HABITS = Habits()


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """Predictions whose outcome has not come, packed: of many series they are most of the state."""

    due: int  # number of the step
    place: Bools  # (s, e) whether an edge is one of the 20
    said: Said
    members: NDArray[np.uint16]  # (s, m, e) 65,535ths


@dataclass(frozen=True, slots=True, eq=False)
class _Told:
    """CDFs of one moment: of the members, their mixture, corrected, and with what that is worth."""

    grid: Grid
    members: Floats  # (s, m, e)
    pooled: Floats  # (s, e)
    corrected: Floats
    final: Floats


class Mixture:
    """A `Predictor` over families of members; `favoured` says how much more than one each weighs.

    `step` must be called with the same series in the same order every time; `arrange` says when
    that changes.
    """

    name = "mixture"

    _weights: Floats  # (s, m)
    _errors: Small  # (s, m, m)
    _outcomes: Small  # (s,)

    def __init__(
        self,
        families: Sequence[Family],
        horizon_steps: int,
        target: Target = "value",
        favoured: Sequence[float] = (),
        habits: Habits = _HABITS,
        levels: Floats = LEVELS,
    ) -> None:
        self.families, self.horizon_steps, self.target = families, horizon_steps, target
        self.habits = habits
        count = sum(family.count for family in families)
        prior = np.array(favoured) if len(favoured) else np.ones(count)
        self._prior = prior / prior.sum()
        self._fleet_weights = self._prior.copy()
        self._fleet_errors = np.zeros((count, count))
        self._waiting: deque[_Waiting] = deque()
        self._now = 0
        # A fine grid would have many predictions wait: a few within a horizon teach as much.
        self._stride = max(1, horizon_steps // 4)
        self.reliability, self.conformal = Reliability(), Conformal(levels)
        self._begin(0)

    def step(self, moment: Moment) -> Prediction:
        series = len(moment.window)
        if len(self._weights) == 0:
            self._begin(series)
        sight = look(moment, self.horizon_steps, self.target)
        self._learn(sight)
        told = self._say(sight, EVERY)
        if self._now % self._stride == 0:
            said = Said.packed(told.pooled, told.corrected, told.grid.edges, sight)
            self._waiting.append(self._packed(told.grid, said, told.members))
        self._now += 1
        self.conformal.remember(told.final, told.grid.edges)
        return self._prediction(told, EVERY)

    def again(self, moment: Moment, rows: Ints) -> Prediction:
        """Of a moment of these rows of the series alone, in this order; nothing is learnt from it.

        For what must be known anew between two steps. `step` must have been called before.
        """
        return self._prediction(
            self._say(look(moment, self.horizon_steps, self.target), rows), rows
        )

    def arrange(self, places: Ints) -> None:
        """Series of the next moment: their rows in the last one, -1 for those that are new."""
        self._weights = arranged(self._weights, places)
        self._weights[places < 0] = self._fleet_weights
        self._errors = arranged(self._errors, places)
        self._outcomes = arranged(self._outcomes, places)
        self._waiting = deque(
            _Waiting(
                each.due,
                each.place[np.maximum(places, 0)] & (places >= 0)[:, None],
                each.said.arranged(places),
                each.members[np.maximum(places, 0)],
            )
            for each in self._waiting
        )
        self.reliability.arrange(places)
        self.conformal.arrange(places)
        for family in self.families:
            family.arrange(places)

    def _begin(self, series: int) -> None:
        count = len(self._prior)
        self._weights = np.tile(self._fleet_weights, (series, 1))
        self._errors = np.zeros((series, count, count), dtype=np.float32)
        self._outcomes = np.zeros(series, dtype=np.float32)
        self._waiting.clear()
        self.reliability.begin(series)
        self.conformal.begin(series)
        for family in self.families:
            family.begin(series)

    def _say(self, sight: Sight, rows: Rows) -> "_Told":
        grid = make_grid(sight.newest, sight.past)
        members = self._members(sight, grid.edges, rows)
        pooled = np.matmul(self._weights[rows][:, None, :], members)[:, 0]
        corrected = self.reliability.correct(pooled, grid.edges, sight.newest, sight.spread, rows)
        mixed = self.reliability.mixed(pooled, corrected, rows)
        return _Told(grid, members, pooled, corrected, ascending(mixed))  # but for rounding it is

    def _prediction(self, told: "_Told", rows: Rows) -> Prediction:
        quantile = self.conformal.read(told.final, told.grid.edges, rows)
        return Prediction(bin_mass(told.final, told.grid), quantile)

    def _members(self, sight: Sight, edges: Floats, rows: Rows) -> Floats:
        """(s, m, e) CDFs, made ascending and within 0 and 1."""
        found = np.concatenate([each.cdf(sight, edges, rows) for each in self.families], axis=1)
        return np.clip(found, 0.0, 1.0, out=found)

    def _packed(self, grid: Grid, said: Said, members: Floats) -> _Waiting:
        place = np.zeros(grid.edges.shape, dtype=np.bool_)
        np.put_along_axis(place, grid.places, values=True, axis=1)
        packed = np.rint(members * _PACKED).astype(np.uint16)
        return _Waiting(self._now + self.horizon_steps, place, said, packed)

    def _learn(self, sight: Sight) -> None:
        """From the newest outcome; and from the prediction that it settles, if one waited."""
        for family in self.families:
            family.learn(sight)
        self.conformal.learn(sight)
        if not self._waiting or self._waiting[0].due != self._now:
            return
        waiting = self._waiting.popleft()
        known = np.flatnonzero(np.isfinite(sight.outcome) & waiting.place.any(axis=1))
        if not len(known):
            return
        said = waiting.said.of(known)
        came = (sight.outcome[known, None] < said.edges).astype(np.float32)
        weight = np.where(waiting.place[known], 1.0, self.habits.fine_weight).astype(np.float32)
        self.reliability.learn(known, said, came, weight)
        self._learn_weights(known, waiting.members[known], came, weight)

    def _learn_weights(
        self, known: Ints, members: NDArray[np.uint16], came: Small, weight: Small
    ) -> None:
        habits = self.habits
        error = members * np.float32(1 / _PACKED) - came[:, None, :]
        error *= np.sqrt(weight / BINS)[:, None, :]
        product = np.matmul(error, error.transpose(0, 2, 1))  # (k, m, m)
        self._outcomes[known] = self._outcomes[known] * np.float32(habits.kept) + 1
        self._errors[known] = self._errors[known] * np.float32(habits.kept) + product
        self._fleet_errors = self._fleet_errors * habits.kept_of_all + product.sum(axis=0)
        self._follow(known)

    def _follow(self, known: Ints) -> None:
        habits = self.habits
        fleet = self._fleet_errors / (np.trace(self._fleet_errors) + _DAMPING)
        self._fleet_weights = _descend(
            self._fleet_weights[None], fleet[None], habits.rate, habits.steps
        )[0]
        self._fleet_weights = (1 - 1e-3) * self._fleet_weights + 1e-3 * self._prior
        own = self._errors[known]
        size = np.trace(own, axis1=1, axis2=2)[:, None, None]
        outcomes = self._outcomes[known, None, None]
        form = own * (outcomes / (size + _DAMPING)) + fleet * habits.prior_outcomes
        form = form / (outcomes + habits.prior_outcomes)
        weights = (1 - habits.back) * self._weights[known] + habits.back * self._fleet_weights
        self._weights[known] = _descend(weights, form, habits.rate, habits.steps)


def _descend(weights: Floats, form: Floats, rate: float, steps: int) -> Floats:
    """(s, m) weights some steps further down w' A w, A (s, m, m), on the simplex.

    The gradient is taken relative to the score itself: scores of idle series are minute.
    """
    for _ in range(steps):
        gradient = np.matmul(form, weights[:, :, None])[:, :, 0]
        score = (gradient * weights).sum(axis=1, keepdims=True)
        relative = gradient / (score + _DAMPING) - 1
        weights = weights * np.exp(-rate * np.clip(relative, -4, 4))
        weights = weights / weights.sum(axis=1, keepdims=True)
    return weights
