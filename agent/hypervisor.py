"""The hypervisor as the agent sees it: one protocol, real (agent.libvirt_host) or simulated.

Readings are raw: counters since the VM started, amounts in force; `agent.sample` makes rates.
Every call is bounded in time by the implementation and may raise VmGone, HypervisorError or one
of its children (shared.errors); nothing else.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol, runtime_checkable

from shared.resources import Resource
from shared.telemetry import VmState

NET_WORD, GUARD_WORD = "net", "guard"  # beside the resources' words, among the levers


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
    net_bytes: int | None = None  # counter, received and sent by all interfaces
    net_limit_bytes_per_s: int | None = None  # None: no limit
    net_found_bytes_per_s: int | None = None  # before ours, 0: none; None: no limit of ours
    memory_blocks: "MemoryBlocks | None" = None  # None: its memory moves page by page
    memory_guard_bytes: int | None = None  # above it the VM's process is slowed; None: no guard
    memory_guarded_bytes: int | None = None  # the grant that it was set for; None: not by us


@dataclass(frozen=True, slots=True)
class MemoryBlocks:
    """Memory that moves in whole blocks of `size_bytes`, but for the first `fixed_bytes`."""

    size_bytes: int
    fixed_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryGuard:
    """Above `high_bytes` of its process on this host a VM is slowed down, not killed: a guest that
    takes back pages without leave. `granted_bytes`: the memory that it may have."""

    granted_bytes: int
    high_bytes: int


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


@dataclass(frozen=True, slots=True)
class Sight:
    """What is in force of a VM, by plain names; 0: no limit. Names of one device end with it."""

    vm_id: str
    name: str
    run: str  # other after every start, also of the same VM
    settings: Mapping[str, int]
    defined: Mapping[str, int]  # what its definition says, as far as it says anything
    brought: Mapping[str, int] = field(default_factory=dict)  # as found by an agent before ours


class Recorder(Protocol):
    """Who keeps what VMs were like before (agent.found.FoundStore); OSError when it is not kept."""

    def is_touched(self, vm_id: str, run: str, word: str) -> bool: ...

    async def note(self, sight: Sight) -> None: ...

    async def touch(self, vm_id: str, word: str) -> Mapping[str, int]:
        """What the VM should bring along when it leaves: as found, of all that was touched."""
        ...


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

    async def set_net_limit(self, vm_id: str, bytes_per_s: int | None) -> None:
        """Limits each way of each network interface; None: as it was before the first of ours."""
        ...

    async def set_guard(self, vm_id: str, guard: MemoryGuard | None) -> None:
        """Sets a guard, or lifts ours; HypervisorError where this host has none."""
        ...

    def why_no_guard(self) -> str:
        """Why this host has no memory guards; "" where it has."""
        ...

    def record(self, recorder: Recorder) -> None:
        """From now on `recorder` is told what a VM is like, before anything of it is changed;
        where it cannot keep that, nothing is changed (HypervisorError)."""
        ...

    async def sight(self, vm_id: str) -> Sight:
        """What may be changed of a VM, as it is now."""
        ...

    async def put_back(self, vm_id: str, settings: Mapping[str, int]) -> None:
        """Sets what `sight` named, but for memory, which is moved by `set_limit`."""
        ...

    async def unmark(self, vm_id: str) -> None:
        """Takes away what was noted beside the VM of how it was found."""
        ...

    def listen(self, listener: Listener) -> None:
        """`listener` is called with every event from now on, between two steps of the event loop.

        Events only make readings come earlier: some are missed, so nothing may rely on them.
        """
        ...

    async def close(self) -> None: ...


@runtime_checkable
class CountsThrottling(Protocol):
    """A hypervisor that knows by itself how long quotas held its VMs back; of others the kernel
    tells it (agent.throttle)."""

    def throttled_us(self, vm_ids: Iterable[str]) -> Mapping[str, int]:
        """Counters of the VMs that have one; never waits."""
        ...

    def cpu_pressure_files(self, vm_ids: Iterable[str]) -> Iterable[Path]:
        """PSI files that show a VM waiting for CPU, where there are some."""
        ...
