"""The control groups of the VMs on this machine, found by QEMU's command line; for their PSI.

Reads files only: libvirt is not asked, so a frozen VM does not matter here.
"""

from collections.abc import Iterable
from pathlib import Path

from agent.cgroup import Cgroup, vm_cgroup
from agent.sample import VmPressure


class VmCgroups:
    """Remembers where each VM's groups are; `root` is where /proc and /sys are read ("/")."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._cgroups: dict[str, Cgroup] = {}  # without places: looked for and not found

    def pressures(self, vm_ids: Iterable[str]) -> dict[str, VmPressure]:
        """PSI counters of the VMs that have a group of their own where the kernel counts it."""
        self._find(frozenset(vm_ids))
        found = {vm_id: cgroup.pressure() for vm_id, cgroup in self._cgroups.items()}
        return {vm_id: pressure for vm_id, pressure in found.items() if pressure != VmPressure()}

    def cgroup(self, vm_id: str) -> Cgroup:
        """Without any places when the VM has no group of its own."""
        return self._cgroups.get(vm_id, Cgroup({}))

    def may_set_memory_high(self) -> bool:
        """Of some VM; also while none is known, since then it was not tried."""
        groups = [cgroup for cgroup in self._cgroups.values() if cgroup.places]
        return not groups or any(cgroup.may_set_memory_high() for cgroup in groups)

    def find(self, vm_ids: Iterable[str]) -> None:
        """So that `cgroup` knows them; those of other VMs are forgotten."""
        self._find(frozenset(vm_ids))

    def _find(self, vm_ids: frozenset[str]) -> None:
        """Looks through /proc only when the VMs are others than last time, or one was restarted:
        then its groups, which carry libvirt's number of the run in their names, are gone."""
        for vm_id, cgroup in list(self._cgroups.items()):
            vanished = not all(place.directory.exists() for place in cgroup.places.values())
            if vanished or vm_id not in vm_ids:
                del self._cgroups[vm_id]
        if vm_ids <= self._cgroups.keys():
            return
        processes = qemu_processes(self._root / "proc")
        for vm_id in vm_ids:
            if not self.cgroup(vm_id).places:
                pid = processes.get(vm_id)
                self._cgroups[vm_id] = Cgroup({}) if pid is None else vm_cgroup(self._root, pid)


def qemu_processes(proc: Path) -> dict[str, int]:
    """VM id -> process id, of every process that was given `-uuid`."""
    found: dict[str, int] = {}
    for entry in proc.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:  # ended since, or not ours to see
            continue
        if b"-uuid" in words[:-1]:
            vm_id = words[words.index(b"-uuid") + 1].decode("ascii", "replace").lower()
            found[vm_id] = int(entry.name)
    return found
