"""Steps predictors through a trace in order and scores what they said against what came.

At each step every predictor sees the same past. A window counts when its newest step and its target
are there: step t + h for `value`, all of the steps t + 1 to t + h for `peak`. Where the peak is the
target, peers see the past likewise, as highest values of the last h steps: their forecasts are of
what they see. `ours` sees the steps as they are in both cases.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from controller.core.state import Bools, Floats, Ints
from controller.forecast.backtest.scores import Tally
from controller.forecast.backtest.traces import RESOURCE_NAMES, Shares, Trace, TraceError, hourly
from controller.forecast.moment import BINS, LEVELS, Moment, Prediction, Predictor
from controller.forecast.sight import Target

OURS = "ours"
CLASSES = ("idle", "steady", "periodic", "bursty")
GROUPS = ("all", "active", "cold", *CLASSES)
WINDOW_S = 7200  # of the past that a moment shows
ACTIVE_SD = 0.01  # of the allotment, over that window
COLD_S = 1800  # since a VM was first seen
_BLOCK = 64  # steps that are scored together


@dataclass(frozen=True, slots=True)
class Setup:
    """What is asked of predictors."""

    horizon_s: int = 600
    target: Target = "value"

    def steps(self, step_s: int) -> int:
        """The horizon in steps. Errors: `TraceError` where it is not a whole number of them."""
        if self.horizon_s <= 0 or self.horizon_s % step_s:
            raise TraceError(f"a horizon of {self.horizon_s} s is no multiple of {step_s} s steps")
        return self.horizon_s // step_s


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """Scored windows of one predictor in one block; n of them."""

    name: str
    row: Ints  # (n,) VM
    step: Ints  # (n,) newest step
    target: Shares  # (n,)
    mass: NDArray[np.float32]  # (n, 21)
    quantile: NDArray[np.float32]  # (n, 4)


@dataclass(slots=True)
class Outcome:
    """What a run found."""

    tally: dict[str, Tally]
    seconds: dict[str, float]  # in each predictor
    steps: int = 0
    classes: dict[str, int] = field(default_factory=dict)  # VMs in each load class


def backtest(
    trace: Trace,
    predictors: Mapping[str, Predictor],
    setup: Setup,
    *,
    on_steps: Callable[[int], None] = lambda _: None,
    on_said: Callable[[Said], None] | None = None,
) -> Outcome:
    """Runs all predictors over one trace. `on_steps` hears of progress, `on_said` of forecasts.

    Steps before which nothing at all was seen for a window's length are left out: `Moment.end_s`
    then jumps.
    """
    horizon = setup.steps(trace.step_s)
    target, peak = _targets(trace.share, horizon, setup.target)
    past = _of_peaks(trace.share, horizon) if setup.target == "peak" else trace.share
    load = load_classes(trace)
    groups = _Groups(trace, load)
    outcome = Outcome(
        {name: Tally(GROUPS) for name in predictors},
        dict.fromkeys(predictors, 0.0),
        classes={name: int((load == place).sum()) for place, name in enumerate(CLASSES)},
    )
    views = {OURS: _View(trace, trace.share), "": _View(trace, past)}
    alive = _alive(trace)
    for first in range(0, trace.steps, _BLOCK):
        steps = np.arange(first, min(first + _BLOCK, trace.steps))
        live = steps[alive[steps]]
        if len(live):
            scored = np.isfinite(trace.share[:, live]) & np.isfinite(target[:, live])
            member = groups.of(live)[scored]
            row, place = np.nonzero(scored)
            for name, predictor in predictors.items():
                began = perf_counter()
                mass, quantile = _predict(predictor, views.get(name, views[""]), live)
                outcome.seconds[name] += perf_counter() - began
                came = target[:, live][scored]
                said = Said(name, row, live[place], came, mass[scored], quantile[scored])
                outcome.tally[name].add(
                    said.mass,
                    said.quantile.astype(np.float64),
                    came.astype(np.float64),
                    peak[:, live][scored].astype(np.float64),
                    member,
                )
                if on_said is not None:
                    on_said(said)
        outcome.steps += len(live)
        on_steps(len(steps))
    return outcome


def scored_windows(trace: Trace, setup: Setup) -> Bools:
    """(v, t) whether a window counts that ends with the step."""
    target, _ = _targets(trace.share, setup.steps(trace.step_s), setup.target)
    return np.asarray(np.isfinite(trace.share) & np.isfinite(target))


def _targets(share: Shares, horizon: int, kind: Target) -> tuple[Shares, Shares]:
    """(v, t) the target, and the highest seen up to the horizon."""
    peak, whole = peak_ahead(share, horizon)
    if kind == "peak":
        return np.where(whole, peak, np.float32(np.nan)), peak
    return value_ahead(share, horizon), peak


def _predict(
    predictor: Predictor, view: "_View", steps: Ints
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(v, k, 21) and (v, k, 4) at k steps."""
    vms = view.share.shape[0]
    mass = np.empty((vms, len(steps), BINS + 1), dtype=np.float32)
    quantile = np.empty((vms, len(steps), len(LEVELS)), dtype=np.float32)
    for place, step in enumerate(steps.tolist()):
        said: Prediction = predictor.step(view.moment(step))
        mass[:, place] = said.mass
        quantile[:, place] = said.quantile
    return mass, quantile


