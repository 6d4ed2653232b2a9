"""What a probabilistic predictor sees at one moment and says of the time to come. Pure values.

A series is one resource of one VM. All amounts are shares: 1.0 is all that the VM is allotted, more
is possible (an overcommitted or measured-over allotment). NaN: not seen. s series, w steps.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from controller.core.state import Floats, Ints

BINS = 20  # equal ones of the allotment; one more lies above it
EDGES: Floats = np.arange(1, BINS + 1) / BINS  # (20,) upper edges, not part of the bin below
LEVELS: Floats = np.array([0.5, 0.9, 0.95, 0.99])  # of the quantiles that grants are made from
KINDS = 4  # of resources
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """The past of s series up to now, on one grid; the newest step is the last."""

    end_s: int | Ints  # unix time at which the newest step ends; one for all, or (s,)
    step_s: int
    window: Floats  # (s, w) mean of each step
    peak: Floats  # (s, w) highest within each step; the mean where sources tell no more
    others: Floats  # (s, 3, w) means of the VM's other resources, in the order of kinds; NaN: none
    kind: int | Ints = -1  # of the resource: CPU, memory, disk, network; one for all, or (s,)


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Of the target one horizon after the moment."""

    mass: Floats  # (s, 21) probability of each of the 20 bins and of what lies above; sums to 1
    quantile: Floats  # (s, q) at LEVELS or at those that were asked for, ascending


class Predictor(Protocol):
    """One way to predict, with its state. `step` is called once per grid step, in order.

    What it learns it learns from moments as they come: nothing of the future is ever in one.
    """

    name: str

    def step(self, moment: Moment) -> Prediction: ...


def bin_of(share: Floats) -> Ints:
    """The bin (0 to 20) of shares, any shape: k/20 <= share < (k + 1)/20; exactly 1.0 is in bin 19.

    Sources round to 32 bits: a share within a millionth of an edge is taken to lie on it.
    """
    place = np.floor(np.nan_to_num(share) * BINS + _ROUNDING * BINS)
    within = np.where(np.abs(share - 1.0) < _ROUNDING, BINS - 1, place)
    return np.clip(within, 0, BINS).astype(np.int64)


def folded(shares: NDArray[np.floating], steps: int) -> tuple[Floats, Floats]:
    """Mean and highest of every `steps` along the last axis, which is a multiple of them; NaN where
    nothing was seen."""
    count = shares.shape[-1] // steps  # said outright: of no series it cannot be inferred
    apart = shares.reshape(*shares.shape[:-1], count, steps).astype(np.float64)
    known = np.isfinite(apart)
    seen = known.sum(axis=-1)
    total = np.where(known, apart, 0).sum(axis=-1)
    middle = np.where(seen > 0, total / np.maximum(seen, 1), np.nan)
    return middle, np.asarray(np.fmax.reduce(apart, axis=-1))
