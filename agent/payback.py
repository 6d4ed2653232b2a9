"""What the reflex takes: loans paid back, and memory squeezed out while the host lacks it. Pure."""

from dataclasses import replace

from agent.admission import SHARE_DIVISOR, WORTHWHILE_BYTES, working_floor_bytes
from agent.belief import Stride
from agent.leash import Lever
from agent.loans import Lent, ReflexState, Room
from agent.look import LOAN_DEADLINE_MS, PAYMENT_DEADLINE_MS, SQUEEZED_MAX, Look, memory_stride
from agent.steps import Step, whole_quanta
from shared.resources import Resource
from shared.telemetry import VmSample, VmState


def pay_back(state: ReflexState, look: Look) -> tuple[ReflexState, list[Step]]:
    """Loans that are not needed any more go, and what was squeezed out comes back."""
    steps: list[Step] = []
    lent = dict(state.lent)
    room = Room.of(state, look, Resource.MEMORY)
    for lever, entry in state.lent.items():
        limit, vm = look.limit(lever), look.readings.vms[lever[0]]
        is_held = entry.in_flight or lever in look.signals.held
        is_due = not is_held and not _rests(state, lever, limit, look)
        if limit is None or not is_due or lever in state.wants or vm.state is not VmState.RUNNING:
            continue
        if limit > look.leash(lever).plan_amount:
            target, deadline_ms = _paid_back(look, lever, entry, limit), PAYMENT_DEADLINE_MS
        elif room is not None and lever[1] is Resource.MEMORY and not _is_pressed(state, look):
            target, deadline_ms = _given_back(look, lever, limit, room), LOAN_DEADLINE_MS
        else:
            continue
        if target != limit:
            steps.append(Step(len(steps), *lever, limit, target, deadline_ms=deadline_ms))
            stride = replace(entry.stride, is_over=True)
            lent[lever] = replace(
                entry, amount=target, stride=stride, in_flight=True, moved_tick_ns=look.now
            )
    return replace(state, lent=lent), steps


def _rests(state: ReflexState, lever: Lever, limit: int | None, look: Look) -> bool:
    shrinks = limit is not None and limit > look.leash(lever).plan_amount
    return (lever, shrinks) in state.rests


def _paid_back(look: Look, lever: Lever, entry: Lent, limit: int) -> int:
    leash = look.leash(lever)
    patience = 0 if entry.is_boost else entry.patience_ns
    is_needed = look.now - entry.needed_tick_ns < patience
    if is_needed or _is_unread(lever, look.readings.vms[lever[0]]):
        return limit
    return min(limit, max(leash.plan_amount, leash.low_amount))


def _given_back(look: Look, lever: Lever, limit: int, room: Room) -> int:
    leash, fallback = look.leash(lever), look.grant.fallback.get(lever, 0)
    most = min(room.most_of_plan(limit, leash, fallback), look.reach(lever))
    target = limit + whole_quanta(lever[1], max(0, min(most - limit, memory_stride(limit))))
    room.take(limit, target, leash, fallback)
    return target


def _is_pressed(state: ReflexState, look: Look) -> bool:
    """The host lacks memory, or did so lately."""
    pressed = state.pressed_tick_ns
    return pressed is not None and look.now - pressed < look.rules.pay_back_after_ns


def _is_unread(lever: Lever, vm: VmSample) -> bool:
    """Memory is only taken by the guest's own fresh figures."""
    return lever[1] is Resource.MEMORY and vm.memory_used_bytes is None


def squeeze(state: ReflexState, look: Look) -> tuple[ReflexState, list[Step], str]:
    """What VMs can miss while the host lacks memory; the word of the ladder, "" without need."""
    if not look.signals.is_pressed:
        return state, [], ""
    steps: list[Step] = []
    lent, from_cache = dict(state.lent), False
    candidates = sorted(
        look.vms(Resource.MEMORY), key=lambda pair: -(pair[1].memory_free_bytes or 0)
    )
    under_way = any(map(_is_under_way, lent.values()))
    for lever, vm in candidates:
        entry = state.lent.get(lever)
        is_resting = (lever, True) in state.rests
        under_way |= is_resting
        limit, target = look.limit(lever), _squeezed(look, lever, vm)
        is_left_alone = is_resting or lever in state.wants or lever in look.signals.held
        if is_left_alone or limit is None or target is None or _is_under_way(entry):
            continue
        from_cache |= limit - target > (vm.memory_free_bytes or 0)
        steps.append(Step(len(steps), *lever, limit, target, deadline_ms=PAYMENT_DEADLINE_MS))
        lent[lever] = _squeezed_entry(entry, look, target)
        if len(steps) == SQUEEZED_MAX:
            break
    if not steps and not under_way:
        return state, [], "exhausted"
    return replace(state, lent=lent), steps, f"squeezing_{'cache' if from_cache else 'free'}"


def _squeezed(look: Look, lever: Lever, vm: VmSample) -> int | None:
    """The limit after one squeeze; None where it is not worth it."""
    floor, limit = working_floor_bytes(vm), vm.memory_limit_bytes
    if vm.state is not VmState.RUNNING or floor is None or limit is None:
        return None
    if vm.memory_free_bytes is None:
        return None
    cache = min(vm.memory_cache_bytes or 0, limit // SHARE_DIVISOR)
    lowest = max(floor, look.leash(lever).low_amount)
    taken = min(limit - lowest, vm.memory_free_bytes + cache, memory_stride(limit))
    taken = whole_quanta(Resource.MEMORY, taken)
    return limit - taken if taken >= WORTHWHILE_BYTES else None


def _squeezed_entry(entry: Lent | None, look: Look, target: int) -> Lent:
    if entry is not None:
        stride = replace(entry.stride, is_over=True)
        return replace(entry, amount=target, stride=stride, in_flight=True, moved_tick_ns=look.now)
    patience = look.rules.pay_back_after_ns
    return Lent(target, look.now, look.now, patience, Stride(0, None, is_over=True), was_used=True)


def _is_under_way(entry: Lent | None) -> bool:
    return entry is not None and entry.in_flight
