"""Problems from outside: what a file says as a `Forest`, and a solution under the file's names.

    {"version": 1, "nodes": [
       {"id": "host", "parent": null, "capacity": 512, "overhead": 0},
       {"id": "vm", "parent": "host", "overhead": 2, "options": [{"level": 8, "value": 1200}]}]}

Nodes stand in any order; those without a parent are roots, of which there may be several. Whatever
is wrong is a ProblemError that names the node, says what stands there and what should.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from controller.core.allocate.problem import (
    BINS_MAX,
    LEVEL_MAX,
    VALUE_MAX,
    Forest,
    ProblemError,
)

VERSION = 1
FILE_BYTES_MAX = 64 << 20  # some 150,000 machines with 10 options; decoded it takes 10 times that
ID_LENGTH_MAX = 256
WORTH_MAX = 1 << 58  # of a whole tree: a quarter of what marks the impossible
FILE_KEYS = ("version", "nodes")
NODE_KEYS = ("id", "parent", "capacity", "overhead", "options")
OPTION_KEYS = ("level", "value")
SHOWN_MAX = 40  # characters of a wrong value in an error
CLOSEST_AMONG = 5000  # names; more would take seconds


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """A forest whose nodes have names; parents before children, roots in the file's order."""

    ids: tuple[str, ...]  # (m,)
    forest: Forest


@dataclass(slots=True)
class _Node:
    """One node as the file gives it, each part by itself in order."""

    id: str
    parent: str | None
    capacity: int | None
    overhead: int
    level: list[int]
    value: list[int]

    @property
    def where(self) -> str:
        return f"node {self.id!r}"


