"""A solution under the names of its instance, as plain values; with what stands in the way."""

from collections.abc import Mapping, Sequence

from controller.core.allocate.instance import VERSION, Instance
from controller.core.allocate.problem import (
    NOTHING,
    Bytes,
    Forest,
    ForestSolution,
    Ints,
    Status,
)
from controller.core.allocate.relax import Relaxation, relaxations

WORDS = {
    Status.OPTIMAL_BY_BOUND: "optimal",
    Status.OPTIMAL_BY_SEARCH: "optimal",
    Status.BUDGET: "budget",
    Status.INFEASIBLE: "infeasible",
}
SHOWN_MAX = 4  # relaxed nodes in a sentence
WORST_FIRST = ("infeasible", "budget", "optimal")


def answer(instance: Instance, solution: ForestSolution) -> dict[str, object]:
    """What `hrapaq allocate` writes; value and bound are sums over the trees.

    Of an infeasible tree value, bound, levels and prices are absent; `relax` then names the fewest
    nodes that must take less than they can, with levels at which all fits.
    """
    roots: Ints = instance.forest.roots
    names = [instance.ids[root] for root in roots]
    trees = to_trees(names, solution.value, solution.bound, solution.status)
    told = to_document(trees, _levels(instance, solution), _prices(instance, solution))
    if told["status"] == "infeasible":
        found = relaxations(instance.forest, roots[solution.status == Status.INFEASIBLE])
        for each in found:
            trees[instance.ids[each.root]]["why"] = why_infeasible(instance, each)
        told["relax"] = [row for each in found for row in _to_relax(instance, each)]
    return {**told, "trees": trees}


def to_trees(
    names: Sequence[str], value: Ints, bound: Ints, status: Bytes
) -> dict[str, dict[str, object]]:
    """Status, value and bound of each root."""
    columns = zip(names, value.tolist(), bound.tolist(), status, strict=True)
    return {
        name: {
            "status": WORDS[Status(int(word))],
            "value": worth if worth > NOTHING else None,
            "bound": most if most > NOTHING else None,
        }
        for name, worth, most, word in columns
    }


def to_document(
    trees: Mapping[str, Mapping[str, object]],
    levels: Mapping[str, object],
    prices: Mapping[str, object],
) -> dict[str, object]:
    """What is said of all trees together: of a sum all parts must be there."""
    words = {tree["status"] for tree in trees.values()}
    return {
        "version": VERSION,
        "status": next(word for word in WORST_FIRST if word in words),
        "value": _sum([tree["value"] for tree in trees.values()]),
        "bound": _sum([tree["bound"] for tree in trees.values()]),
        "levels": levels,
        "prices": prices,
    }


def _sum(parts: Sequence[object]) -> int | None:
    numbers = [part for part in parts if isinstance(part, int)]
    return sum(numbers) if len(numbers) == len(parts) else None


def _levels(instance: Instance, solution: ForestSolution) -> dict[str, int]:
    level = solution.level.tolist()
    return {name: one for name, one in zip(instance.ids, level, strict=True) if one >= 0}


def _prices(instance: Instance, solution: ForestSolution) -> dict[str, float]:
    price = solution.price.tolist()
    return {name: one for name, one in zip(instance.ids, price, strict=True) if one == one}  # noqa: PLR0124 - NaN: it has no children or no solution


def _to_relax(instance: Instance, found: Relaxation) -> list[dict[str, object]]:
    return [
        {
            "id": instance.ids[node],
            "root": instance.ids[found.root],
            "now": now,
            "level": level,
            "lower_by": now - level,
        }
        for node, now, level in zip(found.nodes, found.now, found.level, strict=True)
    ]


def why_infeasible(instance: Instance, found: Relaxation) -> str:
    """One sentence: who lacks how many quanta, and what helps."""
    ids, forest = instance.ids, instance.forest
    if found.stuck >= 0:
        node = found.stuck
        has = _has(forest, node)
        return f"{ids[node]} cannot hold the overheads at and below it within its {has} quanta"
    ways = [
        f"{level} for {ids[node]} instead of {now}"
        for node, now, level in zip(found.nodes, found.now, found.level, strict=True)
    ]
    more = f", and {len(ways) - SHOWN_MAX} more" if len(ways) > SHOWN_MAX else ""
    helps = f"all would fit with {', '.join(ways[:SHOWN_MAX])}{more}"
    if found.tight >= 0:
        has = _has(forest, found.tight)
        return (
            f"the smallest levels below {ids[found.tight]} exceed its largest level {has}; {helps}"
        )
    amount = "1 quantum" if found.short == 1 else f"{found.short} quanta"
    return f"the smallest levels exceed the capacity by {amount}; {helps}"


def _has(forest: Forest, node: int) -> int:
    """A root's capacity, any other node's largest level."""
    if forest.parent[node] < 0:
        return int(forest.capacity[node])
    return int(forest.level[forest.first[node + 1] - 1])
