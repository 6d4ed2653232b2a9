"""Whether one step may be carried out, by the agent's own readings and nothing else.

Pure. `guard.judge` asks for every step of a command beforehand, on projected readings; `act` asks
again right before each step, on measured ones. Both get the same rules:

I1 growing only into what is measured free under the node's allocatable amount
I2 floor <= target <= ceiling, and no more than the lever can reach
I3 memory never below the working set and a margin, nor while the guest is short of memory; a
   shrink that asks for more is cut to what remains
I4 one shrink takes free pages and a twentieth of the limit in cache, no more
I6 nothing on missing readings; memory is read-only without fresh guest statistics
I8 only running VMs, and nothing is taken from one that is starting
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from agent.hypervisor import MemoryBlocks
from agent.steps import (
    QUANTUM,
    Outcome,
    Step,
    StepResult,
    allocatable_of,
    is_unchanged,
    limit_of,
    matches,
    maximum_of,
    step_text,
    whole_quanta,
    with_limit,
)
from shared.resources import MIB, Resource, amount_text
from shared.telemetry import NodeReadings, VmSample, VmState

MARGIN_BYTES_MIN = 64 * MIB  # kept above the working set: a small guest's kernel needs this much
WORTHWHILE_BYTES = 16 * MIB  # a shrink that its floor cuts to less than this is none
SHARE_DIVISOR = 20  # 5 % of the limit: the margin of large guests, and the cache taken per step
MOVABLE = frozenset({VmState.RUNNING, VmState.STARTING})
FAULTS_PER_S_MAX = 100  # more major faults than this: the guest already reads back what it lost


@dataclass(frozen=True, slots=True)
class Readings:
    """What the agent measured just now, of this node and all of its VMs."""

    node: NodeReadings
    vms: Mapping[str, VmSample]
    stats_age_ns_max: int  # older guest statistics do not count
    levers: Mapping[str, str] = field(default_factory=dict)  # resource -> why it does not work
    quarantined: Mapping[tuple[str, Resource], str] = field(default_factory=dict)  # lever -> why
    growable: frozenset[tuple[str, Resource]] = frozenset()  # of these, what may grow all the same
    blocks: Mapping[str, MemoryBlocks] = field(default_factory=dict)  # by VM, where it has some
    tick_ns: int = 0  # when the reading of them began


@dataclass(frozen=True, slots=True)
class Admitted:
    """The step to carry out; `cut` says why it is smaller than asked, empty when it is not."""

    step: Step
    cut: str = ""


def admit(
    step: Step, readings: Readings, *, may_cut: bool = False, way_back: bool = False
) -> Admitted | StepResult:
    """The step, possibly smaller, or the result that stands in its place.

    `may_cut`: an earlier shrink of the command fell short, so a grow takes what is there instead
    of being refused as a plan that does not add up. `way_back`: the lease has ended; nothing
    shrinks, and memory is given back without asking for the guest's statistics.
    """
    vm = readings.vms.get(step.vm_id)
    if vm is None:
        return StepResult(step.index, Outcome.GONE, "this host has no such VM")
    limit = limit_of(vm, step.resource, readings.node)
    if limit is None:
        return refused(step, "I6", f"the {step.resource.word} limit in force is not measured")
    for check in (_immovable, _out_of_bounds, _unchanged, _outdated, _read_only):
        result = None if way_back and check is _read_only else check(step, vm, limit, readings)
        if result is not None:
            return result
    if step.to_amount < limit:
        if way_back:
            return refused(step, "I9", "the lease has ended: nothing shrinks", limit)
        return _in_blocks(_shrink(step, vm, limit, readings), limit, readings)
    return _in_blocks(_grow(step, limit, readings, may_cut=may_cut), limit, readings)


def after(readings: Readings, step: Step) -> Readings:
    """The readings as they will be once `step` is in force."""
    vm = with_limit(readings.vms[step.vm_id], step.resource, step.to_amount)
    return replace(readings, vms={**readings.vms, step.vm_id: vm})


def working_floor_bytes(vm: VmSample) -> int | None:
    """Bytes of memory below which this VM is never taken; None: unknown, nothing is taken."""
    if vm.memory_used_bytes is None or vm.memory_limit_bytes is None:
        return None
    margin = max(MARGIN_BYTES_MIN, vm.memory_limit_bytes // SHARE_DIVISOR)
    return vm.memory_used_bytes + margin


def may_newer_figures_help(step: Step, readings: Readings, since_tick_ns: int) -> bool:
    """Whether a memory shrink that is refused or cut goes by guest figures from before
    `since_tick_ns`: what others gave back since is not in them, and the next ones may show it."""
    vm = readings.vms.get(step.vm_id)
    if vm is None or step.resource is not Resource.MEMORY or not step.shrinks:
        return False
    age = vm.memory_stats_age_ns
    if age is None or age > readings.stats_age_ns_max or readings.tick_ns - age >= since_tick_ns:
        return False
    result = admit(step, readings)
    if isinstance(result, Admitted):
        return bool(result.cut)
    unknown = vm.memory_used_bytes is None or vm.memory_free_bytes is None
    return (result.invariant in {"I3", "I4"} and not _shortage(vm)) or unknown


def room_for_the_way_back(
    readings: Readings, fallback: Mapping[tuple[str, Resource], int], resource: Resource
) -> int | None:
    """What may still be lent so that all VMs can grow to their fallback from there (I9): what is
    allocatable less the higher of limit and fallback of each; None when it cannot be told."""
    allocatable = allocatable_of(readings.node, resource)
    if allocatable is None:
        return None
    total = 0
    for vm in readings.vms.values():
        if vm.state is VmState.SHUT_DOWN:
            continue
        limit = limit_of(vm, resource, readings.node)
        limit = maximum_of(vm, resource) if limit is None else limit
        if limit is None:
            return None
        total += max(limit, fallback.get((vm.vm_id, resource), 0))
    return allocatable - total


def headroom(readings: Readings, resource: Resource) -> int | None:
    """What is measured free under the node's allocatable amount; None when it cannot be told.

    A VM whose limit could not be read counts with all that it could have.
    """
    return room_for_the_way_back(readings, {}, resource)


def refused(step: Step, invariant: str, detail: str, before: int | None = None) -> StepResult:
    return StepResult(
        step.index, Outcome.REFUSED, f"{invariant}: {detail}", before, before, invariant=invariant
    )


def _immovable(step: Step, vm: VmSample, limit: int, readings: Readings) -> StepResult | None:
    if vm.state is VmState.STARTING and step.to_amount < limit:
        return refused(step, "I8", "the VM is starting: nothing is taken from it yet", limit)
    if vm.state not in MOVABLE:
        return refused(step, "I8", f"the VM is {vm.state.name.lower().replace('_', ' ')}", limit)
    why = readings.levers.get(step.resource.word)
    if step.to_amount < limit or step.lever not in readings.growable:
        why = why or readings.quarantined.get(step.lever)
    return refused(step, "lever", why, limit) if why else None


def _out_of_bounds(step: Step, vm: VmSample, limit: int, readings: Readings) -> StepResult | None:
    reachable = maximum_of(vm, step.resource)
    ceiling = step.ceiling_amount if reachable is None else min(step.ceiling_amount, reachable)
    if step.floor_amount <= step.to_amount <= ceiling:
        return None
    floor_text = amount_text(step.resource, step.floor_amount)
    bounds = f"{floor_text} to {amount_text(step.resource, ceiling)}"
    detail = f"{amount_text(step.resource, step.to_amount)} is not within {bounds}"
    return refused(step, "I2", detail, limit)


def _unchanged(step: Step, vm: VmSample, limit: int, readings: Readings) -> StepResult | None:
    if not is_unchanged(step.resource, limit, step.to_amount):
        return None
    return StepResult(step.index, Outcome.UNCHANGED, "", limit, limit)


def _outdated(step: Step, vm: VmSample, limit: int, readings: Readings) -> StepResult | None:
    """A grow goes on from wherever the reflex has brought its VM meanwhile."""
    if matches(step.resource, step.from_amount, limit):
        return None
    if not step.shrinks and limit > step.from_amount:
        is_there = limit >= step.to_amount
        return StepResult(step.index, Outcome.UNCHANGED, "", limit, limit) if is_there else None
    measured = amount_text(step.resource, limit)
    return refused(step, "I6", f"planned {step_text(step)}, but {measured} is in force", limit)


def _read_only(step: Step, vm: VmSample, limit: int, readings: Readings) -> StepResult | None:
    if step.resource is not Resource.MEMORY:
        return None
    age = vm.memory_stats_age_ns
    if age is None or age > readings.stats_age_ns_max:
        return refused(step, "I6", "no fresh guest statistics: memory is read-only", limit)
    return None


def _shrink(step: Step, vm: VmSample, limit: int, readings: Readings) -> Admitted | StepResult:
    if step.resource is not Resource.MEMORY:
        return Admitted(step)
    floor = working_floor_bytes(vm)
    if floor is None or vm.memory_free_bytes is None:
        return refused(step, "I6", "the guest's working set or free pages are unknown", limit)
    short = _shortage(vm)
    if short:
        return refused(step, "I3", short, limit)
    return _above_floor(step, vm, limit, floor)


def _above_floor(step: Step, vm: VmSample, limit: int, floor: int) -> Admitted | StepResult:
    """A shrink that ends above the working set, smaller than asked where that is worth it."""
    if step.to_amount >= floor:
        return _within_rate(step, vm, limit)
    detail = f"working set and margin need {amount_text(Resource.MEMORY, floor)}"
    worth = whole_quanta(Resource.MEMORY, limit - floor)
    if worth < WORTHWHILE_BYTES:
        return refused(step, "I3", detail, limit)
    cut = _within_rate(replace(step, to_amount=limit - worth), vm, limit)
    if isinstance(cut, StepResult):
        return cut
    return Admitted(cut.step, cut.cut or f"I3: {detail}")


def _shortage(vm: VmSample) -> str:
    """Signs that the guest already lacks memory; empty when there are none."""
    if (vm.memory_swap_in_bytes_per_s or 0) > 0:
        return "the guest is swapping in"
    faults = vm.memory_major_faults_per_s or 0
    return f"the guest has {faults} major faults/s" if faults > FAULTS_PER_S_MAX else ""


def _within_rate(step: Step, vm: VmSample, limit: int) -> Admitted | StepResult:
    """A shrink by no more than free pages and a little cache; a smaller step rather than none.

    Free pages come and go between the plan and now, so a plan cannot hit them to the byte.
    """
    cache = min(vm.memory_cache_bytes or 0, limit // SHARE_DIVISOR)
    allowed = (vm.memory_free_bytes or 0) + cache
    if limit - step.to_amount <= allowed:
        return Admitted(step)
    allowed = whole_quanta(step.resource, allowed)
    detail = f"free pages and 5 % of cache allow {amount_text(step.resource, allowed)} per step"
    if allowed == 0:
        return refused(step, "I4", detail, limit)
    return Admitted(replace(step, to_amount=limit - allowed), f"I4: {detail}")


def _in_blocks(
    result: Admitted | StepResult, limit: int, readings: Readings
) -> Admitted | StepResult:
    """Of a memory that moves in blocks, the whole ones of the change, and no more of it."""
    if isinstance(result, StepResult) or result.step.resource is not Resource.MEMORY:
        return result
    step = result.step
    blocks = readings.blocks.get(step.vm_id)
    if blocks is None:
        return result
    # What lies below the blocks cannot be taken at all.
    change = max(step.to_amount, min(limit, blocks.fixed_bytes)) - limit
    whole = abs(change) - abs(change) % blocks.size_bytes
    to_amount = limit + (whole if change > 0 else -whole)
    detail = f"its memory moves in blocks of {amount_text(Resource.MEMORY, blocks.size_bytes)}"
    if whole == 0:
        return StepResult(step.index, Outcome.UNCHANGED, detail, limit, limit)
    moved = replace(step, to_amount=to_amount)
    as_asked = is_unchanged(Resource.MEMORY, to_amount, step.to_amount)
    return Admitted(moved, result.cut if as_asked else result.cut or detail)


def _grow(step: Step, limit: int, readings: Readings, *, may_cut: bool) -> Admitted | StepResult:
    free = headroom(readings, step.resource)
    word = step.resource.word
    if free is None:
        return refused(step, "I1", f"what is free of {word} cannot be computed", limit)
    if step.to_amount - limit <= free:
        return Admitted(step)
    detail = f"{amount_text(step.resource, max(0, free))} of {word} is free"
    allowed = whole_quanta(step.resource, free)
    if not may_cut or allowed < QUANTUM[step.resource]:
        return refused(step, "I1", detail, limit)
    return Admitted(replace(step, to_amount=limit + allowed), f"I1: {detail}")
