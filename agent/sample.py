"""Raw readings to a sample: counters become rates, stale figures become None. Pure.

The guest's memory figures belong to the balloon size at which they were taken: right after the
balloon moved, `actual - usable` would mix two moments and understate what the guest holds. They
count again once they are stamped after the last change of size that was seen. Both moments count
on the tick, a stamp's by its age: a wall clock that was set back would put it off for as long.

A counter that fell means that the VM was started anew between the two readings: all rates of that
VM are unknown for one tick, since the counters that did not fall may just have overtaken.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from agent.hypervisor import VmReading
from shared.telemetry import NodeReadings, VmSample, VmState
from shared.units import SECOND_NS

# Three of the ten-second ticks: a guest whose figures are older than that is not heard any more.
STATS_AGE_MAX_NS = 30 * SECOND_NS
# The guest's stamp has whole seconds, and clocks are stepped by a little now and then.
_CLOCK_SLACK_NS = 2 * SECOND_NS


@dataclass(frozen=True, slots=True)
class NodeCounters:
    """The machine's own raw readings (agent.procfs); counters since its boot."""

    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None
    swap_used_bytes: int | None = None
    cpu_count: int | None = None
    cpu_used_ns: int | None = None  # counter, all CPUs
    cpu_steal_ns: int | None = None  # counter, all CPUs
    io_bytes: int | None = None  # counter, whole physical disks
    cpu_pressure_us: int | None = None  # counter, PSI "some"
    memory_pressure_us: int | None = None  # counter, PSI "some"
    io_pressure_us: int | None = None  # counter, PSI "some"
    memory_pressure_full_us: int | None = None  # counter, PSI "full"
    net_bytes: int | None = None  # counter, interfaces that are devices
    load_milli: int | None = None  # tasks that run or wait for CPU or disk, mean of a minute
    uptime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class VmPressure:
    """PSI "some" of one VM's cgroup (agent.cgroup); counters."""

    cpu_us: int | None = None
    memory_us: int | None = None
    io_us: int | None = None


@dataclass(frozen=True, slots=True)
class RawNode:
    """Everything that was read at one tick, with the clocks at the reading."""

    unix_ns: int
    tick_ns: int
    counters: NodeCounters = NodeCounters()
    vms: tuple[VmReading, ...] = ()
    pressures: Mapping[str, VmPressure] = field(default_factory=dict)  # by vm_id
    resized: Mapping[str, "Resize"] = field(default_factory=dict)  # by vm_id
    starting: frozenset[str] = frozenset()  # vm_ids (agent.starting)


@dataclass(frozen=True, slots=True)
class Resize:
    """The balloon's size and when it was first seen to be that."""

    actual_bytes: int
    seen_tick_ns: int


def resizes(
    before: Mapping[str, Resize], vms: tuple[VmReading, ...], tick_ns: int
) -> dict[str, Resize]:
    """When each VM's balloon came to its present size; a VM that is new counts as just resized."""
    found = {}
    for vm in vms:
        if vm.memory_actual_bytes is None:
            continue
        known = before.get(vm.vm_id)
        same = known is not None and known.actual_bytes == vm.memory_actual_bytes
        found[vm.vm_id] = (
            known if known is not None and same else Resize(vm.memory_actual_bytes, tick_ns)
        )
    return found


@dataclass(frozen=True, slots=True)
class Allocatable:
    """What the operator lets VMs have together; None: not said."""

    memory_bytes: int | None = None
    cpu_millicores: int | None = None
    io_bytes_per_s: int | None = None


@dataclass(frozen=True, slots=True)
class Rates:
    """The part of a NodeSample that comes from readings; the loop adds who and when."""

    interval_ns: int  # what the rates are means over; 0 at the first reading
    node: NodeReadings
    vms: tuple[VmSample, ...]


