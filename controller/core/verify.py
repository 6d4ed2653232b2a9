"""A second opinion on a plan: recomputes the invariants from the snapshot, trusting nothing in it.

I1 capacity   at every host: children's limits + overhead + reserve <= capacity, at every prefix
I2 bounds     floor <= limit <= ceiling for what moves
I3 working    memory never below the observed working set + margin
I4 rate       what one step may take, by kind
I5 order      steps start from what is in force, phases rise, every interleaving keeps I1
I6 freshness  nothing moves on readings that are stale or missing
I7 authority  the plan is of this epoch and of the agents' present generation
I8 opt-out    observed, frozen, migrating, cloned, stopped, pinned elsewhere: does not move
I9 way back   growth alone reaches the fallback from every prefix, within capacity
I10 audit     not here: `dispatch` takes only what the audit stream has acknowledged

When a check cannot be computed, it counts as broken. Knows neither allocator nor planner.
"""

from collections.abc import Iterator

import numpy as np

from controller.core.state import (
    MISSING,
    Broken,
    Fallback,
    Hold,
    Mode,
    Plan,
    Policy,
    Rejection,
    Snapshot,
    Step,
    Verdict,
    VerifiedPlan,
)
from shared.resources import Resource, amount_text

Ledger = dict[tuple[int, Resource], int]
GivenBack = dict[int, list[tuple[int, int]]]  # host -> phase and bytes of its guests' shrinks


def verify(
    plan: Plan, snapshot: Snapshot, policy: Policy, lowest_mode: Mode = Mode.ENFORCE
) -> Verdict:
    """A VerifiedPlan, or a Rejection that names every broken invariant and the machine."""
    broken = [*_authority(plan, snapshot)]
    if not broken:  # indices and bases are void in a plan made for another state
        given_back = _given_back(plan)
        for step in plan.steps:
            broken += _step(step, snapshot, policy, lowest_mode, given_back)
        broken += _walk(plan, snapshot)
        broken += _leashes(plan, snapshot)
    return Rejection(plan, tuple(broken)) if broken else VerifiedPlan(plan, lowest_mode)


def _authority(plan: Plan, snapshot: Snapshot) -> Iterator[Broken]:
    if plan.epoch != snapshot.epoch:
        yield Broken("I7", plan.root, f"made in epoch {plan.epoch}, this is {snapshot.epoch}")
    if not _exists(plan.root, snapshot) or snapshot.parent[plan.root] >= 0:
        yield Broken("I7", plan.root, "its root is no host of this fleet")
        return
    members = set(snapshot.tree(plan.root))
    entries: tuple[Step | Fallback, ...] = (*plan.steps, *plan.fallback)
    for entry in entries:
        if entry.machine not in members or snapshot.ids[entry.machine] != entry.vm_id:
            yield Broken("I7", plan.root, f"{entry.vm_id} is not at its place")
        elif snapshot.parent[entry.machine] != entry.node or entry.node < 0:
            yield Broken("I7", entry.machine, "it does not run on the host named for it")
    based = dict(plan.generations)
    for node in sorted({s.node for s in plan.steps if _exists(s.node, snapshot)}):
        now = int(snapshot.generation[node])
        if now == MISSING or based.get(node) != now:
            yield Broken("I7", node, f"made on generation {based.get(node)}, the agent is at {now}")


def _given_back(plan: Plan) -> GivenBack:
    found: GivenBack = {}
    for step in plan.steps:
        if step.resource is Resource.MEMORY and step.shrinks:
            amount = step.from_amount - step.to_amount
            found.setdefault(step.node, []).append((step.phase, amount))
    return found


def _exists(machine: int, snapshot: Snapshot) -> bool:
    return 0 <= machine < len(snapshot.ids)


