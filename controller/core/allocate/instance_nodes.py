"""The nodes of a problem from outside, one by one and as trees; each error names its node."""

from collections import Counter
from dataclasses import dataclass
from difflib import get_close_matches

from controller.core.allocate.coupled_problem import RESOURCES_MAX, SLOTS_MAX
from controller.core.allocate.instance_values import fields_of, integer, shown
from controller.core.allocate.problem import BINS_MAX, LEVEL_MAX, VALUE_MAX, ProblemError

ID_LENGTH_MAX = 256
NODE_KEYS = ("id", "parent", "capacity", "overhead", "options")
OPTION_KEYS = ("level", "value")
RESOURCES_MIN = 2  # of a list; one resource alone is a plain integer, and its hosts may be nested
CLOSEST_AMONG = 5000  # names; more would take seconds


@dataclass(frozen=True, slots=True)
class Resources:
    """How a file states amounts: as an integer, or as a list with one of each resource."""

    count: int = 1
    listed: bool = False
    said_by: str = ""  # the first root, whose capacity is a list

    def amounts(self, value: object, what: str) -> tuple[int, ...]:
        """Quanta of each resource."""
        if not self.listed:
            if isinstance(value, list):
                raise ProblemError(
                    f"{what} is {shown(value)}; an integer is needed: lists go with a list for "
                    "the capacity of every root"
                )
            return (integer(value, 0, LEVEL_MAX, what),)
        if not isinstance(value, list) or len(value) != self.count:
            raise ProblemError(
                f"{what} is {shown(value)}; a list of {self.count} integers is needed, as the "
                f"capacity of {self.said_by} is one"
            )
        return tuple(
            integer(amount, 0, LEVEL_MAX, f"{what} of resource {number}")
            for number, amount in enumerate(value, 1)
        )


@dataclass(slots=True)
class Node:
    """One node as the file gives it, each part by itself in order."""

    id: str
    parent: str | None
    capacity: tuple[int, ...] | None  # quanta of each resource
    overhead: int
    level: list[tuple[int, ...]]
    value: list[int]

    @property
    def where(self) -> str:
        return f"node {self.id!r}"


def resources_of(rows: list[object]) -> Resources:
    """Whether amounts are lists, and how long: what the first root with such a capacity says."""
    for place, row in enumerate(rows):
        if isinstance(row, dict) and row.get("parent") is None:
            capacity = row.get("capacity")
            if isinstance(capacity, list):
                where = _where(row, place)
                if not RESOURCES_MIN <= len(capacity) <= RESOURCES_MAX:
                    raise ProblemError(
                        f"{where}: capacity is {shown(capacity)}; {RESOURCES_MIN} or "
                        f"{RESOURCES_MAX} resources share a list, one alone is an integer"
                    )
                return Resources(len(capacity), True, where)
    return Resources()


def _where(row: object, place: int) -> str:
    name = row.get("id") if isinstance(row, dict) else None
    return f"node {shown(name)}" if isinstance(name, str) else f"node number {place + 1}"


def to_node(row: object, place: int, resources: Resources) -> Node:
    """A row of the file; `place` counts from 0."""
    where = _where(row, place)
    fields = fields_of(row, NODE_KEYS, where)
    name = fields.get("id")
    if not isinstance(name, str) or not 0 < len(name) <= ID_LENGTH_MAX or not name.isprintable():
        raise ProblemError(
            f"{where}: id is {shown(name)}; printable text of 1 to {ID_LENGTH_MAX} characters "
            "is needed"
        )
    parent = fields.get("parent")
    if parent is not None and not isinstance(parent, str):
        raise ProblemError(f"{where}: parent is {shown(parent)}; another node's id, or null")
    capacity = fields.get("capacity")
    amounts = None if capacity is None else resources.amounts(capacity, f"{where}: capacity")
    overhead = _overhead(fields.get("overhead", 0), where, resources)
    level, value = _options(fields.get("options"), where, resources)
    node = Node(name, parent, amounts, overhead, level, value)
    _refuse_half_roots(node)
    return node


