"""Problems of combinations, from what each resource is worth by itself: `flavours`.

    value(j1 .. jr) = sum_q v_q(j_q) + share * min_q v_q(j_q) - move * 1[any level != now]

A move is paid once, however many resources it changes: it is one command to the VM and one
disturbance of it. The smallest of the resources' values counts extra where a VM is only as fast as
what it has least of.
"""

from dataclasses import dataclass
from math import prod

import numpy as np

from controller.core.allocate.coupled_problem import CoupledProblem, checked_coupled
from controller.core.allocate.problem import BINS_MAX, AnyInts, Ints, ProblemError

MISSING = -1  # a VM without a level yet pays for whatever it gets
PER_MILLE = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """One resource: its bins by VM, as `problem.Problem` has them."""

    value: AnyInts  # (b, n, h)
    level: AnyInts  # (b, n | 1, h | 1) quanta
    capacity: AnyInts  # (h,) quanta
    now: AnyInts | None = (
        None  # (n, h) quanta that each VM has; MISSING: none. None: moves are free
    )


def flavours(
    tables: tuple[Table, ...], *, move: AnyInts | int = 0, share_per_mille: int = 0
) -> CoupledProblem:
    """One option per combination of the resources' bins; the last resource's bins change fastest.

    `move` is a cost in value units, one or (n, h). `share_per_mille` is how many thousandths of
    the smallest value count on top, rounded down. ProblemError: no table, tables of different
    VMs, more than 256 combinations, or what `checked_coupled` refuses.
    """
    counts = _counts(tables)
    _slots, hosts = tables[0].value.shape[1:]
    bins = np.unravel_index(np.arange(prod(counts)), counts)
    each = [table.value.astype(np.int64)[bin_] for table, bin_ in zip(tables, bins, strict=True)]
    value = np.asarray(sum(each[1:], start=each[0]))
    if share_per_mille:
        value = value + share_per_mille * np.minimum.reduce(each) // PER_MILLE
    moved = _moved(tables, bins)
    if moved is not None:
        value = value - np.where(moved, move, 0)
    shape = np.broadcast_shapes(*(table.level.shape[1:] for table in tables))
    level = [
        np.broadcast_to(table.level[bin_], (prod(counts), *shape))
        for table, bin_ in zip(tables, bins, strict=True)
    ]
    capacity = np.stack([np.broadcast_to(table.capacity, (hosts,)) for table in tables])
    return checked_coupled(CoupledProblem(value, np.stack(level), capacity))


def bins_of(tables: tuple[Table, ...], option: AnyInts) -> Ints:
    """(r, n, h) the bin of each resource that the options (n, h) stand for."""
    return np.stack(np.unravel_index(option.astype(np.int64), _counts(tables)))


def _counts(tables: tuple[Table, ...]) -> tuple[int, ...]:
    """Bins per resource."""
    if not tables:
        raise ProblemError("flavours need at least one resource")
    for resource, table in enumerate(tables):
        vms = tables[0].value.shape[1:]
        if table.value.shape != (len(table.level), *vms) or table.level.ndim != table.value.ndim:
            raise ProblemError(
                f"resource {resource} has values of shape {table.value.shape} and levels of shape "
                f"{table.level.shape}; resource 0 has values of shape {tables[0].value.shape}"
            )
    counts = tuple(len(table.value) for table in tables)
    if not 1 <= prod(counts) <= BINS_MAX:
        raise ProblemError(
            f"{' x '.join(map(str, counts))} combinations of bins; 1 to {BINS_MAX} are possible: "
            "give fewer bins per resource"
        )
    return counts


def _moved(tables: tuple[Table, ...], bins: tuple[Ints, ...]) -> AnyInts | None:
    """(k, n, h) whether an option is another level than the VM has of any resource."""
    moved = [
        table.level[bin_] != table.now
        for table, bin_ in zip(tables, bins, strict=True)
        if table.now is not None
    ]
    return np.logical_or.reduce(np.broadcast_arrays(*moved)) if moved else None
