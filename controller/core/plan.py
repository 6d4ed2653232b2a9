"""From chosen grants to ordered steps, each prefix of which is safe, and the way back (I5, I9).

Shrinks come first, guests before the hypervisor VM that holds them; then grows, from the host
inwards. A phase holds what may run at the same time. (The rule "increase first, decrease last"
for quorums is Patroni's; for capacities it turns round.)
"""

from dataclasses import replace

import numpy as np

from controller.core.state import (
    MISSING,
    Allocation,
    Bins,
    Fallback,
    Forecast,
    Hold,
    Lend,
    Mode,
    Plan,
    Policy,
    Snapshot,
    Step,
)
from shared.resources import MIB, Resource, amount_text

FALLBACK_QUANTUM = (1, MIB, 1)
Moves = dict[tuple[int, Resource], Step]

LENT = (Resource.CPU, Resource.MEMORY)  # what bursts cannot wait for


def to_plan(
    snapshot: Snapshot,
    forecast: Forecast,
    policy: Policy,
    bins: Bins,
    allocation: Allocation,
    root: int,
) -> Plan:
    """The steps of one tree from the limits in force to the chosen grants; may have none."""
    members = snapshot.tree(root)
    depth = _depths(snapshot, members)
    deepest = max(depth.values())
    moves = []
    for machine in members:
        for resource in Resource:
            now = int(snapshot.limit[machine, resource])
            then = int(allocation.level[machine, resource])
            if MISSING not in {now, then} and now != then:
                level = depth[machine]
                phase = deepest - level if then < now else deepest + level
                moves.append((phase, machine, resource, now, then))
    steps = []
    for index, (phase, machine, resource, now, then) in enumerate(sorted(moves)):
        node = int(snapshot.parent[machine])
        floor = min(int(snapshot.floor[machine, resource]), then)
        ceiling = max(int(snapshot.ceiling[machine, resource]), 0)
        why = _why(snapshot, forecast, policy, bins, machine, resource, then)
        steps.append(
            Step(index, phase, machine, snapshot.ids[machine], node, resource, now, then,
                 floor, ceiling, why)
        )  # fmt: skip
    hosts = sorted({int(snapshot.parent[i]) for i in members if i != root})
    fallback = _fallbacks(snapshot, tuple(steps), members)
    return Plan(
        # The whole id: those of one maker's machines begin alike (Dell's all with 4c4c4544).
        plan_id=f"{snapshot.epoch}-{snapshot.cycle}-{snapshot.ids[root]}",
        root=root,
        epoch=snapshot.epoch,
        cycle=snapshot.cycle,
        steps=tuple(steps),
        fallback=fallback,
        generations=tuple((host, int(snapshot.generation[host])) for host in hosts),
        lend=_lends(snapshot, tuple(steps), fallback),
    )


def cut_grow(step: Step, headroom: int, quantum: int) -> Step | None:
    """A grow cut to what was confirmed free at its host; None when not even a quantum is.

    `headroom`: amount that the host can still give, in the resource's unit.
    """
    assert not step.shrinks
    wanted = step.to_amount - step.from_amount
    if wanted <= headroom:
        return step
    given = headroom // quantum * quantum
    if given <= 0:
        return None
    return replace(step, to_amount=step.from_amount + given)


def _depths(snapshot: Snapshot, members: list[int]) -> dict[int, int]:
    depth = {members[0]: 0}
    for machine in members[1:]:
        depth[machine] = depth[int(snapshot.parent[machine])] + 1
    return depth


