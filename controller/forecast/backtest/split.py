"""What may be learnt from and what is tested: VM groups and time apart, the same for a seed. Pure.

VMs whose hourly means correlate above `TWIN` are twins: replicas, or one machine under two names.
Twins stay together, with the twins of twins. The time is cut at the same moment for all, so that a
test sees other machines and another time.
"""

from dataclasses import dataclass

import numpy as np

from controller.core.state import Bools, Floats, Ints
from controller.forecast.backtest.traces import Trace, hourly

TWIN = 0.95  # correlation of hourly means
OVERLAP_HOURS = 12  # that two VMs must share to be compared
_NO_VARIANCE = 1e-10  # what rounding leaves of a constant
_ROWS_AT_ONCE = 2048  # bounds the memory of the comparison


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Rows of a trace and steps at which its time is cut."""

    train: Ints
    valid: Ints
    test: Ints
    train_stop: int  # training sees steps before this one
    valid_stop: int  # validation sees steps from there to before this one, test the rest

    def part(self, trace: Trace, name: str) -> Trace:
        """`train`, `valid` or `test` of the trace that this split was made of."""
        rows, first, stop = {
            "train": (self.train, 0, self.train_stop),
            "valid": (self.valid, self.train_stop, self.valid_stop),
            "test": (self.test, self.valid_stop, trace.steps),
        }[name]
        return trace.part(rows, first, stop)


def split(
    trace: Trace,
    seed: int,
    *,
    vms: tuple[float, float, float] = (0.6, 0.15, 0.25),
    time: tuple[float, float] = (0.6, 0.75),
) -> Split:
    """Shares of VMs for training, validation, test; where time is cut, as shares of what was seen.

    Groups go, in an order drawn from `seed`, to the part that still lacks most of its share.
    """
    group = twin_groups(trace)
    members = [np.flatnonzero(group == each) for each in range(int(group.max()) + 1)]
    order = np.random.default_rng(seed).permutation(len(members))
    wanted = np.array(vms) / sum(vms) * len(group)
    held = np.zeros(3)
    rows: tuple[list[int], ...] = ([], [], [])
    for place in order:
        part = int(np.argmax(wanted - held))
        rows[part].extend(members[place].tolist())
        held[part] += len(members[place])
    cuts = _cuts(trace, time)
    train, valid, test = (np.array(sorted(each), dtype=np.int64) for each in rows)
    return Split(train, valid, test, *cuts)


def twin_groups(trace: Trace) -> Ints:
    """(v,) number of the group, from 0, in the order in which groups first appear."""
    hours = hourly(trace)
    group = np.arange(len(hours))
    for first in range(0, len(hours), _ROWS_AT_ONCE):
        alike = _alike(hours[first : first + _ROWS_AT_ONCE], hours)
        for left, right in np.argwhere(alike).tolist():
            _join(group, first + left, right)
    roots = np.array([_root(group, row) for row in range(len(group))], dtype=np.int64)
    names, place = np.unique(roots, return_inverse=True)
    assert len(names) == int(place.max()) + 1
    return np.asarray(place, dtype=np.int64)


def _alike(some: Floats, all_of_them: Floats) -> Bools:
    """(m, v) whether the correlation over shared hours is above `TWIN`."""
    seen_some, seen = np.isfinite(some), np.isfinite(all_of_them)
    left, right = np.where(seen_some, some, 0), np.where(seen, all_of_them, 0)
    mask_left, mask = seen_some.astype(np.float64), seen.astype(np.float64)
    hours = np.maximum(mask_left @ mask.T, 1)
    mean_left, mean_right = left @ mask.T / hours, mask_left @ right.T / hours
    both = left @ right.T / hours - mean_left * mean_right
    var_left = (left**2) @ mask.T / hours - mean_left**2
    var_right = mask_left @ (right**2).T / hours - mean_right**2
    some_variance = (var_left > _NO_VARIANCE) & (var_right > _NO_VARIANCE)
    scale = np.sqrt(np.maximum(var_left, _NO_VARIANCE) * np.maximum(var_right, _NO_VARIANCE))
    return np.asarray((hours >= OVERLAP_HOURS) & some_variance & (both > TWIN * scale))


def _join(group: Ints, left: int, right: int) -> None:
    left, right = _root(group, left), _root(group, right)
    group[max(left, right)] = min(left, right)


def _root(group: Ints, row: int) -> int:
    while group[row] != row:
        group[row] = group[group[row]]  # shortens the way for the next one
        row = int(group[row])
    return row


def _cuts(trace: Trace, time: tuple[float, float]) -> tuple[int, int]:
    """Steps before which these shares of the time lie in which anything was seen."""
    seen = np.isfinite(trace.share).any(axis=0)
    passed = np.cumsum(seen) / max(int(seen.sum()), 1)
    first, second = (int(np.searchsorted(passed, each)) + 1 for each in time)
    return first, second
