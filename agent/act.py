"""Carries out steps on a hypervisor and measures what came of them.

A hypervisor's "yes" proves nothing, so each step is read back until its effect shows or its
deadline is over. Every step is admitted once more, on readings taken right before it: what an
earlier step did not free is not there for a later one. Steps of one direction run side by side,
a few at a time and never two on one VM; growing waits for the shrinking before it.

Several runs may go on at once, a command's and the reflex's: none waits for the other, agent.ledger
keeps them from counting on the same room, and a lever that one moves is left alone by the others.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from agent.admission import Admitted, Readings, admit, refused
from agent.guard import Refused
from agent.hypervisor import BEGINNINGS, Hypervisor, VmEvent, VmEventKind, VmReading
from agent.leash import Lever
from agent.ledger import Ledger
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
from shared.clock import MILLISECOND_NS, SECOND_NS, Clock
from shared.errors import HypervisorError, VmGone
from shared.resources import MIB, Resource, amount_text
from shared.telemetry import VmSample

IN_FLIGHT_MAX = 4  # calls per libvirt connection that do not yet stall the others
POLL_S_MIN = 0.25
OWN_BYTES_MIN = 256 * MIB  # that a hypervisor's process may need for itself, or
OWN_DIVISOR = 10  # this part of the VM's memory: emulation takes far more than KVM
POLL_S_MAX = 0.5
HELD_NS = 6 * SECOND_NS  # a loan's way is shorter
CRY_NS = 5 * SECOND_NS  # how long a VM's need keeps others from shrinking it
CRYING = "the VM needs memory now"

Pause = Callable[[float], Awaitable[object]]
Objection = Callable[[Step], Refused | None]


class Executor:
    """One per hypervisor."""

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
        self._crying: dict[str, int] = {}  # vm id -> until tick
        self.ledger = Ledger(clock)
        hypervisor.listen(self._hear)

    async def carry_out(
        self,
        steps: Sequence[Admitted],
        readings: Readings,
        objection: Objection,
        *,
        fell_short: bool = False,
        way_back: bool = False,
        patient: bool = True,
    ) -> tuple[StepResult, ...]:
        """One result per step, in the order of `steps`.

        `objection` is asked right before each step, `fell_short` says that a shrink was refused
        already, `way_back` that nothing may shrink (agent.admission), `patient` that a step waits
        for another run to let go of its lever.
        """
        run = _Run(readings, objection, fell_short, way_back, patient)
        results: dict[int, StepResult] = {}  # by the identity of the planned step
        room = asyncio.Semaphore(IN_FLIGHT_MAX)
        for group in side_by_side(steps):
            async with asyncio.TaskGroup() as tasks:
                started = [tasks.create_task(self._step(each, run, room)) for each in group]
            for each, task in zip(group, started, strict=True):
                results[id(each)] = task.result()
        return tuple(results[id(each)] for each in steps)

    def cry(self, vm_id: str) -> None:
        """The VM needs memory: for a while nothing takes any, and what is on its way is stopped."""
        self._crying[vm_id] = self._clock.tick_ns() + CRY_NS

    def quarantined(self) -> Mapping[Lever, str]:
        """Levers that lately had no effect, and why they are left alone; they age out."""
        return self._quarantine.at(self._clock.tick_ns())

    def dead(self) -> Mapping[tuple[str, Resource], str]:
        """Those among them that do not even grow."""
        growable = self._quarantine.growable()
        return {lever: why for lever, why in self.quarantined().items() if lever not in growable}

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
        there = set(vm_ids)
        self._quarantine.keep_only(there)
        self._crying = {k: v for k, v in self._crying.items() if k in there}
        self.ledger.forget_all_but(there)

    def _hear(self, event: VmEvent) -> None:
        if event.kind in BEGINNINGS or event.kind is VmEventKind.REBOOTED:
            self._quarantine.forget(event.vm_id)

    async def _step(self, planned: Admitted, run: "_Run", room: asyncio.Semaphore) -> StepResult:
        started = self._clock.tick_ns()
        while run.patient and planned.step.lever in self.ledger.held:
            if self._clock.tick_ns() - started >= HELD_NS:
                break
            await self._pause(POLL_S_MIN)
        async with room:
            result = await self._admit_and_move(planned, run)
            took_ms = (self._clock.tick_ns() - started) // MILLISECOND_NS
        as_asked = result.outcome in {Outcome.APPLIED, Outcome.UNCHANGED}
        run.fell_short |= planned.step.shrinks and not as_asked
        return replace(result, took_ms=took_ms)

    async def _admit_and_move(self, planned: Admitted, run: "_Run") -> StepResult:
        step = planned.step
        if not self.ledger.hold(step.lever):
            return refused(step, "I6", "it is being moved for another reason just now")
        try:
            before = await self._hypervisor.read(step.vm_id)
            # Asked after reading, which takes its time: a newer controller may have spoken.
            objection = run.objection(step)
            if objection is None and step.shrinks and self._cries(step):
                objection = Refused("I3", CRYING)
            if objection is not None:
                return refused(step, objection.invariant, objection.detail)
            self.ledger.see(self._to_sample(before))
            readings = self._over(run, but=step.lever)
            admitted = admit(step, readings, may_cut=run.fell_short, way_back=run.way_back)
            if not isinstance(admitted, Admitted):
                return admitted
            cut = admitted.cut or planned.cut
            return await self._move(Admitted(admitted.step, cut), before, readings)
        except VmGone:
            self.ledger.drop(step.vm_id)
            return StepResult(step.index, Outcome.GONE, "the VM vanished")
        except HypervisorError as error:
            return StepResult(step.index, Outcome.FAILED, str(error))
        finally:
            self.ledger.release(step.lever)

    def _over(self, run: "_Run", but: Lever | None = None) -> Readings:
        """What this run goes by: its readings with all that any run has in hand."""
        return self.judging(self.ledger.over(run.readings, but))

    async def _move(self, admitted: Admitted, before: VmReading, readings: Readings) -> StepResult:
        step = admitted.step
        limit = limit_of(readings.vms[step.vm_id], step.resource, readings.node)
        assert limit is not None, "admitted without a measured limit"
        if step.to_amount > limit:
            # Spoken for from now on, so that a step beside this one does not take it as well.
            self.ledger.ask(step.lever, step.to_amount)
        failure = ""
        try:
            await self._hypervisor.set_limit(step.vm_id, step.resource, step.to_amount)
        except HypervisorError as error:
            failure = str(error)  # it may have happened all the same: only reading back tells
        now = await self._measured(step, readings, wait=not failure)
        if now is not None and _is_started_anew(before, now):
            # At the size it boots with, which says nothing of the lever.
            failure = failure or "the VM was started anew meanwhile"
        if now is not None and not failure and _gave_nothing(step, limit, before, now):
            result = await self._give_back(step, limit)
        else:
            result = await self._judged(admitted, limit, now, readings, failure)
        return replace(result, host_freed_bytes=_freed(step, before, now))

    async def _measured(self, step: Step, readings: Readings, *, wait: bool) -> VmReading | None:
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
            if now is not None and self._has_reached(step, now, readings):
                return now
            is_over = self._clock.tick_ns() >= deadline or (step.shrinks and self._cries(step))
            if not wait or is_over:
                return now
            await self._pause(pause_s)
            pause_s = min(POLL_S_MAX, pause_s * 1.5)

    def _has_reached(self, step: Step, reading: VmReading, readings: Readings) -> bool:
        amount = self._amount(step, reading, readings)
        return amount is not None and is_unchanged(step.resource, amount, step.to_amount)

    def _amount(self, step: Step, reading: VmReading, readings: Readings) -> int | None:
        return limit_of(self._to_sample(reading), step.resource, readings.node)

    async def _judged(
        self,
        admitted: Admitted,
        limit: int,
        now: VmReading | None,
        readings: Readings,
        failure: str,
    ) -> StepResult:
        step = admitted.step
        reached = None if now is None else self._amount(step, now, readings)
        if now is not None and (step.to_amount < limit or not failure):
            # A grow that failed may still come: what it asked for stays spoken for.
            self.ledger.see(self._to_sample(now))
        if failure or reached is None:
            why = failure or "the effect could not be measured"
            return StepResult(step.index, Outcome.FAILED, why, limit, reached)
        if is_unchanged(step.resource, reached, step.to_amount):
            self._quarantine.worked(step.lever)
            self.ledger.settle(step.lever, max(reached, step.to_amount))
            outcome = Outcome.PARTIAL if admitted.cut else Outcome.APPLIED
            return StepResult(step.index, outcome, admitted.cut, limit, reached)
        stopped = step.shrinks and self._cries(step)
        detail = await self._reset(step, reached, CRYING if stopped else "")
        progress = (reached - limit) * (1 if step.to_amount > limit else -1)
        if progress >= QUANTUM[step.resource]:
            return StepResult(step.index, Outcome.PARTIAL, detail, limit, reached)
        if stopped:
            return replace(refused(step, "I3", detail, limit), after_amount=reached)
        shrinking = step.to_amount < limit
        self._quarantine.failed(step.lever, self._clock.tick_ns(), shrinking=shrinking)
        return StepResult(step.index, Outcome.NO_EFFECT, detail, limit, reached)

    async def _give_back(self, step: Step, limit: int) -> StepResult:
        """The guest has less and its host not more: it gets it back, and its memory is left alone.

        Until it has it back, what it had counts as given to it.
        """
        self.ledger.ask(step.lever, limit)
        detail = (
            "the balloon moved and the host got nothing back: the VM's memory is locked, passed"
            " through to a device, or in huge pages"
        )
        try:
            await self._hypervisor.set_limit(step.vm_id, step.resource, limit)
        except HypervisorError as error:
            return StepResult(step.index, Outcome.FAILED, f"{detail}; {error}", limit)
        self._quarantine.failed(step.lever, self._clock.tick_ns(), shrinking=True)
        return StepResult(step.index, Outcome.NO_EFFECT, detail, limit, limit)

    async def _reset(self, step: Step, reached: int, why: str) -> str:
        """A stalled balloon must not wake up later and go on: its target becomes what it is."""
        asked = amount_text(step.resource, step.to_amount)
        why = why or f"{deadline_of(step)} ms are over"
        detail = f"{asked} not reached: {why}"
        if step.to_amount < reached:
            self.ledger.ask(step.lever, reached)
        if step.resource is not Resource.MEMORY:
            return detail
        try:
            await self._hypervisor.set_limit(step.vm_id, step.resource, reached)
            now = await self._hypervisor.read(step.vm_id)
        except HypervisorError as error:
            return f"{detail}; the target still stands: {error}"
        # It has gone on meanwhile, and comes back from there.
        self.ledger.see(self._to_sample(now))
        self.ledger.settle(step.lever, max(reached, now.memory_actual_bytes or 0))
        return f"{detail}; target set back to {amount_text(step.resource, reached)}"

    def _cries(self, step: Step) -> bool:
        is_memory = step.resource is Resource.MEMORY
        return is_memory and self._clock.tick_ns() < self._crying.get(step.vm_id, 0)


@dataclass(slots=True)
class _Run:
    """What changes while steps are carried out."""

    readings: Readings
    objection: Objection
    fell_short: bool
    way_back: bool
    patient: bool


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


def _gave_nothing(step: Step, limit: int, before: VmReading, now: VmReading) -> bool:
    """Whether a balloon that was filled has freed nothing that the host can see.

    Pages that the guest never touched free nothing and were never taken, so this is only said
    where more stays resident than the guest can still have beside what the hypervisor itself needs.
    """
    actual, freed = now.memory_actual_bytes, _freed(step, before, now)
    if actual is None or freed is None or not is_unchanged(step.resource, actual, step.to_amount):
        return False
    assert before.memory_resident_bytes is not None
    assert now.memory_resident_bytes is not None
    own = max(0, before.memory_resident_bytes - limit) + max(OWN_BYTES_MIN, limit // OWN_DIVISOR)
    taken = limit - step.to_amount
    return freed * 4 < taken and now.memory_resident_bytes > step.to_amount + own


def _freed(step: Step, before: VmReading, now: VmReading | None) -> int | None:
    if step.resource is not Resource.MEMORY or now is None:
        return None
    if before.memory_resident_bytes is None or now.memory_resident_bytes is None:
        return None
    return before.memory_resident_bytes - now.memory_resident_bytes
