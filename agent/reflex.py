"""What the agent moves by itself between two plans, within a second of a need. Pure.

    reflect(state, grant, signals, readings, rules, now) -> state, steps

- A VM that is believed to need more (agent.belief) is lent a stride at once, and the next one when
  it has been seen to use the last. Loans come out of the plan's reserve and of room that is
  measured free (I1), leave room for everybody's way back (I9), and stay within the leash.
- A VM that starts gets all of the CPU that its leash allows until it is ready.
- What there is too little for is unmet: telemetry says it to the controller, and an agent that is
  itself in a VM asks its own host for it.
- A loan that has not been needed for a while is paid back: down to what the plan gives, never
  below, under the same admission as every shrink (I3, I4). Whoever borrows again soon after keeps
  the next loan for twice as long, so that lending and paying back do not take turns.
- While the host itself lacks memory, nothing of it is lent, and free pages (then a little cache)
  are squeezed out of VMs, most free first, not below leash or working set; afterwards they get
  back what the plan gives them.

Without a lease there is no grant, without a leash a lever is not touched, and what cannot be
computed is not lent.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from agent.admission import WORTHWHILE_BYTES, Readings, working_floor_bytes
from agent.belief import (
    CPU_IN_USE_PERCENT,
    THROTTLED_US_PER_S,
    Signals,
    Stride,
    cpu_asked,
    has_used,
    is_short,
    is_starting,
    memory_asked,
    needs_cpu,
    needs_memory,
)
from agent.leash import Grant, Lever
from agent.loans import PATIENCE_NS_MAX, Habit, Lent, ReflexState, Room, reconciled
from agent.look import (
    CHECK_NS,
    LEAST,
    LENDABLE,
    LOAN_DEADLINE_MS,
    Look,
    Rules,
    cpu_stride,
    memory_stride,
    whole_blocks,
)
from agent.payback import pay_back, squeeze
from agent.steps import Step, whole_quanta
from shared.resources import Resource
from shared.telemetry import VmSample, VmState


def reflect(
    state: ReflexState,
    grant: Grant,
    signals: Signals,
    readings: Readings,
    rules: Rules,
    now_tick_ns: int,
) -> tuple[ReflexState, tuple[Step, ...]]:
    """The steps to begin now, growing ones first; the state counts them as on their way."""
    look = Look(grant, signals, readings, rules, now_tick_ns)
    state = reconciled(state, grant, readings, rules.pay_back_after_ns, now_tick_ns)
    if signals.is_pressed:
        state = replace(state, pressed_tick_ns=now_tick_ns)
    wants = {lever: want for resource in LENDABLE for lever, want in _wants(state, look, resource)}
    state = _remembered(replace(state, wants=wants, looked_tick_ns=now_tick_ns), look)
    state, loans = _lend(state, look)
    state, payments = pay_back(state, look)
    state, squeezes, word = squeeze(state, look)
    state = replace(state, word=word or _word(state, look))
    return state, (*loans, *payments, *squeezes)


def needs_a_look(
    state: ReflexState,
    grant: Grant,
    signals: Signals,
    known: Mapping[str, VmSample],
    now_tick_ns: int,
) -> bool:
    """Whether all VMs should be read for it: cheap, from what came by itself since the last look
    and from the last sample."""
    if state.bounds_number != grant.number or signals.is_pressed:
        return bool(grant.bounds.leash)
    if (state.lent or state.unmet) and now_tick_ns - state.looked_tick_ns >= CHECK_NS:
        return True
    for lever in grant.bounds.leash:
        vm, of_vm = known.get(lever[0]), signals.of(lever[0])
        if lever[1] is Resource.MEMORY:
            if memory_asked(of_vm, now_tick_ns) or (vm is not None and is_short(vm)):
                return True
        elif lever[1] is Resource.CPU and (
            (of_vm.throttled_us_per_s or 0) >= THROTTLED_US_PER_S
            or (vm is not None and is_starting(vm) and lever not in state.lent)
        ):
            return True
    return False


# ---- what is needed ----


def _wants(state: ReflexState, look: Look, resource: Resource) -> Iterator[tuple[Lever, int]]:
    """Lever -> the limit that its VM is believed to need."""
    for lever, vm in look.vms(resource):
        limit = look.limit(lever)
        extra = _extra(state, look, lever, vm)
        if limit is not None and extra > 0 and not _is_barred(state, lever, look.now):
            yield lever, limit + extra


def _extra(state: ReflexState, look: Look, lever: Lever, vm: VmSample) -> int:
    """How much more; 0: it has enough, or is not believed."""
    entry, signals = state.lent.get(lever), look.signals.of(lever[0])
    limit = look.limit(lever) or 0
    is_cpu = lever[1] is Resource.CPU
    if is_starting(vm) and is_cpu and look.rules.start_boost:
        return look.reach(lever) - limit
    if vm.state is not VmState.RUNNING:
        return 0
    if is_cpu:
        needs = needs_cpu(vm, signals, 0 if entry is None else entry.moved_tick_ns)
        return max(cpu_stride(limit), cpu_asked(signals, look.now)) if needs else 0
    is_lent = entry is not None and entry.moves > 0 and limit > look.leash(lever).plan_amount
    last = entry.stride if entry is not None and is_lent else None
    if not needs_memory(vm, signals, last, look.now):
        return 0
    return memory_asked(signals, look.now) or memory_stride(limit)


def _is_barred(state: ReflexState, lever: Lever, now: int) -> bool:
    """Who did not use the last loan waits before the next."""
    habit = state.habits.get(lever)
    if habit is None or habit.was_used or lever in state.lent:
        return False
    return now - habit.returned_tick_ns < habit.patience_ns


def _remembered(state: ReflexState, look: Look) -> ReflexState:
    """Which loans are needed still, and which were used."""
    lent = {}
    for lever, entry in state.lent.items():
        vm = look.readings.vms[lever[0]]
        used = entry.was_used or lever[1] is not Resource.MEMORY or has_used(vm, entry.stride)
        needed = look.now if _is_needed(state, look, lever, vm) else entry.needed_tick_ns
        lent[lever] = replace(entry, needed_tick_ns=needed, was_used=used)
    return replace(state, lent=lent)


def _is_needed(state: ReflexState, look: Look, lever: Lever, vm: VmSample) -> bool:
    """Whether the VM could not do with what its plan gives; unknown is no sign of a need."""
    plan = look.leash(lever).plan_amount
    if lever in state.wants:
        return True
    if lever[1] is Resource.MEMORY:
        floor = working_floor_bytes(vm)
        return floor is not None and floor > plan
    if state.lent[lever].is_boost:
        return is_starting(vm)
    throttled = look.signals.of(lever[0]).throttled_us_per_s or 0
    used = vm.cpu_used_millicores or 0
    return throttled >= THROTTLED_US_PER_S or used * 100 > plan * CPU_IN_USE_PERCENT


# ---- lending ----


def _lend(state: ReflexState, look: Look) -> tuple[ReflexState, list[Step]]:
    steps: list[Step] = []
    unmet: dict[Lever, int] = {}
    lent, climbs = dict(state.lent), dict.fromkeys(LENDABLE, 0)
    for resource in LENDABLE:
        room = Room.of(state, look, resource)
        wants = [lever for lever in state.wants if lever[1] is resource]
        # Who holds least of the reserve comes first.
        for lever in sorted(wants, key=lambda one: (_drawn(state, look, one), one)):
            entry, limit = lent.get(lever), look.limit(lever)
            is_held = lever in look.signals.held or (lever, False) in state.rests
            is_held |= entry is not None and entry.in_flight
            if limit is None or is_held:
                continue
            target = _target(state, look, lever, limit, room)
            want = min(state.wants[lever], max(limit, look.reach(lever)))
            # Also what the leash forbids is told to the planner; only the rest is asked of others.
            if target < min(state.wants[lever], limit + _stride(look, lever, limit, want)):
                unmet[lever] = limit
                climbs[resource] += max(0, want - target)
            if target > limit and room is not None:
                room.take(limit, target, look.leash(lever), look.grant.fallback.get(lever, 0))
                lent[lever] = _loan(state, look, lever, limit, target)
                deadline_ms = LOAN_DEADLINE_MS
                steps.append(Step(len(steps), *lever, limit, target, deadline_ms=deadline_ms))
    return replace(state, lent=lent, unmet=unmet, climbs=climbs), steps


def _target(state: ReflexState, look: Look, lever: Lever, limit: int, room: Room | None) -> int:
    """The limit to set; the one in force where there is nothing worth lending."""
    is_pressed = lever[1] is Resource.MEMORY and look.signals.is_pressed
    if room is None or is_pressed:
        return limit
    leash, fallback = look.leash(lever), look.grant.fallback.get(lever, 0)
    most = min(room.most(limit, leash, fallback), look.reach(lever))
    stride = _stride(look, lever, limit, state.wants[lever])
    extra = whole_quanta(lever[1], min(stride, most - limit))
    return limit + extra if extra >= min(LEAST[lever[1]], stride) else limit


def _stride(look: Look, lever: Lever, limit: int, want: int) -> int:
    if lever[1] is Resource.MEMORY:
        stride = min(memory_stride(limit), max(want - limit, WORTHWHILE_BYTES))
        return whole_blocks(look.readings, lever[0], stride)
    vm = look.readings.vms[lever[0]]
    if is_starting(vm):
        return max(0, want - limit)
    return cpu_stride(limit)


def _drawn(state: ReflexState, look: Look, lever: Lever) -> int:
    limit = look.limit(lever) or 0
    return max(0, limit - look.leash(lever).plan_amount) if lever in state.lent else 0


def _loan(state: ReflexState, look: Look, lever: Lever, limit: int, target: int) -> Lent:
    vm, known = look.readings.vms[lever[0]], state.lent.get(lever)
    stride = Stride(target - limit, vm.memory_resident_bytes)
    if known is not None:
        return replace(
            known, amount=target, stride=stride, in_flight=True, moved_tick_ns=look.now,
            needed_tick_ns=look.now,
        )  # fmt: skip
    return Lent(
        target,
        look.now,
        look.now,
        _patience(state.habits.get(lever), look),
        stride,
        is_boost=lever[1] is Resource.CPU and is_starting(vm),
    )


def _patience(habit: Habit | None, look: Look) -> int:
    if habit is None or look.now - habit.returned_tick_ns >= 2 * habit.patience_ns:
        return look.rules.pay_back_after_ns
    return min(PATIENCE_NS_MAX, 2 * habit.patience_ns)


def _word(state: ReflexState, look: Look) -> str:
    if state.unmet:
        return "unmet"
    above = (entry.amount > look.leash(lever).plan_amount for lever, entry in state.lent.items())
    return "lending" if any(above) else "normal"
