"""The forecaster of the control loop: a mixture with the network, over a fleet that comes and goes.

Every machine's series are predicted once per block, half a horizon, by the mixture of its cohort
(`cohorts`); in between a forecast is kept, and made anew out of turn where use left the band that
it gave, or for all while the fleet is small. Who is too new for it gets the empirical forecast,
series by series, blended with what machines of its size are given (`cold`); everybody gets the
empirical one where the settings want no other. Use that touches its limit is
demand cut off, which no predictor can see: the upper quantiles are stretched, as the empirical
forecaster does. Without the network the mixture goes on with its simple members, and says so.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from controller.core.state import MISSING, RESOURCES, Floats, Forecast, Ints
from controller.forecast.cohorts import Cohort, Members, Part, Seen, When
from controller.forecast.cold import Lender
from controller.forecast.empirical import METHOD as EMPIRICAL
from controller.forecast.empirical import PROBABILITY, EmpiricalForecaster
from controller.forecast.fingerprint import Archetypes
from controller.forecast.learnt import Learnt
from controller.forecast.members import Distribution
from controller.forecast.mixture import Mixture
from controller.forecast.network import NetworkMember
from controller.forecast.novelty import NONE
from controller.forecast.predictor import make_predictor
from controller.forecast.protocol import (
    MACHINES_AT_ONCE,
    Forecaster,
    History,
    Said,
    Standing,
)
from controller.forecast.shares import LEVELS, block_steps, blocks, with_ends
from controller.forecast.sight import WINDOW_S
from shared.clock import SECOND_NS

WITH_NETWORK = "lstm+mixture"
WITHOUT_NETWORK = "mixture"
_OTHER_FILE = "set `network` to a file that `hrapaq train` wrote, or leave it out"
_BAND = int(LEVELS.searchsorted(0.95))
_LEAST = 5  # grid steps that are seen of a series before the mixture speaks of it
_RECENT_STEPS = 2  # of which the newest is what use is now: the one under way may be empty yet


@dataclass(frozen=True, slots=True)
class Scale:
    """What is worth its time, by how many there are."""

    small_fleet: int = 1024  # machines that can all be predicted anew in every cycle
    cohort_machines: int = 4096  # bounds what a mixture needs beside its state
    again_series_max: int = 60_000  # per cycle in a larger fleet: those that are farthest off
    threads: int = 2  # for cohorts whose turn it is: NumPy lets go of Python's lock on arrays


_SCALE = Scale()


@dataclass(frozen=True, slots=True)
class Voice:
    """The network for one horizon, or why there is none; `trouble` where there should be one."""

    network: Distribution | None
    why: str = ""
    trouble: str = ""
    known: Archetypes | None = None  # what it was taught from

    @property
    def standing(self) -> Standing:
        if self.network is not None:
            return Standing(WITH_NETWORK)
        return Standing(f"{WITHOUT_NETWORK} (no network: {self.why})", self.trouble)


def make_forecaster(word: str, weights: Path | None, horizon_s: int) -> Forecaster:
    """As the settings say: "empirical", or "auto" with the network in the file `weights` (None:
    the one that comes with the program)."""
    if word == EMPIRICAL:
        return EmpiricalForecaster()
    return LiveForecaster(find_network(weights, horizon_s))


def find_network(weights: Path | None, horizon_s: int) -> Voice:
    """Never fails: what is missing or damaged is said, and the loop goes on without it."""
    try:
        # A controller without safetensors still forecasts.
        from controller.forecast import checkpoint  # noqa: PLC0415
    except ModuleNotFoundError as error:
        why = f"{error.name} is not installed"
        return Voice(None, why, f"{why}; it comes with the extra `controller`")
    if horizon_s != checkpoint.SHIPPED_HORIZON_S:
        return Voice(None, f"it knows {checkpoint.SHIPPED_HORIZON_S} s ahead only")
    try:
        found = checkpoint.read(weights or checkpoint.SHIPPED)
    except checkpoint.CheckpointError as error:
        remedy = _OTHER_FILE if weights else "install the program again"
        return Voice(None, "its file cannot be used", f"{error}; {remedy}")
    return Voice(NetworkMember(found.network, peak_target=True), known=found.archetypes)


class LiveForecaster:
    """A `Forecaster`; it remembers what it saw, so one is for one fleet and one horizon."""

    def __init__(self, voice: Voice, scale: Scale = _SCALE) -> None:
        self.standing = voice.standing
        self._network, self._known = voice.network, voice.known
        self._scale = scale
        self._plain = EmpiricalForecaster()
        self._members: Members | None = None
        self._lender = Lender()
        self._ahead_s = 0  # of wall time, of the grid

    def predict(self, history: History, horizon_ns: int) -> Said:
        cycle = _Cycle(history, max(1, horizon_ns // history.step_ns), self._wall(history))
        members = self._members = self._members or self._nobody(cycle)
        parts = members.parts(history.ids, history.newest_step)
        small = len(history.ids) <= self._scale.small_fleet
        self._turns(parts, cycle, patient=small)
        members.forget_gone()
        self._again(parts, cycle, everybody=small)
        return self._said(parts, cycle, horizon_ns)

    def _wall(self, history: History) -> int:
        """Seconds by which wall time is ahead of the grid: as it was, unless a clock was set, so
        that blocks are as far apart as they are."""
        step_s = history.step_ns // SECOND_NS
        ahead = history.made_at_unix_ns // SECOND_NS - (history.newest_step + 1) * step_s
        if self._members is None or abs(ahead - self._ahead_s) > step_s:
            self._ahead_s = ahead
        return self._ahead_s

    def _nobody(self, cycle: "_Cycle") -> Members:
        horizon = cycle.horizon_steps // cycle.steps

        def make(taught: Learnt | None) -> Mixture:
            return make_predictor(horizon, "peak", self._network, LEVELS, taught)

        return Members(make, self._scale.cohort_machines, cycle.steps, self._known)

    def _turns(self, parts: list[Part], cycle: "_Cycle", *, patient: bool) -> None:
        """Of all cohorts that are due. They know nothing of each other."""

        def turn(one: tuple[Part, When]) -> None:
            part, when = one
            seen = cycle.seen(part.rows, part.places, when.step)
            part.cohort.turn(seen, when, least=max(cycle.steps, _LEAST), patient=patient)

        due = []
        for part in parts:
            block = part.cohort.due(cycle.history.newest_step, cycle.steps)
            if block is not None:
                due.append((part, cycle.when(part.cohort, block)))
        if len(due) == 1:
            turn(due[0])
        elif due:
            with ThreadPoolExecutor(self._scale.threads) as pool:
                list(pool.map(turn, due))

    def _again(self, parts: list[Part], cycle: "_Cycle", *, everybody: bool) -> None:
        """Predicts out of turn what left its band, or all."""
        now = cycle.history.newest_step
        left = []
        for part in parts:
            cohort, places = part.cohort, part.places
            share = cycle.newest(part.rows) / cohort.reference[places]
            apart = share - cohort.quantile[places, :, _BAND]
            wanted = np.isfinite(apart) & (cohort.made_at_step[places] < now)
            left.append(np.where(wanted & (everybody | (apart > 0)), apart, np.nan))
        least = -np.inf if everybody else _least(left, self._scale.again_series_max)
        for part, apart in zip(parts, left, strict=True):
            machine, resource = np.nonzero(apart >= least)
            if not len(machine):
                continue
            few, where = np.unique(machine, return_inverse=True)
            seen = cycle.seen(part.rows[few], part.places[few], now)
            part.cohort.again(seen, where * RESOURCES + resource, cycle.when_now())

    def _said(self, parts: list[Part], cycle: "_Cycle", horizon_ns: int) -> Said:
        history = cycle.history
        machines = len(history.ids)
        quantile = np.full((machines, RESOURCES, len(PROBABILITY)), np.nan)
        samples = np.zeros((machines, RESOURCES), dtype=np.int64)
        learnt = np.zeros((machines, RESOURCES), dtype=np.bool_)
        made_ns_ago = np.zeros(machines, dtype=np.int64)
        novelty = np.full((machines, RESOURCES), np.nan, dtype=np.float32)
        archetype = np.full((machines, RESOURCES), NONE, dtype=np.int16)
        for part in parts:
            cohort, rows, places = part.cohort, part.rows, part.places
            kept = with_ends(cohort.quantile[places], cohort.reference[places])
            touches = self._plain.touches(history, rows, horizon_ns)
            quantile[rows] = self._plain.stretched(kept, touches)
            samples[rows], learnt[rows] = cohort.samples[places], np.isfinite(kept[..., 0])
            steps = np.where(learnt[rows], history.newest_step - cohort.made_at_step[places], 0)
            novelty[rows], archetype[rows] = cohort.novelty[places], cohort.archetype[places]
            made_ns_ago[rows] = steps.max(axis=-1) * history.step_ns
        new = np.flatnonzero(~learnt.all(axis=-1))
        if len(new):
            self._lender.renew(parts, history, cycle.steps)
        borrowed = np.zeros_like(learnt)
        for at in range(0, len(new), MACHINES_AT_ONCE):
            rows = new[at : at + MACHINES_AT_ONCE]
            plain, seen = self._plain.quantiles(history, rows, horizon_ns)
            lent = self._lender.lend(history, rows, plain, seen)
            known = learnt[rows]
            borrowed[rows] = ~known & (lent != plain).any(axis=-1) & np.isfinite(plain[..., 0])
            quantile[rows] = np.where(known[..., None], quantile[rows], lent)
            samples[rows] = np.where(known, samples[rows], seen)
        nothing = (samples == 0).all(axis=-1) | (history.age_ns == MISSING)
        forecast = Forecast(
            made_at_unix_ns=history.made_at_unix_ns,
            horizon_ns=horizon_ns,
            method=self.standing.method,
            probability=PROBABILITY,
            quantile=quantile,
            # Whatever was kept was held against the newest sample in this cycle.
            age_ns=np.where(nothing, MISSING, history.age_ns),
            samples=samples,
            skill=np.full((machines, RESOURCES), np.nan),
        )
        age_ns = np.where(nothing, MISSING, made_ns_ago)
        if self._known is None:
            return Said(forecast, learnt, borrowed, age_ns)
        return Said(forecast, learnt, borrowed, age_ns, novelty, archetype)


@dataclass(frozen=True, slots=True, eq=False)
class _Cycle:
    """What one call is made of."""

    history: History
    horizon_steps: int  # on the grid
    ahead_s: int

    @property
    def steps(self) -> int:
        """Grid steps of a block."""
        return block_steps(self.horizon_steps)

    @property
    def looked_back(self) -> int:
        """Grid steps that predictors look at: their window, and a horizon before it."""
        return WINDOW_S * SECOND_NS // self.history.step_ns + self.horizon_steps

    def when(self, cohort: Cohort, block: int) -> When:
        return self._when(block, cohort.first_step + block * self.steps)

    def when_now(self) -> When:
        return self._when(0, self.history.newest_step)

    def _when(self, block: int, step: int) -> When:
        step_s = self.history.step_ns // SECOND_NS
        return When(block, step, self.ahead_s + (step + 1) * step_s, self.steps * step_s)

    def seen(self, rows: Ints, places: Ints, end_step: int) -> Seen:
        """Machines as they were at the end of a step."""
        history = self.history
        mean = history.windows.mean(rows, min(history.steps, self.looked_back))
        late = min(history.newest_step - end_step, mean.shape[-1])
        if late:
            mean = np.roll(mean, late, axis=-1)
            mean[..., :late] = np.nan
        middle, highest = blocks(mean, self.steps)
        samples = np.isfinite(mean).sum(axis=-1)
        return Seen(places, middle, highest, samples, history.maximum[rows])

    def newest(self, rows: Ints) -> Floats:
        """(k, 3) the newest step's mean that was seen."""
        recent = self.history.windows.mean(rows, _RECENT_STEPS).astype(np.float64)
        return np.where(np.isfinite(recent[..., -1]), recent[..., -1], recent[..., 0])


def _least(left: list[Floats], series_max: int) -> float:
    """How far from its band a series must be to have a turn, so that they are not too many."""
    apart = np.concatenate([each.ravel() for each in left]) if left else np.zeros(0)
    apart = apart[np.isfinite(apart)]
    if len(apart) <= series_max:
        return -np.inf
    return float(np.partition(apart, -series_max)[-series_max])