def _step(
    step: Step, snapshot: Snapshot, policy: Policy, lowest_mode: Mode, given_back: GivenBack
) -> Iterator[Broken]:
    """I2, I3, I4, I6 and I8 of one step."""
    machine, resource, to = step.machine, step.resource, step.to_amount
    if snapshot.mode[machine] < lowest_mode:
        mode = Mode(int(snapshot.mode[machine])).name.lower()
        yield Broken("I8", machine, f"its mode is {mode}")
    if snapshot.hold[machine] != Hold.NONE:
        yield Broken("I8", machine, f"held: {Hold(int(snapshot.hold[machine])).name.lower()}")
    if not snapshot.lever[machine, resource]:
        yield Broken("I8", machine, f"{resource.word} has no lever here")
    pin = int(snapshot.pin[machine, resource])
    if pin != MISSING and abs(to - pin) > abs(step.from_amount - pin):
        yield Broken("I8", machine, f"pinned at {amount_text(resource, pin)}, moves away from it")
    age = int(snapshot.sample_age_ns[machine])
    if age == MISSING or age > policy.sample_age_ns_max:
        yield Broken("I6", machine, "its host's readings are stale or missing")
    yield from _bounds(step, snapshot)
    if resource is Resource.MEMORY:
        earlier = given_back.get(step.machine, ())
        relief = sum(amount for phase, amount in earlier if phase < step.phase)
        yield from _memory(step, snapshot, policy, relief)
    elif step.shrinks:
        share = policy.cpu_shrink_share if resource is Resource.CPU else policy.io_shrink_share
        if step.from_amount - to > int(step.from_amount * share):
            yield Broken("I4", machine, f"takes more than {share:.0%} of its {resource.word}")


def _bounds(step: Step, snapshot: Snapshot) -> Iterator[Broken]:
    machine, resource = step.machine, step.resource
    floor = int(snapshot.floor[machine, resource])
    ceiling = int(snapshot.ceiling[machine, resource])
    maximum = int(snapshot.maximum[machine, resource])
    if step.to_amount <= 0 or step.to_amount == step.from_amount:
        yield Broken("I2", machine, f"{step.to_amount} is no move to a positive amount")
    if step.shrinks:
        if step.to_amount < floor:
            yield Broken("I2", machine, f"below its floor of {amount_text(resource, floor)}")
        return
    if ceiling == MISSING or step.to_amount > ceiling:
        yield Broken("I2", machine, f"above its ceiling of {amount_text(resource, ceiling)}")
    if maximum == MISSING or step.to_amount > maximum:
        yield Broken("I2", machine, "more than the machine can have")


def _memory(step: Step, snapshot: Snapshot, policy: Policy, relief: int) -> Iterator[Broken]:
    """Memory moves either way only on the guest's own fresh figures.

    `relief`: bytes that its own guests have given back by then, in earlier phases.
    """
    machine = step.machine
    age = int(snapshot.memory_stats_age_ns[machine])
    used = int(snapshot.used[machine, Resource.MEMORY])
    free = int(snapshot.memory_free[machine])
    if age == MISSING or age > policy.stats_age_ns_max or MISSING in {used, free}:
        yield Broken("I6", machine, "the guest's memory figures are stale or missing")
        return
    if not step.shrinks:
        return
    limit = snapshot.limit[machine : machine + 1, Resource.MEMORY]
    margin = int(policy.margin_bytes(limit)[0])
    if step.to_amount < used + margin - relief:
        text = amount_text(Resource.MEMORY, used + margin - relief)
        yield Broken("I3", machine, f"below its working set and margin of {text}")
    cache = max(int(snapshot.memory_cache[machine]), 0)
    most = free + min(cache, int(int(limit[0]) * policy.memory_cache_share)) + relief
    if step.from_amount - step.to_amount > most:
        yield Broken(
            "I4", machine, f"takes more than the {amount_text(Resource.MEMORY, most)} free"
        )