def to_sample(
    previous: RawNode | None,
    current: RawNode,
    allocatable: Allocatable = Allocatable(),
    stats_age_max_ns: int = STATS_AGE_MAX_NS,
) -> Rates:
    """Rates over the interval between two readings; None without a previous one."""
    interval_ns = 0 if previous is None else max(0, current.tick_ns - previous.tick_ns)
    before = {} if previous is None else {vm.vm_id: vm for vm in previous.vms}
    pressures_before = {} if previous is None else previous.pressures
    vms = tuple(
        _vm_sample(
            _VmPair(
                before.get(vm.vm_id),
                vm,
                pressures_before.get(vm.vm_id, VmPressure()),
                current.pressures.get(vm.vm_id, VmPressure()),
                interval_ns,
            ),
            _stats_age_ns(vm, current.unix_ns),
            stats_age_max_ns,
            settled=_settled(vm, current),
            starting=vm.vm_id in current.starting,
        )
        for vm in current.vms
    )
    counters_before = NodeCounters() if previous is None else previous.counters
    node = _node_readings(counters_before, current.counters, interval_ns)
    node = replace(
        node,
        memory_allocatable_bytes=allocatable.memory_bytes,
        cpu_allocatable_millicores=allocatable.cpu_millicores,
        io_allocatable_bytes_per_s=allocatable.io_bytes_per_s,
    )
    return Rates(interval_ns=interval_ns, node=node, vms=vms)


def rate(before: int | None, now: int | None, interval_ns: int, per_second: int = 1) -> int | None:
    """Growth of a counter per second, times `per_second`; None where it cannot be known."""
    if before is None or now is None or interval_ns <= 0 or now < before:
        return None
    return (now - before) * per_second * SECOND_NS // interval_ns


@dataclass(frozen=True, slots=True)
class _VmPair:
    """One VM at both ends of the interval."""

    before: VmReading | None
    now: VmReading
    pressure_before: VmPressure
    pressure: VmPressure
    interval_ns: int

    def continuous(self) -> bool:
        """Whether the VM ran through the interval, so that its counters can be compared."""
        if self.before is None:
            return False
        return not any(
            before is not None and now is not None and now < before
            for before, now in zip(_counters(self.before), _counters(self.now), strict=True)
        )

    def rate(self, name: str) -> int | None:
        return rate(getattr(self.before, name, None), getattr(self.now, name), self.interval_ns)

    def pressure_rate(self, name: str) -> int | None:
        before, now = getattr(self.pressure_before, name), getattr(self.pressure, name)
        return rate(before, now, self.interval_ns)


def _vm_sample(
    pair: _VmPair,
    stats_age_ns: int | None,
    stats_age_max_ns: int,
    *,
    settled: bool,
    starting: bool,
) -> VmSample:
    now = pair.now
    cpu_maximum = None if now.cpu_count is None else now.cpu_count * 1000
    sample = VmSample(
        vm_id=now.vm_id,
        name=now.name,
        state=VmState.STARTING if starting and now.state is VmState.RUNNING else now.state,
        memory_limit_bytes=now.memory_actual_bytes,
        memory_maximum_bytes=now.memory_maximum_bytes,
        memory_resident_bytes=now.memory_resident_bytes,
        memory_stats_age_ns=stats_age_ns,
        cpu_limit_millicores=_smaller(now.cpu_quota_millicores, cpu_maximum),
        cpu_maximum_millicores=cpu_maximum,
        io_limit_bytes_per_s=now.io_limit_bytes_per_s,
        net_limit_bytes_per_s=now.net_limit_bytes_per_s,
    )
    if settled and stats_age_ns is not None and stats_age_ns <= stats_age_max_ns:
        sample = replace(
            sample,
            memory_used_bytes=_used(now.memory_actual_bytes, now.memory_usable_bytes),
            memory_free_bytes=now.memory_unused_bytes,
            memory_cache_bytes=now.memory_cache_bytes,
        )
    return _with_rates(sample, pair) if pair.continuous() else sample


