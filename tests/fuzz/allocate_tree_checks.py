"""What must hold for every forest that the allocator solves."""

import allocate_oracle as oracle
import numpy as np
from allocate_checks import Tally, Wrong
from allocate_families import Generator, draw_forest

from controller.core.allocate.problem import NOTHING, Forest, ForestSolution, Status
from controller.core.allocate.tree import solve_tree

TREES = 40  # of one forest at most


def check_forest(random: Generator, tally: Tally) -> tuple[Forest, list[Wrong]]:
    """Draws and solves trees; the oracle solves each by itself."""
    forest = draw_forest(random, int(random.integers(1, TREES + 1)))
    best = [oracle.best_of_tree(forest, root) for root in forest.roots.tolist()]
    tally.trees += len(best)
    tally.infeasible += best.count(NOTHING)
    found = wrong_trees(forest, solve_tree(forest), best)
    if random.random() < 0.3:
        budget = int(random.choice([1, 10, 100, 1000]))
        stopped = solve_tree(forest, budget=budget)
        tally.stopped += int((stopped.status == Status.BUDGET).sum())
        found += wrong_trees(forest, stopped, best, f"budget {budget}: ")
    return forest, found


def wrong_trees(
    forest: Forest, solution: ForestSolution, best: list[int], under: str = ""
) -> list[Wrong]:
    """The first failed check of each tree."""
    below = oracle.children_of(forest)
    found = []
    for place, root in enumerate(forest.roots.tolist()):
        nodes = [root]
        for node in nodes:
            nodes += below[node]
        word = _wrong_tree(forest, solution, place, nodes, below, best[place], bool(under))
        if word:
            found.append(Wrong(under + word, root, f"optimum {best[place]}, {len(nodes)} nodes"))
    return found


def _wrong_tree(
    forest: Forest,
    solution: ForestSolution,
    place: int,
    nodes: list[int],
    below: list[list[int]],
    best: int,
    stopped: bool,
) -> str:
    """What is wrong with one tree in a few words; empty when nothing is."""
    status = Status(int(solution.status[place]))
    value, bound = int(solution.value[place]), int(solution.bound[place])
    root, *others = nodes
    if (status is Status.INFEASIBLE) != (best == NOTHING):
        return f"feasibility: {status.name}"
    if solution.option[root] != -1 or solution.level[root] != -1:
        return "a root has an option"
    if status is Status.INFEASIBLE:
        given = [
            node for node in others if solution.option[node] != -1 or solution.level[node] != -1
        ]
        return "infeasible, but with options" if given or value != NOTHING else ""
    options = [oracle.options_of(forest, node) for node in others]
    picked = [
        pairs[option] if 0 <= option < len(pairs) else (-1, 0)
        for option, pairs in zip(solution.option[others].tolist(), options, strict=True)
    ]
    level = {root: int(forest.capacity[root])}
    level |= {node: pair[0] for node, pair in zip(others, picked, strict=True)}
    prices = [float(solution.price[node]) for node in nodes]
    checks = (
        ("option out of range or level not its own", solution.level[others].tolist() ==
         [level[node] for node in others] and min(level.values()) >= 0),
        ("a node does not hold its own", oracle.fits(forest, below, level)),
        (f"claimed value {value}", value == sum(pair[1] for pair in picked)),
        (f"bound {bound} below the optimum", bound >= best),
        (f"value {value} above the optimum", value <= best),
        (f"{status.name} value {value}", not status.optimal or value == bound == best),
        (f"not optimal: {status.name}", stopped or status.optimal),
        ("prices", all((price >= 0) if below[node] else np.isnan(price)
                       for node, price in zip(nodes, prices, strict=True))),
    )  # fmt: skip
    return next((word for word, holds in checks if not holds), "")
