"""Machines in cohorts: one mixture each, asked in turn, so that a fleet costs a part per cycle.

A machine keeps its place in its cohort for as long as it is seen, and for a while after. A cohort
takes one step per block of its horizon, in a cycle of its own among those of a block; what it said
is kept in between. When a cohort missed blocks (a cycle that took too long, a controller that was
paused), its mixture is led through them first, so that nothing is judged by what came at another
time. k machines of a cohort, 3 resources, w blocks, q levels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from controller.core.state import RESOURCES, Floats, Ints
from controller.forecast.fingerprint import Archetypes
from controller.forecast.learnt import Learnt, combined
from controller.forecast.mixture import Mixture
from controller.forecast.novelty import NONE, compared, whose_turn
from controller.forecast.protocol import Singles
from controller.forecast.shares import LEVELS, moment_of, references

GONE_TURNS = 24  # blocks after which a machine that is not seen any more is forgotten

TEACHERS = 8  # cohorts that a new one asks
TEACHES_AFTER = 24  # blocks: two hours at the least, with blocks of five minutes

# What a cohort holds of every place besides who is absent.
_OF_PLACES = (
    "_anew",
    "reference",
    "samples",
    "made_at_step",
    "quantile",
    "archetype",
    "novelty",
)

MakeMixture = Callable[[Learnt | None], Mixture]  # from what others taught


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """Machines of a cohort as a cycle sees them: places, and their blocks (k, 3, w) in units."""

    places: Ints  # (k,)
    mean: Floats
    peak: Floats
    samples: Ints  # (k, 3) grid steps that were seen
    maximum: Ints  # (k, 3) the most that they can have; MISSING: not known


@dataclass(frozen=True, slots=True)
class When:
    """The end of a block: the number of the block, of its last grid step, and as wall time."""

    block: int
    step: int
    end_s: int
    block_s: int


class Cohort:
    """Up to `machines_max` machines; `size` places, of which some may be empty.

    `known`: what the network was taught from, against which series are held.
    """

    def __init__(
        self, mixture: Mixture, machines_max: int, first_step: int, known: Archetypes | None = None
    ) -> None:
        self.machines_max = machines_max
        self.first_step = first_step  # its blocks end with this grid step, the last of block 0
        self.last_block = -1
        self.ids: list[str] = []  # "" where the place is empty
        self.free: list[int] = []
        self._mixture, self._known = mixture, known
        self._turns = 0
        self._stepped = 0  # places that the mixture knows
        self._absent = np.zeros(0, dtype=np.int64)  # (size,) turns since the machine was seen
        self._anew = np.zeros((0, RESOURCES), dtype=np.bool_)
        self.reference = np.zeros((0, RESOURCES))
        self.samples = np.zeros((0, RESOURCES), dtype=np.int64)
        self.made_at_step = np.zeros((0, RESOURCES), dtype=np.int64)
        self.quantile: Singles = np.zeros((0, RESOURCES, len(LEVELS)), dtype=np.float32)
        self.archetype: NDArray[np.int16] = np.zeros((0, RESOURCES), dtype=np.int16)
        self.novelty: Singles = np.zeros((0, RESOURCES), dtype=np.float32)

    @property
    def size(self) -> int:
        return len(self.ids)

    @property
    def room(self) -> int:
        return self.machines_max - self.size + len(self.free)

    def take(self, machine_id: str) -> int:
        """A place for a machine, empty of what was said of any other."""
        if self.free:
            place = self.free.pop()
            self.ids[place] = machine_id
        else:
            place = self.size
            self.ids.append(machine_id)
        return place

    def learnt(self) -> Learnt:
        """What another cohort can begin with."""
        return self._mixture.learnt()

    def due(self, now_step: int, steps: int) -> int | None:
        """The newest block, of `steps` grid steps, that ended and was not gone through."""
        block = (now_step - self.first_step) // steps
        return block if block > self.last_block else None

    def open(self) -> None:
        """Room for machines that joined since the last time."""
        had, more = len(self._absent), self.size - len(self._absent)
        if not more:
            return
        self._absent = np.concatenate([self._absent, np.zeros(more, dtype=np.int64)])
        for name in _OF_PLACES:
            held = getattr(self, name)
            empty = np.zeros((more, *held.shape[1:]), dtype=held.dtype)
            setattr(self, name, np.concatenate([held, empty]))
        self._clear(np.arange(had, self.size))

    def turn(self, seen: Seen, when: When, *, least: int, patient: bool) -> None:
        """Learns from what came and predicts; series of fewer than `least` samples stay without.

        `patient`: whether to go through all the past that is known, where a cohort begins or
        missed blocks, or only to go on from here.
        """
        self._restart(seen)
        places = self._places()
        if self.last_block >= 0 and not np.array_equal(places, np.arange(len(places))):
            self._mixture.arrange(places)
        for blank, back in self._missed(seen, when, patient=patient):
            self._step(seen, when, back, blank=blank)
        share = self._step(seen, when, 0, blank=False)
        ready = np.zeros((self.size, RESOURCES), dtype=np.bool_)
        ready[seen.places] = seen.samples >= least
        self.quantile[:] = np.where(ready[..., None], share, np.nan)
        self.samples[seen.places] = seen.samples
        self.made_at_step[:] = when.step
        self.last_block = when.block
        if self._known is not None:
            self._compare(self._known)

    def again(self, seen: Seen, series: Ints, when: When) -> None:
        """Predicts some `series` (of `seen`, machine times 3 plus resource) anew, out of turn."""
        reference = self.reference[seen.places]
        moment = moment_of(seen.mean, seen.peak, reference, when.end_s, when.block_s, series)
        machine, resource = seen.places[series // RESOURCES], series % RESOURCES
        said = self._mixture.again(moment, machine * RESOURCES + resource)
        self.quantile[machine, resource] = said.quantile
        self.made_at_step[machine, resource] = when.step

    def forget(self, place: int) -> None:
        """Empties a place; whoever gets it begins anew."""
        self.ids[place] = ""
        self.free.append(place)
        self._clear(np.array([place]))

    def gone(self) -> list[int]:
        """Places of machines that were not seen for too long."""
        old = np.flatnonzero(self._absent > GONE_TURNS)
        return [place for place in old.tolist() if self.ids[place]]

    def _compare(self, known: Archetypes) -> None:
        """Holds the last day of those whose turn it is against what was taught."""
        series = whose_turn(RESOURCES * self.size, self._turns)
        self._turns += 1
        at = series // RESOURCES, series % RESOURCES
        self.archetype[at], self.novelty[at] = compared(known, self._mixture.day.ordered(series))

    def _clear(self, places: Ints) -> None:
        places = places[places < len(self._absent)]
        self._absent[places] = 0
        self._anew[places] = True
        self.reference[places] = np.nan
        self.samples[places] = 0
        self.quantile[places] = np.nan
        self.archetype[places], self.novelty[places] = NONE, np.nan

    def _restart(self, seen: Seen) -> None:
        """Counts who is absent, and lets series begin anew whose reference is another now."""
        self._absent += 1
        self._absent[seen.places] = 0
        before = self.reference[seen.places]
        highest = np.fmax.reduce(seen.peak, axis=-1)
        now = references(seen.maximum, before, highest)
        self._anew[seen.places] |= now != before
        self.archetype[self._anew], self.novelty[self._anew] = NONE, np.nan
        self.reference[seen.places] = now

    def _places(self) -> Ints:
        """(3 size,) where each series stood in the mixture, -1 for those that begin anew."""
        series = np.arange(RESOURCES * self.size)
        begins = self._anew.ravel() | (series >= RESOURCES * self._stepped)
        self._anew[:], self._stepped = False, self.size
        return np.where(begins, -1, series)

    def _missed(self, seen: Seen, when: When, *, patient: bool) -> Iterator[tuple[bool, int]]:
        """(whether to show nothing, blocks back) of each step to take before the one of now."""
        horizon = self._mixture.horizon_steps
        known = np.flatnonzero(np.isfinite(seen.mean).any(axis=(0, 1)))
        reach = seen.mean.shape[-1] - 1 - int(known[0]) if patient and len(known) else 0
        if self.last_block < 0:
            missed = reach
        else:
            missed = when.block - self.last_block - 1
            if missed > max(reach, horizon):  # too many: what waits for an outcome gets none
                yield from ((True, reach + back) for back in range(horizon, 0, -1))
                missed = reach
        yield from ((False, back) for back in range(missed, 0, -1))

    def _step(self, seen: Seen, when: When, back: int, *, blank: bool) -> Singles:
        """(size, 3, q) what the mixture says to the moment `back` blocks ago."""
        width = seen.mean.shape[-1]
        mean = np.full((self.size, RESOURCES, width), np.nan)
        peak = mean.copy()
        if not blank and back < width:
            mean[seen.places, :, back:] = seen.mean[..., : width - back]
            peak[seen.places, :, back:] = seen.peak[..., : width - back]
        every = np.arange(RESOURCES * self.size)
        reference = np.where(np.isfinite(self.reference), self.reference, 1.0)
        end_s = when.end_s - back * when.block_s
        moment = moment_of(mean, peak, reference, end_s, when.block_s, every)
        said = self._mixture.step(moment).quantile
        return said.reshape(self.size, RESOURCES, -1).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A cohort, and its machines in a history."""

    cohort: Cohort
    rows: Ints  # (k,) in the history
    places: Ints  # (k,) in the cohort


