"""The fewest machines to relax where nothing fits, against trying every set of them."""

import allocate_oracle as oracle
import numpy as np
from allocate_families import draw_forest

from controller.core.allocate.problem import Forest
from controller.core.allocate.relax import relaxations


def forest(*nodes):
    """Of (parent, capacity, overhead, levels)."""
    levels = [level for node in nodes for level in node[3]]
    return Forest(
        parent=np.array([node[0] for node in nodes]),
        capacity=np.array([node[1] for node in nodes]),
        overhead=np.array([node[2] for node in nodes]),
        first=np.cumsum([0, *(len(node[3]) for node in nodes)]),
        level=np.array(levels, dtype=np.int64),
        value=np.zeros(len(levels), dtype=np.int64),
    )


def relaxed(*nodes):
    return relaxations(forest(*nodes), [0])[0]


def test_one_host_short_by_three():
    found = relaxed((-1, 12, 0, []), (0, 0, 0, [8, 9]), (0, 0, 0, [5]), (0, 0, 0, [2]))
    assert (found.nodes, found.now, found.level) == ((1,), (8,), (5,))
    assert (found.short, found.tight, found.stuck) == (3, -1, -1)


def test_what_fits_is_left_alone():
    found = relaxed((-1, 13, 0, []), (0, 0, 0, [8]), (0, 0, 0, [5]))
    assert (found.nodes, found.short) == ((), 0)
    assert relaxed((-1, 0, 7, [])).nodes == (), "an overhead counts only with children"


def test_overheads_alone_are_too_much_whatever_is_relaxed():
    found = relaxed((-1, 9, 2, []), (0, 0, 8, [9]), (1, 0, 0, [0]))
    assert (found.nodes, found.stuck) == ((), 0)
    inside = relaxed((-1, 9, 0, []), (0, 0, 8, [7]), (1, 0, 0, [0]))
    assert (inside.nodes, inside.stuck) == ((), 1)


def test_a_hypervisor_too_small_for_its_guests_is_named():
    found = relaxed((-1, 50, 0, []), (0, 0, 2, [4, 10]), (1, 0, 0, [9]))
    assert (found.tight, found.short) == (1, None)
    assert (found.nodes, found.level) == ((2,), (8,)), "10 less the overhead"


def test_guest_and_hypervisor_together():
    found = relaxed((-1, 10, 0, []), (0, 0, 3, [20]), (1, 0, 0, [15]))
    assert (found.nodes, found.level) == ((1, 2), (10, 7))


def test_many_of_a_kind_need_many():
    nodes = [(0, 0, 0, [4])] * 500
    found = relaxed((-1, 150, 0, []), *nodes)
    assert len(found.nodes) == 463  # 37 keep their 4, the others share 2
    assert sum(found.level) == 2


def test_as_few_as_trying_every_set_and_all_fits_then():
    random = np.random.default_rng(5)
    several = tried = 0
    while tried < 250:
        trees = draw_forest(random, 12)
        below = oracle.children_of(trees)
        sizes = np.bincount(tree_of(trees), minlength=len(trees.parent))[trees.roots]
        roots = [int(root) for root, size in zip(trees.roots, sizes, strict=True) if size <= 11]
        for found in relaxations(trees, roots):
            count = oracle.fewest_to_relax(trees, found.root)
            assert (found.stuck >= 0) == (count is None)
            assert len(found.nodes) == (count or 0)
            if found.nodes:
                tried += 1
                several += len(found.nodes) > 1
                holds(trees, below, found)
    assert several > 20


def tree_of(trees):
    root = np.arange(len(trees.parent))
    for node, parent in enumerate(trees.parent.tolist()):
        root[node] = node if parent < 0 else root[parent]
    return root


def holds(trees, below, found):
    """With the relaxed at exactly these levels the rest fits, and with any of them higher not."""
    level = dict(zip(found.nodes, found.level, strict=True))
    assert fits(trees, below, found.root, level)
    for node, now in zip(found.nodes, found.now, strict=True):
        options = [one for one, _ in oracle.options_of(trees, node)]
        assert now == min(one for one in options if one > level[node])
        higher = {**level, node: level[node] + 1}
        apart = [each for each in higher if each != node]
        assert not fits(trees, below, found.root, higher, free=set(apart) & above(trees, node))


def above(trees, node):
    found = set()
    while trees.parent[node] >= 0:
        node = int(trees.parent[node])
        found.add(node)
    return found


def fits(trees, below, root, level, free=frozenset()):
    """Each relaxed at its level; those of `free` as high as they like up to their largest."""

    def least(node):
        inside = 0
        if below[node]:
            inside = int(trees.overhead[node]) + sum(least(child) for child in below[node])
        if node == root:
            return inside
        levels = [one for one, _ in oracle.options_of(trees, node)]
        if node in free:
            return inside if inside <= levels[-1] else 1 << 40
        if node in level:
            return level[node] if inside <= level[node] else 1 << 40
        return next((one for one in levels if one >= inside), 1 << 40)

    return least(root) <= trees.capacity[root]
