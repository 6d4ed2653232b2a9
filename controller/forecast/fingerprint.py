"""What the last day of a series looks like, in a few numbers; and what in a fleet is like what.

A fingerprint holds no moment in time and no unit but shares of the allotment: how high, how far
spread, how restless, how much like itself a horizon and an hour ago. It conditions the network, and
tells how unlike all that was learnt from a series is. A day is what came true in slots of five
minutes, (s, SLOTS), the newest last, NaN where nothing was seen. s series, a archetypes. Pure.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from controller.core.state import Floats, Ints
from controller.forecast.protocol import Singles
from controller.forecast.seasonal import SLOTS

SMALL = 0.002  # shares below it are all but nothing: log(share + SMALL)
RANKS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.98, 1.0)
FIELDS = (
    *(f"rank {rank}" for rank in RANKS),
    "mean",
    "deviation",
    "seen",
    "age",
    "leaps",
    "idle",
    "like a horizon ago",
    "change over a horizon",
    "like an hour ago",
    "change over an hour",
)
SIZE = len(FIELDS)
# How much was seen tells when a machine came, not what it is like: archetypes do not know it.
_TELLS = np.array([name not in {"seen", "age"} for name in FIELDS], dtype=np.float32)
LAGS = (2, 12)  # slots: a horizon of ten minutes, an hour
_LEAP = 0.5  # in logarithms, from one slot to the next
_DAMPING = 1e-3
_SAME = 1e-6  # squared distances below it are rounding
ARCHETYPES = 48
_ROUNDS = 30
_USUAL = 0.95  # of the distances to the nearest archetype, when learning, are called usual


def fingerprint(day: Singles) -> Singles:
    """(s, SIZE), each about -1 to 1; zeros where nothing was seen."""
    log = _log(day)
    count = np.isfinite(log).sum(axis=1)
    some = np.maximum(count, 1)
    share = np.nan_to_num(day)
    mean = share.sum(axis=1) / some
    variance = np.maximum((share**2).sum(axis=1) / some - mean**2, 0)
    ordered = np.sort(log, axis=1)  # NaN last
    rank = np.rint(np.array(RANKS) * np.maximum(count - 1, 0)[:, None]).astype(np.int64)
    step = np.abs(np.diff(log, axis=1))
    columns = [
        *np.take_along_axis(ordered, rank, axis=1).T / 3 + 1,
        _log(mean) / 3 + 1,
        _log(np.sqrt(variance)) / 3 + 1,
        count / SLOTS,
        np.log(some) / 6,
        (step > _LEAP).sum(axis=1) / np.maximum(np.isfinite(step).sum(axis=1), 1),
        (log < np.log(2 * SMALL)).sum(axis=1) / some,
    ]
    for lag in LAGS:
        columns.extend(_likeness(log, lag))
    found = np.nan_to_num(np.stack(columns, axis=1)).astype(np.float32)
    found[count == 0] = 0
    return np.asarray(found)


@dataclass(frozen=True, slots=True, eq=False)
class Archetypes:
    """What fingerprints gather around, and how far from it the usual ones are."""

    centre: Singles  # (a, SIZE)
    scale: Singles  # (SIZE,) deviations, the unit of distances
    usual: float  # distance

    def nearest(self, prints: Singles) -> tuple[Ints, Floats]:
        """(s,) number of the nearest archetype, and the novelty: its distance over the usual one.

        Above 1: less like any archetype than 95 % of what was learnt from.
        """
        squares = _squares(prints * _TELLS / self.scale, self.centre / self.scale)
        place = squares.argmin(axis=1)
        distance = np.sqrt(squares[np.arange(len(place)), place])
        return place, np.asarray(distance / self.usual, dtype=np.float64)


def archetypes(prints: Singles, random: Generator, count: int = ARCHETYPES) -> Archetypes:
    """Of fingerprints by k-means (Lloyd 1982), begun from some of them drawn far apart
    (Arthur and Vassilvitskii 2007); fewer where there are fewer fingerprints. Some are needed."""
    prints = prints * _TELLS
    scale = prints.std(axis=0) + np.float32(0.05)
    scaled = prints / scale
    centre = _far_apart(scaled, random, min(count, len(prints)))
    for _ in range(_ROUNDS):
        place = _squares(scaled, centre).argmin(axis=1)
        size = np.bincount(place, minlength=len(centre))
        total = np.zeros_like(centre)
        np.add.at(total, place, scaled)
        centre = np.where(size[:, None] > 0, total / np.maximum(size, 1)[:, None], centre)
    distance = np.sqrt(_squares(scaled, centre).min(axis=1))
    usual = max(float(np.quantile(distance, _USUAL)), _DAMPING)
    return Archetypes((centre * scale).astype(np.float32), scale.astype(np.float32), usual)


def _far_apart(scaled: Singles, random: Generator, count: int) -> Singles:
    """Each next one drawn in proportion to its squared distance from those that were drawn."""
    chosen = [int(random.integers(len(scaled)))]
    squares = _squares(scaled, scaled[chosen])[:, 0]
    while len(chosen) < count:
        total = squares.sum()
        if total <= 0:
            break  # all that is left is the same as something that was drawn
        chosen.append(int(random.choice(len(scaled), p=squares / total)))
        squares = np.minimum(squares, _squares(scaled, scaled[chosen[-1:]])[:, 0])
    return np.asarray(scaled[chosen])


def _squares(some: Singles, others: Singles) -> Floats:
    """(s, a) squared distances."""
    left, right = some.astype(np.float64), others.astype(np.float64)
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1) - 2 * (left @ right.T)
    return np.where(squares < _SAME, 0.0, squares)


def _likeness(log: Singles, lag: int) -> tuple[Floats, Floats]:
    """(s,) correlation with itself `lag` slots before, and the mean change in logarithms."""
    late, early = log[:, lag:], log[:, :-lag]
    both = np.isfinite(late) & np.isfinite(early)
    count = np.maximum(both.sum(axis=1), 1)[:, None]
    late, early = np.where(both, late, 0), np.where(both, early, 0)
    change = np.abs(late - early).sum(axis=1) / count[:, 0]
    late = np.where(both, late - late.sum(axis=1, keepdims=True) / count, 0)
    early = np.where(both, early - early.sum(axis=1, keepdims=True) / count, 0)
    scale = np.sqrt((late**2).sum(axis=1) * (early**2).sum(axis=1))
    likeness = (late * early).sum(axis=1) / (scale + _DAMPING)
    return likeness, np.log(change + 0.01) / 3


def _log(share: Floats | Singles) -> Singles:
    return np.asarray(np.log(np.maximum(share, 0) + SMALL), dtype=np.float32)