def _why(
    snapshot: Snapshot,
    forecast: Forecast,
    policy: Policy,
    bins: Bins,
    machine: int,
    resource: Resource,
    then: int,
) -> str:
    """One sentence for a person: what the forecast says and which way it pushes."""
    if snapshot.pin[machine, resource] != MISSING:
        return f"pinned at {amount_text(resource, int(snapshot.pin[machine, resource]))}"
    now = int(snapshot.limit[machine, resource])
    quantile = forecast.quantile[machine, resource]
    p50, p95 = (float(np.interp(p, forecast.probability, quantile)) for p in (0.5, 0.95))
    demand = (
        f"demand p50 {amount_text(resource, round(p50))}, p95 {amount_text(resource, round(p95))}"
    )
    if resource is Resource.MEMORY:
        margin = float(policy.with_margin(np.array(p95))) - p95
        demand += f" + {amount_text(resource, round(margin))} margin"
    wanted = int(snapshot.wanted[machine, resource])
    if wanted != MISSING:
        demand += f", asks for {amount_text(resource, wanted)} now"
    if then > now:
        needed = int(bins.needed[machine, resource])
        word = "needs" if then <= needed else "is worth"
        return f"{demand}: {word} more than {amount_text(resource, now)}"
    return (
        f"{demand}: holds {amount_text(resource, now)}, lends {amount_text(resource, now - then)}"
    )


