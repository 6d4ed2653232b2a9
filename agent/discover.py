"""What this machine is to the agent: its role, and the hypervisor that goes with it."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from agent.hypervisor import Hypervisor
from agent.identity import discover_role, is_virtual
from agent.settings import AUTO, NO_HYPERVISOR, AgentSettings
from shared.clock import Clock

SYSTEM_URI = "qemu:///system"
SESSION_URI = "qemu:///session"
_SOCKETS = ("libvirt-sock", "virtqemud-sock")
_DAEMONS = ("libvirtd", "virtqemud")


@dataclass(frozen=True, slots=True)
class Found:
    role: str  # as in telemetry: "host", "guest" or "host+guest"
    libvirt_uri: str | None  # None: no hypervisor


def look(settings: AgentSettings, root: Path) -> Found:
    """A hypervisor that the settings name is believed; one that they do not is looked for."""
    uri = settings.libvirt_uri
    if settings.role == "guest" or uri == NO_HYPERVISOR:
        virtual = is_virtual(root)
        role = "guest" if settings.role == "guest" or virtual else "host"
        return Found(role, None)
    if uri == AUTO:
        uri = SYSTEM_URI if os.geteuid() == 0 else SESSION_URI
        if settings.role == "auto" and not _is_reachable(uri, root):
            return Found(discover_role(root, libvirt_reachable=False), None)
    return Found("host+guest" if is_virtual(root) else "host", uri)


def open_hypervisor(
    settings: AgentSettings, found: Found, clock: Clock, *, guarded: bool = True
) -> Hypervisor | None:
    """Nothing is connected yet; a libvirt that is not there shows in the readings. `guarded`:
    whether memory grants are guarded (agent.memory_guard)."""
    if found.libvirt_uri is None:
        return None
    from agent.memory_guard import GuardedHypervisor  # noqa: PLC0415 - a guest has no VMs

    hypervisor = _hypervisor(settings, found.libvirt_uri, clock)
    if not guarded:
        return hypervisor
    return GuardedHypervisor(hypervisor, clock, enabled=settings.enable_memory_guard)


def _hypervisor(settings: AgentSettings, uri: str, clock: Clock) -> Hypervisor:
    if settings.simulated_seed is not None:
        from agent.simulated import SimulatedHypervisor  # noqa: PLC0415 - only where it is used

        return SimulatedHypervisor(settings.simulated_seed, clock)
    from agent.libvirt_host import LibvirtHypervisor  # noqa: PLC0415 - a guest has no libvirt

    may_configure = settings.enable_guest_statistics
    return LibvirtHypervisor(uri, clock, may_configure=may_configure)


def _is_reachable(uri: str, root: Path) -> bool:
    """A session's daemon is started by whoever asks for it, so the program is enough there."""
    if uri == SYSTEM_URI:
        return any((root / "run/libvirt" / name).exists() for name in _SOCKETS)
    return any(shutil.which(name) for name in _DAEMONS)
