"""How good forecasts turned out to be, per machine and resource, against persistence. Pure.

`update` takes a history and the forecast made from it, compares earlier forecasts with what came,
and gives a new book. Losses are pinball losses (Koenker and Bassett 1978), the mean over a few
levels, forgotten exponentially. Skill is 1 - loss / loss of persistence, that is of "as now"; 0
where both are too small to move a grant, as they are for machines at rest.
Coverage is the share of outcomes at or below the .95 quantile: .95 of them, where it keeps its
promise. m machines that are remembered, p of a forecast that waits; single precision.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from controller.core.state import RESOURCES, Bools, Floats, Forecast, Ints
from controller.forecast.protocol import History, Singles

LEVELS = np.array([0.5, 0.9, 0.95], dtype=np.float32)  # where grants are decided
COVERED = 2  # which of them coverage is told of
OUTCOMES_MIN = 5  # before that, skill is not known
COVERAGE_OUTCOMES_MIN = 40  # before that, neither is coverage: one in twenty may lie above
_FORGET = 0.05  # weight of a new outcome: about the last twenty count
_FORGET_COVERAGE = 0.005  # a rare event needs more of them: about the last two hundred
_NOTHING = 1e-9
# Losses that move no grant: 5 millicores, 1 MiB, 64 KiB/s, or this share of what was used.
_SMALL = np.array([5, 1 << 20, 1 << 16], dtype=np.float32)
_SMALL_SHARE = np.float32(0.005)
_ROUNDING = 1e-6


def _no_rows() -> Singles:
    return np.zeros((0, RESOURCES), dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """A forecast whose time has not come."""

    made_at_step: int
    ids: tuple[str, ...]
    quantile: Singles  # (p, 3, levels)
    newest: Singles  # (p, 3)


@dataclass(frozen=True, slots=True, eq=False)
class SkillBook:
    """What came of forecasts so far."""

    pending: tuple[Pending, ...] = ()
    ids: tuple[str, ...] = ()
    loss: Singles = field(default_factory=_no_rows)  # (m, 3)
    loss_of_persistence: Singles = field(default_factory=_no_rows)  # (m, 3)
    covered: Singles = field(default_factory=_no_rows)  # (m, 3) share of outcomes
    used: Singles = field(default_factory=_no_rows)  # (m, 3) mean of outcomes
    outcomes: Singles = field(default_factory=_no_rows)  # (m, 3) how many were compared

    def skill(self, ids: Sequence[str]) -> Floats:
        """(len(ids), 3) 1 perfect, 0 no better than persistence, below 0 worse; NaN: unknown."""
        found = np.full((len(ids), RESOURCES), np.nan)
        rows, places = _join(ids, self.ids)
        found[rows] = _skill(
            self.loss[places],
            self.loss_of_persistence[places],
            self.used[places],
            self.outcomes[places],
        )
        return found

    def coverage(self, ids: Sequence[str]) -> Floats:
        """(len(ids), 3) share of outcomes at or below the .95 quantile; NaN: unknown."""
        found = np.full((len(ids), RESOURCES), np.nan)
        rows, places = _join(ids, self.ids)
        enough = self.outcomes[places] >= COVERAGE_OUTCOMES_MIN
        found[rows] = np.where(enough, self.covered[places], np.nan)
        return found

    def compared(self, ids: Sequence[str]) -> Ints:
        """(len(ids), 3) how many outcomes that is of."""
        found = np.zeros((len(ids), RESOURCES), dtype=np.int64)
        rows, places = _join(ids, self.ids)
        found[rows] = self.outcomes[places]
        return found


def update(book: SkillBook, ids: Sequence[str], history: History, forecast: Forecast) -> SkillBook:
    """The book after `forecast`, made now from `history`; rows of both are those of `ids`.

    Two forecasts per horizon are remembered; machines not in `ids` are forgotten.
    """
    kept = _carried(book, ids)
    horizon = max(1, forecast.horizon_ns // history.step_ns)
    waiting = []
    for pending in book.pending:
        age = history.newest_step - pending.made_at_step
        if age < horizon:
            waiting.append(pending)
        else:
            _score(kept, pending, history, age, horizon)
    newest = waiting[-1].made_at_step if waiting else None
    if newest is None or history.newest_step - newest >= max(1, horizon // 2):
        waiting.append(_pending(ids, history, forecast, horizon))
    return replace(kept, pending=tuple(waiting))


def _carried(book: SkillBook, ids: Sequence[str]) -> SkillBook:
    """The running figures in the order of `ids`, zero for machines that are new."""
    rows, places = _join(ids, book.ids)
    figures = []
    for old in (book.loss, book.loss_of_persistence, book.covered, book.used, book.outcomes):
        new = np.zeros((len(ids), RESOURCES), dtype=np.float32)
        new[rows] = old[places]
        figures.append(new)
    return SkillBook((), tuple(ids), *figures)


def _score(book: SkillBook, pending: Pending, history: History, age: int, horizon: int) -> None:
    """Takes what came of one forecast, `age` steps old, into the figures of `book`, which nobody
    else has yet."""
    rows, places = _join(book.ids, pending.ids)
    actual = _actual(history, age, horizon)[rows]
    quantile, newest = pending.quantile[places], pending.newest[places]
    loss = _pinball(actual, quantile)
    loss_of_persistence = _pinball(actual, newest[..., None])
    known: Bools = np.isfinite(loss) & np.isfinite(loss_of_persistence)
    covered = (actual <= quantile[..., COVERED]).astype(np.float32)
    count = book.outcomes[rows]
    for figures, new, forget in (
        (book.loss, loss, _FORGET),
        (book.loss_of_persistence, loss_of_persistence, _FORGET),
        (book.covered, covered, _FORGET_COVERAGE),
        (book.used, actual, _FORGET),
    ):
        weight = np.where(known, np.maximum(np.float32(forget), 1 / (count + 1)), 0)
        figures[rows] += weight * (np.where(known, new, 0) - figures[rows])
    book.outcomes[rows] = count + known


def _actual(history: History, age: int, horizon: int) -> Singles:
    """(n, 3) highest step mean within the horizon that began `age` steps ago; NaN where unseen."""
    found = np.full((len(history.ids), RESOURCES), np.nan, dtype=np.float32)
    if age > history.steps:
        return found
    for rows in history.batches():
        steps = history.windows.mean(rows, age)[..., :horizon]
        known = np.isfinite(steps)
        highest = np.where(known, steps, -np.inf).max(axis=-1)
        seen_half = 2 * known.sum(axis=-1) >= horizon
        found[rows] = np.where(seen_half & np.isfinite(highest), highest, np.nan)
    return found


def _pending(ids: Sequence[str], history: History, forecast: Forecast, horizon: int) -> Pending:
    """`newest`: the last value seen within a horizon."""
    below = np.searchsorted(forecast.probability, LEVELS - _ROUNDING)
    newest = np.full((len(ids), RESOURCES), np.nan, dtype=np.float32)
    for rows in history.batches():
        recent = history.windows.mean(rows, min(horizon, history.steps))
        known = np.isfinite(recent)
        last = recent.shape[-1] - 1 - np.argmax(known[..., ::-1], axis=-1)
        newest[rows] = np.take_along_axis(recent, last[..., None], axis=-1)[..., 0]
    quantile = forecast.quantile[..., below].astype(np.float32)
    return Pending(history.newest_step, tuple(ids), quantile, newest)


def _pinball(actual: Singles, quantile: Singles) -> Singles:
    """(n, 3) mean over the levels of quantiles (n, 3, levels), or of one for all (n, 3, 1)."""
    over = actual[..., None] - quantile
    return np.asarray(np.maximum(LEVELS * over, (LEVELS - 1) * over).mean(axis=-1))


def _skill(loss: Singles, loss_of_persistence: Singles, used: Singles, outcomes: Singles) -> Floats:
    """Held within -1 and 1: one figure for "far worse" is enough."""
    small = np.maximum(_SMALL, _SMALL_SHARE * used)
    at_rest = (loss <= small) & (loss_of_persistence <= small)
    ratio = loss / np.maximum(loss_of_persistence, _NOTHING)
    skill = np.where(at_rest, 0.0, np.clip(1 - ratio, -1, 1))
    return np.where(outcomes >= OUTCOMES_MIN, skill, np.nan)


def _join(left: Sequence[str], right: Sequence[str]) -> tuple[Ints, Ints]:
    """Places in both of the ids that stand in both."""
    if left == right:  # from cycle to cycle they mostly are, and this is a hundred times quicker
        every = np.arange(len(left), dtype=np.int64)
        return every, every
    place = {each: index for index, each in enumerate(right)}
    pairs = [(row, place[each]) for row, each in enumerate(left) if each in place]
    both = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]
