"""A new solution where little has changed: what the old one still proves is not solved again."""

from dataclasses import replace

import numpy as np

from controller.core.allocate.block import picked
from controller.core.allocate.certify import certify
from controller.core.allocate.problem import AnyInts, Bools, Problem, Solution, Status
from controller.core.allocate.solve import BUDGET, solve


def resolve(
    problem: Problem, before: Solution, changed: Bools, *, budget: int = BUDGET
) -> Solution:
    """The solution of a problem of which only the hosts (h,) in `changed` differ from before.

    A changed host keeps its bins where they still fit and its old price proves them optimal; the
    others are solved anew, beginning at their old prices. As exact as `solve`; of several optima
    it may keep another.
    """
    dirty = np.flatnonzero(changed)
    part, old = problem.of(dirty), _reclaimed(problem.of(dirty), before.of(dirty))
    seen = certify(part, old)
    stands = seen.fits & seen.proven & (old.status != Status.INFEASIBLE)
    rest = np.flatnonzero(~stands)
    again = solve(part.of(rest), warm=old.of(rest), budget=budget)
    return _with(_with(before, dirty, old), dirty[rest], again)


def _reclaimed(problem: Problem, old: Solution) -> Solution:
    """The old bins with the value that they have now."""
    value = picked(problem.value, old.bin, np.arange(problem.hosts)).sum(axis=0, dtype=np.int64)
    status = np.where(
        old.status == Status.INFEASIBLE, Status.INFEASIBLE, Status.OPTIMAL_BY_BOUND
    ).astype(np.uint8)
    return replace(old, value=value, bound=value, status=status)


def _with(whole: Solution, hosts: AnyInts, part: Solution) -> Solution:
    """The whole with other rows for some of its hosts."""
    bins = whole.bin.copy()
    bins[:, hosts] = part.bin
    columns = {}
    for name in ("value", "bound", "price", "shift", "status"):
        column = getattr(whole, name).copy()
        column[hosts] = getattr(part, name)
        columns[name] = column
    return Solution(bin=bins, **columns)
