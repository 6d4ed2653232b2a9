"""What machines that are new borrow from those that are known: a prior by configuration.

Their own past of a few minutes says little. As long as a mixture does not know them, it is blended
with the quantiles that machines of their size were given (`neighbours`), the less the more they
show of themselves; and only upwards: what a machine uses now is more certain than what others do.
k machines, 3 resources, q levels.
"""

from collections.abc import Sequence

import numpy as np

from controller.core.state import Floats, Ints
from controller.forecast.cohorts import Part
from controller.forecast.neighbours import MACHINES_MAX, Library, blended, configurations, library
from controller.forecast.protocol import History
from controller.forecast.shares import DISK_UNIT, with_ends
from shared.clock import SECOND_NS
from shared.resources import Resource

_MINUTE_NS = 60 * SECOND_NS
_SEED = 1  # of the draw among more machines than a library holds: the same inputs, the same draw


class Lender:
    """Keeps a library of machines that mixtures know, made anew once per block where needed."""

    def __init__(self) -> None:
        self._library: Library | None = None
        self._made_at_step: int | None = None

    def renew(self, parts: Sequence[Part], history: History, steps: int) -> None:
        """From the forecasts of now, unless it was done less than `steps` ago."""
        now = history.newest_step
        if self._made_at_step is not None and now - self._made_at_step < steps:
            return
        self._made_at_step = now
        drawn = [_drawn(part, len(parts)) for part in parts]
        if not drawn:
            return
        rows = np.concatenate([part.rows[some] for part, some in zip(parts, drawn, strict=True)])
        units = [
            _in_units(part, some) / _units(history.maximum[part.rows[some]])[..., None]
            for part, some in zip(parts, drawn, strict=True)
        ]
        known = configurations(history.maximum[rows])
        self._library = library(known, np.concatenate(units), np.random.default_rng(_SEED))

    def lend(self, history: History, rows: Ints, own: Floats, seen: Ints) -> Floats:
        """(k, 3, q) at PROBABILITY for machines at `rows` whose own past gives `own`, from `seen`
        steps, never below it; NaN where that is NaN: what was never seen stays unknown."""
        if self._library is None:
            return own
        maximum = history.maximum[rows]
        said = self._library.prior(configurations(maximum))
        prior = with_ends(said.quantile, _units(maximum))
        found = blended(own, seen * history.step_ns // _MINUTE_NS, prior)
        return np.where(np.isnan(own), np.nan, np.fmax(own, found))


def _drawn(part: Part, parts: int) -> Ints:
    """Some places among a cohort's machines, evenly: all cohorts together fill a library well."""
    most = max(1, 4 * MACHINES_MAX // parts)
    every = np.arange(len(part.rows))
    return every[:: -(-len(every) // most) or 1]


def _in_units(part: Part, some: Ints) -> Floats:
    places = part.places[some]
    return part.cohort.quantile[places] * part.cohort.reference[places][..., None]


def _units(maximum: Ints) -> Floats:
    """(k, 3) what shares in the library are of: all that a machine can have, NaN where that is not
    known; of the disk, which machines share, an amount that is the same for all."""
    found = np.where(maximum > 0, maximum, np.nan).astype(np.float64)
    found[:, Resource.IO] = DISK_UNIT
    return found
