"""What libvirt says, put into our values and units. Pure.

libvirt counts memory in KiB, the CPU quota in microseconds per period and vCPU, and writes
per-device limits as one string `/dev/vda,1048576,/dev/vdb,1048576`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

from agent.cgroup import PERIOD_US, QUOTA_US_MIN, quota_to_millicores
from agent.hypervisor import VmEvent, VmEventKind, VmReading
from shared.telemetry import VmState

_KIB = 1024
# libvirt.h, repeated so that the agent's own process needs no libvirt.
_STATES = {
    1: VmState.RUNNING,
    2: VmState.RUNNING,  # blocked on a resource: what Xen calls idle
    3: VmState.PAUSED,
    4: VmState.SHUT_DOWN,  # on its way
    5: VmState.SHUT_DOWN,
    7: VmState.PAUSED,  # suspended by the guest's power management
}
_PAUSED, _PAUSED_MIGRATION, _PAUSED_POSTCOPY = 3, 2, 12
_RUNNING, _RUNNING_POSTCOPY = 1, 10
# Lifecycle events by number, and those whose detail makes them another (event, detail).
_EVENTS = {
    0: VmEventKind.DEFINED,
    2: VmEventKind.STARTED,
    3: VmEventKind.PAUSED,
    4: VmEventKind.RESUMED,
    5: VmEventKind.STOPPED,
    7: VmEventKind.PAUSED,
    8: VmEventKind.STOPPED,
}
_DETAILED_EVENTS = {
    (2, 1): VmEventKind.ARRIVED,  # started: migrated
    (2, 2): VmEventKind.ARRIVED,  # started: restored
    (2, 3): VmEventKind.ARRIVED,  # started: from a snapshot
    (5, 3): VmEventKind.LEFT,  # stopped: migrated
}
_OTHER_EVENTS = {
    "opened": VmEventKind.HEARD_AGAIN,
    "closed": VmEventKind.LOST,
    "reboot": VmEventKind.REBOOTED,
    "migration": VmEventKind.MIGRATING,
    "job": VmEventKind.RESUMED,  # of whatever kind it was: the VM runs on, or a STOPPED follows
    "tunable": VmEventKind.RETUNED,
}
# libvirt's own largest quota; what is stored where there is none.
_QUOTA_US_NONE = 17_592_186_044_415


@dataclass(frozen=True, slots=True)
class DomainFacts:
    """From the domain's XML."""

    disk_paths: tuple[str, ...]  # image files and block devices on this host
    balloon: bool
    stats_period_s: int  # 0: the guest's memory is not asked


def to_reading(
    vm_id: str,
    name: str,
    stats: Mapping[str, int],
) -> VmReading:
    """One VM's bulk statistics; what libvirt leaves out is None."""
    return VmReading(
        vm_id=vm_id,
        name=name,
        state=state_of(stats),
        cpu_count=stats.get("vcpu.current"),
        cpu_time_ns=stats.get("cpu.time"),
        cpu_delay_ns=_total(stats, ".delay"),
        memory_actual_bytes=_bytes(stats.get("balloon.current")),
        memory_maximum_bytes=_bytes(stats.get("balloon.maximum")),
        memory_usable_bytes=_bytes(stats.get("balloon.usable")),
        memory_unused_bytes=_bytes(stats.get("balloon.unused")),
        memory_cache_bytes=_bytes(stats.get("balloon.disk_caches")),
        memory_resident_bytes=_bytes(stats.get("balloon.rss")),
        memory_major_faults=stats.get("balloon.major_fault"),
        memory_swap_in_bytes=_bytes(stats.get("balloon.swap_in")),
        memory_last_update_unix_s=stats.get("balloon.last-update"),
        io_bytes=_total(stats, ".rd.bytes", ".wr.bytes"),
        net_bytes=_total(stats, ".rx.bytes", ".tx.bytes"),
    )


