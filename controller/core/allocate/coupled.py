"""Several resources of which each VM takes a combination, exactly: `solve_coupled`.

Where resources are worth something only together, or a move is paid once for all of them, they
cannot be solved one by one: each VM takes one of its flavours, such as (CPU, memory, I/O), and
every resource has a capacity (multiple-choice multi-dimensional knapsack; Kellerer, Pferschy,
Pisinger, "Knapsack Problems", 2004, section 11.10.1). `coupled_flavours` builds such problems.

    coupled_bound   multipliers, one per resource, and the upper bound that they prove
    coupled_core    the options that may still be part of something better
    coupled_search  the best selection of those, within D of the bound; D grows until that decides

All results are integers and exact. A host's result does not depend on which others are solved with
it; of selections of equal value the same one always comes out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.core.allocate.coupled_bound import (
    LONG,
    SHORT,
    Bound,
    Lane,
    bound,
    shifts,
    value_bits,
)
from controller.core.allocate.coupled_core import core_of, losses, typical_loss
from controller.core.allocate.coupled_search import NEVER, search
from controller.core.allocate.problem import (
    BINS_MAX,
    LEVEL_MAX,
    NOTHING,
    VALUE_MAX,
    AnyInts,
    Bools,
    Bytes,
    Ints,
    ProblemError,
    Status,
)

BUDGET = 1 << 18  # states per host that the search may make
RESOURCES_MAX = 3
SLOTS_MAX = 1 << 16
_BLOCK = 64  # hosts whose options fit the second-level cache
_DEEPER = 4  # by how much D grows from one search to the next
_TRUSTED = 5  # a host goes the short lane where that has this many places less than wanted, or more


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

    def of(self, hosts: AnyInts | slice) -> "CoupledProblem":
        """The same problem for some of its hosts."""
        level = self.level if self.level.shape[3] == 1 else self.level[..., hosts]
        return CoupledProblem(self.value[..., hosts], level, self.capacity[:, hosts])


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


def solve_coupled(problem: CoupledProblem, *, budget: int = BUDGET) -> CoupledSolution:
    """The best selection of each host, proven, or the best found within `budget` states."""
    problem = _compact(problem)
    if 0 in problem.value.shape:
        return _without_vms(problem)
    best = _bounds(problem)
    answer = _Answer(best.value, best.option, best.total >> best.shift)
    least = np.where(best.value > NOTHING, best.value, _least(problem.value))
    answer.bound[answer.bound < least] = NOTHING
    unknown = np.flatnonzero((best.value == NOTHING) & (answer.bound > NOTHING))
    if len(unknown):
        _fit(problem.of(unknown), unknown, answer, budget)
    _improve(problem, best, answer, least, budget)
    return CoupledSolution(
        option=answer.option,
        value=answer.value,
        bound=answer.bound,
        price=best.price,
        shift=best.shift,
        status=answer.status(best),
    )


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


@dataclass(slots=True)
class _Answer:
    """What is known so far."""

    value: Ints  # (h,)
    option: Bytes  # (n, h)
    bound: Ints  # (h,); NOTHING: nothing fits

    def status(self, best: Bound) -> Bytes:
        return np.select(
            [
                self.bound == NOTHING,
                self.value == best.total >> best.shift,
                self.value == self.bound,
            ],
            [Status.INFEASIBLE, Status.OPTIMAL_BY_BOUND, Status.OPTIMAL_BY_SEARCH],
            Status.BUDGET,
        ).astype(np.uint8)


def _refuse(wrong: Bools, why: str) -> None:
    if wrong.any():
        option, slot, host = (int(axis[0]) for axis in np.nonzero(wrong))
        raise ProblemError(f"host {host}, slot {slot}, option {option}: {why}")


def _compact(problem: CoupledProblem) -> CoupledProblem:
    """Levels and capacities in 64 bits; no capacity above what all VMs together can take."""
    level = problem.level.astype(np.int64)
    slots = problem.value.shape[1]
    most = np.broadcast_to(level.max(axis=1), (len(level), slots, level.shape[3])).sum(axis=1)
    capacity = np.clip(problem.capacity.astype(np.int64), -1, most)
    return CoupledProblem(problem.value, level, capacity)


def _without_vms(problem: CoupledProblem) -> CoupledSolution:
    fits = (problem.capacity >= 0).all(axis=0)
    value = np.where(fits, 0, NOTHING)
    return CoupledSolution(
        option=np.zeros(problem.value.shape[1:], dtype=np.uint8),
        value=value,
        bound=value.copy(),
        price=np.zeros_like(problem.capacity),
        shift=np.zeros_like(value),
        status=np.where(fits, Status.OPTIMAL_BY_BOUND, Status.INFEASIBLE).astype(np.uint8),
    )


def _blocks(hosts: Ints) -> list[Ints]:
    return [hosts[start : start + _BLOCK] for start in range(0, len(hosts), _BLOCK)]


def _bounds(problem: CoupledProblem) -> Bound:
    """Multipliers for all hosts: in 32 bits where those are enough, else in 64."""
    options, slots, hosts = problem.value.shape
    everyone = np.arange(hosts)
    bits = np.concatenate([value_bits(problem.of(some).value) for some in _blocks(everyone)])
    wanted, short, long = shifts(bits, problem.level, options, slots)
    best = Bound.empty(len(problem.capacity), slots, long)
    trusted = short >= np.maximum(wanted - _TRUSTED, 0)
    _bounds_in(SHORT, problem, everyone[trusted], bits, short, best)
    _bounds_in(LONG, problem, everyone[~trusted | best.leaning], bits, long, best)
    return best


def _bounds_in(
    lane: Lane, problem: CoupledProblem, hosts: Ints, bits: Ints, shift: Ints, best: Bound
) -> None:
    for some in _blocks(hosts):
        part = problem.of(some)
        found = bound(part.value, part.level, part.capacity, lane, shift[some], bits[some])
        best.put(some, found)


def _fit(problem: CoupledProblem, hosts: Ints, answer: _Answer, budget: int) -> None:
    """A selection that fits, or that there is none, for hosts of which neither is known.

    What the first resource needs at the least, within the capacities of the others, is a problem
    of the same kind with one resource less. With one resource the smallest levels decide.
    """
    if len(problem.capacity) == 1:
        answer.bound[hosts] = NOTHING
        return
    needed = np.broadcast_to(-problem.level[0], problem.value.shape)
    least = solve_coupled(
        CoupledProblem(needed, problem.level[1:], problem.capacity[1:]), budget=budget
    )
    answer.bound[hosts[least.bound < -problem.capacity[0]]] = NOTHING
    fits = least.value >= -problem.capacity[0]
    option = least.option[:, fits]
    chosen = np.take_along_axis(problem.value[..., fits], option[None].astype(np.intp), 0)[0]
    answer.value[hosts[fits]] = chosen.sum(axis=0, dtype=np.int64)
    answer.option[:, hosts[fits]] = option


def _least(value: AnyInts) -> Ints:
    """(h,) no selection is worth less."""
    return np.asarray(value.min(axis=0).sum(axis=0, dtype=np.int64))


def _improve(
    problem: CoupledProblem, best: Bound, answer: _Answer, least: Ints, budget: int
) -> None:
    """Search ever deeper below the bounds until each host is decided, or its budget spent."""
    worst = np.where(answer.value > NOTHING, answer.value, least - 1)
    depth = _Depth(
        searched=np.zeros_like(worst),
        whole=best.total - ((worst + 1) << best.shift),
        left=np.full_like(worst, budget),
    )
    going = np.flatnonzero(answer.bound > answer.value)
    while len(going):
        for hosts in _blocks(going):
            _search_block(problem.of(hosts), hosts, best, answer, depth)
        going = going[(answer.bound[going] > answer.value[going]) & (depth.left[going] >= 0)]


@dataclass(slots=True)
class _Depth:
    """How far below the bound each host has been searched, in units of 2**-shift."""

    searched: Ints  # (h,) 0: not yet
    whole: Ints  # (h,) whatever is better than what is known lies within this
    left: Ints  # (h,) states of the budget; -1: spent


def _search_block(
    part: CoupledProblem, hosts: Ints, best: Bound, answer: _Answer, depth: _Depth
) -> None:
    price, total, shift = best.price[:, hosts], best.total[hosts], best.shift[hosts]
    loss = losses(part.value, part.level, price, shift)
    whole, before = depth.whole[hosts], depth.searched[hosts]
    most = np.where(
        before > 0, np.minimum(before, whole // _DEEPER + 1) * _DEEPER, typical_loss(loss)
    )
    most = np.minimum(most, whole)
    found = search(core_of(loss, part.level, part.capacity, price, most), most, depth.left[hosts])
    depth.searched[hosts] = most
    depth.left[hosts] = np.where(found.complete, depth.left[hosts] - found.spent, -1)

    better = found.total < NEVER
    answer.value[hosts[better]] = ((total - found.total) >> shift)[better]
    answer.option[:, hosts[better]] = found.option[:, better]
    # A complete search proves: what it found is the best, or there is nothing within `most`.
    below = np.where(most < whole, (total - most - 1) >> shift, answer.value[hosts])
    bound = np.where(better, answer.value[hosts], below)
    answer.bound[hosts] = np.where(found.complete, bound, answer.bound[hosts])
