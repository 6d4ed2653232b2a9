"""A hypervisor that is none: VMs of simple, stated physics behind the Hypervisor protocol.

For tests, and for a demonstration on a machine without libvirt; `simulated` is carried into
telemetry, so nothing here is ever shown as real. What holds for a simulated VM:

- Time passes in steps of 250 ms of the given clock, so that what happens does not depend on when
  somebody looks. Same seed, clock and commands: same story, bit for bit.
- Held memory (the programs' own) follows the load as far as there is room: limit less 16 MiB that
  the guest's kernel keeps. What does not fit swaps: major faults and swap-in rise.
- The balloon moves at 64 MiB/s, takes free pages first, then cache, and stalls at held + 16 MiB.
- The page cache grows into free memory at 4 MiB/s, and gives way to held memory at once.
- CPU use is the load capped by the quota and the vCPUs; what the quota denies counts as delay.
- Disk traffic is the load capped by the limit; nothing is queued. There is no network traffic, and
  a memory guard slows nothing: both are kept as set.
- Resident memory is what was ever touched and not given back by the balloon, plus 24 MiB.
- The guest's memory figures are stamped every two seconds of the wall clock.
"""

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from uuid import UUID, uuid5

from agent.hypervisor import (
    GUARD_WORD,
    NET_WORD,
    Listener,
    MemoryGuard,
    Recorder,
    Sight,
    VmEvent,
    VmEventKind,
    VmReading,
)
from shared.clock import MILLISECOND_NS, SECOND_NS, Clock
from shared.errors import HypervisorError, HypervisorTimeout, VmGone
from shared.resources import MIB, Resource
from shared.telemetry import VmState

STEP_NS = 250 * MILLISECOND_NS
BALLOON_BYTES_PER_S = 64 * MIB
CACHE_BYTES_PER_S = 4 * MIB
KERNEL_BYTES = 16 * MIB
OVERHEAD_BYTES = 24 * MIB
STATS_PERIOD_S = 2
# A clock that was moved by hours is not caught up step by step; a day is 345,600 steps.
_STEPS_MAX = 400_000

_VM_NAMESPACE = UUID("e1f4e0c4-6a5e-4c7b-8b8c-7f6f8f0a1c11")


@dataclass(frozen=True, slots=True)
class Wave:
    """A load that is `high` for the first `duty` part of every period and `low` for the rest."""

    low: int
    high: int
    period_s: int = 60
    duty: float = 0.5
    phase_s: int = 0
    noise: float = 0.02  # relative, uniform, drawn anew at every step

    def at(self, elapsed_ns: int, random: Random) -> int:
        place = (elapsed_ns / SECOND_NS + self.phase_s) % self.period_s
        level = self.high if place < self.duty * self.period_s else self.low
        return max(0, round(level * (1 + self.noise * (2 * random.random() - 1))))


@dataclass(frozen=True, slots=True)
class SimulatedVm:
    """What a VM is and wants: memory held in bytes, CPU in millicores, disk in bytes/s."""

    name: str
    memory_maximum_bytes: int = 512 * MIB
    cpu_count: int = 1
    memory: Wave = Wave(low=96 * MIB, high=96 * MIB)
    cpu: Wave = Wave(low=20, high=20, noise=0.5)
    io: Wave = Wave(low=0, high=0)
    balloon_driver: bool = True


DEMO_VMS = (
    # Low first, and longer than the demo's forecast looks back, so that memory goes both ways.
    SimulatedVm("sim-memory", memory=Wave(96 * MIB, 320 * MIB, period_s=150, duty=0.4, phase_s=60)),
    SimulatedVm("sim-cpu", cpu_count=2, cpu=Wave(low=100, high=1600, period_s=80)),
    SimulatedVm("sim-disk", io=Wave(low=MIB, high=40 * MIB, period_s=60, duty=0.3)),
    SimulatedVm("sim-idle"),
)


