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

from controller.core.state import Floats, Ints
from controller.forecast.grid import EDGE_COUNT, bin_mass, make_grid, quantile_at
from controller.forecast.members import Family
from controller.forecast.moment import BINS, LEVELS, Moment, Prediction
from controller.forecast.sight import Sight, Small, Target, arranged, look

_DAMPING = 1e-12


@dataclass(frozen=True, slots=True)
class Habits:
    """How fast the weights learn."""

    kept: float = 0.99  # of what was learnt per step of a series
    kept_of_all: float = 0.99
    prior_outcomes: float = 15.0  # the fleet's errors count as much as so many of the series' own
    rate: float = 1.0
    steps: int = 8  # along the gradient per outcome
    back: float = 0.02  # of the weights, per step, to those of the fleet
    fine_weight: float = 0.05  # of an edge that only this series has, beside one of the 20


_HABITS = Habits()


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """Predictions whose outcome has not come."""

    error_weight: Floats  # (s, e)
    edges: Floats  # (s, e)
    cdf: Small  # (s, m, e)


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
    ) -> None:
        self.families, self.horizon_steps, self.target = families, horizon_steps, target
        self.habits = habits
        count = sum(family.count for family in families)
        prior = np.array(favoured) if len(favoured) else np.ones(count)
        self._prior = prior / prior.sum()
        self._fleet_weights = self._prior.copy()
        self._fleet_errors = np.zeros((count, count))
        self._waiting: deque[_Waiting] = deque()
        self._begin(0)

    def step(self, moment: Moment) -> Prediction:
        series = len(moment.window)
        if len(self._weights) == 0:
            self._begin(series)
        sight = look(moment, self.horizon_steps, self.target)
        self._learn(sight)
        grid = make_grid(sight.newest, sight.past)
        members = self._members(sight, grid.edges)
        self._waiting.append(
            _Waiting(self._edge_weights(grid.places), grid.edges, members.astype(np.float32))
        )
        mixed = np.matmul(self._weights[:, None, :], members)[:, 0]
        return Prediction(bin_mass(mixed, grid), quantile_at(mixed, grid.edges, LEVELS))

    def arrange(self, places: Ints) -> None:
        """Series of the next moment: their rows in the last one, -1 for those that are new."""
        self._weights = arranged(self._weights, places)
        self._weights[places < 0] = self._fleet_weights
        self._errors = arranged(self._errors, places)
        self._outcomes = arranged(self._outcomes, places)
        self._waiting = deque(
            _Waiting(
                arranged(each.error_weight, places),
                arranged(each.edges, places),
                arranged(each.cdf, places),
            )
            for each in self._waiting
        )
        for family in self.families:
            family.arrange(places)

    def _begin(self, series: int) -> None:
        count = len(self._prior)
        self._weights = np.tile(self._fleet_weights, (series, 1))
        self._errors = np.zeros((series, count, count), dtype=np.float32)
        self._outcomes = np.zeros(series, dtype=np.float32)
        self._waiting.clear()
        for family in self.families:
            family.begin(series)

    def _members(self, sight: Sight, edges: Floats) -> Floats:
        """(s, m, e) CDFs, made ascending and within 0 and 1."""
        found = np.concatenate([each.cdf(sight, edges) for each in self.families], axis=1)
        return np.clip(found, 0.0, 1.0, out=found)

    def _edge_weights(self, places: Ints) -> Floats:
        weight = np.full((len(places), EDGE_COUNT), self.habits.fine_weight)
        np.put_along_axis(weight, places, 1.0, axis=1)
        return weight / BINS

    def _learn(self, sight: Sight) -> None:
        """From the prediction whose outcome has just come, if one has."""
        for family in self.families:
            family.learn(sight)
        if len(self._waiting) < self.horizon_steps:
            return
        waiting = self._waiting.popleft()
        known = np.flatnonzero(np.isfinite(sight.outcome) & (waiting.error_weight[:, 0] > 0))
        if not len(known):
            return
        came = (sight.outcome[known, None] < waiting.edges[known]).astype(np.float32)
        weight = np.sqrt(waiting.error_weight[known]).astype(np.float32)
        error = (waiting.cdf[known] - came[:, None, :]) * weight[:, None, :]
        product = np.matmul(error, error.transpose(0, 2, 1))  # (k, m, m)
        habits = self.habits
        self._outcomes[known] = self._outcomes[known] * np.float32(habits.kept) + 1
        self._errors[known] *= np.float32(habits.kept)
        self._errors[known] += product
        self._fleet_errors *= habits.kept_of_all
        self._fleet_errors += product.sum(axis=0)
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
