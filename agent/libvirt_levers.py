"""The levers of one VM under libvirt: what limits are in force, and which calls set them.

CPU by the vCPUs' cgroup quota, with the weight following it; I/O by the cgroup's throttling of the
devices under the disks; network by the interfaces' bandwidth (the kernel's traffic control on
their taps). QEMU's own I/O throttling is not used: guests have locked up under it.
Reads /sys below `root` to name disks, and nothing else.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.cgroup import backing_device, device_node
from agent.hypervisor import VmReading
from agent.libvirt_devices import (
    DeviceFacts,
    blocks_of,
    format_rate,
    interface_limit,
    parse_devices,
    resized,
    why_no_net_lever,
)
from agent.libvirt_readings import (
    format_blkio,
    format_scheduler,
    parse_blkio,
    parse_domain_xml,
    parse_scheduler,
)
from shared.errors import HypervisorError
from shared.resources import Resource

NOT_SEEN = "no VM has been seen here yet, so it was not tried"

_KIB = 1024
_NO_DEVICES = DeviceFacts((), (), None, None)

Call = tuple[
    str, tuple[object, ...]
]  # a method of agent.libvirt_worker, and what comes after the VM


@dataclass(frozen=True, slots=True)
class VmLevers:
    """As last looked at. A `reason` says why a lever does not work, "" when it does."""

    cpu_count: int | None = None
    cpu_reason: str = NOT_SEEN
    quota_millicores: int | None = None
    shares: int | None = None  # its weight without a quota; None: not known, it is left alone
    io_reason: str = NOT_SEEN
    disks: tuple[str, ...] = ()
    io_limit_bytes_per_s: int | None = None
    net_reason: str = NOT_SEEN
    net_limit_bytes_per_s: int | None = None
    devices: DeviceFacts = _NO_DEVICES

    def failing(self, why: str) -> "VmLevers":
        """When the VM could not be looked at."""
        return VmLevers(self.cpu_count, why, io_reason=why, net_reason=why, shares=self.shares)

    def calls(self, resource: Resource, amount: int, actual_bytes: int | None) -> list[Call]:
        """That set a limit, in order; HypervisorError where there is no lever. `actual_bytes`:
        the memory that the VM has now."""
        if resource is Resource.MEMORY:
            return self._memory(amount, actual_bytes)
        return self._cpu(amount) if resource is Resource.CPU else self._io(amount)

    def net_calls(self, bytes_per_s: int | None) -> list[Call]:
        """None: back to what was there before ours. The mark beside the VM comes before a limit
        and goes after it: there is never a limit that nobody would lift."""
        if self.net_reason:
            raise HypervisorError(f"no network lever: {self.net_reason}")
        found = self.devices.net_found_bytes_per_s
        before = found if found is not None else self.net_limit_bytes_per_s
        wanted = before or None if bytes_per_s is None else bytes_per_s
        rates = format_rate(wanted)
        limits = [("set_interface", (each.device, rates)) for each in self.devices.interfaces]
        if bytes_per_s is None:
            return [*limits, ("set_mark", ("net", None))]
        return [("set_mark", ("net", before or 0)), *limits]

    def _memory(self, amount: int, actual_bytes: int | None) -> list[Call]:
        if not self.devices.memory:
            return [("set_memory", (amount // _KIB,))]
        if actual_bytes is None:
            raise HypervisorError("what the VM has is not known, so no memory device can be moved")
        wanted = resized(self.devices.memory, amount, actual_bytes)
        return [("update_device", (device.asking_for(to),)) for device, to in wanted.items()]

    def _cpu(self, amount: int) -> list[Call]:
        if self.cpu_reason or self.cpu_count is None:
            raise HypervisorError(f"no CPU lever: {self.cpu_reason}")
        wanted = format_scheduler(amount, self.cpu_count)
        if self.shares is not None:
            wanted["cpu_shares"] = weight_of(amount, self.cpu_count, self.shares)
        return [("set_scheduler", (wanted,))]

    def _io(self, amount: int) -> list[Call]:
        if self.io_reason:
            raise HypervisorError(f"no I/O lever: {self.io_reason}")
        return [("set_blkio", (format_blkio(amount, self.disks),))]


def look(
    inspected: list[Any], cpu_count: int | None, before: VmLevers, uri: str, root: Path
) -> VmLevers:
    """`inspected`: the worker's; parameters stand as libvirt's text where it has none."""
    xml, scheduler, blkio, defined, *_ = inspected
    cpu_reason, io_reason = _explained(scheduler, uri), _explained(blkio, uri)
    disks, no_disk = _disks(root, parse_domain_xml(xml).disk_paths)
    devices = parse_devices(xml)
    net_reason = why_no_net_lever(devices.interfaces)
    quota = None
    if not cpu_reason and cpu_count is not None:
        quota = parse_scheduler(scheduler, cpu_count)
    return VmLevers(
        cpu_count=cpu_count,
        cpu_reason=cpu_reason,
        quota_millicores=quota,
        shares=None if cpu_reason else _own_shares(scheduler, defined, quota, before.shares),
        io_reason=io_reason or no_disk,
        disks=disks,
        io_limit_bytes_per_s=None if io_reason or no_disk else parse_blkio(blkio, disks),
        net_reason=net_reason,
        net_limit_bytes_per_s=None if net_reason else interface_limit(devices.interfaces),
        devices=devices,
    )


def with_levers(reading: VmReading, levers: VmLevers) -> VmReading:
    """What bulk statistics do not tell."""
    devices = levers.devices
    return replace(
        reading,
        cpu_quota_millicores=levers.quota_millicores,
        io_limit_bytes_per_s=levers.io_limit_bytes_per_s,
        net_limit_bytes_per_s=levers.net_limit_bytes_per_s,
        net_found_bytes_per_s=devices.net_found_bytes_per_s,
        memory_blocks=blocks_of(devices.memory, reading.memory_maximum_bytes),
        memory_guarded_bytes=devices.guarded_bytes,
    )


def weight_of(millicores: int, cpu_count: int, shares: int) -> int:
    """The weight of a VM that is granted a part of its vCPUs: as large a part of its own weight.

    VMs of one size so share a CPU that is short by their grants, one that is not limited keeps the
    weight that it has without us, and no VM ever gets more: those that nobody manages lose nothing.
    """
    part = shares * min(millicores, cpu_count * 1000) // (cpu_count * 1000)
    return max(_WEIGHT_MIN, part)


_WEIGHT_MIN = 2  # the smallest that cgroup v1 takes; v2 takes 1


def reason_of(reasons: Iterable[str]) -> str:
    """The lever works when it works for any VM; a VM without it says so when it is used."""
    found = list(reasons)
    if not found:
        return NOT_SEEN
    return "" if "" in found else found[0]


def _own_shares(
    scheduler: Mapping[str, int],
    defined: Mapping[str, int] | str,
    quota: int | None,
    known: int | None,
) -> int | None:
    """The VM's weight without us. With a quota in force the live one may be ours; the definition
    tells, and a VM without any keeps what was seen first."""
    if quota is None:
        return scheduler.get("cpu_shares")
    if known is not None or isinstance(defined, str):
        return known
    return defined.get("cpu_shares") or None


def _disks(root: Path, paths: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Nodes of the whole disks under a VM's disks, or why there is nothing to throttle."""
    if not paths:
        return (), "it has no disk on this host"
    nodes: set[str] = set()
    for path in paths:
        device = backing_device(root, Path(path))
        node = None if device is None else device_node(root, device)
        if node is None:
            return (), f"no block device of this host is known under {path}"
        nodes.add(node)
    return tuple(sorted(nodes)), ""


def _explained(parameters: Mapping[str, object] | str, uri: str) -> str:
    """Why there are no parameters, in plain words; "" when there are."""
    if not isinstance(parameters, str):
        return ""
    if uri.endswith("/session"):
        return "a session hypervisor has no cgroups; run it as root (qemu:///system)"
    return f"libvirt has no cgroup for it: {parameters}"
