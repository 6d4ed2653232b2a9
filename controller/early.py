"""The trees of urgent nodes as decisions of their own, made from the last cycle's forecast. Pure.

A burst cannot wait for a cycle, and a whole fleet cannot be forecast for one host. Nothing outside
a tree counts for its decision; what its agents lent is in the snapshot as demand.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from controller.core.record import tree
from controller.core.state import MISSING, Forecast, Snapshot


def urgent_trees(
    snapshot: Snapshot, forecast: Forecast, ids_then: tuple[str, ...], node_ids: Collection[str]
) -> list[tuple[Snapshot, Forecast]]:
    """Each tree that holds one of the nodes, with the forecast of `ids_then` put in its order.

    A machine that came since has no forecast and does not move. Trees of nodes that are gone are
    left out.
    """
    place = {machine_id: index for index, machine_id in enumerate(snapshot.ids)}
    roots = {_root_of(place[node_id], snapshot) for node_id in node_ids if node_id in place}
    later_ns = max(0, snapshot.taken_at_unix_ns - forecast.made_at_unix_ns)
    carried = _carried(forecast, ids_then, snapshot.ids, later_ns)
    return [tree(snapshot, carried, root) for root in sorted(roots)]


def is_behind(snapshot: Snapshot, done: Mapping[str, int], node_ids: Collection[str]) -> bool:
    """Whether an agent in the trees of these nodes has done more than the snapshot shows.

    `done`: generation by node, as agents say themselves.
    """
    place = {machine_id: index for index, machine_id in enumerate(snapshot.ids)}
    roots = {_root_of(place[node_id], snapshot) for node_id in node_ids if node_id in place}
    return any(
        done.get(snapshot.ids[machine], MISSING) > snapshot.generation[machine]
        for root in roots
        for machine in snapshot.tree(root)
        if snapshot.generation[machine] != MISSING
    )


def _root_of(machine: int, snapshot: Snapshot) -> int:
    while snapshot.parent[machine] >= 0:
        machine = int(snapshot.parent[machine])
    return machine


def _carried(
    forecast: Forecast, then: tuple[str, ...], now: tuple[str, ...], later_ns: int
) -> Forecast:
    if then == now:
        rows = np.arange(len(now))
    else:
        place = {machine_id: index for index, machine_id in enumerate(then)}
        rows = np.array([place.get(machine_id, MISSING) for machine_id in now], dtype=np.int64)
    known = (rows != MISSING) & (forecast.age_ns[rows] != MISSING)
    return replace(
        forecast,
        quantile=np.where((rows != MISSING)[:, None, None], forecast.quantile[rows], np.nan),
        age_ns=np.where(known, forecast.age_ns[rows] + later_ns, MISSING),
        samples=np.where((rows != MISSING)[:, None], forecast.samples[rows], 0),
        skill=np.where((rows != MISSING)[:, None], forecast.skill[rows], np.nan),
    )