def _refuse_half_roots(node: Node) -> None:
    """A root has a capacity and nothing to choose; every other node just the other way round."""
    if node.parent is None and node.capacity is None:
        raise ProblemError(f"{node.where}: neither a parent nor a capacity; give it one of them")
    if node.parent is None and node.level:
        raise ProblemError(
            f"{node.where}: options at a root, which has its capacity; remove them, or name its "
            "parent"
        )
    if node.parent is not None and node.capacity is not None:
        raise ProblemError(
            f"{node.where}: a capacity below {node.parent!r}; only roots have one, the others "
            "their options"
        )
    if node.parent is not None and not node.level:
        raise ProblemError(f"{node.where}: no options; it must take one of at least one")


def _overhead(value: object, where: str, resources: Resources) -> int:
    if resources.listed and (type(value) is not int or value != 0):
        raise ProblemError(
            f"{where}: overhead is {shown(value)}; where capacities are lists there is none: "
            "remove it, and take it off the capacity"
        )
    return integer(value, 0, LEVEL_MAX, f"{where}: overhead")


def _options(
    rows: object, where: str, resources: Resources
) -> tuple[list[tuple[int, ...]], list[int]]:
    """Levels and values; levels of one resource ascend strictly, combinations have no order."""
    if rows is None:
        return [], []
    if not isinstance(rows, list):
        raise ProblemError(f"{where}: options is {shown(rows)}; a list is needed")
    if len(rows) > BINS_MAX:
        raise ProblemError(f"{where}: {len(rows)} options; at most {BINS_MAX} are possible")
    levels: list[tuple[int, ...]] = []
    values: list[int] = []
    for number, row in enumerate(rows, 1):
        here = f"{where}, option {number}"
        fields = fields_of(row, OPTION_KEYS, here)
        level = resources.amounts(fields.get("level"), f"{here}: level")
        if levels and not resources.listed and level <= levels[-1]:
            (now,), (before,) = level, levels[-1]
            raise ProblemError(f"{here}: level {now} after {before}; levels ascend strictly")
        levels.append(level)
        values.append(integer(fields.get("value"), -VALUE_MAX, VALUE_MAX, f"{here}: value"))
    return levels, values


def refuse_trees(nodes: list[Node]) -> None:
    """Several resources are shared out by roots among their own children, and not further."""
    roots = {node.id for node in nodes if node.parent is None}
    for node in nodes:
        if node.parent is not None and node.parent not in roots:
            raise ProblemError(
                f"{node.where}: its parent {node.parent!r} is no root; where capacities are lists, "
                "all stand directly below a root"
            )
    crowds = Counter(node.parent for node in nodes if node.parent is not None)
    for name, crowd in crowds.items():
        if crowd > SLOTS_MAX:
            raise ProblemError(
                f"node {name!r}: {crowd} nodes below it; where capacities are lists, at most "
                f"{SLOTS_MAX} are possible"
            )


def parents_first(nodes: list[Node]) -> list[Node]:
    """Breadth first from the roots; ProblemError for double ids, missing parents and cycles."""
    by_id: dict[str, Node] = {}
    for node in nodes:
        if node.id in by_id:
            raise ProblemError(f"{node.where}: the id stands twice; each needs its own")
        by_id[node.id] = node
    below: dict[str, list[Node]] = {name: [] for name in by_id}
    for node in nodes:
        if node.parent is not None:
            if node.parent not in below:
                raise ProblemError(_no_parent(node, list(by_id)))
            below[node.parent].append(node)
    order = [node for node in nodes if node.parent is None]
    for node in order:  # grows while it is read
        order += below[node.id]
    if len(order) < len(nodes):
        reached = {node.id for node in order}
        lost = next(node for node in nodes if node.id not in reached)
        raise ProblemError(_cycle(lost, by_id))
    return order


def _no_parent(node: Node, ids: list[str]) -> str:
    assert node.parent is not None
    others = [name for name in ids[:CLOSEST_AMONG] if name != node.id]
    near = get_close_matches(node.parent[:ID_LENGTH_MAX], others, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "; add it, or correct the name"
    return f"{node.where}: its parent {shown(node.parent)} is not in the file{hint}"


def _cycle(node: Node, by_id: dict[str, Node]) -> str:
    """Names the nodes of the cycle above `node`."""
    seen: dict[str, None] = {}
    while node.id not in seen:
        seen[node.id] = None
        assert node.parent is not None, "a root would have been reached"
        node = by_id[node.parent]
    names = list(seen)
    names = names[names.index(node.id) :]
    shown = " -> ".join(repr(name) for name in [*names[:5], *(["…"] if names[5:] else []), node.id])
    return f"{node.where}: its parents lead back to it ({shown}); one of them must be a root"
