"""What `answer` says, of hosts that share out several resources at once.

Which machines should take less where nothing fits is not computed here: of several resources there
is no one amount by which a machine is too large.
"""

from math import isfinite

import numpy as np

from controller.core.allocate.answer import to_document, to_trees
from controller.core.allocate.coupled_forest import CoupledForest, CoupledForestSolution
from controller.core.allocate.instance import CoupledInstance

NOT_FOUND = "nothing that fits was found within the budget; it may exist"


def answer_coupled(instance: CoupledInstance, solution: CoupledForestSolution) -> dict[str, object]:
    """What `hrapaq allocate` writes: as `answer`, with lists for levels and prices.

    Where nothing fits `relax` is None: not known.
    """
    roots = instance.forest.roots.tolist()
    names = [instance.ids[root] for root in roots]
    trees = to_trees(names, solution.value, solution.bound, solution.status)
    told = to_document(trees, _levels(instance, solution), _prices(instance, solution))
    for root, name in zip(roots, names, strict=True):
        if trees[name]["status"] == "infeasible":
            trees[name]["why"] = why_infeasible(instance.forest, root)
        elif trees[name]["value"] is None:
            trees[name]["why"] = NOT_FOUND
    if told["status"] == "infeasible":
        told["relax"] = None
    return {**told, "trees": trees}


def _levels(instance: CoupledInstance, solution: CoupledForestSolution) -> dict[str, object]:
    levels = zip(instance.ids, solution.option.tolist(), solution.level.T.tolist(), strict=True)
    return {name: level for name, option, level in levels if option >= 0}


def _prices(instance: CoupledInstance, solution: CoupledForestSolution) -> dict[str, object]:
    prices = zip(instance.ids, solution.price.T.tolist(), strict=True)
    return {name: price for name, price in prices if all(map(isfinite, price))}


def why_infeasible(forest: CoupledForest, root: int) -> str:
    """One sentence: which resources lack how many quanta."""
    needed = np.zeros(len(forest.level), dtype=np.int64)
    for node in np.flatnonzero(forest.parent == root).tolist():
        needed += forest.level[:, forest.first[node] : forest.first[node + 1]].min(axis=1)
    lacks = (needed - forest.capacity[:, root]).tolist()
    words = [
        f"of resource {number} by {lack} {'quantum' if lack == 1 else 'quanta'}"
        for number, lack in enumerate(lacks, 1)
        if lack > 0
    ]
    if words:
        return f"the smallest levels exceed the capacity {', '.join(words)}"
    return "each resource by itself would be enough, but no choice of options fits all of them"
