"""What a solution claims, recomputed without the solver's means.

Value and weight are sums over the chosen bins. The bound is weak duality: at the solution's price,
what every VM would take if quanta cost that much, plus the price of the capacity, is at least the
optimum. Where that equals the value, price and bins together prove the optimum to anybody; other
optima rest on the search, and `audit` repeats them with the plain dynamic programme.
"""

from dataclasses import dataclass

import numpy as np

from controller.core.allocate.problem import NOTHING, Bools, Ints, Problem, Solution, Status

HOSTS_AT_ONCE = 256


@dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """(h,) each. A solution stands where the first three hold."""

    value: Bools  # the chosen bins are worth what was claimed
    fits: Bools  # they fit the capacity, or nothing does and that was claimed
    bound: Bools  # nothing recomputed is below the value or contradicts an optimum
    proven: Bools  # the price alone proves that nothing is better

    @property
    def holds(self) -> Bools:
        return self.value & self.fits & self.bound


def certify(problem: Problem, solution: Solution) -> Certificate:
    """Checks every host in the solution's own numbers; a few array passes."""
    parts = [_certify(problem.of(hosts), solution.of(hosts)) for hosts in _slices(problem.hosts)]
    columns = zip(*parts, strict=True)
    return Certificate(*(np.concatenate(column) for column in columns))


def audit(problem: Problem, solution: Solution) -> Bools:
    """(h,) whether the claimed optimum is one, by the dynamic programme over all capacities.

    Kellerer, Pferschy, Pisinger (2004), section 11.5. O(slots x bins x capacity) per host and a
    place per quantum: for samples. True where no optimum was claimed.
    """
    wrong = np.zeros(problem.hosts, dtype=np.bool_)
    for host in np.flatnonzero(solution.status != Status.BUDGET).tolist():
        wrong[host] = _optimum(problem, host) != int(solution.value[host])
    return ~wrong


def _slices(hosts: int) -> list[slice]:
    starts = range(0, max(hosts, 1), HOSTS_AT_ONCE)
    return [slice(start, start + HOSTS_AT_ONCE) for start in starts]


def _certify(problem: Problem, solution: Solution) -> tuple[Bools, Bools, Bools, Bools]:
    level = np.broadcast_to(problem.level, problem.value.shape).astype(np.int64)
    value = problem.value.astype(np.int64)
    chosen = solution.bin[None].astype(np.int64)
    worth = np.take_along_axis(value, chosen, axis=0)[0].sum(axis=0)
    weight = np.take_along_axis(level, chosen, axis=0)[0].sum(axis=0)
    infeasible = solution.status == Status.INFEASIBLE
    nothing_fits = level.min(axis=0).sum(axis=0) > problem.capacity
    capacity = _usable(problem, level)
    dual = _dual(value, level, capacity, solution)
    optimal = solution.status <= Status.OPTIMAL_BY_SEARCH
    sound = np.where(optimal, solution.bound == solution.value, solution.bound >= solution.value)
    return (
        np.where(infeasible, solution.value == NOTHING, worth == solution.value),
        np.where(infeasible, nothing_fits, weight <= problem.capacity),
        infeasible | (sound & (dual >= solution.value)),
        infeasible | (dual == solution.value),
    )


def _usable(problem: Problem, level: Ints) -> Ints:
    """(h,) the capacity less what no choice can use: beyond all, or less than a shared step."""
    least, most = level.min(axis=0).sum(axis=0), level.max(axis=0).sum(axis=0)
    usable = np.minimum(problem.capacity, most)
    if problem.level.shape[1:] == (1, 1):
        step = int(np.gcd.reduce(np.diff(problem.level[:, 0, 0]), initial=0))
        usable -= (usable - least) % step if step else 0
    return np.asarray(usable)


def _dual(value: Ints, level: Ints, capacity: Ints, solution: Solution) -> Ints:
    """(h,) whole units below which the optimum lies, by weak duality at the solution's price."""
    reduced = (value << solution.shift) - solution.price * level
    most = reduced.max(axis=0).sum(axis=0) + solution.price * capacity
    return np.asarray(most >> solution.shift)


def _optimum(problem: Problem, host: int) -> int:
    level = np.broadcast_to(problem.level, problem.value.shape)[:, :, host].tolist()
    room = min(int(problem.capacity[host]), sum(level[-1]))
    if room < 0:
        return NOTHING
    value = problem.value[:, :, host].tolist()
    best = np.zeros(room + 1, dtype=np.int64)
    for slot in range(problem.slots):
        after = np.full(room + 1, NOTHING, dtype=np.int64)
        for b in range(problem.bins):
            weight = level[b][slot]
            if weight <= room:
                reached = best[: room + 1 - weight] + value[b][slot]
                np.maximum(after[weight:], reached, out=after[weight:])
        best = after
    return int(best[-1]) if best[-1] > NOTHING // 2 else NOTHING
