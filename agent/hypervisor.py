"""The hypervisor as the agent sees it: one protocol, real (agent.libvirt_host) or simulated.

Readings are raw: counters since the VM started, amounts in force; `agent.sample` makes rates.
Every call is bounded in time by the implementation and may raise VmGone, HypervisorError or one
of its children (shared.errors); nothing else.
"""

from dataclasses import dataclass
from typing import Protocol

from shared.resources import Resource
from shared.telemetry import VmState


@dataclass(frozen=True, slots=True)
class VmReading:
    """Raw readings of one VM at one moment; None where the hypervisor does not say."""

    vm_id: str
    name: str
    state: VmState
    cpu_count: int | None = None
    cpu_time_ns: int | None = None  # counter
    cpu_delay_ns: int | None = None  # counter, sum over vCPUs
    cpu_quota_millicores: int | None = None  # None: no quota
    memory_actual_bytes: int | None = None
    memory_maximum_bytes: int | None = None
    memory_usable_bytes: int | None = None
    memory_unused_bytes: int | None = None
    memory_cache_bytes: int | None = None
    memory_resident_bytes: int | None = None
    memory_major_faults: int | None = None  # counter
    memory_swap_in_bytes: int | None = None  # counter
    memory_last_update_unix_s: int | None = None  # of the balloon statistics; 0 or None: never
    io_bytes: int | None = None  # counter, reads and writes of all disks
    io_limit_bytes_per_s: int | None = None  # None: no limit


class Hypervisor(Protocol):
    """`simulated` is carried into telemetry: a simulated thing is never shown as real."""

    simulated: bool

    async def levers(self) -> dict[str, str]:
        """Resource word -> why it cannot be moved here; an empty text means that it works."""
        ...

    async def read_all(self) -> tuple[VmReading, ...]:
        """All active VMs, in one bulk call where possible; a frozen VM comes with gaps (None)."""
        ...

    async def read(self, vm_id: str) -> VmReading:
        """One VM, now; used to measure the effect of a step."""
        ...

    async def set_limit(self, vm_id: str, resource: Resource, amount: int) -> None:
        """Asks for a new limit (bytes, millicores, bytes/s). Returning is no proof of effect."""
        ...

    async def close(self) -> None: ...
