"""Carries out steps on a hypervisor and measures what came of them.

A hypervisor's "yes" proves nothing, so each step is read back until its effect shows or its
deadline is over. Every step is admitted once more, on readings taken right before it: what an
earlier step did not free is not there for a later one. Steps of one direction run side by side,
a few at a time and never two on one VM; growing waits for the shrinking before it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from agent.admission import Admitted, Readings, admit, after, refused
from agent.guard import Refused
from agent.hypervisor import BEGINNINGS, Hypervisor, VmEvent, VmEventKind, VmReading
from agent.quarantine import Quarantine
from agent.steps import (
    QUANTUM,
    Outcome,
    Step,
    StepResult,
    deadline_of,
    is_unchanged,
    limit_of,
)
from shared.clock import MILLISECOND_NS, Clock
from shared.errors import HypervisorError, VmGone
from shared.resources import Resource, amount_text
from shared.telemetry import VmSample

IN_FLIGHT_MAX = 4  # calls per libvirt connection that do not yet stall the others
POLL_S_MIN = 0.25
POLL_S_MAX = 1.0

Pause = Callable[[float], Awaitable[object]]
Objection = Callable[[Step], Refused | None]


class Executor:
    """One per hypervisor; one `carry_out` at a time (agent.steward sees to it)."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        clock: Clock,
        to_sample: Callable[[VmReading], VmSample],
        pause: Pause = asyncio.sleep,
    ) -> None:
        """`to_sample` must be shown every reading: it knows since when a balloon has its size."""
        self._hypervisor = hypervisor
        self._clock = clock
        self._to_sample = to_sample
        self._pause = pause
        self._quarantine = Quarantine()
        hypervisor.listen(self._hear)

    async def carry_out(
        self,
        steps: Sequence[Admitted],
        readings: Readings,
        objection: Objection,
        *,
        fell_short: bool = False,
        way_back: bool = False,
    ) -> tuple[StepResult, ...]:
        """One result per step, in the order of `steps`.

        `objection` is asked right before each step, `fell_short` says that a shrink was refused
        already, `way_back` that nothing may shrink (agent.admission).
        """
        run = _Run(readings, objection, fell_short=fell_short, way_back=way_back)
        results: dict[int, StepResult] = {}  # by the identity of the planned step
        room = asyncio.Semaphore(IN_FLIGHT_MAX)
        for group in side_by_side(steps):
            async with asyncio.TaskGroup() as tasks:
                started = [tasks.create_task(self._step(each, run, room)) for each in group]
            for each, task in zip(group, started, strict=True):
                results[id(each)] = task.result()
        return tuple(results[id(each)] for each in steps)

    def quarantined(self) -> Mapping[tuple[str, Resource], str]:
        """Levers that lately had no effect, and why they are left alone; they age out."""
        return self._quarantine.at(self._clock.tick_ns())

    def with_idle_levers(self, vms: tuple[VmSample, ...]) -> tuple[VmSample, ...]:
        """For telemetry: what is in quarantine, told of each VM."""
        bits = self._quarantine.bits(self._clock.tick_ns())
        return tuple(replace(vm, idle_levers=bits.get(vm.vm_id)) for vm in vms) if bits else vms

    def judging(self, readings: Readings) -> Readings:
        """The readings with what is in quarantine now."""
        return replace(
            readings, quarantined=self.quarantined(), growable=self._quarantine.growable()
        )

    def forget_all_but(self, vm_ids: Iterable[str]) -> None:
        """What is remembered of VMs that are gone goes, so that memory does not grow for ever."""
        self._quarantine.keep_only(vm_ids)

    def _hear(self, event: VmEvent) -> None:
        if event.kind in BEGINNINGS or event.kind is VmEventKind.REBOOTED:
            self._quarantine.forget(event.vm_id)

    async def _step(self, planned: Admitted, run: "_Run", room: asyncio.Semaphore) -> StepResult:
        async with room:
            started = self._clock.tick_ns()
            result = await self._admit_and_move(planned, run)
            took_ms = (self._clock.tick_ns() - started) // MILLISECOND_NS
        as_asked = result.outcome in {Outcome.APPLIED, Outcome.UNCHANGED}
        run.fell_short |= planned.step.shrinks and not as_asked
        return replace(result, took_ms=took_ms)

    async def _admit_and_move(self, planned: Admitted, run: "_Run") -> StepResult:
        step = planned.step
        try:
            before = await self._hypervisor.read(step.vm_id)
            # Asked after reading, which takes its time: a newer controller may have spoken.
            objection = run.objection(step)
            if objection is not None:
                return refused(step, objection.invariant, objection.detail)
            run.readings = self._with_reading(run.readings, before)
            admitted = admit(step, run.readings, may_cut=run.fell_short, way_back=run.way_back)
            if not isinstance(admitted, Admitted):
                return admitted
            cut = admitted.cut or planned.cut
            return await self._move(Admitted(admitted.step, cut), before, run)
        except VmGone:
            return StepResult(step.index, Outcome.GONE, "the VM vanished")
        except HypervisorError as error:
            return StepResult(step.index, Outcome.FAILED, str(error))

    async def _move(self, admitted: Admitted, before: VmReading, run: "_Run") -> StepResult:
        step = admitted.step
        limit = limit_of(run.readings.vms[step.vm_id], step.resource, run.readings.node)
        assert limit is not None, "admitted without a measured limit"
        if step.to_amount > limit:
            # Spoken for from now on, so that a step beside this one does not take it as well.
            run.readings = after(run.readings, step)
        failure = ""
        try:
            await self._hypervisor.set_limit(step.vm_id, step.resource, step.to_amount)
        except HypervisorError as error:
            failure = str(error)  # it may have happened all the same: only reading back tells
        now = await self._measured(step, run, wait=not failure)
        if now is not None and _is_started_anew(before, now):
            # At the size it boots with, which says nothing of the lever.
            failure = failure or "the VM was started anew meanwhile"
        result = await self._judged(admitted, limit, now, run, failure)
        return replace(result, host_freed_bytes=_freed(step, before, now))

    async def _measured(self, step: Step, run: "_Run", *, wait: bool) -> VmReading | None:
        """The VM once the effect shows or the deadline is over; None when it cannot be read."""
        deadline = self._clock.tick_ns() + deadline_of(step) * MILLISECOND_NS
        pause_s = POLL_S_MIN
        now: VmReading | None = None
        while True:
            try:
                now = await self._hypervisor.read(step.vm_id)
            except VmGone:
                raise
            except HypervisorError:
                now = None
            if now is not None and self._has_reached(step, now, run):
                return now
            if not wait or self._clock.tick_ns() >= deadline:
                return now
            await self._pause(pause_s)
            pause_s = min(POLL_S_MAX, pause_s * 1.5)

    def _has_reached(self, step: Step, reading: VmReading, run: "_Run") -> bool:
        amount = self._amount(step, reading, run)
        return amount is not None and is_unchanged(step.resource, amount, step.to_amount)

    def _amount(self, step: Step, reading: VmReading, run: "_Run") -> int | None:
        vm = self._with_reading(run.readings, reading).vms[step.vm_id]
        return limit_of(vm, step.resource, run.readings.node)

    async def _judged(
        self, admitted: Admitted, limit: int, now: VmReading | None, run: "_Run", failure: str
    ) -> StepResult:
        step = admitted.step
        reached = None if now is None else self._amount(step, now, run)
        if now is not None and (step.to_amount < limit or not failure):
            # A grow that failed may still come: what it asked for stays spoken for.
            run.readings = self._with_reading(run.readings, now)
        if failure or reached is None:
            why = failure or "the effect could not be measured"
            return StepResult(step.index, Outcome.FAILED, why, limit, reached)
        if is_unchanged(step.resource, reached, step.to_amount):
            self._quarantine.worked(step.lever)
            outcome = Outcome.PARTIAL if admitted.cut else Outcome.APPLIED
            return StepResult(step.index, outcome, admitted.cut, limit, reached)
        detail = await self._reset(step, reached)
        progress = (reached - limit) * (1 if step.to_amount > limit else -1)
        if progress >= QUANTUM[step.resource]:
            return StepResult(step.index, Outcome.PARTIAL, detail, limit, reached)
        shrinking = step.to_amount < limit
        self._quarantine.failed(step.lever, self._clock.tick_ns(), shrinking=shrinking)
        return StepResult(step.index, Outcome.NO_EFFECT, detail, limit, reached)

    async def _reset(self, step: Step, reached: int) -> str:
        """A stalled balloon must not wake up later and go on: its target becomes what it is."""
        asked = amount_text(step.resource, step.to_amount)
        detail = f"{asked} not reached in {deadline_of(step)} ms"
        if step.resource is not Resource.MEMORY:
            return detail
        try:
            await self._hypervisor.set_limit(step.vm_id, step.resource, reached)
        except HypervisorError as error:
            return f"{detail}; the target still stands: {error}"
        return f"{detail}; target set back to {amount_text(step.resource, reached)}"

    def _with_reading(self, readings: Readings, reading: VmReading) -> Readings:
        """The readings with one VM read anew; its rates stay those of the last interval."""
        vm = self._to_sample(reading)
        known = readings.vms.get(reading.vm_id)
        if known is not None:
            vm = replace(
                vm,
                memory_swap_in_bytes_per_s=known.memory_swap_in_bytes_per_s,
                memory_major_faults_per_s=known.memory_major_faults_per_s,
            )
        vms = {**readings.vms, vm.vm_id: vm}
        return self.judging(replace(readings, vms=vms))


