"""What an agent saw at one tick: one node and all of its VMs. Frozen; units in the names.

A reading that could not be had is None, never zero. Rates are means over `interval_ns`.
"""

from dataclasses import dataclass, field
from enum import IntEnum


class VmState(IntEnum):
    """As far as the planner must know; everything that is neither running nor named is OTHER."""

    OTHER = 0
    RUNNING = 1
    PAUSED = 2
    MIGRATING = 3
    SHUT_DOWN = 4
    STARTING = 5  # it runs, and has not yet said that it is ready: nothing is taken from it


# Bits of VmSample.idle_levers: these shifted left by the Resource's number.
IDLE = 1  # left alone for a while
IDLE_SHRINKING = 1 << 8  # likewise, but it may still grow


@dataclass(frozen=True, slots=True)
class VmSample:
    """One VM as its host sees it."""

    vm_id: str  # libvirt domain UUID, lower case
    name: str
    state: VmState = VmState.RUNNING
    memory_limit_bytes: int | None = None  # balloon size in force, measured
    memory_maximum_bytes: int | None = None  # what the balloon can give back at most (boot size)
    memory_used_bytes: int | None = None  # limit - usable: what the guest cannot give up
    memory_free_bytes: int | None = None  # pages that the guest reports free
    memory_cache_bytes: int | None = None  # the guest's droppable page cache
    memory_resident_bytes: int | None = None  # of the hypervisor process on this host
    memory_stats_age_ns: int | None = None  # age of the guest's own figures
    memory_swap_in_bytes_per_s: int | None = None
    memory_major_faults_per_s: int | None = None
    memory_pressure_us_per_s: int | None = None  # PSI "some", where the VM's cgroup has it
    cpu_limit_millicores: int | None = None  # quota in force; vCPUs * 1000 where there is none
    cpu_maximum_millicores: int | None = None  # vCPUs * 1000
    cpu_used_millicores: int | None = None
    cpu_delay_us_per_s: int | None = None  # runnable but not running: steal seen from outside
    cpu_pressure_us_per_s: int | None = None
    io_limit_bytes_per_s: int | None = None  # None: no limit in force
    io_used_bytes_per_s: int | None = None
    io_pressure_us_per_s: int | None = None
    net_limit_bytes_per_s: int | None = None  # None: no limit in force
    net_used_bytes_per_s: int | None = None  # received and sent, all interfaces
    idle_levers: int | None = None  # that lately did nothing: IDLE_* bits by resource; None: none


@dataclass(frozen=True, slots=True)
class NodeReadings:
    """The node's own machine as seen from inside."""

    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None
    memory_allocatable_bytes: int | None = None  # what its operator lets VMs have together
    swap_used_bytes: int | None = None
    cpu_total_millicores: int | None = None
    cpu_allocatable_millicores: int | None = None
    cpu_used_millicores: int | None = None
    cpu_steal_millicores: int | None = None
    io_allocatable_bytes_per_s: int | None = None  # None: unknown, I/O is left alone
    io_used_bytes_per_s: int | None = None
    cpu_pressure_us_per_s: int | None = None  # PSI "some"
    memory_pressure_us_per_s: int | None = None
    io_pressure_us_per_s: int | None = None
    memory_pressure_full_us_per_s: int | None = None  # PSI "full": nothing could go on
    net_used_bytes_per_s: int | None = None  # received and sent, physical interfaces
    load_milli: int | None = None  # mean number of runnable tasks over a minute, in thousandths
    uptime_ns: int | None = None
    ready_ns: int | None = None  # uptime at which it was up and ready; None: not yet


@dataclass(frozen=True, slots=True)
class RoleUse:
    """What all processes of one role (agent.roles) use together."""

    role: str  # e.g. "database"; "other" for what is not in the table
    processes: int
    cpu_used_millicores: int | None = None
    memory_resident_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Loan:
    """What an agent moved by itself since the last plan: a reflex, to be taken up by the next."""

    vm_id: str
    resource: int  # shared.resources.Resource
    base_amount: int  # the limit before it, which the agent goes back to
    amount: int  # the limit that it set; the base where it had nothing to lend
    wanted_amount: int  # what the VM asked for, as far as its host believes it


@dataclass(frozen=True, slots=True)
class NodeSample:
    """One message on the bus."""

    node_id: str  # SMBIOS product UUID, or one derived from /etc/machine-id; lower case
    name: str
    role: str  # "host", "guest" or "host+guest"
    boot_id: str  # kernel's random boot id; ticks and sequences count within it
    sequence: int  # rises by one per message within a run of the agent
    sampled_at_unix_ns: int  # the agent's wall clock; for people and grids only
    tick_ns: int  # the agent's CLOCK_BOOTTIME at the sample; comes back in commands
    interval_ns: int  # what the rates are means over
    generation: int = 0  # rises with every change that this agent made to a VM
    epoch_highest: int = 0  # highest controller epoch that it has obeyed
    simulated: bool = False  # physics of agent.simulated, not a machine
    levers: dict[str, str] = field(default_factory=dict)  # resource -> why not; "" = works
    node: NodeReadings = NodeReadings()
    vms: tuple[VmSample, ...] = ()
    loans: tuple[Loan, ...] = ()
    roles: tuple[RoleUse, ...] = ()