def state_of(stats: Mapping[str, int]) -> VmState:
    """A live migration away shows only in its last phase: before that, libvirt says running."""
    state, reason = stats.get("state.state", 0), stats.get("state.reason", 0)
    if (state, reason) in (
        (_PAUSED, _PAUSED_MIGRATION),
        (_PAUSED, _PAUSED_POSTCOPY),
        (_RUNNING, _RUNNING_POSTCOPY),
    ):
        return VmState.MIGRATING
    return _STATES.get(state, VmState.OTHER)


def event_of(event: Sequence[Any]) -> VmEvent | None:
    """What agent.libvirt_events tells; None for what changes nothing that we know."""
    word, vm_id, number, detail = event
    if word == "lifecycle":
        kind = _DETAILED_EVENTS.get((number, detail)) or _EVENTS.get(number)
    else:
        kind = _OTHER_EVENTS.get(word)
    return None if kind is None else VmEvent(vm_id, kind)


def parse_domain_xml(text: str) -> DomainFacts:
    """libvirt's own XML: a trusted source, and expat refuses what is malformed."""
    root = ET.fromstring(text)  # noqa: S314 - written by libvirt, not by a guest
    sources = [disk.find("source") for disk in root.findall("devices/disk[@device='disk']")]
    paths = [
        source.get("file") or source.get("dev") or "" for source in sources if source is not None
    ]
    balloon = root.find("devices/memballoon")
    period = root.find("devices/memballoon/stats")
    return DomainFacts(
        disk_paths=tuple(path for path in paths if path),
        balloon=balloon is not None and balloon.get("model", "none") != "none",
        stats_period_s=0 if period is None else int(period.get("period", "0")),
    )


def parse_scheduler(parameters: Mapping[str, int], cpu_count: int) -> int | None:
    """The whole VM's quota in millicores: the vCPUs' quota times their number; None: no quota."""
    quota_us = parameters.get("vcpu_quota")
    if quota_us is None or quota_us >= _QUOTA_US_NONE:
        return None
    return quota_to_millicores(quota_us * cpu_count, parameters.get("vcpu_period"))


def format_scheduler(millicores: int, cpu_count: int) -> dict[str, int]:
    """Spread evenly over the vCPUs; QEMU's own threads stay free, or a throttled VM would also
    lose its disk and its balloon. As much as all vCPUs can use, or more, lifts the quota."""
    if millicores >= cpu_count * 1000:
        return {"vcpu_quota": -1}
    quota_us = max(QUOTA_US_MIN, millicores * PERIOD_US // (1000 * cpu_count))
    return {"vcpu_period": PERIOD_US, "vcpu_quota": quota_us}


def parse_blkio(parameters: Mapping[str, object], devices: tuple[str, ...]) -> int | None:
    """The limit in bytes/s on each of `devices`, where every one has both ways limited."""
    ways = [
        parse_device_rates(str(parameters.get(f"device_{way}_bytes_sec", "")))
        for way in ("read", "write")
    ]
    limits = [rates.get(device) for device in devices for rates in ways]
    known = [limit for limit in limits if limit]
    return max(known) if known and len(known) == len(limits) else None


def format_blkio(amount: int, devices: tuple[str, ...]) -> dict[str, str]:
    """The kernel limits reads and writes apart: each way of each device gets it; 0 lifts it."""
    rates = ",".join(f"{device},{amount}" for device in devices)
    return {"device_read_bytes_sec": rates, "device_write_bytes_sec": rates}


def parse_device_rates(text: str) -> dict[str, int]:
    words = text.split(",")
    pairs = zip(words[::2], words[1::2], strict=False)  # an odd end is no pair
    return {device: int(rate) for device, rate in pairs if rate.isdecimal()}


def _total(stats: Mapping[str, int], *endings: str) -> int | None:
    amounts = [amount for key, amount in stats.items() if key.endswith(endings)]
    return sum(amounts) if amounts else None


def _bytes(kib: int | None) -> int | None:
    return None if kib is None else kib * _KIB