def parse(data: bytes) -> Instance:
    """The instance in a file's bytes; ProblemError where they hold none."""
    if len(data) > FILE_BYTES_MAX:
        limit = FILE_BYTES_MAX >> 20
        raise ProblemError(f"more than {limit} MiB; trees are independent: split the file by roots")
    try:
        return to_instance(json.loads(data.decode("utf-8-sig"), object_pairs_hook=_keys_once))
    except UnicodeDecodeError as error:
        raise ProblemError(f"not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ProblemError(f"not JSON at {place}: {error.msg}") from error
    except RecursionError as error:
        raise ProblemError("brackets nested too deep: nodes stand side by side in one list") from (
            error
        )
    except ProblemError:
        raise
    except ValueError as error:  # of all that json may say, a number of thousands of digits is left
        raise ProblemError(f"a number that is far too long: {error}") from error


def _keys_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of the file; JSON itself would let a key's last value win in silence."""
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        whose = f"node {_shown(table['id'])}: " if "id" in table else ""
        raise ProblemError(f"{whose}{_shown(double)} stands twice in one object; keep one")
    return table


def to_instance(document: object) -> Instance:
    """The same from decoded JSON."""
    table = _table(document, FILE_KEYS, "the file")
    version = table.get("version")
    if type(version) is not int or version != VERSION:
        raise ProblemError(f'version is {_shown(version)}; this program reads "version": {VERSION}')
    rows = table.get("nodes")
    if not isinstance(rows, list) or not rows:
        raise ProblemError(f"nodes is {_shown(rows)}; a list of at least one node is needed")
    nodes = [_node(row, place) for place, row in enumerate(rows)]
    return _instance(_parents_first(nodes))


def _node(row: object, place: int) -> _Node:
    where = f"node number {place + 1}"
    name = row.get("id") if isinstance(row, dict) else None
    if isinstance(name, str):
        where = f"node {_shown(name)}"
    table = _table(row, NODE_KEYS, where)
    if not isinstance(name, str) or not 0 < len(name) <= ID_LENGTH_MAX or not name.isprintable():
        raise ProblemError(
            f"{where}: id is {_shown(name)}; printable text of 1 to {ID_LENGTH_MAX} characters "
            "is needed"
        )
    parent = table.get("parent")
    if parent is not None and not isinstance(parent, str):
        raise ProblemError(f"{where}: parent is {_shown(parent)}; another node's id, or null")
    capacity = table.get("capacity")
    if capacity is not None:
        capacity = _integer(capacity, 0, LEVEL_MAX, f"{where}: capacity")
    overhead = _integer(table.get("overhead", 0), 0, LEVEL_MAX, f"{where}: overhead")
    level, value = _options(table.get("options"), where)
    node = _Node(name, parent, capacity, overhead, level, value)
    _refuse_half_roots(node)
    return node


def _refuse_half_roots(node: _Node) -> None:
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


def _options(rows: object, where: str) -> tuple[list[int], list[int]]:
    """Levels and values, levels strictly ascending."""
    if rows is None:
        return [], []
    if not isinstance(rows, list):
        raise ProblemError(f"{where}: options is {_shown(rows)}; a list is needed")
    if len(rows) > BINS_MAX:
        raise ProblemError(f"{where}: {len(rows)} options; at most {BINS_MAX} are possible")
    levels: list[int] = []
    values: list[int] = []
    for number, row in enumerate(rows, 1):
        here = f"{where}, option {number}"
        table = _table(row, OPTION_KEYS, here)
        level = _integer(table.get("level"), 0, LEVEL_MAX, f"{here}: level")
        if levels and level <= levels[-1]:
            raise ProblemError(f"{here}: level {level} after {levels[-1]}; levels ascend strictly")
        levels.append(level)
        values.append(_integer(table.get("value"), -VALUE_MAX, VALUE_MAX, f"{here}: value"))
    return levels, values


def _table(value: object, known: tuple[str, ...], where: str) -> Mapping[str, object]:
    """An object without unknown keys."""
    if not isinstance(value, dict):
        raise ProblemError(f"{where} is {_shown(value)}; an object with {', '.join(known)}")
    for key in value.keys() - set(known):
        near = get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise ProblemError(f"{where}: {_shown(key)} is unknown; {hint}")
    return value


def _integer(value: object, least: int, most: int, what: str) -> int:
    if type(value) is not int:  # True is an int as well, and 8.0 would be one in disguise
        raise ProblemError(f"{what} is {_shown(value)}; an integer is needed")
    if value < least and least == 0:
        raise ProblemError(f"{what} is negative: {_shown(value)}")
    if not least <= value <= most:
        raise ProblemError(
            f"{what} is {_shown(value)}; {least} to {most} can be computed with: count in larger "
            "units"
        )
    return value


def _shown(value: object) -> str:
    """A wrong value for an error: as JSON where it is short."""
    if value is None:
        return "missing or null"
    if isinstance(value, (dict, list)):
        kind = "an object" if isinstance(value, dict) else "a list"
        return f"{kind} of {len(value)}" if value else f"{kind} without content"
    if isinstance(value, str):
        return repr(value if len(value) <= SHOWN_MAX else value[: SHOWN_MAX - 1] + "…")
    if type(value) is int and abs(value) >= 1 << 128:
        return f"a number of {value.bit_length()} bits"  # Python would not write all its digits
    return json.dumps(value)


def _parents_first(nodes: list[_Node]) -> list[_Node]:
    """Breadth first from the roots; ProblemError for double ids, missing parents and cycles."""
    by_id: dict[str, _Node] = {}
    for node in nodes:
        if node.id in by_id:
            raise ProblemError(f"{node.where}: the id stands twice; each needs its own")
        by_id[node.id] = node
    below: dict[str, list[_Node]] = {name: [] for name in by_id}
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


def _no_parent(node: _Node, ids: list[str]) -> str:
    assert node.parent is not None
    others = [name for name in ids[:CLOSEST_AMONG] if name != node.id]
    near = get_close_matches(node.parent[:ID_LENGTH_MAX], others, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "; add it, or correct the name"
    return f"{node.where}: its parent {_shown(node.parent)} is not in the file{hint}"


def _cycle(node: _Node, by_id: dict[str, _Node]) -> str:
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


def _instance(nodes: list[_Node]) -> Instance:
    place = {node.id: number for number, node in enumerate(nodes)}
    parent = [-1 if node.parent is None else place[node.parent] for node in nodes]
    _refuse_too_much_worth(nodes, parent)
    counts = [len(node.level) for node in nodes]
    forest = Forest(
        parent=np.array(parent, dtype=np.int64),
        capacity=np.array([node.capacity or 0 for node in nodes], dtype=np.int64),
        overhead=np.array([node.overhead for node in nodes], dtype=np.int64),
        first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        level=np.array([level for node in nodes for level in node.level], dtype=np.int64),
        value=np.array([value for node in nodes for value in node.value], dtype=np.int64),
    )
    return Instance(tuple(node.id for node in nodes), forest)


def _refuse_too_much_worth(nodes: list[_Node], parent: list[int]) -> None:
    """A tree's values must add up within 64 bits, whatever is chosen."""
    worth = [max((abs(value) for value in node.value), default=0) for node in nodes]
    for number in reversed(range(len(nodes))):
        if parent[number] >= 0:
            worth[parent[number]] += worth[number]
        elif worth[number] > WORTH_MAX:
            raise ProblemError(
                f"{nodes[number].where}: the values below it may add up to {worth[number]}; "
                f"{WORTH_MAX} can be computed with: count in larger units"
            )