class _View:
    """A trace as moments."""

    def __init__(self, trace: Trace, share: Shares) -> None:
        self.share = share
        self._trace = trace
        self._steps = WINDOW_S // trace.step_s
        self._empty = trace.others.strides[-1] == 0
        vms, others = trace.others.shape[:2]
        self._nothing = np.full((vms, others, self._steps), np.nan)

    def moment(self, step: int) -> Moment:
        window = self._last(self.share, step)
        others = self._nothing if self._empty else self._last(self._trace.others, step)
        end_s = self._trace.start_s + (step + 1) * self._trace.step_s
        kind = RESOURCE_NAMES.index(self._trace.resource)
        return Moment(end_s, self._trace.step_s, window, window, others, kind)

    def _last(self, values: Shares, step: int) -> Floats:
        first = step + 1 - self._steps
        if first >= 0:
            return values[..., first : step + 1].astype(np.float64)
        window = np.full((*values.shape[:-1], self._steps), np.nan)
        window[..., -step - 1 :] = values[..., : step + 1]
        return window


def value_ahead(share: Shares, horizon: int) -> Shares:
    """(v, t) the share `horizon` steps later, NaN at the end."""
    ahead = np.full_like(share, np.nan)
    ahead[:, :-horizon] = share[:, horizon:]
    return ahead


def peak_ahead(share: Shares, horizon: int) -> tuple[Shares, Bools]:
    """(v, t) the highest seen in the next `horizon` steps, and whether all of them were seen."""
    ahead = value_ahead(share, 1)
    whole = np.isfinite(ahead)
    for steps in range(2, horizon + 1):
        later = value_ahead(share, steps)
        whole &= np.isfinite(later)
        np.fmax(ahead, later, out=ahead)
    return ahead, whole


def _of_peaks(share: Shares, horizon: int) -> Shares:
    """(v, t) the highest seen in the last `horizon` steps; NaN where the newest was not seen."""
    past = share.copy()
    for steps in range(1, min(horizon, share.shape[1])):
        np.fmax(past[:, steps:], share[:, :-steps], out=past[:, steps:])
    past[~np.isfinite(share)] = np.nan
    return past


def _alive(trace: Trace) -> Bools:
    """(t,) whether any VM was seen within the window that ends there."""
    seen = np.isfinite(trace.share).any(axis=0)
    last = np.maximum.accumulate(np.where(seen, np.arange(trace.steps), -trace.steps))
    return np.asarray(np.arange(trace.steps) - last < WINDOW_S // trace.step_s)


class _Groups:
    """Who belongs where, at which step."""

    def __init__(self, trace: Trace, load: Ints) -> None:
        self._share = trace.share
        self._window = WINDOW_S // trace.step_s
        self._cold = COLD_S // trace.step_s
        self._first = np.isfinite(trace.share).argmax(axis=1)
        self._load = load

    def of(self, steps: Ints) -> Bools:
        """(v, k, g) at k ascending steps."""
        vms = self._share.shape[0]
        member = np.zeros((vms, len(steps), len(GROUPS)), dtype=np.bool_)
        member[..., 0] = True
        member[..., 1] = self._deviation(steps) > ACTIVE_SD
        member[..., 2] = steps - self._first[:, None] < self._cold
        member[..., 3:] = (self._load[:, None] == np.arange(len(CLASSES)))[:, None]
        return member

    def _deviation(self, steps: Ints) -> Floats:
        """(v, k) standard deviation of the window that ends at each step; 0 of a single value."""
        first = max(0, int(steps[0]) - self._window + 1)
        part = self._share[:, first : int(steps[-1]) + 1].astype(np.float64)
        seen = np.isfinite(part)
        part = np.where(seen, part, 0)
        sums = [np.pad(np.cumsum(x, axis=1), ((0, 0), (1, 0))) for x in (seen, part, part**2)]
        stop = steps - first + 1
        start = np.maximum(stop - self._window, 0)
        count, total, square = (x[:, stop] - x[:, start] for x in sums)
        count = np.maximum(count, 1)
        return np.asarray(np.sqrt(np.maximum(square / count - (total / count) ** 2, 0)))


def load_classes(trace: Trace) -> Ints:
    """(v,) place in `CLASSES`, from a VM's whole record: for reporting, never for forecasting.

    idle: the 95th percentile of the hourly means is below 5 % of the allotment. periodic: hourly
    means repeat after a day (correlation above .5). bursty: the 95th percentile of the hours is
    above twice the mean. steady: the others.
    """
    hours = hourly(trace)
    load = np.full(len(hours), CLASSES.index("idle"))
    for row, hour in enumerate(hours):
        known = hour[np.isfinite(hour)]
        high = float(np.quantile(known, 0.95)) if len(known) else 0.0
        if high < 0.05:  # noqa: PLR2004 - the rule above
            continue
        if _repeats(hour):
            load[row] = CLASSES.index("periodic")
        else:
            bursty = high > 2 * float(known.mean())
            load[row] = CLASSES.index("bursty" if bursty else "steady")
    return load


def _repeats(hour: Floats) -> bool:
    day = 24
    now, before = hour[day:], hour[:-day]
    both = np.isfinite(now) & np.isfinite(before)
    if both.sum() < 2 * day:
        return False
    now, before = now[both] - now[both].mean(), before[both] - before[both].mean()
    scale = float(np.sqrt((now**2).sum() * (before**2).sum()))
    return scale > 0 and float((now * before).sum()) > 0.5 * scale
