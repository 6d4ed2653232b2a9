"""What a machine without a past will use, from what machines of its configuration use. Pure.

A library holds machines of which something is known: their configuration (numbers such as how many
cores, on a scale where equal steps matter alike) and their quantiles as shares of what they can
have. A new machine gets the average of the nearest ones' quantile functions, a quantile at a time
(Vincentization: Vincent 1912; Ratcliff 1979; it keeps the shape that an average of probabilities
would smear). The average is weighted by distance (Shepard 1968), and it has the fewer say the more
the machine's own past knows (credibility: Bühlmann 1967).
n wanted machines, k known ones, c numbers of a configuration, 3 resources, q probabilities.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from controller.core.state import Bools, Floats, Ints
from shared.resources import Resource

MACHINES_MAX = 2048  # of a library: what a search through all of it costs is bounded
COUNT = 16  # neighbours
FEW = 3  # neighbours: fewer are no prior but a coincidence
# How many samples of a minute a prior counts as much as. A machine is so much like itself that five
# made its forecast worse from the first sample on; with none its upper quantiles are too low.
PRIOR_SAMPLES = 1.0
_SCALE_MIN = 0.25  # of a configuration's numbers: a quarter of a doubling is no difference
_UNTOLD = 1.0  # squared deviations that a known machine is away in a number that it lacks
_ROWS_AT_ONCE = 256  # bounds the memory of a search


@dataclass(frozen=True, slots=True, eq=False)
class Prior:
    """What neighbours say of n machines."""

    quantile: Floats  # (n, 3, q) shares, ascending along q; NaN where too few are known
    distance: Floats  # (n,) mean of the neighbours', in deviations of the library; NaN without any
    neighbours: Ints  # (n,) how many were used


@dataclass(frozen=True, slots=True, eq=False)
class Library:
    """Known machines; `library` makes one."""

    configuration: Floats  # (k, c) NaN: not known
    quantile: Floats  # (k, 3, q) shares, 0 where `known` says no
    known: Bools  # (k, 3)
    scale: Floats  # (c,) what is one deviation

    def prior(self, wanted: Floats, count: int = COUNT) -> Prior:
        """For machines of the configurations `wanted` (n, c), from their `count` nearest.

        All that are as near as the last of those take part too, so that the order of the library
        decides nothing. Where FEW or more have the very configuration, they alone are asked. A
        number that the wanted machine does not tell (NaN) is ignored; one that tells none gets
        no prior.
        """
        told = np.isfinite(wanted)
        # Fleets have few configurations: each is searched for once.
        some, row = np.unique(np.where(told, wanted, np.inf), axis=0, return_inverse=True)
        some = np.where(np.isinf(some), np.nan, some)
        quantile = np.full((len(some), *self.quantile.shape[1:]), np.nan)
        distance = np.full(len(some), np.nan)
        neighbours = np.zeros(len(some), dtype=np.int64)
        if len(self.configuration):
            for part in _parts(len(some)):
                weight, squares = self._weights(some[part], count)
                quantile[part] = self._averages(weight)
                chosen = weight > 0
                total = np.where(chosen, weight * np.sqrt(squares), 0).sum(axis=1)
                neighbours[part] = chosen.sum(axis=1)
                mass = weight.sum(axis=1)
                distance[part] = total / np.where(mass > 0, mass, np.nan)
        row = row.reshape(-1)
        return Prior(quantile[row], distance[row], neighbours[row])

    def _weights(self, wanted: Floats, count: int) -> tuple[Floats, Floats]:
        """(n, k) each: how much each known machine counts, and its squared distance."""
        squares = self._squares(wanted)
        k = squares.shape[1]
        ordered = np.sort(squares, axis=1)
        reach = ordered[:, min(count, k) - 1, None]
        # Half as far as the few nearest reach: one alone never stands for a configuration, and a
        # dozen far away do not outweigh it.
        width = ordered[:, min(FEW, k) - 1, None] / 4
        spread = squares + width
        least = spread.min(axis=1, keepdims=True)
        near = (least / np.where(spread > 0, spread, 1)) ** 2
        weight = np.where(width > 0, near, squares == 0)
        told = np.isfinite(wanted).sum(axis=1)[:, None] > 0
        return np.where(told & (squares <= reach), weight, 0.0), squares

    def _squares(self, wanted: Floats) -> Floats:
        """(n, k) mean squared difference over the numbers that the wanted machines tell."""
        total = np.zeros((len(wanted), len(self.configuration)))
        for column, scale in enumerate(self.scale):
            one = wanted[:, column, None]
            apart = (one - self.configuration[None, :, column]) / scale
            square = np.where(np.isfinite(apart), apart**2, _UNTOLD)
            total += np.where(np.isfinite(one), square, 0)
        told = np.maximum(np.isfinite(wanted).sum(axis=1), 1)
        return np.asarray(total / told[:, None])

    def _averages(self, weight: Floats) -> Floats:
        """(n, 3, q) weighted means over those who know a resource; NaN where they are too few."""
        k = len(self.quantile)
        total = (weight @ self.quantile.reshape(k, -1)).reshape(-1, *self.quantile.shape[1:])
        mass = weight @ self.known
        enough = ((weight > 0).astype(np.float64) @ self.known) >= FEW
        mean = total / np.where(enough, mass, 1)[..., None]
        return np.where(enough[..., None], np.maximum.accumulate(mean, axis=-1), np.nan)


def library(
    configuration: Floats, quantile: Floats, random: Generator, machines_max: int = MACHINES_MAX
) -> Library:
    """Of machines with configurations (k, c) and quantiles (k, 3, q) as shares.

    A resource with a NaN among its quantiles counts as not known; machines of which nothing is
    known are left out. Of more than `machines_max` some are drawn, evenly over configurations:
    a thousand machines that are the same must not crowd out a few that are not.
    """
    told = np.isfinite(configuration)
    known = _whole(quantile)
    rows = np.flatnonzero(told.any(axis=1) & known.any(axis=1))
    comparable = np.where(told, configuration, np.inf)  # NaN is equal to nothing
    rows = rows[_drawn(comparable[rows], random, machines_max)]
    # Sums depend on their order in the last digit, and ties of distances on that.
    rows = rows[np.lexsort(comparable[rows].T)]
    kept = np.where(told, configuration, np.nan)[rows].astype(np.float64)
    values = np.where(known[rows, :, None], quantile[rows], 0).astype(np.float64)
    return Library(kept, np.sort(values, axis=-1), known[rows], _scale(kept))


def configurations(
    maximum: Ints, nested: Bools | None = None, levels_deep: Ints | None = None
) -> Floats:
    """(n, 4) for `Library`: doublings of CPU and memory that machines can have at the most, from
    `maximum` (n, 3) in units, whether they run machines of their own, and how deep they lie
    (1: on a physical host). What is not said or not positive is NaN."""
    n = len(maximum)
    found = np.full((n, 4), np.nan)
    for column, resource in enumerate((Resource.CPU, Resource.MEMORY)):
        amount = maximum[:, resource]
        found[:, column] = np.where(amount > 0, np.log2(np.maximum(amount, 1)), np.nan)
    if nested is not None:
        found[:, 2] = nested
    if levels_deep is not None:
        found[:, 3] = np.where(levels_deep > 0, levels_deep, np.nan)
    return found


def blended(
    own: Floats, samples: Ints, prior: Floats, prior_samples: float = PRIOR_SAMPLES
) -> Floats:
    """(n, 3, q) quantiles between a machine's own and the prior's, both (n, 3, q) in one unit.

    `samples` (n, 3) minutes of its own past count as many, the prior `prior_samples` (above 0).
    Where only one of both knows, it is taken as it is; NaN where neither does.
    """
    count = np.maximum(samples, 0).astype(np.float64)
    share = count / (count + prior_samples)
    has_own, has_prior = _whole(own), _whole(prior)
    share = np.where(has_own, np.where(has_prior, share, 1.0), 0.0)[..., None]
    either = (has_own | has_prior)[..., None]
    own_part = np.where(has_own[..., None], own, 0) * share
    prior_part = np.where(has_prior[..., None], prior, 0) * (1 - share)
    return np.where(either, own_part + prior_part, np.nan)


def _whole(quantile: Floats) -> Bools:
    """(..., 3) of which resources all quantiles are known."""
    return np.asarray(np.isfinite(quantile).all(axis=-1))


def _drawn(configuration: Floats, random: Generator, most: int) -> Ints:
    """Rows of at most `most` machines: one of each configuration, then a second, and so on."""
    k = len(configuration)
    if k <= most:
        return np.arange(k)
    group = np.unique(configuration, axis=0, return_inverse=True)[1].reshape(-1)
    chance = random.random(k)
    order = np.lexsort((chance, group))
    begins = np.searchsorted(group[order], group[order])
    turn = np.empty(k, dtype=np.int64)
    turn[order] = np.arange(k) - begins
    return np.sort(np.lexsort((random.random(k), turn))[:most])


def _scale(configuration: Floats) -> Floats:
    """(c,) deviations of what is known, no less than `_SCALE_MIN`."""
    known = np.isfinite(configuration)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, configuration, 0).sum(axis=0) / count
    squares = np.where(known, configuration - mean, 0) ** 2
    return np.asarray(np.maximum(np.sqrt(squares.sum(axis=0) / count), _SCALE_MIN))


def _parts(count: int) -> Iterator[slice]:
    for at in range(0, count, _ROWS_AT_ONCE):
        yield slice(at, at + _ROWS_AT_ONCE)