def _walk(plan: Plan, snapshot: Snapshot) -> Iterator[Broken]:
    """I1, I5 and I9 over all phases; within a phase steps may come in any order."""
    now: Ledger = {
        (machine, resource): int(snapshot.limit[machine, resource])
        for machine in snapshot.tree(plan.root)
        for resource in Resource
    }
    phases = [step.phase for step in plan.steps]
    if phases != sorted(phases) or [s.index for s in plan.steps] != list(range(len(plan.steps))):
        yield Broken("I5", plan.root, "its steps are not in the order of their phases")
        return
    yield from _ends_within(plan, snapshot)
    yield from _way_back(plan, snapshot, now, now)
    for phase in sorted(set(phases)):
        after = dict(now)
        for step in (s for s in plan.steps if s.phase == phase):
            key = (step.machine, step.resource)
            if now[key] != step.from_amount or after[key] != now[key]:
                yield Broken("I5", step.machine, f"step {step.index} starts from another amount")
            after[key] = step.to_amount
        yield from _capacity(snapshot, now, after)
        yield from _way_back(plan, snapshot, now, after)
        now = after
    yield from _lends(plan, snapshot, now)


def _touched(snapshot: Snapshot, now: Ledger, after: Ledger) -> set[tuple[int, Resource]]:
    """Hosts whose children or whose own size change in a phase."""
    changed = {key for key in now if now[key] != after[key]}
    parents = {(int(snapshot.parent[machine]), resource) for machine, resource in changed}
    own = {key for key in changed if snapshot.is_host[key[0]] or snapshot.children(key[0])}
    return {key for key in parents | own if key[0] >= 0}


def _capacity(snapshot: Snapshot, now: Ledger, after: Ledger) -> Iterator[Broken]:
    for host, resource in sorted(_touched(snapshot, now, after)):
        children = snapshot.children(host)
        keys = [(child, resource) for child in children]
        if any(now[key] == MISSING for key in keys):
            yield Broken("I6", host, f"a {resource.word} limit below it is not known")
            continue
        capacity = _least_capacity(snapshot, now, after, host, resource)
        if capacity is None:
            yield Broken("I6", host, f"its {resource.word} capacity is not known")
            continue
        kept = int(snapshot.overhead[host, resource]) + int(snapshot.reserve[host, resource])
        fullest = sum(max(now[key], after[key]) for key in keys) + kept
        # Too full already: moving back towards the capacity is all that is allowed.
        eases = all(after[key] <= now[key] for key in keys) and (
            snapshot.parent[host] < 0 or after[host, resource] >= now[host, resource]
        )
        if fullest > capacity and not eases:
            yield Broken(
                "I1",
                host,
                f"{resource.word}: {amount_text(resource, fullest)} of "
                f"{amount_text(resource, capacity)} at its fullest moment",
            )


def _least_capacity(
    snapshot: Snapshot, now: Ledger, after: Ledger, host: int, resource: Resource
) -> int | None:
    """What `host` surely has for its children while a phase runs: granted and confirmed."""
    if snapshot.parent[host] < 0:
        amount = int(snapshot.capacity[host, resource])
    else:
        amount = min(now[host, resource], after[host, resource])
    return None if amount == MISSING else amount


def _way_back(plan: Plan, snapshot: Snapshot, now: Ledger, after: Ledger) -> Iterator[Broken]:
    goal: dict[tuple[int, Resource], Fallback] = {
        (entry.machine, entry.resource): entry for entry in plan.fallback
    }
    for step in plan.steps:
        if (step.machine, step.resource) not in goal:
            yield Broken("I9", step.machine, "moves and has no fallback")
            return
    for host, resource in sorted({(e.node, e.resource) for e in plan.fallback}):
        held = added = 0
        for child in snapshot.children(host):
            key = (child, resource)
            highest = max(now[key], after[key])
            held += highest
            if key in goal:
                added += max(goal[key].amount - highest, 0)
        if not added:
            continue
        capacity = _least_capacity(snapshot, now, after, host, resource)
        overhead = int(snapshot.overhead[host, resource])
        if capacity is None or held + added + overhead > capacity:
            yield Broken("I9", host, f"{resource.word}: the way back does not fit")
            return


