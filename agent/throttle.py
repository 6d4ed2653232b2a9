"""How long VMs were held back by their CPU quota: cpu.stat of their vCPUs' groups, v1 and v2.

libvirt sets a quota on each vCPU's own group (`vcpuN`, below `libvirt/` under systemd), so that is
where the kernel counts; a VM without such groups is counted as a whole.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from agent.cgroup import UNIFIED, Place, parse_flat, read_text
from agent.vm_cgroups import VmCgroups

_NS_PER_US = 1000


class VmThrottle:
    """`root` is where /proc and /sys are read ("/")."""

    def __init__(self, root: Path) -> None:
        self._cgroups = VmCgroups(root)
        self._files: dict[str, tuple[Path, ...]] = {}  # vm id -> cpu.stat files

    def throttled_us(self, vm_ids: Iterable[str]) -> Mapping[str, int]:
        """Counters of the VMs that have one: time in which some vCPU might not run."""
        wanted = frozenset(vm_ids)
        self._cgroups.find(wanted)
        self._files = {k: v for k, v in self._files.items() if k in wanted}
        found = {vm_id: self._read(vm_id) for vm_id in wanted}
        return {vm_id: counter for vm_id, counter in found.items() if counter is not None}

    def cpu_pressure_files(self, vm_ids: Iterable[str]) -> Iterable[Path]:
        """As found last; version 2 alone has them."""
        places = (self._cgroups.cgroup(vm_id).places.get(UNIFIED) for vm_id in vm_ids)
        files = (place.directory / "cpu.pressure" for place in places if place is not None)
        return tuple(file for file in files if file.exists())

    def _read(self, vm_id: str) -> int | None:
        place = self._cgroups.cgroup(vm_id).places.get("cpu")
        if place is None:
            self._files.pop(vm_id, None)
            return None
        files = self._files.get(vm_id, ())
        if not files or not files[0].is_relative_to(place.directory):
            files = self._files[vm_id] = stat_files(place)
        counters = [throttled_us(read_text(file)) for file in files]
        known = [counter for counter in counters if counter is not None]
        if not known:
            self._files.pop(vm_id, None)
        return sum(known) if known else None


def stat_files(place: Place) -> tuple[Path, ...]:
    """Of the vCPUs, or of the VM where they have no groups of their own."""
    below = place.directory / "libvirt"
    above = below if below.is_dir() else place.directory
    vcpus = tuple(sorted(path / "cpu.stat" for path in above.glob("vcpu*")))
    return vcpus or (place.directory / "cpu.stat",)


def throttled_us(text: str | None) -> int | None:
    """From cpu.stat: `throttled_usec` in version 2, `throttled_time` in ns in version 1."""
    stat = parse_flat(text)
    if "throttled_usec" in stat:
        return stat["throttled_usec"]
    nanoseconds = stat.get("throttled_time")
    return None if nanoseconds is None else nanoseconds // _NS_PER_US
