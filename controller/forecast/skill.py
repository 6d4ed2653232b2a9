"""How good forecasts turned out to be, per machine and resource, against persistence. Pure.

`update` takes a history and the forecast made from it, compares earlier forecasts with what came,
and gives a new book. Losses are pinball losses (Koenker and Bassett 1978), the mean over a few
levels, forgotten exponentially. Skill is 1 - loss / loss of persistence, that is of "as now".
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from controller.core.state import RESOURCES, Floats, Forecast, Ints
from controller.forecast.protocol import History

LEVELS = np.array([0.5, 0.9, 0.95])  # where grants are decided
OUTCOMES_MIN = 5  # before that, skill is not known
_FORGET = 0.05  # weight of a new outcome: about the last twenty count
_NOTHING = 1e-9


def _no_rows() -> Floats:
    return np.zeros((0, RESOURCES))


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """A forecast whose time has not come. p machines."""

    made_at_unix_ns: int
    ids: tuple[str, ...]
    quantile: Floats  # (p, 3, levels)
    newest: Floats  # (p, 3)


@dataclass(frozen=True, slots=True, eq=False)
class SkillBook:
    """m machines that are remembered."""

    pending: tuple[Pending, ...] = ()
    ids: tuple[str, ...] = ()
    loss: Floats = field(default_factory=_no_rows)  # (m, 3)
    loss_of_persistence: Floats = field(default_factory=_no_rows)  # (m, 3)
    outcomes: Floats = field(default_factory=_no_rows)  # (m, 3) how many were compared

    def skill(self, ids: Sequence[str]) -> Floats:
        """(len(ids), 3) 1 perfect, 0 no better than persistence, below 0 worse; NaN: unknown."""
        found = np.full((len(ids), RESOURCES), np.nan)
        rows, places = _join(ids, self.ids)
        found[rows] = _skill(
            self.loss[places], self.loss_of_persistence[places], self.outcomes[places]
        )
        return found


def update(book: SkillBook, ids: Sequence[str], history: History, forecast: Forecast) -> SkillBook:
    """The book after `forecast`, made now from `history`; rows of both are those of `ids`.

    At most one forecast per grid step is remembered; machines not in `ids` are forgotten.
    """
    kept = _carried(book, ids)
    waiting = []
    for pending in book.pending:
        age_ns = history.made_at_unix_ns - pending.made_at_unix_ns
        if age_ns < forecast.horizon_ns:
            waiting.append(pending)
        else:
            _score(kept, pending, history, age_ns, forecast.horizon_ns)
    newest_ns = waiting[-1].made_at_unix_ns if waiting else None
    if newest_ns is None or history.made_at_unix_ns - newest_ns >= history.step_ns:
        waiting.append(_pending(ids, history, forecast))
    return SkillBook(tuple(waiting), kept.ids, kept.loss, kept.loss_of_persistence, kept.outcomes)


def _carried(book: SkillBook, ids: Sequence[str]) -> SkillBook:
    """The running figures in the order of `ids`, zero for machines that are new."""
    rows, places = _join(ids, book.ids)
    figures = []
    for old in (book.loss, book.loss_of_persistence, book.outcomes):
        new = np.zeros((len(ids), RESOURCES))
        new[rows] = old[places]
        figures.append(new)
    return SkillBook((), tuple(ids), *figures)


def _score(
    book: SkillBook, pending: Pending, history: History, age_ns: int, horizon_ns: int
) -> None:
    """Takes what came of one forecast into the figures of `book`, which nobody else has yet."""
    rows, places = _join(book.ids, pending.ids)
    actual = _actual(history, age_ns, horizon_ns)[rows]
    quantile, newest = pending.quantile[places], pending.newest[places]
    loss = _pinball(actual, quantile)
    loss_of_persistence = _pinball(actual, np.repeat(newest[..., None], len(LEVELS), axis=-1))
    known = np.isfinite(loss) & np.isfinite(loss_of_persistence)
    count = book.outcomes[rows]
    weight = np.where(known, np.maximum(_FORGET, 1 / (count + 1)), 0)
    for figures, new in ((book.loss, loss), (book.loss_of_persistence, loss_of_persistence)):
        figures[rows] += weight * (np.where(known, new, 0) - figures[rows])
    book.outcomes[rows] = count + known


def _actual(history: History, age_ns: int, horizon_ns: int) -> Floats:
    """(n, 3) highest step mean within the horizon that began `age_ns` ago; NaN where unseen."""
    window = history.mean.shape[-1]
    start = window - age_ns // history.step_ns
    steps = history.mean[..., max(start, 0) : start + horizon_ns // history.step_ns]
    if start < 0 or steps.shape[-1] == 0:
        return np.full(history.mean.shape[:-1], np.nan)
    highest = np.where(np.isfinite(steps), steps, -np.inf).max(axis=-1)
    seen_half = 2 * np.isfinite(steps).sum(axis=-1) >= steps.shape[-1]
    return np.where(seen_half & np.isfinite(highest), highest, np.nan)


def _pending(ids: Sequence[str], history: History, forecast: Forecast) -> Pending:
    below = np.searchsorted(forecast.probability, LEVELS - _NOTHING)
    known = np.isfinite(history.mean)
    last = history.mean.shape[-1] - 1 - np.argmax(known[..., ::-1], axis=-1)
    newest = np.take_along_axis(history.mean, last[..., None], axis=-1)[..., 0]
    return Pending(history.made_at_unix_ns, tuple(ids), forecast.quantile[..., below], newest)


def _pinball(actual: Floats, quantile: Floats) -> Floats:
    """(n, 3) mean over the levels."""
    over = actual[..., None] - quantile
    return np.asarray(np.maximum(LEVELS * over, (LEVELS - 1) * over).mean(axis=-1))


def _skill(loss: Floats, loss_of_persistence: Floats, outcomes: Floats) -> Floats:
    """Held within -1 and 1: one figure for "far worse" is enough."""
    both_perfect = (loss <= _NOTHING) & (loss_of_persistence <= _NOTHING)
    ratio = loss / np.maximum(loss_of_persistence, _NOTHING)
    skill = np.where(both_perfect, 0.0, np.clip(1 - ratio, -1, 1))
    return np.where(outcomes >= OUTCOMES_MIN, skill, np.nan)


def _join(left: Sequence[str], right: Sequence[str]) -> tuple[Ints, Ints]:
    """Places in both of the ids that stand in both."""
    place = {each: index for index, each in enumerate(right)}
    pairs = [(row, place[each]) for row, each in enumerate(left) if each in place]
    both = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]
