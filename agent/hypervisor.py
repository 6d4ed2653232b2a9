"""The hypervisor as the agent sees it: one protocol, real (agent.libvirt_host) or simulated.

Readings are raw: counters since the VM started, amounts in force; `agent.sample` makes rates.
Every call is bounded in time by the implementation and may raise VmGone, HypervisorError or one
of its children (shared.errors); nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
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


class VmEventKind(Enum):
    """What became of a VM, or of the way by which this is heard."""

    STARTED = "started"  # booted: its counters begin at zero, its limits are its definition's
    ARRIVED = "arrived"  # migrated here, or restored from a file: it has run before, elsewhere
    REBOOTED = "rebooted"  # by itself; counters and limits go on
    PAUSED = "paused"
    RESUMED = "resumed"  # runs on, also where a migration of it came to nothing
    MIGRATING = "migrating"  # away from here; told again and again while it goes on
    LEFT = "left"  # migrated away
    STOPPED = "stopped"
    DEFINED = "defined"  # its definition was changed; what is in force may be the same
    RETUNED = "retuned"  # somebody set a limit of it
    LOST = "lost"  # nothing is heard of any VM from now on
    HEARD_AGAIN = "heard again"  # events may have been missed before: look at all of them


# After these nothing is known of a VM's limits any more.
BEGINNINGS = frozenset({VmEventKind.STARTED, VmEventKind.ARRIVED})


@dataclass(frozen=True, slots=True)
class VmEvent:
    vm_id: str  # empty where it is about all of them
    kind: VmEventKind


Listener = Callable[[VmEvent], None]


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

    def listen(self, listener: Listener) -> None:
        """`listener` is called with every event from now on, between two steps of the event loop.

        Events only make readings come earlier: some are missed, so nothing may rely on them.
        """
        ...

    async def close(self) -> None: ...
