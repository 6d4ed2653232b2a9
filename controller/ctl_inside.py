"""What machines' agents see inside, and whose CPUs VMs wait for, for people."""

from collections.abc import Iterable, Sequence

from rich.markup import escape

from controller.ctl_tables import console, print_table, table_of
from shared.pb import admin_pb2 as pb
from shared.resources import Resource, amount_text

ROLES_SHOWN = 3
WAITS_SHOWN = 10
_SECOND_MS, _MINUTE_S, _HOUR_S, _DAY_S = 1000, 60, 3600, 86_400


def print_insides(nodes: Sequence[pb.NodeRow]) -> None:
    """A line per machine: up, ready, load, steal, pressure, network, and what runs there."""
    if not nodes:
        return
    table = table_of(
        "node", ">up", ">ready after", ">load", ">steal", ">PSI cpu/mem/io %", "mostly"
    )
    for node in nodes:
        said = node.inside
        table.add_row(
            escape(node.name),
            span_text(said, "uptime_ms"),
            span_text(said, "ready_ms"),
            f"{said.load_milli / 1000:.2f}" if said.HasField("load_milli") else "?",
            _cores(said, "cpu_steal_millicores"),
            pressure_text(said),
            escape(roles_text(said.roles)),
        )
    console().print()
    print_table(table, "")


def print_inside(name: str, said: pb.Inside) -> None:
    """All roles of one machine."""
    out = console()
    out.print(
        f"\n[bold]inside[/]: up {span_text(said, 'uptime_ms')}, ready after "
        f"{span_text(said, 'ready_ms')}, PSI cpu/mem/io {pressure_text(said)} %"
    )
    table = table_of("role", ">processes", ">cpu", ">resident memory")
    for role in said.roles:
        memory = role.memory_resident_bytes if role.HasField("memory_resident_bytes") else None
        table.add_row(
            escape(role.role),
            str(role.processes),
            _cores(role, "cpu_used_millicores"),
            amount_text(Resource.MEMORY, memory),
        )
    print_table(table, f"what runs in {escape(name)} is not told")


def print_waits(vms: Iterable[pb.VmRow]) -> None:
    """Those that wait for CPUs of others, longest first."""
    waiting = sorted((vm for vm in vms if vm.short_node_id), key=lambda vm: -_total(vm))
    for vm in waiting[:WAITS_SHOWN]:
        console().print(f"[yellow]{escape(waits_text(vm))}[/]")
    if len(waiting) > WAITS_SHOWN:
        console().print(f"[dim]and {len(waiting) - WAITS_SHOWN} more wait for CPU[/]")


def waits_text(vm: pb.VmRow) -> str:
    """`web waits 0.12 cores for l1-a, which waits 0.40 for host-0 (0.20 of it web's)`."""
    parts: list[str] = []
    host_id = vm.vm_id
    for wait in vm.waits:
        who = f"{wait.machine} waits" if parts else f"{vm.name} runs on {wait.machine}, which waits"
        if wait.machine_id == host_id:
            who = "which waits" if parts else f"{vm.name} waits"
        unit = "" if parts else " cores"
        text = f"{who} {wait.millicores / 1000:.2f}{unit} for {wait.host}"
        if wait.machine_id != vm.vm_id and wait.millicores and wait.HasField("share_millicores"):
            text += f" ({wait.share_millicores / 1000:.2f} of it {vm.name}'s)"
        parts.append(text)
        host_id = wait.host_id
    return ", ".join(parts)


def pressure_text(said: pb.Inside) -> str:
    """`12/0/3`: percent of the time in which some task waited."""
    fields = ("cpu_pressure_us_per_s", "memory_pressure_us_per_s", "io_pressure_us_per_s")
    return "/".join(
        f"{getattr(said, field) / 10_000:.0f}" if said.HasField(field) else "?" for field in fields
    )


def roles_text(roles: Sequence[pb.RoleUse]) -> str:
    """The first few: `database 1.20 cores 800 MiB, web 0.10 cores 90 MiB`."""
    shown = [
        f"{role.role} {_cores(role, 'cpu_used_millicores')} cores "
        f"{amount_text(Resource.MEMORY, role.memory_resident_bytes)}"
        for role in roles
        if role.cpu_used_millicores or role.memory_resident_bytes
    ]
    return ", ".join(shown[:ROLES_SHOWN])


def span_text(said: pb.Inside, field: str) -> str:
    """`17.2 s`, `12 min`, `5.1 h`, `9 d`; `?` where it is not known."""
    if not said.HasField(field):
        return "?"
    seconds = getattr(said, field) / _SECOND_MS
    if seconds < 2 * _MINUTE_S:
        return f"{seconds:.1f} s"
    if seconds < 2 * _HOUR_S:
        return f"{seconds / _MINUTE_S:.0f} min"
    return f"{seconds / _HOUR_S:.1f} h" if seconds < 2 * _DAY_S else f"{seconds / _DAY_S:.0f} d"


def _cores(message: pb.Inside | pb.RoleUse, field: str) -> str:
    return f"{getattr(message, field) / 1000:.2f}" if message.HasField(field) else "?"


def _total(vm: pb.VmRow) -> int:
    return sum(wait.share_millicores for wait in vm.waits)
