"""What the agent obeys, and what it remembers of it. Pure: time and readings are arguments.

    judge(command, state, now, readings) -> state, Accepted | Refused | Duplicate

I7 only the highest epoch ever seen, and rising sequences within it
I6 nothing late, nothing from another boot's clock, nothing planned on a generation that is gone
I1 I2 I3 I4 I6 I8 per step: agent.admission

A lease on the agent's own clock says how long grants hold without a word from the controller;
after it, limits only grow, back to the fallback that the plans brought along.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from agent.admission import (
    MOVABLE,
    Admitted,
    Readings,
    admit,
    after,
    headroom,
)
from agent.leash import NO_BOUNDS, Bounds, Grant, Lever, without
from agent.steps import (
    QUANTUM,
    Ack,
    Command,
    Fallback,
    Header,
    Outcome,
    Step,
    StepResult,
    in_safe_order,
    limit_of,
    maximum_of,
    whole_quanta,
)
from shared.resources import MIB, Resource

MILLISECOND_NS = 1_000_000
DONE_MAX = 64  # answers kept for repeated commands; a controller repeats the last one or two
STEPS_MAX = 4096  # of one command; far above what a host's VMs need
STRIDE_BYTES = 128 * MIB  # a lease's walk grows a VM's memory by this much per round, or
STRIDE_DIVISOR = 4  # by a quarter of its limit where that is more


@dataclass(frozen=True, slots=True)
class GuardState:
    """All that must survive a restart; agent.state keeps it on disk."""

    epoch_highest: int = 0
    sequence_highest: int = 0  # within that epoch
    generation: int = 0  # rises with everything that moved
    lease_until_tick_ns: int | None = None  # None: no command was ever obeyed
    fallback: Mapping[Lever, int] = field(default_factory=dict)
    bounds: Bounds = NO_BOUNDS  # of the reflex; void with the lease
    bounds_number: int = 0
    lent: frozenset[Lever] = frozenset()  # limits that the reflex has moved
    done: tuple[Ack, ...] = ()  # newest last, at most DONE_MAX
    intent: Ack | None = None  # of a command under way: the answer if it is never finished

    @property
    def done_command_ids(self) -> tuple[str, ...]:
        return tuple(ack.command_id for ack in self.done)


@dataclass(frozen=True, slots=True)
class Accepted:
    """`steps` in the order of execution; `refusals` stand in place of the other steps."""

    command: Command
    steps: tuple[Admitted, ...]
    refusals: tuple[StepResult, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    invariant: str
    detail: str


@dataclass(frozen=True, slots=True)
class Duplicate:
    ack: Ack


Verdict = Accepted | Refused | Duplicate


def judge(
    command: Command, state: GuardState, now_tick_ns: int, readings: Readings | None
) -> tuple[GuardState, Verdict]:
    """Whether to carry the command out, and which of its steps; no readings: none of them.

    The returned state has seen the command's epoch and sequence, and of an accepted command that
    is no dry run also its lease and fallback. It must be on disk before anything moves.
    """
    header = command.header
    for ack in reversed(state.done):
        if ack.command_id == header.command_id:
            return state, Duplicate(ack)
    refusal = _authority(header, state)
    if refusal is not None:
        return state, refusal
    seen = replace(
        _without_old_bounds(header, state, now_tick_ns),
        epoch_highest=header.epoch,
        sequence_highest=header.sequence,
    )
    refusal = _lateness(header, now_tick_ns) or _basis(command, state)
    if refusal is not None:
        return seen, refusal
    if readings is None:
        return seen, Refused("I6", "the hypervisor gives no readings")
    accepted = _judge_steps(command, readings)
    if header.dry_run:
        return seen, accepted
    return _granted(seen, command, now_tick_ns, readings), accepted


def renew(
    header: Header,
    state: GuardState,
    now_tick_ns: int,
    fallback: Fallback = (),
    bounds: Bounds = NO_BOUNDS,
) -> tuple[GuardState, Refused | None]:
    """The lease goes on, unless the word comes late or from a controller of the past.

    A fallback replaces the one in force, and so do bounds; empty ones leave them.

    The sequence is looked at but not remembered: a renewal overtakes a command that waits in the
    agent's queue, and must not make that command look old.
    """
    refusal = objection(header, state, now_tick_ns)
    if refusal is not None:
        return state, refusal
    state = _without_old_bounds(header, state, now_tick_ns)
    if header.epoch > state.epoch_highest:
        state = replace(state, epoch_highest=header.epoch, sequence_highest=0)
    if fallback:
        state = replace(state, fallback=_by_lever(fallback))
    if bounds and bounds != state.bounds:
        state = _bound(state, bounds)
    return replace(state, lease_until_tick_ns=_lease_end(header, state, now_tick_ns)), None


def objection(header: Header, state: GuardState, now_tick_ns: int) -> Refused | None:
    """To a word that moves nothing by itself and grants nothing: I7 and I6."""
    return _authority(header, state) or _lateness(header, now_tick_ns)


def has_lease_ended(state: GuardState, now_tick_ns: int) -> bool:
    """False as long as no command was ever obeyed: then there is nothing to walk back from."""
    return state.lease_until_tick_ns is not None and now_tick_ns >= state.lease_until_tick_ns


def grant_of(state: GuardState, now_tick_ns: int) -> Grant | None:
    """What the reflex may go by now; None without a lease, and then it does nothing."""
    if state.lease_until_tick_ns is None or has_lease_ended(state, now_tick_ns):
        return None
    return Grant(state.bounds, state.bounds_number, state.fallback, state.epoch_highest, state.lent)


def on_lease_end(state: GuardState, readings: Readings) -> tuple[Step, ...]:
    """One round of the walk to the fallback: growing only, within what is measured free.

    Nobody asks for fresh guest statistics here: giving memory back needs none.
    """
    steps: list[Step] = []
    for (vm_id, resource), target in sorted(state.fallback.items()):
        step = _stride(vm_id, resource, target, readings)
        if step is not None:
            steps.append(replace(step, index=len(steps)))
            readings = after(readings, step)
    return tuple(steps)


def finished(state: GuardState, ack: Ack) -> GuardState:
    """The command is done and its answer kept; `ack.generation` is the one after it."""
    done = (*state.done, ack)[-DONE_MAX:]
    return replace(state, done=done, intent=None, generation=ack.generation)


def interrupted(state: GuardState) -> GuardState:
    """After a restart: a command that was under way may have moved anything, so plans made before
    it no longer hold, and whoever repeats it hears that its effect is unknown."""
    if state.intent is None:
        return state
    ack = replace(state.intent, generation=state.generation + 1)
    return finished(state, ack)


def intent_of(accepted: Accepted, state: GuardState, now_tick_ns: int) -> Ack:
    """The answer for the case that the agent dies in the middle."""
    why = "the agent stopped while this command ran; the effect is unknown"
    lost = tuple(
        StepResult(admitted.step.index, Outcome.FAILED, why) for admitted in accepted.steps
    )
    return accepted_ack(accepted.command, lost + accepted.refusals, state.generation, now_tick_ns)


def accepted_ack(
    command: Command, results: tuple[StepResult, ...], generation: int, now_tick_ns: int
) -> Ack:
    header = command.header
    by_index = tuple(sorted(results, key=lambda result: result.index))
    return Ack(
        header.command_id,
        header.plan_id,
        header.epoch,
        generation,
        now_tick_ns,
        accepted=True,
        results=by_index,
    )


def refused_ack(header: Header, refusal: Refused, generation: int, now_tick_ns: int) -> Ack:
    return Ack(
        header.command_id,
        header.plan_id,
        header.epoch,
        generation,
        now_tick_ns,
        accepted=False,
        refusal=f"{refusal.invariant}: {refusal.detail}",
    )


def _authority(header: Header, state: GuardState) -> Refused | None:
    if header.epoch < state.epoch_highest:
        return Refused("I7", f"epoch {header.epoch} is over, {state.epoch_highest} was seen")
    if header.epoch == state.epoch_highest and header.sequence <= state.sequence_highest:
        newest = state.sequence_highest
        return Refused("I7", f"sequence {header.sequence} does not rise, {newest} was seen")
    return None


def _lateness(header: Header, now_tick_ns: int) -> Refused | None:
    age_ns = now_tick_ns - header.agent_tick_ns
    if age_ns < 0:
        return Refused("I6", "its stamp is from the future: not of this boot of this machine")
    if age_ns > header.ttl_ms * MILLISECOND_NS:
        age_ms = age_ns // MILLISECOND_NS
        return Refused("I6", f"late: its stamp is {age_ms} ms old, {header.ttl_ms} ms are allowed")
    return None


def _basis(command: Command, state: GuardState) -> Refused | None:
    planned_on = command.header.based_on_generation
    if planned_on != state.generation:
        return Refused("I6", f"planned on generation {planned_on}, this is {state.generation}")
    if len(command.steps) > STEPS_MAX:
        return Refused("I4", f"{len(command.steps)} steps, at most {STEPS_MAX} are taken")
    return None


def _judge_steps(command: Command, readings: Readings) -> Accepted:
    """Each step on the readings as they will be when the accepted ones before it have worked."""
    steps: list[Admitted] = []
    refusals: list[StepResult] = []
    fell_short = False
    for step in in_safe_order(command.steps):
        admitted = admit(step, readings, may_cut=fell_short)
        if isinstance(admitted, Admitted):
            steps.append(admitted)
            readings = after(readings, admitted.step)
            fell_short |= step.shrinks and bool(admitted.cut)
        else:
            refusals.append(admitted)
            fell_short |= step.shrinks and admitted.outcome is not Outcome.UNCHANGED
    return Accepted(command, tuple(steps), tuple(refusals))


def _granted(
    state: GuardState, command: Command, now_tick_ns: int, readings: Readings
) -> GuardState:
    """Lease and fallback of an accepted command.

    A lever that the plan has no word on loses its fallback, as one that is to stay where it is,
    but for VMs that give no readings now: the plan could not know them. A lever that is moved for
    the first time and has no fallback of the plan gets the amount that it has now.
    """
    fallback = {
        (vm_id, resource): amount
        for (vm_id, resource), amount in state.fallback.items()
        if (vm := readings.vms.get(vm_id)) is not None
        and (not command.fallback or limit_of(vm, resource, readings.node) is None)
    }
    fallback |= _by_lever(command.fallback)
    for step in command.steps:
        vm = readings.vms.get(step.vm_id)
        limit = limit_of(vm, step.resource, readings.node) if vm is not None else None
        if limit is not None:
            fallback.setdefault(step.lever, limit)
    until = _lease_end(command.header, state, now_tick_ns)
    moved = frozenset(step.lever for step in command.steps)
    state = _bound(state, command.bounds or without(state.bounds, moved))
    return replace(state, lease_until_tick_ns=until, fallback=fallback)


def _bound(state: GuardState, bounds: Bounds) -> GuardState:
    """A loan without a leash is none any more: its plan has the limit as it stands."""
    lent = frozenset(lever for lever in state.lent if lever in bounds.leash)
    return replace(state, bounds=bounds, bounds_number=state.bounds_number + 1, lent=lent)


def _without_old_bounds(header: Header, state: GuardState, now_tick_ns: int) -> GuardState:
    """What an ended lease or an older epoch allowed holds no more."""
    if header.epoch <= state.epoch_highest and not has_lease_ended(state, now_tick_ns):
        return state
    return _bound(state, NO_BOUNDS) if state.bounds else state


def _by_lever(fallback: Fallback) -> dict[Lever, int]:
    return {(vm_id, resource): amount for vm_id, resource, amount in fallback}


def _lease_end(header: Header, state: GuardState, now_tick_ns: int) -> int:
    """A word of the controller never shortens what an earlier one of the same boot promised."""
    return max(now_tick_ns + header.lease_ms * MILLISECOND_NS, state.lease_until_tick_ns or 0)


def _stride(vm_id: str, resource: Resource, target: int, readings: Readings) -> Step | None:
    vm = readings.vms.get(vm_id)
    limit = None if vm is None else limit_of(vm, resource, readings.node)
    free = headroom(readings, resource)
    if vm is None or limit is None or free is None or vm.state not in MOVABLE:
        return None
    ceiling = maximum_of(vm, resource)
    missing = (target if ceiling is None else min(target, ceiling)) - limit
    if resource is Resource.MEMORY:
        blocks = readings.blocks.get(vm_id)
        stride = max(
            STRIDE_BYTES, limit // STRIDE_DIVISOR, 0 if blocks is None else blocks.size_bytes
        )
        missing = min(missing, stride)
    if missing > free:
        missing = whole_quanta(resource, free)
    step = Step(0, vm_id, resource, limit, limit + missing)
    if missing < QUANTUM[resource] or _is_blocked(step, readings):
        return None
    return step


def _is_blocked(step: Step, readings: Readings) -> bool:
    lever = readings.levers.get(step.resource.word)
    quarantined = step.lever in readings.quarantined and step.lever not in readings.growable
    return bool(lever) or quarantined
