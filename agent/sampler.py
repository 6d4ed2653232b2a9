"""Reads the machine and its VMs: every few seconds for telemetry, and at once for a judgement.

When the hypervisor does not answer, the node's own readings go on, and the VMs that were there
stand in the sample with gaps: unknown is not gone.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from agent.admission import Readings
from agent.hypervisor import Hypervisor, VmReading
from agent.procfs import parse_pressure, read_counters
from agent.sample import STATS_AGE_MAX_NS, Allocatable, Rates, RawNode, Resize, resizes, to_sample
from agent.settings import AgentSettings
from agent.starting import Starts
from agent.vm_cgroups import VmCgroups
from shared.clock import SECOND_NS, Clock
from shared.errors import HypervisorError
from shared.log import RateLimited
from shared.resources import Resource
from shared.telemetry import VmSample, VmState

logger = logging.getLogger(__name__)

LEVERS_AGAIN_NS = 60 * SECOND_NS  # asking costs a bulk call


@dataclass(frozen=True, slots=True)
class Share:
    """What VMs may have of this node together; None: all but the reserve, all CPUs (as often as
    `cpu_overcommit` says), unknown."""

    memory_bytes: int | None = None
    memory_reserved_bytes: int = 0
    cpu_millicores: int | None = None
    cpu_overcommit: float = 1.0
    io_bytes_per_s: int | None = None

    @classmethod
    def of_settings(cls, settings: AgentSettings) -> Self:
        return cls(
            settings.memory_allocatable_bytes,
            settings.memory_reserved_bytes,
            settings.cpu_allocatable_millicores,
            settings.cpu_overcommit,
            settings.io_allocatable_bytes_per_s,
        )

    def of(self, memory_total_bytes: int | None, cpu_count: int | None) -> Allocatable:
        memory = self.memory_bytes
        if memory is None and memory_total_bytes is not None:
            memory = max(0, memory_total_bytes - self.memory_reserved_bytes)
        cpu = self.cpu_millicores
        if cpu is None and cpu_count is not None:
            cpu = int(cpu_count * 1000 * self.cpu_overcommit)
        return Allocatable(memory, cpu, self.io_bytes_per_s)


class Sampler:
    """`root` is where /proc and /sys are; `hypervisor` None: a machine without VMs.

    `starts` tells which VMs are starting; whoever hears their agents' words hands them to it.
    """

    def __init__(
        self,
        root: Path,
        hypervisor: Hypervisor | None,
        clock: Clock,
        share: Share = Share(),
        interval_s: float = 10.0,
        starts: Starts | None = None,
    ) -> None:
        self._root = root
        self._hypervisor = hypervisor
        self._clock = clock
        self._share = share
        # Guests stamp their figures at a pace of their own, however often they are read.
        self._stats_age_ns_max = max(STATS_AGE_MAX_NS, int(3 * interval_s * SECOND_NS))
        self._previous: RawNode | None = None
        self._resized: dict[str, Resize] = {}
        self._cgroups = VmCgroups(root)
        self._known: dict[str, VmSample] = {}  # as last read without gaps
        self._levers: dict[str, str] = {}
        self._levers_tick_ns: int | None = None
        self._said = RateLimited(logger, clock)
        self.starts = starts or Starts.of_settings(AgentSettings())
        self.hypervisor_errors = 0
        self.is_blind = False  # the hypervisor did not answer the last sample
        if hypervisor is not None:
            hypervisor.listen(lambda event: self.starts.hear(event, clock.tick_ns()))

    async def sample(self) -> Rates:
        """Rates since the last sample; never fails because of the hypervisor."""
        began = self._clock.tick_ns()
        vms, error = await self._vms()
        self.is_blind = error is not None
        if error is None:
            self._look_at_starts(vms, began)
        now = self._raw(vms)
        rates = self._rates(now)
        self._previous = now
        if error is not None:
            gaps = tuple(_gap(vm) for vm in self._known.values())
            return replace(rates, vms=gaps)
        self._remember(rates.vms)
        return rates

    async def readings(self) -> Readings:
        """What is in force now; HypervisorError when the hypervisor does not say."""
        if self._hypervisor is None:
            raise HypervisorError("this agent has no hypervisor")
        began = self._clock.tick_ns()
        vms = await self._hypervisor.read_all()
        self._look_at_starts(vms, began)
        rates = self._rates(self._raw(vms))
        return Readings(
            rates.node,
            {vm.vm_id: self._with_maximum(vm) for vm in rates.vms},
            self._stats_age_ns_max,
            levers=await self.levers(),
            blocks={vm.vm_id: vm.memory_blocks for vm in vms if vm.memory_blocks is not None},
            tick_ns=began,
        )

    async def sees_again(self) -> bool:
        """Whether the hypervisor answers, tried now; what it says is for the next sample."""
        try:
            await self.readings()
        except HypervisorError:
            return False
        return True

    def sample_of(self, reading: VmReading) -> VmSample:
        """One VM as read just now, between two samples."""
        unix_ns, tick_ns = self._clock.unix_ns(), self._clock.tick_ns()
        self._resized |= resizes(self._resized, (reading,), tick_ns)
        raw = RawNode(
            unix_ns,
            tick_ns,
            vms=(reading,),
            resized=self._resized,
            starting=self.starts.starting,
        )
        (vm,) = to_sample(self._previous, raw, stats_age_max_ns=self._stats_age_ns_max).vms
        return self._with_maximum(vm)

    async def levers(self) -> dict[str, str]:
        """Resource -> why it cannot be moved; asked again every minute and after a failure."""
        if self._hypervisor is None:
            return {}
        now = self._clock.tick_ns()
        asked = self._levers_tick_ns
        if asked is None or now - asked >= LEVERS_AGAIN_NS:
            try:
                self._levers = await self._hypervisor.levers()
                self._levers_tick_ns = now
            except HypervisorError as error:
                self._levers = dict.fromkeys((each.word for each in Resource), str(error))
                self._levers_tick_ns = None
        return self._levers

    @property
    def known(self) -> Mapping[str, VmSample]:
        """The VMs that are there, as last read without gaps."""
        return self._known

    async def _vms(self) -> tuple[tuple[VmReading, ...], HypervisorError | None]:
        if self._hypervisor is None:
            return (), None
        try:
            return await self._hypervisor.read_all(), None
        except HypervisorError as error:
            self.hypervisor_errors += 1
            self._levers_tick_ns = None
            self._said.warning("hypervisor", "VMs cannot be read", cause=str(error))
            return (), error

    def _look_at_starts(self, vms: tuple[VmReading, ...], began_tick_ns: int) -> None:
        self.starts.look(vms, began_tick_ns, self._clock.tick_ns(), self._clock.unix_ns())

    def _raw(self, vms: tuple[VmReading, ...]) -> RawNode:
        unix_ns, tick_ns = self._clock.unix_ns(), self._clock.tick_ns()
        self._resized = resizes(self._resized, vms, tick_ns) if vms else self._resized
        counters = read_counters(self._root)
        pressures = self._cgroups.pressures(vm.vm_id for vm in vms)
        starting = self.starts.starting
        return RawNode(unix_ns, tick_ns, counters, vms, pressures, self._resized, starting)

    def _rates(self, now: RawNode) -> Rates:
        counters = now.counters
        allocatable = self._share.of(counters.memory_total_bytes, counters.cpu_count)
        return to_sample(self._previous, now, allocatable, self._stats_age_ns_max)

    def _remember(self, vms: tuple[VmSample, ...]) -> None:
        known = {vm.vm_id: self._with_maximum(vm) for vm in vms}
        if known.keys() != self._known.keys():
            self._levers_tick_ns = None  # a lever is tried on what is there
        self._known = known

    def _with_maximum(self, vm: VmSample) -> VmSample:
        """A VM that could not be read can still have at most what it could before."""
        known = self._known.get(vm.vm_id)
        if known is None:
            return vm
        memory, cpu = vm.memory_maximum_bytes, vm.cpu_maximum_millicores
        return replace(
            vm,
            memory_maximum_bytes=known.memory_maximum_bytes if memory is None else memory,
            cpu_maximum_millicores=known.cpu_maximum_millicores if cpu is None else cpu,
        )


@dataclass(slots=True)
class PressureWatch:
    """The node's pressure by the second: what a mean over ten hides."""

    root: Path
    clock: Clock
    peaks_us_per_s: dict[str, int] = field(default_factory=dict)  # resource -> since `take`
    _last: dict[str, tuple[int, int]] = field(default_factory=dict)  # tick, counter

    def look(self) -> None:
        now = self.clock.tick_ns()
        for resource in Resource:
            counter = parse_pressure(_text(self.root / "proc/pressure" / resource.word))
            if counter is None:
                continue
            tick, before = self._last.get(resource.word, (now, counter))
            self._last[resource.word] = (now, counter)
            if now > tick:
                rate = max(0, counter - before) * SECOND_NS // (now - tick)
                peak = max(rate, self.peaks_us_per_s.get(resource.word, 0))
                self.peaks_us_per_s[resource.word] = peak

    def take(self) -> dict[str, int]:
        """The peaks since the last call."""
        peaks, self.peaks_us_per_s = self.peaks_us_per_s, {}
        return peaks


def _gap(vm: VmSample) -> VmSample:
    return VmSample(vm.vm_id, vm.name, VmState.OTHER)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
