"""From use in units to series of shares in blocks of a horizon's half, and back. Pure.

A series' reference is what its share 1.0 is: all that the machine can have, as far as that is known
and stays. What nothing bounds (or what is shared by many, as a disk is) is measured against a power
of two that is at least twice what was seen, and grows in leaps. k machines, 3 resources, g grid
steps of a window, w blocks.
"""

import numpy as np

from controller.core.state import RESOURCES, Floats, Ints
from controller.forecast.empirical import PROBABILITY
from controller.forecast.moment import Moment, folded
from controller.forecast.protocol import Singles
from shared.resources import MIB, Resource

OTHERS = 3  # places for other resources beside a series, as the network has them
# What a share of 1.0 is at least where nothing else is known: less would follow every breath.
DISK_UNIT = 64 * MIB
_LEAST = np.array([1000, 256 * MIB, DISK_UNIT], dtype=np.float64)
_ROOM = 2.0  # times what was seen
LEVELS: Floats = PROBABILITY[1:-1]  # of quantiles that mixtures are asked for


def block_steps(horizon_steps: int) -> int:
    """Grid steps of a block: half a horizon where that is whole, else one."""
    return 1 if horizon_steps % 2 else max(1, horizon_steps // 2)


def references(maximum: Ints, before: Floats, highest: Floats) -> Floats:
    """(k, 3) what is a share of 1.0, from what machines can have, what was taken before (NaN:
    nothing yet) and the most that was seen (NaN: nothing). One that serves is kept."""
    seen = np.nan_to_num(highest)
    before = np.nan_to_num(before)
    wanted = np.maximum(_LEAST, 2.0 ** np.ceil(np.log2(np.maximum(_ROOM * seen, 1))))
    grown = np.where((before == 0) | (seen > before), wanted, before)
    bounded = maximum > 0
    found = np.where(bounded, maximum, grown)
    disk = Resource.IO
    found[:, disk] = np.where(
        bounded[:, disk], np.minimum(grown[:, disk], maximum[:, disk]), grown[:, disk]
    )
    return np.asarray(found)


def blocks(mean: Singles, steps: int) -> tuple[Floats, Floats]:
    """(k, 3, w) mean and highest step of each block of `steps`, the last one ending with `mean`
    (k, 3, g); NaN where nothing was seen."""
    count = mean.shape[-1] // steps
    return folded(mean[..., mean.shape[-1] - count * steps :], steps)


def moment_of(
    mean: Floats, peak: Floats, reference: Floats, end_s: int, step_s: int, series: Ints
) -> Moment:
    """Of some `series` (machine times 3 plus resource) of machines with these blocks (k, 3, w)."""
    share = mean / reference[..., None]
    others = np.full((*share.shape[:2], OTHERS, share.shape[-1]), np.nan)
    for resource in range(RESOURCES):
        for place, other in enumerate(each for each in range(RESOURCES) if each != resource):
            others[:, resource, place] = share[:, other]
    width = share.shape[-1]
    return Moment(
        end_s=end_s,
        step_s=step_s,
        window=share.reshape(-1, width)[series],
        peak=(peak / reference[..., None]).reshape(-1, width)[series],
        others=others.reshape(-1, OTHERS, width)[series],
        kind=series % RESOURCES,  # ours come first among the kinds, in the same order
    )


def with_ends(quantile: Singles | Floats, reference: Floats) -> Floats:
    """(k, 3, q) in units at PROBABILITY, from shares (k, 3, q - 2) at LEVELS.

    Below the first level demand may be anything down to nothing; above the last one it goes on as
    far as between the last two.
    """
    found = np.empty((*quantile.shape[:-1], quantile.shape[-1] + 2))
    found[..., 1:-1] = quantile
    found[..., 0] = np.where(np.isnan(quantile[..., 0]), np.nan, 0.0)
    found[..., -1] = 2 * found[..., -2] - found[..., -3]
    found *= reference[..., None]
    return found
