"""Windows to learn from, drawn at random from histories on a grid, with what came after them.

Half of the windows are scaled by a factor of 0.2 to 3: what a machine does at one level of use,
another does at a different one, and weights that have seen both travel better to machines that
nobody has seen. Each resource of a VM is a series of its own, with the others beside it. Some
are cut to a past of minutes or hours, as that of machines that have just come.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from controller.core.state import Bools, Floats, Ints
from controller.forecast.features import STEP_S, STEPS, Inputs, inputs
from controller.forecast.fingerprint import FIELDS, SIZE, fingerprint
from controller.forecast.moment import EDGES, KINDS, Moment, folded
from controller.forecast.network import Network, below
from controller.forecast.protocol import Singles
from controller.forecast.seasonal import SLOTS

OTHERS = KINDS - 1
HOUR_S = 3600
MINUTE_S = 60  # the control loop's grid
EVERY = slice(None)
CPU_SHARE = 0.4  # of the windows of a source with several resources
UNNAMED_SHARE = 0.1  # of the windows are not told which resource they are of
HOUR_SHARE, DAY_SHARE = 0.2, 0.2  # of the windows are cut to a past of up to that
HOUR = 12  # slots
HALF = 0.5  # of a day must have been seen where it stands for a machine
SCALED_SHARE = 0.5
SCALES = (0.2, 3.0)
JUST_BELOW = 1e-4
_ROUNDING = 1e-6
PEAK_SHARE = 0.3  # of the windows are asked for the highest until the horizon


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One history: r resources of v VMs over t steps, as shares; NaN where nothing was seen."""

    name: str
    share: Singles  # (r, v, t)
    start_s: int
    step_s: int
    kinds: tuple[int, ...] = (0,)  # (r,) which resources they are, in the order of `Moment.kind`
    weight: float = 1.0  # how often it is drawn from, against the others
    blocks: bool = False  # told as the control loop tells it: means of five minutes, their peaks

    def part(self, vms: Ints, steps: slice) -> "Source":
        """Some of its VMs over some of its time."""
        share = self.share[:, vms, steps]
        start = self.start_s + (steps.start or 0) * self.step_s
        return replace(self, share=share, start_s=start)


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    inputs: Inputs
    target: Floats  # (s,) share


def draw(source: Source, random: Generator, count: int, horizon_s: int) -> Examples:
    """About `count` windows whose newest step and target were seen; fewer where few exist.

    ValueError where the history is shorter than a window and a horizon.
    """
    each, ahead = STEP_S // source.step_s, horizon_s // source.step_s
    steps = source.share.shape[2]
    if steps < STEPS * each + ahead:
        hours = (STEPS * STEP_S + horizon_s) / HOUR_S
        raise ValueError(
            f"{source.name}: {steps} steps of {source.step_s} s are too few for a window and a "
            f"horizon, {hours:.1f} hours"
        )
    at = _places(source, random, count, ahead)
    # The loop asks for peaks only.
    peak = random.random(at.count) < (1.0 if source.blocks else PEAK_SHARE)
    past = _Past(source, at, _ages(random, at.count, each), ahead)
    scale = _scales(random, at.count)
    window = past.window() * scale[:, None]
    middle, highest = folded(window, each) if source.blocks else (window, window)
    kind = np.array(source.kinds)[at.resource]
    moment = Moment(
        end_s=source.start_s + at.end * source.step_s,
        step_s=STEP_S if source.blocks else source.step_s,
        window=middle,
        peak=highest,
        others=folded(past.others(), each)[0] if source.blocks else past.others(),
        kind=np.where(random.random(at.count) < UNNAMED_SHARE, -1, kind),
    )
    prints = fingerprint(past.day(peak) * scale.astype(np.float32)[:, None])
    return Examples(inputs(moment, prints, peak_target=peak), past.target(peak) * scale)


def as_the_loop(source: Source) -> Source:
    """A finer history brought to minutes, for windows in the shape that the control loop has."""
    fold = MINUTE_S // source.step_s
    steps = source.share.shape[2] // fold * fold
    minutes, _ = folded(source.share[..., :steps], fold)
    share = minutes.astype(np.float32)
    return replace(source, name=f"{source.name}, blocks", share=share, step_s=MINUTE_S, blocks=True)


@dataclass(frozen=True, slots=True, eq=False)
class _Places:
    """Where windows lie: (n,) each."""

    resource: Ints
    vm: Ints
    end: Ints  # the step after the newest

    @property
    def count(self) -> int:
        return len(self.end)


def _places(source: Source, random: Generator, count: int, ahead: int) -> _Places:
    """Windows whose newest step and target were seen."""
    resources, vms, steps = source.share.shape
    chance = np.full(resources, 1.0 / resources)
    if resources > 1 and 0 in source.kinds:
        chance[:] = (1 - CPU_SHARE) / (resources - 1)
        chance[source.kinds.index(0)] = CPU_SHARE
    found: list[Ints] = []
    for _ in range(50):  # sparse histories need more tries
        tried = np.stack(
            [
                random.choice(resources, 2 * count, p=chance),
                random.integers(0, vms, 2 * count),
                random.integers(1, steps - ahead + 1, 2 * count),
            ]
        )
        resource, vm, end = tried
        seen: Bools = np.isfinite(source.share[resource, vm, end - 1])
        seen &= np.isfinite(source.share[resource, vm, end + ahead - 1])
        found.append(tried[:, seen])
        if sum(one.shape[1] for one in found) >= count:
            break
    return _Places(*np.concatenate(found, axis=1)[:, :count])


