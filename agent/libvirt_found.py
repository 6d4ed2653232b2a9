"""What libvirt says of a VM, as the plain settings of which `agent.found` keeps records; and back.

Pure, but for `Runs`, which reads /proc: libvirt numbers its domains anew when it starts, a process
and the moment of its start are another after every start of the VM.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from agent.cgroup import read_text
from agent.hypervisor import Sight
from agent.libvirt_devices import MARK_URI
from agent.libvirt_levers import Call
from agent.libvirt_readings import parse_device_rates
from agent.vm_cgroups import qemu_processes

NOTE = "found"  # libvirt keeps it beside the running VM, and takes it along in a migration
_KIB = 1024
_QUOTA_US_NONE = 17_592_186_044_415  # libvirt's own largest
_STARTED_FIELD = 19  # of /proc/PID/stat, behind the name
# Name of the setting, and of libvirt's parameter.
_SCHEDULER = {
    "cpu_period_us": "vcpu_period",
    "cpu_quota_us": "vcpu_quota",
    "cpu_shares": "cpu_shares",
}
_WAYS = {"io_read_bytes_per_s": "read_bytes_sec", "io_write_bytes_per_s": "write_bytes_sec"}


def sight_of(vm_id: str, run: str, inspected: list[Any]) -> Sight:
    """`inspected`: the worker's; parameters stand as libvirt's text where it has none."""
    xml, scheduler, blkio, _, inactive, balloon_kib = inspected
    live = ET.fromstring(xml)  # noqa: S314 - written by libvirt, not by a guest
    settings = _memory(live)
    if balloon_kib is not None:
        settings["memory_bytes"] = balloon_kib * _KIB
    if not isinstance(scheduler, str):
        known = {ours: scheduler.get(theirs) for ours, theirs in _SCHEDULER.items()}
        settings |= {name: value for name, value in known.items() if value is not None}
        settings["cpu_quota_us"] = _quota(settings.get("cpu_quota_us", 0))
    if not isinstance(blkio, str):
        for way, parameter in _WAYS.items():
            rates = parse_device_rates(str(blkio.get(f"device_{parameter}", "")))
            settings |= {f"{way} {device}": rate for device, rate in rates.items() if rate}
    name, note = live.findtext("name") or "", live.find(f"metadata/{{{MARK_URI}{NOTE}}}{NOTE}")
    brought = {} if note is None else {each: int(text) for each, text in note.attrib.items()}
    return Sight(vm_id, name, run, settings, _defined(inactive), brought)


def note_of(settings: Mapping[str, int]) -> dict[str, int]:
    """What a VM brings along; devices have other names elsewhere, and theirs fit no attribute."""
    return {name: value for name, value in settings.items() if " " not in name}


def calls_for(settings: Mapping[str, int]) -> list[Call]:
    """That put these settings in force; memory is not among them."""
    calls: list[Call] = []
    scheduler = {theirs: settings[ours] for ours, theirs in _SCHEDULER.items() if ours in settings}
    if scheduler.get("vcpu_quota") == 0:
        scheduler["vcpu_quota"] = -1
    if scheduler:
        calls.append(("set_scheduler", (scheduler,)))
    blkio = {}
    for way, parameter in _WAYS.items():
        rates = [
            f"{name.removeprefix(way).strip()},{value}"
            for name, value in settings.items()
            if name.startswith(f"{way} ")
        ]
        if rates:
            blkio[f"device_{parameter}"] = ",".join(rates)
    if blkio:
        calls.append(("set_blkio", (blkio,)))
    if "statistics_period_s" in settings:
        calls.append(("set_stats_period", (settings["statistics_period_s"],)))
    return calls


class Runs:
    """Tells the runs of VMs apart; `root` is where /proc is ("/")."""

    def __init__(self, root: Path) -> None:
        self._proc = root / "proc"
        self._processes: dict[str, tuple[int, str]] = {}  # VM -> its process, and its start

    def of(self, vm_id: str, domain_id: int | None) -> str:
        """Looks through /proc only when the VM's process is not the known one."""
        pid, started = self._processes.get(vm_id, (0, ""))
        if not started or self._started(pid) != started:
            found = qemu_processes(self._proc)
            self._processes = {vm: (number, self._started(number)) for vm, number in found.items()}
            pid, started = self._processes.get(vm_id, (0, ""))
        # A driver without processes, such as libvirt's test driver: its own number must do.
        return f"{self._boot_id()}/{pid}/{started}" if started else f"domain {domain_id}"

    def _started(self, pid: int) -> str:
        """Clock ticks from boot to the process's start; empty when it is gone."""
        fields = (read_text(self._proc / str(pid) / "stat") or "").rpartition(")")[2].split()
        return fields[_STARTED_FIELD] if len(fields) > _STARTED_FIELD else ""

    def _boot_id(self) -> str:
        return (read_text(self._proc / "sys/kernel/random/boot_id") or "").strip()


def _defined(inactive: str) -> dict[str, int]:
    """What the definition says; empty for a VM that has none."""
    if not inactive:
        return {}
    root = ET.fromstring(inactive)  # noqa: S314 - likewise
    found = _memory(root)
    for ours, tag in {"cpu_period_us": "period", "cpu_shares": "shares"}.items():
        number = root.findtext(f"cputune/{tag}")
        if number is not None:
            found[ours] = int(number)
    found["cpu_quota_us"] = _quota(int(root.findtext("cputune/quota") or 0))
    for device in root.findall("blkiotune/device"):
        for way, parameter in _WAYS.items():
            rate = int(device.findtext(parameter) or 0)
            if rate:
                found[f"{way} {device.findtext('path')}"] = rate
    return found


def _memory(root: ET.Element) -> dict[str, int]:
    """The balloon's target and the pace of its figures."""
    found = {}
    current = root.find("currentMemory")
    if current is not None and current.text:
        assert current.get("unit") == "KiB", "libvirt writes memory in KiB"
        found["memory_bytes"] = int(current.text) * _KIB
    if root.find("devices/memballoon[@model='virtio']") is not None:
        stats = root.find("devices/memballoon/stats")
        period = "0" if stats is None else stats.get("period", "0")
        found["statistics_period_s"] = int(period)
    return found


def _quota(quota_us: int) -> int:
    return quota_us if 0 < quota_us < _QUOTA_US_NONE else 0
