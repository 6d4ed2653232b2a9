"""A failing host made small: fewer slots, fewer bins, plainer values, as long as it still fails."""

from collections.abc import Callable, Iterator

import numpy as np

from controller.core.allocate.problem import Problem

TRIES_MAX = 3000


def shrunk(problem: Problem, fails: Callable[[Problem], bool]) -> Problem:
    """The smallest found that still fails; the problem itself where not even that does."""
    problem = _plain(problem)
    tries = 0
    smaller: Problem | None = problem if fails(problem) else None
    while smaller is not None and tries < TRIES_MAX:
        problem, smaller = smaller, None
        for candidate in _smaller(problem):
            tries += 1
            if fails(candidate):
                smaller = candidate
                break
    return problem


def _plain(problem: Problem) -> Problem:
    level = np.broadcast_to(problem.level, problem.value.shape)
    return Problem(problem.value.astype(np.int64), level.astype(np.int64), problem.capacity)


def _smaller(problem: Problem) -> Iterator[Problem]:
    value, level, capacity = problem.value, problem.level, problem.capacity
    for slot in range(problem.slots if problem.slots > 1 else 0):
        yield Problem(np.delete(value, slot, 1), np.delete(level, slot, 1), capacity)
        kept = capacity - level[0, slot]
        yield Problem(np.delete(value, slot, 1), np.delete(level, slot, 1), kept)
    for place in range(problem.bins if problem.bins > 1 else 0):
        yield Problem(np.delete(value, place, 0), np.delete(level, place, 0), capacity)
    if (value[0] != 0).any():
        yield Problem(value - value[:1], level, capacity)
    if (level[0] != 0).any():
        yield Problem(value, level - level[:1], capacity - level[0].sum(axis=0))
    if (np.abs(value) > 1).any():
        yield Problem(np.sign(value) * (np.abs(value) // 2), level, capacity)


def as_code(problem: Problem) -> str:
    """What builds the problem again."""
    value, level = problem.value[:, :, 0].tolist(), problem.level
    if level.shape[2] == 1:
        level = np.broadcast_to(level, (problem.bins, problem.slots, 1))
    return (
        f"Problem(np.array({value})[:, :, None], "
        f"np.array({level[:, :, 0].tolist()})[:, :, None], np.array({problem.capacity.tolist()}))"
    )