def _leashes(plan: Plan, snapshot: Snapshot) -> Iterator[Broken]:
    """I2, I5 and I8 of what agents may do by themselves: as for steps of an enforced plan."""
    leashed = [entry for entry in plan.fallback if entry.has_leash]
    if not leashed:
        return
    goal = {(step.machine, step.resource): step.to_amount for step in plan.steps}
    at = tuple(np.array([(e.machine, e.resource) for e in leashed], dtype=np.int64).T)
    hold = snapshot.hold[at[0]]
    may = (
        (snapshot.mode[at[0]] == int(Mode.ENFORCE))
        & ((hold == int(Hold.NONE)) | (hold == int(Hold.STARTING)))
        & (snapshot.pin[at] == MISSING)
        & snapshot.lever[at]
    )
    limit, floor = snapshot.limit[at].tolist(), snapshot.floor[at].tolist()
    highest = np.where(
        (snapshot.ceiling[at] == MISSING) | (snapshot.maximum[at] == MISSING),
        MISSING,
        np.minimum(snapshot.ceiling[at], snapshot.maximum[at]),
    ).tolist()
    for row, entry in enumerate(leashed):
        word = entry.resource.word
        planned = goal.get((entry.machine, entry.resource), limit[row])
        if not may[row]:
            yield Broken("I8", entry.machine, f"its {word} is on a leash and may not move")
        elif entry.plan_amount != planned or planned == MISSING:
            yield Broken("I5", entry.machine, f"its leash is tied to another {word} limit")
        elif not _is_within(entry, min(floor[row], planned), max(highest[row], planned)):
            yield Broken("I2", entry.machine, f"its leash reaches beyond its {word} bounds")


def _is_within(entry: Fallback, lowest: int, highest: int) -> bool:
    return lowest <= entry.low_amount <= entry.plan_amount <= entry.high_amount <= highest


def _lends(plan: Plan, snapshot: Snapshot, then: Ledger) -> Iterator[Broken]:
    """I1 and I9 of what agents may lend once the plan is carried out: beside limits and way back.

    Before that they lend what they measure free (agent.admission), and grows of this plan leave
    the reserve where it is (I1).
    """
    goal = {(entry.machine, entry.resource): entry.amount for entry in plan.fallback}
    hosts = {(entry.node, entry.resource) for entry in plan.fallback if entry.has_leash}
    for lend in plan.lend:
        host, resource = lend.node, lend.resource
        if (host, resource) not in hosts or lend.amount <= 0:
            yield Broken("I9", plan.root, "it lends where nothing is on a leash")
            continue
        keys = [(child, resource) for child in snapshot.children(host)]
        held = sum(max(then[key], goal.get(key, 0)) for key in keys)
        capacity = _least_capacity(snapshot, then, then, host, resource)
        kept = int(snapshot.overhead[host, resource]) + lend.amount
        reserve = int(snapshot.reserve[host, resource])
        known = MISSING not in {then[key] for key in keys}
        if not known or capacity is None or held + kept > capacity or lend.amount > reserve:
            yield Broken("I9", host, f"{resource.word}: what may be lent is not there")


def _ends_within(plan: Plan, snapshot: Snapshot) -> Iterator[Broken]:
    """I9 where the walk ends: fallbacks fit by themselves, or are no more than floors."""
    for host, resource in sorted({(e.node, e.resource) for e in plan.fallback}):
        goal = {e.machine: e.amount for e in plan.fallback if e.resource is resource}
        children = snapshot.children(host)
        amounts = [goal.get(c, int(snapshot.limit[c, resource])) for c in children]
        amount = snapshot.capacity if snapshot.parent[host] < 0 else snapshot.limit
        capacity = int(amount[host, resource])
        if MISSING in {capacity, *amounts}:
            continue  # nothing of it moves, and the prefixes are checked for growth
        floors = all(goal[c] <= snapshot.floor[c, resource] for c in children if c in goal)
        if sum(amounts) + int(snapshot.overhead[host, resource]) > capacity and not floors:
            yield Broken("I9", host, f"{resource.word}: the way back ends beyond its capacity")
