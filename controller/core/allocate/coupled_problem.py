"""What `coupled.solve_coupled` takes and gives: hosts side by side, some resources, all integers.

As `problem.Problem`, but a VM's option is a combination of levels, one of each resource, and every
resource has its capacity.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.core.allocate.problem import (
    BINS_MAX,
    LEVEL_MAX,
    VALUE_MAX,
    AnyInts,
    Bools,
    Bytes,
    Ints,
    ProblemError,
)

RESOURCES_MAX = 3
SLOTS_MAX = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class CoupledProblem:
    """r resources of h hosts. Use `checked_coupled` where the arrays come from elsewhere.

    Each VM takes exactly one of k options; an option takes a level of every resource. Levels are
    in no order. A VM with fewer options than others repeats one; a host with fewer VMs has slots
    whose options are all level 0 and value 0.
    """

    value: AnyInts  # (k, n, h)
    level: AnyInts  # (r, k, n | 1, h | 1) quanta
    capacity: AnyInts  # (r, h) quanta; where negative, nothing fits

    def of(self, hosts: Ints) -> "CoupledProblem":
        """The same problem for some of its hosts."""
        level = self.level if self.level.shape[3] == 1 else _some(self.level, hosts)
        return CoupledProblem(_some(self.value, hosts), level, _some(self.capacity, hosts))


@dataclass(frozen=True, slots=True, eq=False)
class CoupledSolution:
    """One row per host. Where nothing was found that fits, options are 0 and the value NOTHING."""

    option: Bytes  # (n, h) the chosen option of each VM
    value: Ints  # (h,)
    bound: Ints  # (h,) no solution is worth more; equals `value` where that is optimal
    price: Ints  # (r, h) Lagrange multipliers: worth of a quantum, in units of 2**-shift
    shift: Ints  # (h,)
    status: Bytes  # (h,) Status

    def price_per_quantum(self) -> NDArray[np.float64]:
        """(r, h) the shadow prices in value units."""
        return np.asarray(np.ldexp(self.price.astype(np.float64), -self.shift))


def checked_coupled(problem: CoupledProblem) -> CoupledProblem:
    """The problem itself, or ProblemError that names the host and the slot."""
    value, level, capacity = problem.value, problem.level, problem.capacity
    if (value.ndim, level.ndim, capacity.ndim) != (3, 4, 2):
        raise ProblemError(
            "value needs three axes (option, slot, host), level four (resource, option, slot, "
            "host), capacity two (resource, host)"
        )
    for name, array in (("value", value), ("level", level), ("capacity", capacity)):
        if not np.issubdtype(array.dtype, np.integer):
            raise ProblemError(f"{name} holds {array.dtype}, integers are needed")
    options, slots, hosts = value.shape
    if not 1 <= options <= BINS_MAX:
        raise ProblemError(f"{options} options; 1 to {BINS_MAX} are possible")
    if slots > SLOTS_MAX:
        raise ProblemError(f"{slots} slots; {SLOTS_MAX} are possible")
    resources = len(capacity)
    if not 1 <= resources <= RESOURCES_MAX:
        raise ProblemError(f"{resources} resources; 1 to {RESOURCES_MAX} are possible")
    if capacity.shape != (resources, hosts):
        raise ProblemError(f"capacities of shape {capacity.shape} for {hosts} hosts")
    if level.shape not in {(resources, options, n, h) for n in (1, slots) for h in (1, hosts)}:
        raise ProblemError(f"levels of shape {level.shape} do not fit values of {value.shape}")
    for resource, table in enumerate(level):
        _refuse(table < 0, f"the level of resource {resource} is negative")
        _refuse(table > LEVEL_MAX, f"the level of resource {resource} exceeds {LEVEL_MAX} quanta")
    _refuse((value > VALUE_MAX) | (value < -VALUE_MAX), f"the value exceeds {VALUE_MAX}")
    return problem


def _some(array: AnyInts, hosts: Ints) -> AnyInts:
    """Some places of the last axis; neighbours without a copy."""
    if len(hosts) and hosts[-1] - hosts[0] == len(hosts) - 1 and (np.diff(hosts) == 1).all():
        return array[..., hosts[0] : hosts[-1] + 1]
    return array.take(hosts, axis=-1)


def _refuse(wrong: Bools, why: str) -> None:
    if wrong.any():
        option, slot, host = (int(axis[0]) for axis in np.nonzero(wrong))
        raise ProblemError(f"host {host}, slot {slot}, option {option}: {why}")
