"""The real hypervisor: libvirt through a worker process that can be killed (agent.libvirt_client).

One bulk call reads all VMs. While a VM is frozen (its QEMU answers nothing within the budget, which
would hold up the bulk call for all), VMs are read one by one and the frozen one is left out until
its retry is due. Limits are set through libvirt, which so knows of them (agent.libvirt_levers);
those that are not among the bulk statistics are read when a VM appears, after own changes and every
five minutes.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.guard_files import GuardFiles
from agent.hypervisor import (
    BEGINNINGS,
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
from agent.libvirt_client import WorkerClient, WorkerLost
from agent.libvirt_found import NOTE, Runs, calls_for, note_of, sight_of
from agent.libvirt_known import BACKOFF_NS_MIN, KnownVm
from agent.libvirt_levers import Call, look, reason_of, with_levers
from agent.libvirt_readings import event_of, parse_domain_xml, to_reading
from shared.clock import SECOND_NS, Clock
from shared.errors import HypervisorError, HypervisorTimeout, HypervisorUnavailable, VmGone
from shared.log import RateLimited
from shared.resources import Resource
from shared.telemetry import VmState

logger = logging.getLogger(__name__)

CALL_BUDGET_S = 5.0
# A shrink takes what the guest's last figures call free, and the next one waits for new figures: at
# 2 s a chain over two levels gives memory back within seconds. It costs nothing that shows: of four
# idle emulated guests each QEMU took 2.8 ms of CPU per second at 2 s, 2.9 at 5 s, 2.8 without any.
STATS_PERIOD_S = 2
INSPECT_AGAIN_NS = 300 * SECOND_NS
RETRIES_MAX = 8  # a worker that keeps dying by itself is not started anew that often
INSPECTIONS_MAX = 8  # per tick, of VMs that are known already
BACKOFF_NS_MAX = 60 * SECOND_NS
_CHANGES = frozenset({VmEventKind.DEFINED, VmEventKind.RETUNED})


class LibvirtHypervisor:
    """`uri` is a libvirt on this machine; `root` is where its /sys is read ("/").

    `may_configure` lets it switch on the balloon's statistics of VMs that have none, or rare ones.
    """

    simulated = False

    def __init__(
        self,
        uri: str,
        clock: Clock,
        *,
        may_configure: bool = False,
        call_budget_s: float = CALL_BUDGET_S,
        root: Path = Path("/"),
    ) -> None:
        self._client = WorkerClient(uri, clock, self._hear)
        self._listeners: list[Listener] = []
        self._uri = uri
        self._clock = clock
        self._may_configure = may_configure
        self._budget_s = call_budget_s
        self._root = root
        self._guards = GuardFiles(uri, root)
        self._vms: dict[str, KnownVm] = {}
        self._runs = Runs(root)
        self._recorder: Recorder | None = None
        self._said = RateLimited(logger, clock)

    @property
    def worker_pid(self) -> int | None:
        return self._client.pid

    @property
    def worker_starts(self) -> int:
        """Workers started so far; what is above one was killed for a hanging call, or died."""
        return self._client.starts

    async def levers(self) -> dict[str, str]:
        """Tried on what is there: a lever works when some VM's parameter could be read."""
        await self._call("control", "describe")
        if not self._vms:  # else they were read with the last sample, and need no second bulk call
            await self.read_all()
        levers = [vm.levers for vm in self._vms.values()]
        return {
            Resource.CPU.word: reason_of(each.cpu_reason for each in levers),
            Resource.MEMORY.word: "",
            Resource.IO.word: reason_of(each.io_reason for each in levers),
            NET_WORD: reason_of(each.net_reason for each in levers),
            GUARD_WORD: self.why_no_guard(),
        }

    async def read_all(self) -> tuple[VmReading, ...]:
        records = None
        if not any(vm.frozen for vm in self._vms.values()):
            records = await self._read_bulk()
        if records is None:
            records = await self._read_each()
        present = {record[0] for record in records}
        self._vms = {vm_id: vm for vm_id, vm in self._vms.items() if vm_id in present}
        self._guards.find(present)
        await self._inspect_due()
        await self._look_at_migrations()
        return tuple(self._reading(*record) for record in records)

    async def read(self, vm_id: str) -> VmReading:
        record = await self._vm_call(vm_id, "statistics", "read_one")
        self._note(*record)
        return self._reading(*record)

    async def set_limit(self, vm_id: str, resource: Resource, amount: int) -> None:
        """CPU: all of the vCPUs lift the quota. I/O: each way of each device; 0 lifts the limit.

        After HypervisorTimeout it may still happen: libvirtd carries it out once QEMU wakes up.
        """
        if amount < 0 or (amount == 0 and resource is not Resource.IO):
            raise HypervisorError(f"a {resource.word} limit of {amount} is none")
        vm = await self._about_to_change(vm_id, resource.word)
        actual_bytes = None
        if resource is Resource.MEMORY and vm.levers.devices.memory:
            actual_bytes = (await self.read(vm_id)).memory_actual_bytes
            vm = await self._inspect(vm_id)  # blocks come and go by themselves
        await self._carry_out(vm_id, vm.levers.calls(resource, amount, actual_bytes))
        if resource is not Resource.MEMORY:
            await self._inspect(vm_id)

    async def set_net_limit(self, vm_id: str, bytes_per_s: int | None) -> None:
        """Each way of each interface; libvirt counts whole KiB/s."""
        vm = await self._about_to_change(vm_id, NET_WORD)
        vm.inspected_tick_ns = None  # whatever becomes of it: half of it may be in force
        await self._carry_out(vm_id, vm.levers.net_calls(bytes_per_s))
        await self._inspect(vm_id)

    async def set_guard(self, vm_id: str, guard: MemoryGuard | None) -> None:
        """Our mark beside the VM comes before a guard and goes after it, but more room comes
        before everything."""
        if why := self.why_no_guard():
            raise HypervisorError(f"no memory guard: {why}")
        self._guards.find(self._vms)
        high, granted = (None, None) if guard is None else (guard.high_bytes, guard.granted_bytes)
        gives_way = self._guards.gives_way(vm_id, high)
        if gives_way:
            await self._guards.write(vm_id, high)
        await self._about_to_change(vm_id, GUARD_WORD)
        await self._vm_call(vm_id, "control", "set_mark", "guard", granted)
        if not gives_way:
            await self._guards.write(vm_id, high)
        await self._inspect(vm_id)

    def why_no_guard(self) -> str:
        return self._guards.why_not()

    def record(self, recorder: Recorder) -> None:
        self._recorder = recorder

    async def sight(self, vm_id: str) -> Sight:
        inspected = await self._vm_call(vm_id, "statistics", "inspect")
        run = self._vms.setdefault(vm_id, KnownVm()).run
        return sight_of(vm_id, self._runs.of(vm_id, run), inspected)

    async def put_back(self, vm_id: str, settings: Mapping[str, int]) -> None:
        await self._carry_out(vm_id, calls_for(settings))

    async def unmark(self, vm_id: str) -> None:
        await self._vm_call(vm_id, "control", "set_note", NOTE, None)

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    async def close(self) -> None:
        await self._client.close()

    def _hear(self, told: list[Any]) -> None:
        event = event_of(told)
        if event is None:
            return
        vm = self._vms.get(event.vm_id)
        if vm is not None:
            self._forget_what_changed(vm, event)
        for listener in self._listeners:
            listener(event)

    def _forget_what_changed(self, vm: KnownVm, event: VmEvent) -> None:
        vm.events += 1
        if event.kind in BEGINNINGS:
            vm.forget_run()
        elif event.kind in _CHANGES:
            vm.inspected_tick_ns = None
        elif event.kind is VmEventKind.MIGRATING:
            vm.migrating = True
        elif event.kind is VmEventKind.RESUMED:
            vm.migrating = False

    async def _read_bulk(self) -> list[Any] | None:
        """None when it took too long: some VM is frozen, and which one is to be found out."""
        try:
            records: list[Any] = await self._call("statistics", "read_all")
        except HypervisorTimeout:
            return None
        for record in records:
            self._note(*record)
        return records

    async def _read_each(self) -> list[Any]:
        listed: list[Any] = await self._call("statistics", "list_active")
        found = await asyncio.gather(*(self._read_or_gap(record) for record in listed))
        return [record for record in found if record is not None]

    async def _read_or_gap(self, listed: Any) -> Any:  # noqa: ANN401 - a record, as it came
        """The VM's record; the listed one, without readings, when it is frozen; None when gone."""
        try:
            record = await self._vm_call(listed[0], "statistics", "read_one")
        except HypervisorTimeout:
            return listed
        except VmGone:
            return None
        self._note(*record)
        return record

    async def _call(self, lane: str, method: str, *arguments: object) -> Any:  # noqa: ANN401 - each method has its own result
        """Again when the worker was lost meanwhile: frozen VMs' calls take it down under others'.

        All calls may be repeated, since limits are set to amounts and never changed by some.
        """
        for _ in range(RETRIES_MAX):
            try:
                return await self._client.call(lane, method, *arguments, budget_s=self._budget_s)
            except WorkerLost:
                continue
        return await self._client.call(lane, method, *arguments, budget_s=self._budget_s)

    async def _vm_call(self, vm_id: str, lane: str, method: str, *arguments: object) -> Any:  # noqa: ANN401 - likewise
        vm = self._vms.setdefault(vm_id, KnownVm())
        async with vm.lock:
            if vm.frozen and self._clock.tick_ns() < vm.retry_tick_ns:
                wait_s = (vm.retry_tick_ns - self._clock.tick_ns()) / SECOND_NS
                raise HypervisorTimeout(f"VM {vm_id} is frozen; asked again in {wait_s:.0f} s")
            try:
                return await self._call(lane, method, vm_id, *arguments)
            except HypervisorTimeout:
                self._freeze(vm)
                raise
            except VmGone:
                self._vms.pop(vm_id, None)
                raise

    def _freeze(self, vm: KnownVm) -> None:
        vm.backoff_ns = min(BACKOFF_NS_MAX, 2 * vm.backoff_ns) if vm.frozen else BACKOFF_NS_MIN
        vm.frozen = True
        vm.retry_tick_ns = self._clock.tick_ns() + vm.backoff_ns

    def _note(self, vm_id: str, _name: str, stats: dict[str, int]) -> None:
        """Remembers what later calls need. A frozen VM that answers in full has thawed: where an
        older call still holds it, libvirt answers for it at once, but without its own figures."""
        vm = self._vms.setdefault(vm_id, KnownVm())
        if vm.run is not None and vm.run != stats.get("domain.id"):
            vm.forget_run()
        complete = "balloon.rss" in stats
        if vm.frozen and vm.complete and not complete:
            self._freeze(vm)
            return
        vm.frozen = False
        vm.run = stats.get("domain.id")
        vm.complete = vm.complete or complete
        cpu_time_ns = stats.get("cpu.time", vm.cpu_time_ns)
        if stats.get("vcpu.current") != vm.cpu_count:
            vm.inspected_tick_ns = None  # resized: its limits are others
        vm.cpu_time_ns = cpu_time_ns
        vm.cpu_count = stats.get("vcpu.current", vm.cpu_count)

    def _reading(self, vm_id: str, name: str, stats: dict[str, int]) -> VmReading:
        vm = self._vms.get(vm_id, KnownVm())
        reading = with_levers(to_reading(vm_id, name, stats), vm.levers)
        reading = replace(reading, memory_guard_bytes=self._guards.high_bytes(vm_id))
        moves = vm.migrating and reading.state is VmState.RUNNING
        return replace(reading, state=VmState.MIGRATING) if moves else reading

    async def _look_at_migrations(self) -> None:
        """A migration that failed leaves no word of it: whether it goes on is asked."""
        for vm_id, vm in list(self._vms.items()):
            if vm.migrating and not vm.frozen:
                with contextlib.suppress(VmGone, HypervisorError):
                    vm.migrating = await self._vm_call(vm_id, "statistics", "has_job")

    async def _inspect_due(self) -> None:
        oldest = self._clock.tick_ns() - INSPECT_AGAIN_NS
        awake = {vm_id: vm for vm_id, vm in self._vms.items() if not vm.frozen}
        fresh = [vm_id for vm_id, vm in awake.items() if vm.inspected_tick_ns is None]
        again = [vm_id for vm_id, vm in awake.items() if (vm.inspected_tick_ns or oldest) < oldest]
        due = fresh + again[:INSPECTIONS_MAX]
        await asyncio.gather(*map(self._inspect_or_explain, due))

    async def _inspect_or_explain(self, vm_id: str) -> None:
        """A VM whose limits cannot be read keeps its readings."""
        try:
            await self._inspect(vm_id)
        except (VmGone, HypervisorTimeout, HypervisorUnavailable):
            return  # the next reading shows it
        except HypervisorError as error:
            vm = self._vms.setdefault(vm_id, KnownVm())
            vm.levers = vm.levers.failing(str(error))
            vm.inspected_tick_ns = self._clock.tick_ns()

    async def _about_to_change(self, vm_id: str, word: str) -> KnownVm:
        """The VM, on record as it is: HypervisorError where that cannot be kept."""
        vm = await self._inspected(vm_id)
        if self._recorder is None:
            return vm
        is_new = not vm.run_id or not self._recorder.is_touched(vm_id, vm.run_id, word)
        if is_new:
            vm = await self._inspect(vm_id)
        if not vm.run_id:
            raise HypervisorError(f"nothing of VM {vm_id} is changed: it cannot be put on record")
        try:
            found = await self._recorder.touch(vm_id, word)
        except OSError as error:
            raise HypervisorError(f"nothing of VM {vm_id} is changed: {error}") from error
        if is_new:
            await self._vm_call(vm_id, "control", "set_note", NOTE, note_of(found))
        return vm

    async def _inspected(self, vm_id: str) -> KnownVm:
        vm = self._vms.get(vm_id)
        if vm is None or vm.cpu_count is None:
            await self.read(vm_id)
        vm = self._vms[vm_id]
        if vm.inspected_tick_ns is None:
            await self._inspect(vm_id)
        return vm

    async def _inspect(self, vm_id: str) -> KnownVm:
        vm = self._vms.setdefault(vm_id, KnownVm())
        events, run_id = vm.events, self._run_id(vm_id, vm)
        inspected = await self._vm_call(vm_id, "statistics", "inspect")
        vm = self._vms.setdefault(vm_id, KnownVm())
        vm.levers = look(inspected, vm.cpu_count, vm.levers, self._uri, self._root)
        vm.inspected_tick_ns = self._clock.tick_ns() if vm.events == events else None
        facts = parse_domain_xml(inspected[0])
        if not await self._is_on_record(vm_id, vm, run_id, inspected):
            vm.inspected_tick_ns = None
            return vm
        if self._may_configure and facts.balloon and not 0 < facts.stats_period_s <= STATS_PERIOD_S:
            await self._vm_call(vm_id, "control", "set_stats_period", STATS_PERIOD_S)
        return vm

    def _run_id(self, vm_id: str, vm: KnownVm) -> str:
        return "" if self._recorder is None else self._runs.of(vm_id, vm.run)

    async def _is_on_record(
        self, vm_id: str, vm: KnownVm, run_id: str, inspected: list[Any]
    ) -> bool:
        """As `inspected`, which is of the run `run_id` where that is still the same."""
        vm.run_id = ""
        if self._recorder is None:
            return True
        if run_id != self._run_id(vm_id, vm):
            return False
        try:
            await self._recorder.note(sight_of(vm_id, run_id, inspected))
        except OSError as error:
            self._said.error("record", "VMs cannot be put on record", cause=str(error))
            return False
        vm.run_id = run_id
        return True

    async def _carry_out(self, vm_id: str, calls: Iterable[Call]) -> None:
        for method, arguments in calls:
            await self._vm_call(vm_id, "control", method, *arguments)
