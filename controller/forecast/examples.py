"""Windows to learn from, drawn at random from histories on a grid, with what came after them.

Half of the windows are scaled by a factor of 0.2 to 3: what a machine does at one level of use,
another does at a different one, and weights that have seen both travel better to machines that
nobody has seen. Each resource of a VM is a series of its own, with the others beside it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from controller.core.state import Bools, Floats, Ints
from controller.forecast.features import STEP_S, STEPS, Inputs, Singles, inputs
from controller.forecast.moment import EDGES, Moment
from controller.forecast.network import Network, below

OTHERS = 3
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
    weight: float = 1.0  # how often it is drawn from, against the others

    def part(self, vms: Ints, steps: slice) -> "Source":
        """Some of its VMs over some of its time."""
        share = self.share[:, vms, steps]
        start = self.start_s + (steps.start or 0) * self.step_s
        return Source(self.name, share, start, self.step_s, self.weight)


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    inputs: Inputs
    target: Floats  # (s,) share


def draw(source: Source, random: Generator, count: int, horizon_s: int) -> Examples:
    """About `count` windows whose newest step and target were seen; fewer where few exist.

    ValueError where the history is shorter than a window and a horizon.
    """
    each, ahead = STEP_S // source.step_s, horizon_s // source.step_s
    length = STEPS * each
    resources, _, steps = source.share.shape
    if steps < length + ahead:
        raise ValueError(f"{source.name}: {steps} steps are too few for a window and a horizon")
    resource, vm, end = _places(source.share, random, count, length, ahead)
    peak = random.random(len(vm)) < PEAK_SHARE
    future = source.share[resource[:, None], vm[:, None], end[:, None] + np.arange(ahead)]
    target = np.where(peak, np.fmax.reduce(future, axis=1), future[:, -1])
    # All of an allotment is no more than it: `moment.bin_of`.
    target = np.where(np.abs(target - 1) < _ROUNDING, 1 - JUST_BELOW, target)
    past = end[:, None] - length + np.arange(length)
    window = source.share[resource[:, None], vm[:, None], past]
    others: Floats = np.full((len(vm), OTHERS, length), np.nan)
    for one in range(1, min(resources, OTHERS + 1)):
        beside = (resource + one) % resources
        others[:, one - 1] = source.share[beside[:, None], vm[:, None], past]
    scale = _scales(random, len(vm))
    moment = Moment(
        end_s=source.start_s + end * source.step_s,
        step_s=source.step_s,
        window=window * scale[:, None],
        peak=window * scale[:, None],
        others=others,
    )
    known = np.isfinite(target)
    given = inputs(moment, peak_target=peak)
    return Examples(
        Inputs(given.sequence[known], given.facts[known], given.newest[known]),
        (target * scale)[known],
    )


def _places(
    share: Singles, random: Generator, count: int, length: int, ahead: int
) -> tuple[Ints, Ints, Ints]:
    """Resources, VMs and ends of windows whose newest step and target were seen."""
    resources, vms, steps = share.shape
    found: list[Ints] = []
    for _ in range(50):  # sparse histories need more tries
        tried = np.stack(
            [
                random.integers(0, resources, 2 * count),
                random.integers(0, vms, 2 * count),
                random.integers(length, steps - ahead + 1, 2 * count),
            ]
        )
        resource, vm, end = tried
        seen: Bools = np.isfinite(share[resource, vm, end - 1])
        seen &= np.isfinite(share[resource, vm, end + ahead - 1])
        found.append(tried[:, seen])
        if sum(one.shape[1] for one in found) >= count:
            break
    resource, vm, end = np.concatenate(found, axis=1)[:, :count]
    return resource, vm, end


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
