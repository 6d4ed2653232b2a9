"""What must hold for every solution of the allocator, host by host and tree by tree."""

from dataclasses import dataclass, replace

import allocate_oracle as oracle
import numpy as np
from allocate_families import Case, Generator

from controller.core.allocate.certify import audit, certify
from controller.core.allocate.problem import (
    NOTHING,
    VALUE_MAX,
    Bools,
    Ints,
    Problem,
    ProblemError,
    Solution,
    Status,
)
from controller.core.allocate.resolve import resolve
from controller.core.allocate.solve import solve

ALONE = 3  # hosts of a batch that are solved by themselves as well
WORTH_MAX = 1 << 38  # beyond it a solver may refuse: its prices would not fit 64 bits


@dataclass(frozen=True, slots=True)
class Wrong:
    """A check that failed."""

    what: str
    host: int  # of a batch, or the root of a tree
    detail: str


@dataclass(slots=True)
class Tally:
    """What was seen, to know that the cases are what they should be."""

    hosts: int = 0
    trees: int = 0
    infeasible: int = 0
    searched: int = 0
    stopped: int = 0  # by a budget
    refused: int = 0  # values beyond 64 bits

    def add(self, other: "Tally") -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


def check_case(random: Generator, case: Case, tally: Tally) -> list[Wrong]:
    """Solves a batch in several ways; each must give what the oracle says."""
    problem = case.problem
    tally.hosts += problem.hosts
    best = oracle.best(problem) if case.dense else oracle.best_by_trying(problem)
    try:
        solution = solve(problem)
    except ProblemError as error:
        tally.refused += problem.hosts
        allowed = int(np.abs(problem.value.astype(np.int64)).max()) > WORTH_MAX
        return [] if allowed else [Wrong("refused", 0, str(error))]
    tally.infeasible += int((best == NOTHING).sum())
    tally.searched += int((solution.status == Status.OPTIMAL_BY_SEARCH).sum())
    found = _wrong(case, solution, best)
    found += _wrong_alone(random, problem, solution)
    kind = random.random()
    if kind < 0.25:
        found += _wrong_stopped(random, problem, best, tally)
    elif kind < 0.4:
        found += _wrong_warm(random, case, solution, best)
    elif kind < 0.55:
        found += _wrong_again(random, case, solution)
    elif kind < 0.7:
        found += _wrong_doubts(random, problem, solution)
    return found


def _wrong(case: Case, solution: Solution, best: Ints) -> list[Wrong]:
    """All claims of a solution within the budget that everyone has."""
    optimal = solution.status <= Status.OPTIMAL_BY_SEARCH
    stopped = (best > NOTHING) & ~optimal
    return [
        *_wrong_claims(case.problem, solution, best),
        *_where("certificate", ~certify(case.problem, solution).holds, solution.status),
        *_where("not optimal", stopped, solution.status),
        *_where("value", optimal & (solution.value != best), solution.value, best),
        *_where("bound", optimal & (solution.bound != best), solution.bound, best),
    ]


def fails_alone(problem: Problem, *, dense: bool) -> bool:
    """Whether one solution of it is wrong: what a small example is tried with."""
    best = oracle.best(problem) if dense else oracle.best_by_trying(problem)
    return bool(_wrong(Case(problem, "", dense), solve(problem), best))


def _wrong_claims(problem: Problem, solution: Solution, best: Ints) -> list[Wrong]:
    """What holds even where a budget stopped the search."""
    value, weight = oracle.taken(problem, solution.bin)
    infeasible = solution.status == Status.INFEASIBLE
    there = ~infeasible
    empty = (solution.bin == 0).all(axis=0) & (solution.value == NOTHING)
    return [
        *_where("feasibility", infeasible != (best == NOTHING), solution.status, best),
        *_where("infeasible but not empty", infeasible & ~empty, solution.value),
        *_where("claimed value", there & (value != solution.value), solution.value, value),
        *_where("weight", there & (weight > problem.capacity), weight, problem.capacity),
        *_where("bound below the optimum", there & (solution.bound < best), solution.bound, best),
        *_where("value above the optimum", there & (solution.value > best), solution.value, best),
        *_where("price", solution.price < 0, solution.price),
    ]


def _where(what: str, wrong: Bools, *values: Ints) -> list[Wrong]:
    """The first host of those that are wrong, with what stands there."""
    if not wrong.any():
        return []
    host = int(np.flatnonzero(wrong)[0])
    there = ", ".join(str(each[host]) for each in values)
    return [Wrong(what, host, f"{there} at {int(wrong.sum())} hosts")]


