"""What hosts tell of single VMs beside what is planned: networks, and levers that do nothing."""

from collections.abc import Iterable

from controller.core.state import MISSING, Mode, Snapshot
from controller.overrides import NET
from controller.view import View
from shared.pb import admin_pb2 as pb
from shared.resources import Resource
from shared.telemetry import IDLE, IDLE_SHRINKING


def tell_networks(rows: Iterable[pb.VmRow], view: View) -> None:
    """Into rows of VMs, where their hosts tell something of it."""
    told = {
        vm_id: (used, limit)
        for node in view.nodes
        for vm_id, used, limit in zip(
            node.vm_ids, node.vm_net_used_bytes_per_s, node.vm_net_limit_bytes_per_s, strict=False
        )
        if (used, limit) != (MISSING, MISSING)
    }
    for row in rows:
        used, limit = told.get(row.vm_id, (MISSING, MISSING))
        if used != MISSING:
            row.net.used = used
        if limit != MISSING:
            row.net.limit = limit
        if row.HasField("net"):
            row.net.resource = NET


def tell_idle_levers(rows: Iterable[pb.VmRow], view: View) -> None:
    """In place of the state of a VM that rests: which levers lately had no effect on it."""
    idle = {
        vm_id: bits
        for node in view.nodes
        for vm_id, bits in zip(node.vm_ids, node.vm_idle_levers, strict=False)
        if bits > 0
    }
    for row in rows if idle else ():
        bits = idle.get(row.vm_id, 0)
        words = [r.word for r in Resource if bits & (IDLE | IDLE_SHRINKING) << r]
        if words and row.state.split(":")[0] in {"steady", "short", "pinned"}:
            row.state = f"no effect: {', '.join(words)}"


def why_not_limited(view: View, snapshot: Snapshot, machine: int) -> str:
    """In brackets, why a network limit would do nothing now; "" where it does."""
    host_id = snapshot.ids[int(snapshot.parent[machine])]
    levers = next((node.levers for node in view.nodes if node.node_id == host_id), {})
    why = levers.get(NET, "its host does not tell of it")
    if not why and snapshot.mode[machine] != Mode.ENFORCE:
        why = f"its mode is {Mode(int(snapshot.mode[machine])).name.lower()}"
    return f" (nothing will change: {why})" if why else ""