def _with_rates(sample: VmSample, pair: _VmPair) -> VmSample:
    cpu_ns_per_s = pair.rate("cpu_time_ns")
    delay_ns_per_s = pair.rate("cpu_delay_ns")
    return replace(
        sample,
        memory_swap_in_bytes_per_s=pair.rate("memory_swap_in_bytes"),
        memory_major_faults_per_s=pair.rate("memory_major_faults"),
        memory_pressure_us_per_s=pair.pressure_rate("memory_us"),
        cpu_used_millicores=None if cpu_ns_per_s is None else cpu_ns_per_s // 1_000_000,
        cpu_delay_us_per_s=None if delay_ns_per_s is None else delay_ns_per_s // 1000,
        cpu_pressure_us_per_s=pair.pressure_rate("cpu_us"),
        io_used_bytes_per_s=pair.rate("io_bytes"),
        io_pressure_us_per_s=pair.pressure_rate("io_us"),
        net_used_bytes_per_s=pair.rate("net_bytes"),
    )


def _node_readings(before: NodeCounters, now: NodeCounters, interval_ns: int) -> NodeReadings:
    cpu_ns_per_s = rate(before.cpu_used_ns, now.cpu_used_ns, interval_ns)
    steal_ns_per_s = rate(before.cpu_steal_ns, now.cpu_steal_ns, interval_ns)
    return NodeReadings(
        memory_total_bytes=now.memory_total_bytes,
        memory_available_bytes=now.memory_available_bytes,
        swap_used_bytes=now.swap_used_bytes,
        cpu_total_millicores=None if now.cpu_count is None else now.cpu_count * 1000,
        cpu_used_millicores=None if cpu_ns_per_s is None else cpu_ns_per_s // 1_000_000,
        cpu_steal_millicores=None if steal_ns_per_s is None else steal_ns_per_s // 1_000_000,
        io_used_bytes_per_s=rate(before.io_bytes, now.io_bytes, interval_ns),
        cpu_pressure_us_per_s=rate(before.cpu_pressure_us, now.cpu_pressure_us, interval_ns),
        memory_pressure_us_per_s=rate(
            before.memory_pressure_us, now.memory_pressure_us, interval_ns
        ),
        io_pressure_us_per_s=rate(before.io_pressure_us, now.io_pressure_us, interval_ns),
        memory_pressure_full_us_per_s=rate(
            before.memory_pressure_full_us, now.memory_pressure_full_us, interval_ns
        ),
        net_used_bytes_per_s=rate(before.net_bytes, now.net_bytes, interval_ns),
        load_milli=now.load_milli,
        uptime_ns=now.uptime_ns,
    )


def _stats_age_ns(vm: VmReading, unix_ns: int) -> int | None:
    """Age of the balloon's figures by the host's wall clock, which is also what stamped them.

    A stamp from the future by more than slack tells nothing of the age: the clock was set.
    """
    if not vm.memory_last_update_unix_s:
        return None
    age_ns = unix_ns - vm.memory_last_update_unix_s * SECOND_NS
    return max(0, age_ns) if age_ns >= -_CLOCK_SLACK_NS else None


def _settled(vm: VmReading, current: RawNode) -> bool:
    """Whether the guest's figures were stamped at the balloon's present size."""
    resize = current.resized.get(vm.vm_id)
    if resize is None or vm.memory_last_update_unix_s is None:
        return False
    age_ns = current.unix_ns - vm.memory_last_update_unix_s * SECOND_NS
    return current.tick_ns - age_ns >= resize.seen_tick_ns


def _used(actual_bytes: int | None, usable_bytes: int | None) -> int | None:
    """What the guest cannot give up; more usable than there is contradicts itself: unknown."""
    if actual_bytes is None or usable_bytes is None or usable_bytes > actual_bytes:
        return None
    return actual_bytes - usable_bytes


def _smaller(limit: int | None, maximum: int | None) -> int | None:
    """The limit in force: a quota above what the vCPUs can use is none."""
    if limit is None or maximum is None:
        return maximum if limit is None else limit
    return min(limit, maximum)


def _counters(reading: VmReading) -> tuple[int | None, ...]:
    return (
        reading.cpu_time_ns,
        reading.cpu_delay_ns,
        reading.io_bytes,
        reading.net_bytes,
        reading.memory_major_faults,
        reading.memory_swap_in_bytes,
    )
