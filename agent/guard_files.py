"""memory.high of VMs, in the kernel's own files. Not through libvirt: a VM that is slowed down no
longer answers it, and then only the kernel can be asked to let go."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

from agent.cgroup import memory_guard_reason
from agent.vm_cgroups import VmCgroups

NOT_OURS = (
    "memory.high is root's to set, and no VM's was handed to this agent; deploy/README.md says how"
    " the installation does it"
)


class GuardFiles:
    """`root` is where /proc and /sys are ("/")."""

    def __init__(self, uri: str, root: Path) -> None:
        self._is_session = uri.endswith("/session")
        self._root = root
        self._cgroups = VmCgroups(root)

    def why_not(self) -> str:
        """Why this agent can set none on this machine; "" where it can."""
        missing = self._missing()
        return missing or ("" if self._cgroups.may_set_memory_high() else NOT_OURS)

    def find(self, vm_ids: Iterable[str]) -> None:
        """So that the groups of these VMs are known."""
        if not self._missing():
            self._cgroups.find(vm_ids)

    def high_bytes(self, vm_id: str) -> int | None:
        return self._cgroups.cgroup(vm_id).memory_high_bytes()

    def gives_way(self, vm_id: str, high_bytes: int | None) -> bool:
        """Whether `high_bytes` (None: no limit) leaves the VM more room than it has now."""
        now = self.high_bytes(vm_id)
        return high_bytes is None or (now is not None and high_bytes > now)

    def _missing(self) -> str:
        """What the machine lacks, whoever asks."""
        if self._is_session:
            return "a session hypervisor has no cgroups; run it as root (qemu:///system)"
        return memory_guard_reason(self._root)

    async def write(self, vm_id: str, high_bytes: int | None) -> None:
        """In a thread: the kernel may have to look for pages first."""
        group = self._cgroups.cgroup(vm_id)
        await asyncio.to_thread(group.set_memory_high_bytes, high_bytes)
