"""What every forecaster is given and gives back. n machines, 3 resources, NaN: nothing was seen."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from controller.core.state import MISSING, Bools, Floats, Forecast, Ints

Singles = NDArray[np.float32]
NOVEL = 1.0  # novelty above it: unlike what the network was taught
MACHINES_AT_ONCE = 8192  # whoever reads a whole fleet reads so many at once


class Windows(Protocol):
    """Use on a regular grid, oldest first; the last step is the one under way.

    Read in parts: no more than that need be copied of a fleet. `rows` are places in the history.
    """

    def mean(self, rows: Ints, steps: int) -> Singles:
        """(len(rows), 3, steps) mean of each step, in the resource's unit."""
        ...

    def peak(self, rows: Ints, steps: int) -> Singles:
        """(len(rows), 3, steps) highest sample of each step; of the last horizon at the most."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """What is known at one moment of the machines of one snapshot, in its order."""

    made_at_unix_ns: int
    newest_step: int  # number of the step under way on the receiver's grid; rises, clocks or not
    step_ns: int
    steps: int  # of the window
    ids: tuple[str, ...]
    limit: Ints  # (n, 3) in force now: use that touches it is demand cut off
    maximum: Ints  # (n, 3) the most that it can have; MISSING: not known
    age_ns: Ints  # (n,) of the newest sample; MISSING where there is none
    windows: Windows

    def batches(self) -> list[Ints]:
        """All rows, MACHINES_AT_ONCE together at the most."""
        rows = np.arange(len(self.ids))
        return [rows[at : at + MACHINES_AT_ONCE] for at in range(0, len(rows), MACHINES_AT_ONCE)]


@dataclass(frozen=True, slots=True, eq=False)
class Arrays:
    """`Windows` of arrays (n, 3, w) that stand in memory."""

    means: Floats | Singles
    peaks: Floats | Singles

    def mean(self, rows: Ints, steps: int) -> Singles:
        return self.means[rows][..., -steps:].astype(np.float32)

    def peak(self, rows: Ints, steps: int) -> Singles:
        return self.peaks[rows][..., -steps:].astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """A forecast, and how it came about."""

    forecast: Forecast
    learnt: Bools  # (n, 3) by the method that the forecast names; elsewhere by the empirical one,
    borrowed: Bools  # (n, 3) which here is blended with what machines of the same size are given
    made_ns_ago: Ints  # (n,) since it was computed; MISSING where there is none
    # How unlike what the network was taught: above 1, less like any of its archetypes than 95 % of
    # that. None: no network; NaN and -1: less than half a day was seen.
    novelty: Singles | None = None  # (n, 3)
    archetype: NDArray[np.int16] | None = None  # (n, 3) the nearest one's number

    @property
    def compared(self) -> Bools:
        """(n, 3) whose novelty is known."""
        none = np.zeros(self.learnt.shape, dtype=np.bool_)
        return none if self.novelty is None else np.isfinite(self.novelty)

    @property
    def novel(self) -> Bools:
        """(n, 3) which are unlike what the network was taught."""
        return self.compared if self.novelty is None else self.novelty > NOVEL


@dataclass(frozen=True, slots=True)
class Standing:
    """How a forecaster does: `trouble` where it works with less than it should have."""

    method: str
    trouble: str = ""


class Forecaster(Protocol):
    @property
    def standing(self) -> Standing: ...

    def predict(self, history: History, horizon_ns: int) -> Said:
        """Quantiles of the peak of the step means over the horizon; NaN where it does not know."""
        ...


def made_now(history: History) -> Ints:
    """(n,) `made_ns_ago` of a forecast that is new: 0, MISSING without any history."""
    return np.where(history.age_ns == MISSING, MISSING, 0)
