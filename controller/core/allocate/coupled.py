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
from controller.core.allocate.coupled_pairs import NEVER
from controller.core.allocate.coupled_problem import CoupledProblem, CoupledSolution
from controller.core.allocate.coupled_search import search
from controller.core.allocate.problem import NOTHING, AnyInts, Bools, Bytes, Ints, Status

BUDGET = 1 << 20  # partial selections of a host that the search may make, about 0.2 us each
_BLOCK = 256  # hosts at once: many share the cost of a call, few enough to stay near the cache
_FEW, _SOME = 300, 3000  # states of a search after which the next is still cheap
_RESCUE = 1 << 14  # states per search where the budget is spent
_TRUSTED = 5  # a host goes the short lane where that has this many places less than wanted, or more


def solve_coupled(problem: CoupledProblem, *, budget: int = BUDGET) -> CoupledSolution:
    """The best selection of each host, proven, or the best found within `budget`.

    Of more budget the bounds are at least as good; what is found beyond proof may differ.
    """
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
        made=np.zeros_like(worst),
        left=np.full_like(worst, budget),
    )
    going = np.flatnonzero(answer.bound > answer.value)
    while len(going):
        settled = [
            _search_block(problem.of(hosts), hosts, best, answer, depth) for hosts in _blocks(going)
        ]
        going = going[~np.concatenate(settled)]


@dataclass(slots=True)
class _Depth:
    """How far below the bound each host has been searched, in units of 2**-shift."""

    searched: Ints  # (h,) 0: not yet
    whole: Ints  # (h,) whatever is better than what is known lies within this
    made: Ints  # (h,) states of the last search
    left: Ints  # (h,) states of the budget; -1: spent

    def next(self, hosts: Ints, typical: Ints) -> Ints:
        """(h,) how far to search now: the more states a search took, the smaller the step."""
        before, made = self.searched[hosts], self.made[hosts]
        thirds = np.select([self.left[hosts] < 0, made < _FEW, made < _SOME], [3, 9, 3], 1)
        deeper = before + np.minimum(before, self.whole[hosts] // 4) // 3 * thirds + 1
        return np.minimum(np.where(before > 0, deeper, typical), self.whole[hosts])


def _search_block(
    part: CoupledProblem, hosts: Ints, best: Bound, answer: _Answer, depth: _Depth
) -> Bools:
    """(h,) whether a host is done with: decided, or its budget spent and something found."""
    price, total, shift = best.price[:, hosts], best.total[hosts], best.shift[hosts]
    loss = losses(part.value, part.level, price, shift)
    most = depth.next(hosts, typical_loss(loss))
    core = core_of(loss, part.level, part.capacity, price, most)
    # Once its budget is spent, a host looks ever deeper with few states until it finds something.
    within = depth.left[hosts] >= 0
    found = search(core, most, np.where(within, depth.left[hosts], _RESCUE))
    complete = found.complete & within
    depth.searched[hosts], depth.made[hosts] = most, found.spent
    depth.left[hosts] = np.where(complete, np.maximum(depth.left[hosts] - found.spent, 0), -1)

    better, last = found.total < NEVER, most == depth.whole[hosts]
    answer.value[hosts[better]] = ((total - found.total) >> shift)[better]
    answer.option[:, hosts[better]] = found.option[:, better]
    # A complete search proves: what it found is the best, or there is nothing within `most`.
    below = np.where(last, answer.value[hosts], (total - most - 1) >> shift)
    bound = np.where(better, answer.value[hosts], below)
    answer.bound[hosts] = np.where(complete, bound, answer.bound[hosts])
    return np.asarray(better | last | (answer.bound[hosts] <= answer.value[hosts]))
