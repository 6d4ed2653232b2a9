"""Members mixed per series by what their mixture would have scored. Pure.

The mixture is a linear pool: a weighted mean of the members' CDFs. Its ranked probability score is
a quadratic form of the weights, w' A w, where A holds the products of the members' errors at every
edge. A is kept per series and for all series, both fading; the weights follow its gradient by
exponentiated steps (Kivinen and Warmuth 1997), a part of them returning to those that serve all
series best (fixed share, Herbster and Warmuth 1998), so that a new series starts from what works
for the fleet. Predictions wait until the horizon has passed, at most two of a series. A series that
stood still for two hours costs next to nothing (`still`). Series are gone through in parts that the
cache holds. s series, m members, e edges.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.core.state import Floats, Ints
from controller.forecast.buckets import CODES, UNSEEN, Codes, Small
from controller.forecast.calibrate import Conformal, Reliability
from controller.forecast.grid import (
    EDGE_COUNT,
    OF_BINS,
    Grid,
    bin_mass,
    make_grid,
    quantile_at,
    shares,
)
from controller.forecast.learnt import Learnt, LearntError, taken
from controller.forecast.members import Family
from controller.forecast.moment import BINS, LEVELS, Moment, Prediction
from controller.forecast.seasonal import Day
from controller.forecast.sight import EVERY, Rows, Sight, Target, arranged, look, rows_of
from controller.forecast.still import Still

_DAMPING = 1e-12
_PACKED = 255
_AT_ONCE = 512
_AT_FIRST = 1000.0  # outcomes that what others taught counts as
_TAUGHT = 128  # series of a part from which what all series share is learnt, in turn


@dataclass(frozen=True, slots=True)
class Habits:
    """How fast the weights learn."""

    kept: float = 0.99  # of what was learnt per outcome of a series
    kept_of_all: float = 0.998
    prior_outcomes: float = 25.0  # the fleet's errors count as much as so many of the series' own
    rate: float = 1.0
    steps: int = 10  # along the gradient per outcome
    back: float = 0.02  # of the weights, per step, to those of the fleet
    fine_weight: float = 0.05  # of an edge that only this series has, beside one of the 20
    waiting: int = 2  # predictions of a series whose outcome is yet to come


_HABITS = Habits()


class Mixture:
    """A `Predictor` over families of members; `favoured` says how much more than one each weighs.

    `step` must be called with the same series in the same order every time; `arrange` says when
    that changes. Quantiles are those at `levels`, ascending.
    """

    name = "mixture"

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
        self.habits, self._levels = habits, levels
        self.day, self.still = Day(), Still()
        self._learners: list[Still | Family] = [self.still, *families]
        self.reliability, self.conformal = Reliability(), Conformal(levels)
        self._weighing = Weighing(sum(each.count for each in families), favoured, habits)
        # Outcomes are learnt from at every so many steps, such that at most two are waited for.
        most = min(habits.waiting, horizon_steps)
        self._slots = next(each for each in range(most, 0, -1) if horizon_steps % each == 0)
        self._stride = horizon_steps // self._slots
        self._now = -1
        self._begin(0)

    def step(self, moment: Moment) -> Prediction:
        series = len(moment.window)
        if self._series == 0:
            self._begin(series)
        self._now += 1
        self.day.turn(int(np.max(moment.end_s)))
        learns = self._now % self._stride == 0
        if learns:
            self._turn(moment.step_s)
        mass = np.empty((series, BINS + 1))
        quantile = np.empty((series, len(self._levels)))
        for first in range(0, series, _AT_ONCE):
            rows = slice(first, min(first + _AT_ONCE, series))
            sight = look(rows_of(moment, rows), self.horizon_steps, self.target)
            self.day.put(sight, rows)
            if learns:
                self._learn(sight, rows)
            sight = sight.on(self.day.ordered(rows))
            mass[rows], quantile[rows] = self._say(sight, rows, remember=learns)
        return Prediction(mass, quantile)

    def again(self, moment: Moment, rows: Ints) -> Prediction:
        """Of a moment of these rows of the series alone, in this order; nothing is learnt from it.

        For what must be known anew between two steps. `step` must have been called before.
        """
        mass = np.empty((len(rows), BINS + 1))
        quantile = np.empty((len(rows), len(self._levels)))
        for first in range(0, len(rows), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            sight = look(rows_of(moment, part), self.horizon_steps, self.target)
            sight = sight.on(self.day.ordered(rows[part]))
            mass[part], quantile[part] = self._say(sight, rows[part], remember=False)
        return Prediction(mass, quantile)

    def arrange(self, places: Ints) -> None:
        """Series of the next moment: their rows in the last one, -1 for those that are new."""
        self._series = len(places)
        for one in (self.day, self.conformal, self._weighing):
            one.arrange(places)
        for each in self._learners:
            each.arrange(places)

    @property
    def state_bytes(self) -> int:
        """That every series has of its own, all series together."""
        parts = (self.day, self.conformal, self._weighing, *self._learners)
        held = (one for part in parts for one in vars(part).values())
        return sum(
            one.nbytes for one in held if isinstance(one, np.ndarray) and len(one) == self._series
        )

    def learnt(self) -> Learnt:
        """What all series share, for a fleet that begins (`start_from`).

        What follows what and the reliability of what was said tell fleets apart: one that began
        with another's fared worse than with none.
        """
        parts = (self.conformal, self._weighing, *self._learners)
        return {name: array for part in parts for name, array in part.learnt().items()}

    def start_from(self, learnt: Learnt) -> None:
        """Before the first step: with what others taught. Errors: `learnt.LearntError`."""
        for part in (self.conformal, self._weighing, *self._learners):
            part.start_from(learnt)

    def _begin(self, series: int) -> None:
        self._series = series
        self.day.begin(series)
        for one in (self.conformal, self._weighing):
            one.begin(series, self._slots)
        for each in self._learners:
            each.begin(series, self._slots)

    def _turn(self, step_s: int) -> None:
        seconds = float(step_s * self._stride)
        slot = self._now // self._stride % self._slots
        self.reliability.turn()
        self.conformal.turn(slot)
        self._weighing.turn(slot)
        for each in self._learners:
            each.turn(seconds, slot)

    def _learn(self, sight: Sight, rows: Rows) -> None:
        """From the newest outcome, of what was said of it."""
        for each in self._learners:
            each.learn(sight, rows)
        self.conformal.learn(sight.outcome, rows)
        self._weighing.learn(sight, rows, self.reliability)

    def _say(self, sight: Sight, rows: Rows, *, remember: bool) -> tuple[Floats, Small]:
        series = len(sight.newest)
        mass = np.empty((series, BINS + 1))
        quantile = np.empty((series, len(self._levels)), dtype=np.float32)
        numbers = np.arange(series) + rows.start if isinstance(rows, slice) else rows
        moving, still = np.flatnonzero(~sight.still), np.flatnonzero(sight.still)
        if remember:
            for each in self._learners:
                each.remember(sight, rows)
        if len(still):
            some = sight.of(still)
            mass[still], quantile[still] = self._say_still(some, numbers[still])
            if remember:
                self.conformal.forget(numbers[still])
                self._weighing.forget(numbers[still])
        if len(moving):
            whole = len(moving) == series
            some, where = (sight, rows) if whole else (sight.of(moving), numbers[moving])
            mass[moving], quantile[moving] = self._say_moving(some, where, remember=remember)
        if remember:
            # Said of what was not seen for two hours: nothing is to be learnt from it.
            blind = numbers[np.isnan(sight.newest)]
            self.conformal.forget(blind)
            self._weighing.forget(blind)
        return mass, quantile

    def _say_still(self, sight: Sight, rows: Rows) -> tuple[Floats, Small]:
        grid = make_grid(sight.newest, sight.values, sight.past)
        cdf = self.still.cdf(sight, grid, rows)
        return bin_mass(cdf, grid), quantile_at(cdf, grid, self._levels)

    def _say_moving(self, sight: Sight, rows: Rows, *, remember: bool) -> tuple[Floats, Small]:
        grid = make_grid(sight.newest, sight.values, sight.past)
        edges = grid.edges
        members = np.concatenate([each.cdf(sight, grid, rows) for each in self.families], axis=1)
        np.clip(members, 0, 1, out=members)
        pooled = self._weighing.pooled(members, rows)
        final = self.reliability.correct(pooled, edges, sight.newest, sight.spread)
        if remember:
            self._weighing.remember(members, grid, sight, rows)
            self.conformal.remember(final, grid, rows)
        return bin_mass(final, grid), self.conformal.read(final, grid, rows)


class Weighing:
    """The weights of the members, and what they said that is not settled yet."""

    def __init__(self, count: int, favoured: Sequence[float], habits: Habits) -> None:
        self._habits = habits
        prior = np.array(favoured) if len(favoured) else np.ones(count)
        self._prior = prior / prior.sum()
        self.weights = self._prior.copy()  # those that serve all series best
        self.errors = np.zeros((count, count))
        self.outcomes = 0.0
        self._upper = np.triu_indices(count)
        self._square = _square(count)
        self._edge_weight = np.full(CODES, habits.fine_weight, dtype=np.float32)
        self._edge_weight[OF_BINS] = 1.0
        self.begin(0, 1)

    def begin(self, series: int, waiting: int) -> None:
        count = len(self._prior)
        self._own: Small = np.tile(self.weights, (series, 1)).astype(np.float32)
        self._errors: Small = np.zeros((series, len(self._upper[0])), dtype=np.float32)
        self._outcomes: Small = np.zeros(series, dtype=np.float32)
        self._codes: Codes = np.zeros((series, waiting, EDGE_COUNT), dtype=np.uint8)
        self._said: NDArray[np.uint8] = np.zeros(
            (series, waiting, count, EDGE_COUNT), dtype=np.uint8
        )
        self._place: Small = np.zeros((series, waiting, 2), dtype=np.float32)  # newest, spread

    def learnt(self) -> Learnt:
        return {"weights": self.weights.copy(), "weighed": self.errors / (self.outcomes + _DAMPING)}

    def start_from(self, learnt: Learnt) -> None:
        """Learnt with the network or without, where this is without, too."""
        count = len(self._prior)
        known = len(learnt.get("weights", ()))
        if known not in {count, count + 1}:
            raise LearntError(f"weights are of {known} members instead of {count}")
        weights = taken(learnt, "weights", (known,))[:count]
        if not (weights > 0).all():
            raise LearntError("weights of members must be above 0")
        self.weights = weights / weights.sum()
        self.errors = _AT_FIRST * taken(learnt, "weighed", (known, known))[:count, :count]
        self.outcomes = _AT_FIRST
        self._own[:] = self.weights

    def turn(self, slot: int) -> None:
        self._slot = slot
        habits = self._habits
        self.errors *= habits.kept_of_all
        self.outcomes *= habits.kept_of_all
        size = np.trace(self.errors)
        if size > 0:
            form = (self.errors / size).astype(np.float32)
            found = _descend(self.weights[None].astype(np.float32), form[None], habits)[0]
            self.weights = (1 - 1e-3) * found.astype(np.float64) + 1e-3 * self._prior

    def arrange(self, places: Ints) -> None:
        self._own = arranged(self._own, places)
        self._own[places < 0] = self.weights
        self._errors = arranged(self._errors, places)
        self._outcomes = arranged(self._outcomes, places)
        self._codes = arranged(self._codes, places)
        self._said = arranged(self._said, places)
        self._place = arranged(self._place, places)

    def pooled(self, members: Small, rows: Rows) -> Small:
        return np.asarray(np.matmul(self._own[rows][:, None, :], members)[:, 0])

    def remember(self, members: Small, grid: Grid, sight: Sight, rows: Rows) -> None:
        self._codes[rows, self._slot] = grid.codes
        self._said[rows, self._slot] = np.rint(members * np.float32(_PACKED)).astype(np.uint8)
        self._place[rows, self._slot] = np.stack([sight.newest, sight.spread], axis=1)

    def forget(self, rows: Rows) -> None:
        self._codes[rows, self._slot] = 0

    def learn(self, sight: Sight, rows: Rows, reliability: Reliability) -> None:
        habits = self._habits
        codes = self._codes[rows, self._slot]
        outcome = sight.past[:, -1]
        known = np.flatnonzero((outcome != UNSEEN) & (codes[:, -1] > 0))
        if not len(known):
            return
        where = known + rows.start if isinstance(rows, slice) else rows[known]
        codes = codes[known]
        members = self._said[where, self._slot] * np.float32(1 / _PACKED)
        came = (outcome[known, None] < codes).astype(np.float32)
        weight = np.take(self._edge_weight, codes)
        weight[:, 1:][codes[:, 1:] == codes[:, :-1]] = 0  # each edge counts once
        own = self._own[where]
        some = (
            np.flatnonzero(known % max(1, len(known) // _TAUGHT) == 0)
            if len(known) > _TAUGHT
            else EVERY
        )
        place = self._place[where[some], self._slot]
        pooled = np.matmul(own[some][:, None, :], members[some])[:, 0]
        reliability.learn(
            pooled, shares(codes[some]), place[:, 0], place[:, 1], came[some], weight[some]
        )
        error = members - came[:, None, :]
        error *= np.sqrt(weight / BINS)[:, None, :]
        product = np.matmul(error, error.transpose(0, 2, 1))  # (k, m, m)
        self.errors += product.sum(axis=0)
        self.outcomes += len(known)
        kept = np.float32(habits.kept)
        self._outcomes[where] = self._outcomes[where] * kept + 1
        errors = self._errors[where] * kept + product[:, *self._upper]
        self._errors[where] = errors
        self._own[where] = self._followed(own, errors, self._outcomes[where])

    def _followed(self, weights: Small, errors: Small, outcomes: Small) -> Small:
        """(k, m) the weights after the newest errors, (k, m, m) in halves."""
        habits = self._habits
        own = np.take(errors, self._square, axis=1)
        size = np.trace(own, axis1=1, axis2=2)
        fleet = (self.errors / (np.trace(self.errors) + _DAMPING)).astype(np.float32)
        form = own * (outcomes / (size + np.float32(_DAMPING)))[:, None, None]
        form += fleet * np.float32(habits.prior_outcomes)
        form /= (outcomes + np.float32(habits.prior_outcomes))[:, None, None]
        weights = (1 - habits.back) * weights + habits.back * self.weights.astype(np.float32)
        return _descend(weights.astype(np.float32), form, habits)


def _square(count: int) -> Ints:
    """(m, m) places of a symmetric matrix in its upper half."""
    found = np.zeros((count, count), dtype=np.int64)
    upper = np.triu_indices(count)
    found[upper] = np.arange(len(upper[0]))
    return np.maximum(found, found.T)


def _descend(weights: Small, form: Small, habits: Habits) -> Small:
    """(s, m) weights some steps further down w' A w, A (s, m, m), on the simplex.

    The gradient is taken relative to the score itself: scores of idle series are minute.
    """
    for _ in range(habits.steps):
        gradient = np.matmul(form, weights[:, :, None])[:, :, 0]
        score = (gradient * weights).sum(axis=1, keepdims=True)
        relative = gradient / (score + np.float32(_DAMPING)) - 1
        weights = weights * np.exp(-np.float32(habits.rate) * np.clip(relative, -4, 4))
        weights = weights / weights.sum(axis=1, keepdims=True)
    return weights
