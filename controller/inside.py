"""What machines' own agents see of them, and what VMs wait for, as the messages that operators get.
Pure."""

from controller.core.state import Ints, Snapshot
from controller.steal import short_host, waiting, waits_of
from controller.view import NodeInfo, View
from shared.clock import MILLISECOND_NS
from shared.pb import admin_pb2 as pb
from shared.resources import Resource
from shared.telemetry import RoleUse


def inside_message(node: NodeInfo) -> pb.Inside:
    said = node.readings
    return pb.Inside(
        load_milli=said.load_milli,
        uptime_ms=_ms(said.uptime_ns),
        ready_ms=_ms(said.ready_ns),
        cpu_steal_millicores=said.cpu_steal_millicores,
        net_used_bytes_per_s=said.net_used_bytes_per_s,
        cpu_pressure_us_per_s=said.cpu_pressure_us_per_s,
        memory_pressure_us_per_s=said.memory_pressure_us_per_s,
        io_pressure_us_per_s=said.io_pressure_us_per_s,
        memory_pressure_full_us_per_s=said.memory_pressure_full_us_per_s,
        swap_used_bytes=said.swap_used_bytes,
        roles=[_role_message(role) for role in sorted(node.roles, key=_least)],
    )


def inside_of(view: View, machine_id: str) -> pb.Inside | None:
    """Of the agent that runs in the machine; None where there is none, or it has fallen silent."""
    found = next((node for node in _heard(view) if node.node_id == machine_id), None)
    return None if found is None else inside_message(found)


def cpu_waiting(view: View, snapshot: Snapshot) -> Ints:
    """(n,) millicores that each machine of the snapshot waits for at its host; MISSING where
    nobody says, or no longer."""
    return waiting(snapshot.ids, snapshot.parent, _heard(view))


def _heard(view: View) -> tuple[NodeInfo, ...]:
    """The nodes whose figures are fresh."""
    oldest_ns = view.taken_tick_ns - view.policy.sample_age_ns_max
    return tuple(node for node in view.nodes if node.received_tick_ns >= oldest_ns)


def tell_waits(row: pb.VmRow, snapshot: Snapshot, wait: Ints, machine: int) -> None:
    """Writes into `row` whom the VM waits for, level by level."""
    waits = waits_of(snapshot.parent, wait, snapshot.used[:, Resource.CPU], machine)
    for one in waits:
        row.waits.append(
            pb.Wait(
                machine_id=snapshot.ids[one.machine],
                machine=snapshot.names[one.machine],
                host_id=snapshot.ids[one.host],
                host=snapshot.names[one.host],
                millicores=one.millicores,
                share_millicores=one.share_millicores,
            )
        )
    short = short_host(waits)
    row.short_node_id = "" if short is None else snapshot.ids[short]


def _role_message(role: RoleUse) -> pb.RoleUse:
    return pb.RoleUse(
        role=role.role,
        processes=role.processes,
        cpu_used_millicores=role.cpu_used_millicores,
        memory_resident_bytes=role.memory_resident_bytes,
    )


def _least(role: RoleUse) -> tuple[int, int, str]:
    """Sorts those that use most CPU, then most memory, to the front."""
    return -(role.cpu_used_millicores or 0), -(role.memory_resident_bytes or 0), role.role


def _ms(duration_ns: int | None) -> int | None:
    return None if duration_ns is None else duration_ns // MILLISECOND_NS