class SimulatedHypervisor:
    """`vms` start at full size when it is made. Not for use from more than one thread."""

    simulated = True

    def __init__(self, seed: int, clock: Clock, vms: tuple[SimulatedVm, ...] = DEMO_VMS) -> None:
        self._clock = clock
        self._started_tick_ns = clock.tick_ns()
        self._steps_done = 0
        self._machines: dict[str, _Machine] = {}
        self._recorder: Recorder | None = None
        self._listeners: list[Listener] = []
        self._seed = seed
        for spec in vms:
            self.start(spec)

    async def levers(self) -> dict[str, str]:
        return dict.fromkeys((*(each.word for each in Resource), NET_WORD, GUARD_WORD), "")

    async def read_all(self) -> tuple[VmReading, ...]:
        self._catch_up()
        with contextlib.suppress(OSError):  # told where something is to be changed
            for vm_id, machine in list(self._machines.items()):
                if not machine.frozen:
                    await self._put_on_record(vm_id)
        return tuple(self._reading(vm_id, machine) for vm_id, machine in self._machines.items())

    async def read(self, vm_id: str) -> VmReading:
        machine = self._answering(vm_id)
        self._catch_up()
        return self._reading(vm_id, machine)

    async def set_limit(self, vm_id: str, resource: Resource, amount: int) -> None:
        """As on libvirt: a CPU amount of all vCPUs lifts the quota, an I/O amount of 0 the limit,
        and a VM without a balloon driver accepts a memory target and does not move."""
        machine = self._answering(vm_id)
        self._catch_up()
        try:
            await self._put_on_record(vm_id)
            if self._recorder is not None:
                await self._recorder.touch(vm_id, resource.word)
        except OSError as error:
            raise HypervisorError(f"nothing of {machine.spec.name} is changed: {error}") from error
        machine.set_limit(resource, amount)

    async def set_net_limit(self, vm_id: str, bytes_per_s: int | None) -> None:
        self._answering(vm_id).net_limit_bytes_per_s = bytes_per_s

    async def set_guard(self, vm_id: str, guard: MemoryGuard | None) -> None:
        self._answering(vm_id).guard = guard

    def why_no_guard(self) -> str:
        return ""

    def record(self, recorder: Recorder) -> None:
        self._recorder = recorder

    async def sight(self, vm_id: str) -> Sight:
        self._catch_up()
        machine = self._answering(vm_id)
        run = f"simulated since {machine.started_tick_ns}"
        maximum = {"memory_bytes": machine.spec.memory_maximum_bytes}
        return Sight(vm_id, machine.spec.name, run, machine.settings(), maximum)

    async def put_back(self, vm_id: str, settings: Mapping[str, int]) -> None:
        machine = self._answering(vm_id)
        if "cpu_quota_millicores" in settings:
            machine.cpu_quota_millicores = settings["cpu_quota_millicores"] or None
        if "io_bytes_per_s" in settings:
            machine.io_limit_bytes_per_s = settings["io_bytes_per_s"] or None

    async def unmark(self, vm_id: str) -> None:
        self._answering(vm_id)

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def throttled_us(self, vm_ids: Iterable[str]) -> Mapping[str, int]:
        """What quotas denied, as time of one CPU that nobody got."""
        self._catch_up()
        there = (vm_id for vm_id in vm_ids if vm_id in self._machines)
        return {vm_id: self._machines[vm_id].counters["delay"] // 1000 for vm_id in there}

    def cpu_pressure_files(self, vm_ids: Iterable[str]) -> Iterable[Path]:
        return ()

    async def close(self) -> None:
        self._machines.clear()

    def vm_ids(self) -> dict[str, str]:
        """Name -> vm_id of the VMs that are there."""
        return {machine.spec.name: vm_id for vm_id, machine in self._machines.items()}

    def freeze(self, vm_id: str) -> None:
        """From now on its calls time out and its readings come with gaps; the guest runs on."""
        self._machine(vm_id).frozen = True

    def thaw(self, vm_id: str) -> None:
        self._machine(vm_id).frozen = False

    def start(self, spec: SimulatedVm) -> str:
        """A VM that was not there, at full size; its id comes from the seed and its name."""
        vm_id = str(uuid5(_VM_NAMESPACE, f"{self._seed}/{spec.name}"))
        assert vm_id not in self._machines, spec.name
        random = Random(f"{self._seed}/{spec.name}")  # noqa: S311 - a story from a seed, no secret
        self._machines[vm_id] = _Machine(spec, random, self._clock.tick_ns())
        self._tell(vm_id, VmEventKind.STARTED)
        return vm_id

    def vanish(self, vm_id: str) -> None:
        """The VM is destroyed."""
        self._machine(vm_id)
        del self._machines[vm_id]
        self._tell(vm_id, VmEventKind.STOPPED)

    def restart(self, vm_id: str) -> None:
        """The VM is started anew at full size: its counters begin at zero."""
        machine = self._machine(vm_id)
        self._machines[vm_id] = _Machine(machine.spec, machine.random, self._clock.tick_ns())
        self._tell(vm_id, VmEventKind.STOPPED)
        self._tell(vm_id, VmEventKind.STARTED)

    async def _put_on_record(self, vm_id: str) -> None:
        if self._recorder is not None:
            await self._recorder.note(await self.sight(vm_id))

    def _tell(self, vm_id: str, kind: VmEventKind) -> None:
        for listener in self._listeners:
            listener(VmEvent(vm_id, kind))

    def _catch_up(self) -> None:
        steps = (self._clock.tick_ns() - self._started_tick_ns) // STEP_NS
        for step in range(max(self._steps_done, steps - _STEPS_MAX), steps):
            for machine in self._machines.values():
                machine.step(step * STEP_NS)
        self._steps_done = max(self._steps_done, steps)

    def _machine(self, vm_id: str) -> "_Machine":
        if vm_id not in self._machines:
            raise VmGone(vm_id)
        return self._machines[vm_id]

    def _answering(self, vm_id: str) -> "_Machine":
        machine = self._machine(vm_id)
        if machine.frozen:
            raise HypervisorTimeout(f"simulated VM {machine.spec.name} is frozen: no answer")
        return machine

    def _reading(self, vm_id: str, machine: "_Machine") -> VmReading:
        if machine.frozen:
            return VmReading(vm_id, machine.spec.name, VmState.RUNNING)
        return machine.reading(vm_id, self._clock.unix_ns() // SECOND_NS)


@dataclass(slots=True)
class _Machine:
    """One VM's state; all of the physics."""

    spec: SimulatedVm
    random: Random
    started_tick_ns: int
    frozen: bool = False
    limit_bytes: int = 0
    target_bytes: int = 0
    held_bytes: int = 0
    cache_bytes: int = 0
    touched_bytes: int = 0
    cpu_quota_millicores: int | None = None
    io_limit_bytes_per_s: int | None = None
    net_limit_bytes_per_s: int | None = None
    guard: MemoryGuard | None = None
    counters: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.limit_bytes = self.target_bytes = self.spec.memory_maximum_bytes
        self.counters = dict.fromkeys(("cpu", "delay", "io", "faults", "swap_in"), 0)

    def set_limit(self, resource: Resource, amount: int) -> None:
        if amount < 0 or (amount == 0 and resource is not Resource.IO):
            raise HypervisorError(f"{self.spec.name}: {resource.word} limit {amount} refused")
        if resource is Resource.MEMORY:
            if amount > self.spec.memory_maximum_bytes:
                raise HypervisorError(f"{self.spec.name}: {amount} bytes are above its maximum")
            self.target_bytes = amount
        elif resource is Resource.CPU:
            self.cpu_quota_millicores = amount if amount < self.spec.cpu_count * 1000 else None
        else:
            self.io_limit_bytes_per_s = amount or None

    def settings(self) -> dict[str, int]:
        return {
            "memory_bytes": self.limit_bytes,
            "cpu_quota_millicores": self.cpu_quota_millicores or 0,
            "io_bytes_per_s": self.io_limit_bytes_per_s or 0,
        }

    def step(self, elapsed_ns: int) -> None:
        self._hold(self.spec.memory.at(elapsed_ns, self.random))
        if self.spec.balloon_driver:
            self._move_balloon()
        self._fill_cache()
        self.touched_bytes = min(self.limit_bytes, max(self.touched_bytes, self._in_use_bytes()))
        self._compute(self.spec.cpu.at(elapsed_ns, self.random))
        self._transfer(self.spec.io.at(elapsed_ns, self.random))

    def reading(self, vm_id: str, unix_s: int) -> VmReading:
        heard = self.spec.balloon_driver
        free_bytes = self.limit_bytes - self._in_use_bytes()
        return VmReading(
            vm_id=vm_id,
            name=self.spec.name,
            state=VmState.RUNNING,
            cpu_count=self.spec.cpu_count,
            cpu_time_ns=self.counters["cpu"],
            cpu_delay_ns=self.counters["delay"],
            cpu_quota_millicores=self.cpu_quota_millicores,
            memory_actual_bytes=self.limit_bytes,
            memory_maximum_bytes=self.spec.memory_maximum_bytes,
            memory_usable_bytes=free_bytes + self.cache_bytes if heard else None,
            memory_unused_bytes=free_bytes if heard else None,
            memory_cache_bytes=self.cache_bytes if heard else None,
            memory_resident_bytes=self.touched_bytes + OVERHEAD_BYTES,
            memory_major_faults=self.counters["faults"] if heard else None,
            memory_swap_in_bytes=self.counters["swap_in"] if heard else None,
            memory_last_update_unix_s=unix_s - unix_s % STATS_PERIOD_S if heard else None,
            io_bytes=self.counters["io"],
            io_limit_bytes_per_s=self.io_limit_bytes_per_s,
            net_limit_bytes_per_s=self.net_limit_bytes_per_s,
            net_found_bytes_per_s=None if self.net_limit_bytes_per_s is None else 0,
            memory_guard_bytes=None if self.guard is None else self.guard.high_bytes,
            memory_guarded_bytes=None if self.guard is None else self.guard.granted_bytes,
        )

    def _in_use_bytes(self) -> int:
        return self.held_bytes + self.cache_bytes + KERNEL_BYTES

    def _hold(self, demand_bytes: int) -> None:
        """Held memory takes what it wants as far as it fits; the cache gives way to it."""
        room_bytes = self.limit_bytes - KERNEL_BYTES
        self.held_bytes = min(demand_bytes, room_bytes)
        self.cache_bytes = min(self.cache_bytes, room_bytes - self.held_bytes)
        swapped_bytes = _per_step(min(demand_bytes - self.held_bytes, BALLOON_BYTES_PER_S))
        self.counters["swap_in"] += swapped_bytes
        self.counters["faults"] += math.ceil(swapped_bytes / 4096)

    def _move_balloon(self) -> None:
        stride = _per_step(BALLOON_BYTES_PER_S)
        if self.target_bytes >= self.limit_bytes:
            self.limit_bytes = min(self.target_bytes, self.limit_bytes + stride)
            return
        stall_bytes = self.held_bytes + KERNEL_BYTES
        wanted_bytes = max(self.target_bytes, self.limit_bytes - stride, stall_bytes)
        self.limit_bytes = min(self.limit_bytes, wanted_bytes)
        self.cache_bytes = min(self.cache_bytes, self.limit_bytes - stall_bytes)

    def _fill_cache(self) -> None:
        free_bytes = self.limit_bytes - self._in_use_bytes()
        self.cache_bytes += min(free_bytes, _per_step(CACHE_BYTES_PER_S))

    def _compute(self, demand_millicores: int) -> None:
        wanted = min(demand_millicores, self.spec.cpu_count * 1000)
        quota = self.cpu_quota_millicores
        used = wanted if quota is None else min(wanted, quota)
        self.counters["cpu"] += used * STEP_NS // 1000
        self.counters["delay"] += (wanted - used) * STEP_NS // 1000

    def _transfer(self, demand_bytes_per_s: int) -> None:
        limit = self.io_limit_bytes_per_s
        granted = demand_bytes_per_s if limit is None else min(demand_bytes_per_s, limit)
        self.counters["io"] += _per_step(granted)


def _per_step(amount_per_s: int) -> int:
    return amount_per_s * STEP_NS // SECOND_NS