@dataclass(frozen=True, slots=True, eq=False)
class _Past:
    """What windows are cut from; of each no more than its age."""

    source: Source
    at: _Places
    age: Ints  # (n,) steps of the past that are seen
    ahead: int  # steps

    @property
    def _each(self) -> int:
        return STEP_S // self.source.step_s

    def window(self) -> Floats:
        """(n, steps of two hours)"""
        return self._window(self.at.resource)

    def others(self) -> Floats:
        """(n, OTHERS, steps): of the other kinds in their order; NaN where a source has none."""
        found = np.full((self.at.count, OTHERS, STEPS * self._each), np.nan)
        kinds = np.array(self.source.kinds)
        own = kinds[self.at.resource]
        for resource, kind in enumerate(kinds.tolist()):
            place = np.flatnonzero(own != kind)
            beside = self._window(np.full(self.at.count, resource))
            found[place, kind - (kind > own[place])] = beside[place]
        return found

    def day(self, peak: Bools) -> Singles:
        """(n, SLOTS) targets of the last day, as the last one of each slot."""
        newest = -(-self.at.end // self._each)  # the slot under way is the newest
        slot = newest[:, None] + np.arange(1 - SLOTS, 1)
        end = np.minimum(slot * self._each, self.at.end[:, None])
        found = self._shares(self.at.resource, end - 1)
        high = np.flatnonzero(peak)
        for back in range(1, self.ahead):
            higher = self._shares(self.at.resource[high], end[high] - 1 - back, high)
            found[high] = np.fmax(found[high], higher)
        found[np.arange(SLOTS)[::-1] * self._each >= self.age[:, None]] = np.nan
        return found

    def target(self, peak: Bools) -> Floats:
        """(n,) what came: the highest up to the horizon, or the value there."""
        future = self._shares(self.at.resource, self.at.end[:, None] + np.arange(self.ahead))
        target = np.where(peak, np.fmax.reduce(future, axis=1), future[:, -1])
        # All of an allotment is no more than it: `moment.bin_of`.
        return np.where(np.abs(target - 1) < _ROUNDING, 1 - JUST_BELOW, target)

    def _window(self, resource: Ints) -> Floats:
        length = STEPS * self._each
        found = self._shares(resource, self.at.end[:, None] - length + np.arange(length))
        found[np.arange(length)[::-1] >= self.age[:, None]] = np.nan
        return found.astype(np.float64)

    def _shares(self, resource: Ints, step: Ints, rows: Ints | slice = EVERY) -> Singles:
        """(k, steps) at steps (k, steps) of these rows of the windows; NaN before the first."""
        found = self.source.share[resource[:, None], self.at.vm[rows, None], np.maximum(step, 0)]
        found[step < 0] = np.nan
        return found


def _ages(random: Generator, count: int, each: int) -> Ints:
    """(n,) steps; for most a whole day and more, for some up to a day, for some up to an hour."""
    chance = random.random(count)
    longest = np.where(chance < HOUR_SHARE, HOUR, SLOTS) * each
    cut = np.exp(random.uniform(0, 1, count) * np.log(longest)).astype(np.int64)
    return np.where(chance < HOUR_SHARE + DAY_SHARE, np.maximum(cut, 1), (SLOTS + STEPS) * each)


def _scales(random: Generator, count: int) -> Floats:
    low, high = np.log(SCALES)
    scale = np.exp(random.uniform(low, high, count))
    return np.where(random.random(count) < SCALED_SHARE, scale, 1.0)


def epoch(sources: list[Source], random: Generator, count: int, horizon_s: int) -> Examples:
    """`count` windows from all sources by their weights, in random order."""
    total = sum(source.weight for source in sources)
    parts = [
        draw(source, random, max(1, round(count * source.weight / total)), horizon_s)
        for source in sources
    ]
    order = random.permutation(sum(len(part.target) for part in parts))
    return Examples(
        Inputs(
            np.concatenate([part.inputs.sequence for part in parts])[order],
            np.concatenate([part.inputs.facts for part in parts])[order],
            np.concatenate([part.inputs.newest for part in parts])[order],
        ),
        np.concatenate([part.target for part in parts])[order],
    )


def prints(sources: list[Source], random: Generator, count: int, horizon_s: int) -> Singles:
    """(about `count`, SIZE) fingerprints of windows, those without much of a day left out, unless
    nothing is longer."""
    drawn = epoch(sources, random, count, horizon_s).inputs.facts[:, -SIZE:]
    long = drawn[drawn[:, FIELDS.index("seen")] >= HALF]
    return long if len(long) else drawn


def batches(examples: Examples, size: int) -> Iterator[Examples]:
    for start in range(0, len(examples.target), size):
        rows = slice(start, start + size)
        given = examples.inputs
        yield Examples(
            Inputs(given.sequence[rows], given.facts[rows], given.newest[rows]),
            examples.target[rows],
        )


def score_of(network: Network, examples: Examples) -> float:
    """Mean ranked probability score on the 20 bins of the allotment."""
    given = examples.inputs
    shares = np.broadcast_to(EDGES, (len(examples.target), len(EDGES)))
    cdf = below(network.masses(given), given.newest, shares)
    passed = examples.target[:, None] < EDGES
    return float(((cdf - passed) ** 2).sum(axis=1).mean())