@dataclass(slots=True)
class Members:
    """Which machine has which place in which cohort."""

    make: MakeMixture
    machines_max: int  # of a cohort
    phases: int  # grid steps of a block
    known: Archetypes | None = None  # what the network was taught from
    cohorts: list[Cohort] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict)  # number of the cohort, then the place
    _ids: Sequence[str] = ()
    _parts: list[Part] = field(default_factory=list)
    _full: int = 0  # so many of the first cohorts have no room

    def parts(self, ids: Sequence[str], now_step: int) -> list[Part]:
        """Where each machine is; new ones get the first places that are free.

        The first cohort begins now, each later one a cycle after the one before.
        """
        if ids != self._ids:
            self._ids, self._parts = ids, self._joined(ids, now_step)
        return self._parts

    def forget_gone(self) -> None:
        """Empties the places of machines that were not seen for long."""
        for number, cohort in enumerate(self.cohorts):
            for place in cohort.gone():
                del self._places[cohort.ids[place]]
                cohort.forget(place)
                self._full = min(self._full, number)

    def _joined(self, ids: Sequence[str], now_step: int) -> list[Part]:
        found = np.array([self._place(each, now_step) for each in ids], dtype=np.int64)
        number, place = np.divmod(found, self.machines_max)
        order = np.argsort(number, kind="stable")
        ends = np.searchsorted(number[order], np.arange(len(self.cohorts) + 1))
        parts = []
        for cohort, begin, end in zip(self.cohorts, ends[:-1], ends[1:], strict=True):
            cohort.open()
            rows = order[begin:end]
            parts.append(Part(cohort, rows, place[rows]))
        return parts

    def _place(self, machine_id: str, now_step: int) -> int:
        found = self._places.get(machine_id)
        if found is None:
            number = self._with_room(now_step)
            found = number * self.machines_max + self.cohorts[number].take(machine_id)
            self._places[machine_id] = found
        return found

    def _with_room(self, now_step: int) -> int:
        while self._full < len(self.cohorts):
            if self.cohorts[self._full].room:
                return self._full
            self._full += 1
        first_step = now_step + len(self.cohorts) % self.phases
        mixture = self.make(self._taught())
        self.cohorts.append(Cohort(mixture, self.machines_max, first_step, self.known))
        return len(self.cohorts) - 1

    def _taught(self) -> Learnt | None:
        """By the older cohorts, for one that begins; None as long as none knows enough."""
        teachers = [one for one in self.cohorts if one.last_block >= TEACHES_AFTER]
        if not teachers:
            return None
        return combined([one.learnt() for one in teachers[:TEACHERS]])
