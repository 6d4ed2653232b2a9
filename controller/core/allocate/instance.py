"""Problems from outside: what a file says as a `Forest`, and a solution under the file's names.

    {"version": 1, "nodes": [
       {"id": "host", "parent": null, "capacity": 512, "overhead": 0},
       {"id": "vm", "parent": "host", "overhead": 2, "options": [{"level": 8, "value": 1200}]}]}

Nodes stand in any order; those without a parent are roots, of which there may be several. Where
roots have a list of two or three capacities, every level is a list as well, one of each resource,
and all other nodes stand directly below roots: a `CoupledInstance`. Whatever is wrong is a
ProblemError that names the node, says what stands there and what should.
"""

import json
from dataclasses import dataclass

import numpy as np

from controller.core.allocate.coupled_forest import CoupledForest
from controller.core.allocate.instance_nodes import (
    Node,
    parents_first,
    refuse_trees,
    resources_of,
    to_node,
)
from controller.core.allocate.instance_values import fields_of, shown
from controller.core.allocate.problem import Forest, ProblemError

VERSION = 1
FILE_BYTES_MAX = 64 << 20  # some 150,000 machines with 10 options; decoded it takes 10 times that
WORTH_MAX = 1 << 58  # of a whole tree: a quarter of what marks the impossible
FILE_KEYS = ("version", "nodes")


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """A forest whose nodes have names; parents before children, roots in the file's order."""

    ids: tuple[str, ...]  # (m,)
    forest: Forest


@dataclass(frozen=True, slots=True, eq=False)
class CoupledInstance:
    """The same where hosts share out several resources at once."""

    ids: tuple[str, ...]  # (m,)
    forest: CoupledForest


def parse(data: bytes) -> Instance | CoupledInstance:
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
        whose = f"node {shown(table['id'])}: " if "id" in table else ""
        raise ProblemError(f"{whose}{shown(double)} stands twice in one object; keep one")
    return table


def to_instance(document: object) -> Instance | CoupledInstance:
    """The same from decoded JSON."""
    fields = fields_of(document, FILE_KEYS, "the file")
    version = fields.get("version")
    if type(version) is not int or version != VERSION:
        raise ProblemError(f'version is {shown(version)}; this program reads "version": {VERSION}')
    rows = fields.get("nodes")
    if not isinstance(rows, list) or not rows:
        raise ProblemError(f"nodes is {shown(rows)}; a list of at least one node is needed")
    resources = resources_of(rows)
    nodes = parents_first([to_node(row, place, resources) for place, row in enumerate(rows)])
    if resources.listed:
        refuse_trees(nodes)
    return _instance(nodes, resources.count, listed=resources.listed)


def _instance(nodes: list[Node], resources: int, *, listed: bool) -> Instance | CoupledInstance:
    place = {node.id: number for number, node in enumerate(nodes)}
    parents = [-1 if node.parent is None else place[node.parent] for node in nodes]
    _refuse_too_much_worth(nodes, parents)
    ids, parent = tuple(node.id for node in nodes), np.array(parents, dtype=np.int64)
    none = (0,) * resources
    capacity = np.array([node.capacity or none for node in nodes], dtype=np.int64).T
    first = np.concatenate([[0], np.cumsum([len(node.level) for node in nodes])]).astype(np.int64)
    levels = [level for node in nodes for level in node.level]
    level = np.array(levels, dtype=np.int64).reshape(-1, resources).T
    value = np.array([value for node in nodes for value in node.value], dtype=np.int64)
    if listed:
        return CoupledInstance(ids, CoupledForest(parent, capacity, first, level, value))
    overhead = np.array([node.overhead for node in nodes], dtype=np.int64)
    return Instance(ids, Forest(parent, capacity[0], overhead, first, level[0], value))


def _refuse_too_much_worth(nodes: list[Node], parent: list[int]) -> None:
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