def _wrong_alone(random: Generator, problem: Problem, solution: Solution) -> list[Wrong]:
    """A host's solution must not depend on the batch that it is solved in."""
    found = []
    for host in random.integers(0, problem.hosts, ALONE).tolist():
        alone = solve(problem.of(np.array([host])))
        names = ("value", "bound", "status", "price", "shift")
        pairs = [(getattr(alone, name)[0], getattr(solution, name)[host]) for name in names]
        pairs += zip(alone.bin[:, 0], solution.bin[:, host], strict=True)
        if any(one != other for one, other in pairs):
            found.append(Wrong("alone", host, f"{pairs} alone and in its batch"))
    return found


def _wrong_stopped(random: Generator, problem: Problem, best: Ints, tally: Tally) -> list[Wrong]:
    """With little work allowed: feasible, with a true bound, and honest about it."""
    budget = int(random.choice([1, 10, 100, 1000]))
    stopped = solve(problem, budget=budget)
    tally.stopped += int((stopped.status == Status.BUDGET).sum())
    optimal = stopped.status <= Status.OPTIMAL_BY_SEARCH
    wrong = [
        *_wrong_claims(problem, stopped, best),
        *_where("certificate", ~certify(problem, stopped).holds, stopped.status),
        *_where("value", optimal & (stopped.value != best), stopped.value, best),
        *_where("bound", optimal & (stopped.bound != stopped.value), stopped.bound, stopped.value),
    ]
    return [replace(each, what=f"budget {budget}: {each.what}") for each in wrong]


def _wrong_warm(random: Generator, case: Case, before: Solution, best: Ints) -> list[Wrong]:
    """Started from another solution's prices: of the same problem, or of a slightly other one."""
    problem = case.problem
    if random.random() < 0.5:
        everywhere = np.ones(problem.hosts, dtype=np.bool_)
        before = solve(_disturbed(random, problem, everywhere))
    again = solve(problem, warm=before)
    return [replace(each, what=f"warm: {each.what}") for each in _wrong(case, again, best)]


def _wrong_again(random: Generator, case: Case, before: Solution) -> list[Wrong]:
    """After a few hosts have changed."""
    changed = random.random(case.problem.hosts) < random.choice([0.0, 0.1, 1.0])
    problem = _disturbed(random, case.problem, changed)
    best = oracle.best(problem) if case.dense else oracle.best_by_trying(problem)
    again = resolve(problem, before, changed)
    after = replace(case, problem=problem)
    return [replace(each, what=f"again: {each.what}") for each in _wrong(after, again, best)]


def _disturbed(random: Generator, problem: Problem, hosts: Bools) -> Problem:
    """Other values and capacities at some hosts."""
    noise = random.integers(-3, 4, problem.value.shape) * hosts
    value = np.clip(problem.value.astype(np.int64) + noise, -VALUE_MAX, VALUE_MAX)
    more = random.integers(-2, 3, problem.hosts) * hosts
    return Problem(value, problem.level, problem.capacity + more)


def _wrong_doubts(random: Generator, problem: Problem, solution: Solution) -> list[Wrong]:
    """A certificate must see what is wrong with a solution, and only that."""
    bins = random.integers(0, problem.bins, solution.bin.shape).astype(np.uint8)
    value, weight = oracle.taken(problem, bins)
    there = solution.status != Status.INFEASIBLE
    seen = certify(problem, replace(solution, bin=bins))
    boast = certify(problem, replace(solution, value=solution.value + 1, bound=solution.bound + 1))
    modest = certify(problem, replace(solution, bound=solution.bound - 1))
    few = random.integers(0, problem.hosts, 3)
    part, claimed = problem.of(few), solution.of(few)
    audited = audit(part, claimed) if int(part.capacity.max()) < 5000 else np.ones(3, np.bool_)
    return [
        *_where("doubt: value", there & (seen.value != (value == solution.value)), value),
        *_where("doubt: weight", there & (seen.fits != (weight <= problem.capacity)), weight),
        *_where("doubt: boast", boast.holds, solution.value),
        *_where(
            "doubt: modest bound", there & modest.holds & (solution.status < 2), solution.bound
        ),
        *_where("audit", ~audited, claimed.value),
    ]