@dataclass(slots=True)
class _Run:
    """What changes while steps are carried out."""

    readings: Readings
    objection: Objection
    fell_short: bool
    way_back: bool


def side_by_side(steps: Sequence[Admitted]) -> list[list[Admitted]]:
    """Groups in order, no VM twice in one: each step stands in the earliest group of its run of
    one direction that comes after the other steps of its VM. So four balloons shrink together
    although each VM's CPU comes before its memory."""
    groups: list[list[Admitted]] = []
    run_begins = 0
    for each in steps:
        if groups and groups[-1][0].step.shrinks != each.step.shrinks:
            run_begins = len(groups)
        place = run_begins
        for number, group in enumerate(groups[run_begins:], start=run_begins):
            if each.step.vm_id in {other.step.vm_id for other in group}:
                place = number + 1
        if place == len(groups):
            groups.append([])
        groups[place].append(each)
    return groups


def _is_started_anew(before: VmReading, now: VmReading) -> bool:
    if before.cpu_time_ns is None or now.cpu_time_ns is None:
        return False
    return now.cpu_time_ns < before.cpu_time_ns


def _freed(step: Step, before: VmReading, now: VmReading | None) -> int | None:
    if step.resource is not Resource.MEMORY or now is None:
        return None
    if before.memory_resident_bytes is None or now.memory_resident_bytes is None:
        return None
    return before.memory_resident_bytes - now.memory_resident_bytes