def _fallbacks(
    snapshot: Snapshot, steps: tuple[Step, ...], members: list[int]
) -> tuple[Fallback, ...]:
    """Sizes that growth alone reaches from every prefix and that fit at every prefix (I9).

    Each VM's base is the lower of before and after, which any prefix already holds. What a host
    has left at its fullest moment is shared out over that, in proportion to what VMs lack of
    their full size; the burst reserve is not shared out, since it may be lent when the lease ends.
    A host that is over-full has no spare: there bases are cut towards the floors until they fit,
    so that what comes down by itself is not lent out again by silence.
    What is observed, frozen or a clone has no way back and what is pinned goes nowhere: silence
    gives no leave to move them either (I8).
    """
    moved = {(s.machine, s.resource): s for s in steps}
    found = []
    for host in sorted({int(snapshot.parent[i]) for i in members if snapshot.parent[i] >= 0}):
        for resource in Resource:
            children, leashed = _steered(snapshot, host, resource)
            spare = _spare(snapshot, moved, host, resource)
            base = {c: _lower(snapshot, moved, c, resource) for c in children}
            if spare == 0:
                base = _cut_to_fit(snapshot, base, host, resource)
            lack = {
                c: max(_full(snapshot, c, resource) - base[c], 0)
                for c in children
                if snapshot.pin[c, resource] == MISSING
            }
            whole = sum(lack.values())
            for child in children:
                missing = lack.get(child, 0)
                extra = min(missing, spare * missing // whole) if whole else 0
                extra = extra // FALLBACK_QUANTUM[resource] * FALLBACK_QUANTUM[resource]
                entry = Fallback(
                    child, snapshot.ids[child], host, resource, base[child] + extra,
                    _then(snapshot, moved, child, resource),
                )  # fmt: skip
                found.append(_on_leash(snapshot, entry) if child in leashed else entry)
    return tuple(found)


def _steered(snapshot: Snapshot, host: int, resource: Resource) -> tuple[list[int], set[int]]:
    """Guests of `host` that have a way back, and those that its agent may lend to as well."""
    guests = np.array(snapshot.children(host), dtype=np.int64)
    mode, hold = snapshot.mode[guests], snapshot.hold[guests]
    steered = (
        (snapshot.limit[guests, resource] != MISSING)
        & snapshot.lever[guests, resource]
        & (mode > int(Mode.OBSERVE))
        & ~np.isin(hold, (int(Hold.FROZEN), int(Hold.CLONE)))
    )
    leashed = (
        steered
        & (mode == int(Mode.ENFORCE))
        & ((hold == int(Hold.NONE)) | (hold == int(Hold.STARTING)))
        & (snapshot.pin[guests, resource] == MISSING)
        & (resource in LENT)
    )
    return guests[steered].tolist(), set(guests[leashed].tolist())


def _on_leash(snapshot: Snapshot, entry: Fallback) -> Fallback:
    """Bursts do not wait for a plan: within these bounds the agent acts by itself."""
    floor = int(snapshot.floor[entry.machine, entry.resource])
    full = _full(snapshot, entry.machine, entry.resource)
    return replace(
        entry,
        low_amount=min(max(floor, 0), entry.plan_amount),
        high_amount=max(full, entry.plan_amount),
    )


def _lends(
    snapshot: Snapshot, steps: tuple[Step, ...], fallback: tuple[Fallback, ...]
) -> tuple[Lend, ...]:
    """Of each host's reserve, what is left once the plan is carried out, beside the way back.

    Until then its agent lends no more than it measures free.
    """
    moved = {(s.machine, s.resource): s for s in steps}
    goal = {(e.machine, e.resource): e.amount for e in fallback}
    found = []
    for host, resource in sorted({(e.node, e.resource) for e in fallback if e.has_leash}):
        capacity = _capacity_then(snapshot, moved, host, resource)
        then = {c: _then(snapshot, moved, c, resource) for c in snapshot.children(host)}
        if MISSING in {capacity, *then.values()}:
            continue
        held = sum(max(amount, goal.get((c, resource), 0)) for c, amount in then.items())
        left = capacity - int(snapshot.overhead[host, resource]) - held
        amount = min(int(snapshot.reserve[host, resource]), left)
        if amount > 0:
            found.append(Lend(host, resource, amount))
    return tuple(found)


def _cut_to_fit(
    snapshot: Snapshot, base: dict[int, int], host: int, resource: Resource
) -> dict[int, int]:
    """Bases that fit beside what stays where it is; not below floors, and unchanged where the
    room cannot be told."""
    others = [c for c in snapshot.children(host) if c not in base]
    amount = snapshot.capacity if snapshot.parent[host] < 0 else snapshot.limit
    known = [int(amount[host, resource]), *(int(snapshot.limit[c, resource]) for c in others)]
    if MISSING in known:
        return base
    room = known[0] - sum(known[1:]) - int(snapshot.overhead[host, resource])
    floor = {c: min(int(snapshot.floor[c, resource]), base[c]) for c in base}
    above = sum(base.values()) - sum(floor.values())
    left = max(room - sum(floor.values()), 0)
    if above <= left:
        return base
    return {c: floor[c] + (base[c] - floor[c]) * left // above for c in base}


def _lower(snapshot: Snapshot, moved: Moves, machine: int, resource: Resource) -> int:
    step = moved.get((machine, resource))
    now = int(snapshot.limit[machine, resource])
    return now if step is None else min(now, step.to_amount)


def _then(snapshot: Snapshot, moved: Moves, machine: int, resource: Resource) -> int:
    """The limit once the plan is carried out; MISSING where it is not known."""
    step = moved.get((machine, resource))
    return int(snapshot.limit[machine, resource]) if step is None else step.to_amount


def _capacity_then(snapshot: Snapshot, moved: Moves, host: int, resource: Resource) -> int:
    if snapshot.parent[host] < 0:
        return int(snapshot.capacity[host, resource])
    return _then(snapshot, moved, host, resource)


def _full(snapshot: Snapshot, machine: int, resource: Resource) -> int:
    maximum = int(snapshot.maximum[machine, resource])
    return 0 if maximum == MISSING else min(maximum, int(snapshot.ceiling[machine, resource]))


def _spare(snapshot: Snapshot, moved: Moves, host: int, resource: Resource) -> int:
    """Least capacity left at `host` over the whole walk; 0 when it cannot be told."""
    children = snapshot.children(host)
    if any(snapshot.limit[c, resource] == MISSING for c in children):
        return 0
    if snapshot.parent[host] < 0:
        amount = int(snapshot.capacity[host, resource])
    else:
        amount = _lower(snapshot, moved, host, resource)
    if amount == MISSING:
        return 0
    # No child ever holds more than the higher of before and after; while shrinks come first the
    # fullest moment is the start or the end, or between: bounded by the sums at both ends.
    before = sum(int(snapshot.limit[c, resource]) for c in children)
    after = sum(
        moved[c, resource].to_amount if (c, resource) in moved else int(snapshot.limit[c, resource])
        for c in children
    )
    kept = int(snapshot.overhead[host, resource]) + int(snapshot.reserve[host, resource])
    return max(amount - kept - max(before, after), 0)
