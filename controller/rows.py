"""A View as the messages that operators get. Pure.

A VM's state is one word, or `held: ` and why: the first that holds of clone, stale, frozen,
observe, held, growing, shrinking, asks for, lent, short, pinned, steady.
"""

import numpy as np

from controller.core.allocate.grants import shortfall
from controller.core.state import MISSING, Broken, Forecast, Hold, Ints, Mode, Snapshot
from controller.forecast.empirical import BORROWED
from controller.forecast.empirical import METHOD as EMPIRICAL
from controller.inside import cpu_waiting, inside_message, tell_waits
from controller.net_rows import tell_idle_levers, tell_networks
from controller.outcome import Result, StepOutcome
from controller.view import REJECTED, WAITING, NodeInfo, PlanRecord, View
from shared.clock import MILLISECOND_NS
from shared.pb import admin_pb2 as pb
from shared.resources import Resource, amount_text

VALUE_SCALE = 1000  # core's integer value of one quantum of use; micro-units are a thousandth
HOLD_TEXT = {
    Hold.MIGRATING: "migrating",
    Hold.NOT_RUNNING: "not running",
    Hold.UNMANAGED: "the agent of its host is not connected",
    Hold.STARTING: "starting",
    Hold.CLONE: "there are two machines of its UUID, or of its host's",
}
# With these a step is under way or done; anything else holds the VM where it is.
MOVING = {None, Result.APPLIED, Result.PARTIAL, Result.UNKNOWN, Result.DRY_RUN}
DONE = {Result.UNCHANGED, Result.GONE}


def status_message(view: View, version: str) -> pb.Status:
    totals = view.totals
    latency_ns = totals.latency_sample_to_command_ns or 0
    return pb.Status(
        version=version,
        epoch=view.epoch,
        cycles=view.cycles,
        cycle_interval_ms=view.cycle_interval_ns // MILLISECOND_NS,
        last_cycle_ms=view.last_cycle_ns // MILLISECOND_NS,
        telemetry_messages=totals.telemetry_messages,
        dropped=totals.dropped,
        plans_verified=totals.plans_verified,
        rejections=totals.rejections,
        commands_sent=totals.commands_sent,
        commands_acknowledged=totals.commands_acknowledged,
        agents_connected=sum(agent.connected for agent in view.agents.values()),
        parts=[pb.Part(name=p.name, healthy=p.healthy, detail=p.detail) for p in view.parts],
        steps_applied=totals.steps_applied,
        latency_sample_to_command_ms=latency_ns // MILLISECOND_NS,
    )


def node_rows(view: View, now_tick_ns: int) -> pb.Nodes:
    snapshot = view.snapshot
    place = {} if snapshot is None else {name: i for i, name in enumerate(snapshot.ids)}
    return pb.Nodes(
        nodes=[_node_row(view, node, place.get(node.node_id), now_tick_ns) for node in view.nodes]
    )


def vm_rows(view: View, node_id: str = "") -> pb.Vms:
    """The VMs of one node, or of all."""
    snapshot = view.snapshot
    if snapshot is None:
        return pb.Vms()
    chosen = [
        machine
        for machine in np.flatnonzero(snapshot.parent >= 0).tolist()
        if not node_id or snapshot.ids[int(snapshot.parent[machine])] == node_id
    ]
    wait = cpu_waiting(view, snapshot)
    rows = pb.Vms(vms=[vm_row(view, snapshot, machine, wait) for machine in chosen])
    tell_networks(rows.vms, view)
    tell_idle_levers(rows.vms, view)
    return rows


def vm_row(view: View, snapshot: Snapshot, machine: int, wait: Ints) -> pb.VmRow:
    """`wait`: of `cpu_waiting`."""
    row = pb.VmRow(
        vm_id=snapshot.ids[machine],
        name=snapshot.names[machine],
        node_id=snapshot.ids[int(snapshot.parent[machine])],
        mode=Mode(int(snapshot.mode[machine])).name.lower(),
        state=state_word(view, snapshot, machine),
        resources=[_amounts(view, snapshot, machine, resource) for resource in Resource],
        forecast_age_ms=_forecast_age_ns(view, machine) // MILLISECOND_NS,
        priority=int(snapshot.priority[machine]),
        simulated=bool(snapshot.simulated[machine]),
    )
    tell_waits(row, snapshot, wait, machine)
    return row


def state_word(view: View, snapshot: Snapshot, machine: int) -> str:
    age_ns = int(snapshot.sample_age_ns[machine])
    hold = Hold(int(snapshot.hold[machine]))
    if hold is Hold.CLONE:
        return "clone"
    if age_ns == MISSING or age_ns > view.policy.sample_age_ns_max:
        return "stale"
    if hold is Hold.FROZEN:
        return "frozen"
    if snapshot.mode[machine] == Mode.OBSERVE:
        return "observe"
    if hold is not Hold.NONE:
        return f"held: {HOLD_TEXT[hold]}"
    moving = _movement(view, machine)
    return moving or _wish(snapshot, machine) or _rest(view, snapshot, machine)


def _wish(snapshot: Snapshot, machine: int) -> str:
    """What its host's agent lent it, or had too little to lend."""
    wanted, limit = snapshot.wanted[machine], snapshot.limit[machine]
    asked = [r for r in Resource if wanted[r] != MISSING]
    unmet = [r for r in asked if wanted[r] > limit[r]]
    word = "asks for" if unmet else "lent"
    said = [f"{r.word} {amount_text(r, int(wanted[r]))}" for r in unmet or asked]
    return f"{word} {', '.join(said)}" if said else ""


def _rest(view: View, snapshot: Snapshot, machine: int) -> str:
    """Why a VM that may move does not."""
    if snapshot.lever[machine, Resource.MEMORY] and _is_blind(view, snapshot, machine):
        return "held: the guest's memory figures are stale or missing (I6)"
    short = [
        f"{resource.word} {amount_text(resource, amount)}"
        for resource in Resource
        if (amount := _short(view, machine, resource))
    ]
    if short:
        return f"short: {', '.join(short)}"
    return "pinned" if bool((snapshot.pin[machine] != MISSING).any()) else "steady"


def _is_blind(view: View, snapshot: Snapshot, machine: int) -> bool:
    """Whether nobody can tell what memory the guest needs: it has no balloon, or hangs."""
    age_ns = int(snapshot.memory_stats_age_ns[machine])
    return age_ns == MISSING or age_ns > view.policy.stats_age_ns_max


def plan_message(view: View, record: PlanRecord | None) -> pb.PlanReply:
    if record is None:
        return pb.PlanReply(found=False)
    plan = record.plan
    reply = pb.PlanReply(
        found=True,
        plan_id=plan.plan_id,
        cycle=plan.cycle,
        verdict=verdict_word(view, record),
        rejections=[_broken_message(record, one) for one in record.broken],
        made_at_unix_ns=record.made_at_unix_ns,
    )
    for planned in plan.steps:
        outcome = record.step_outcome(planned.index)
        step = planned if outcome is None else outcome.step
        reply.steps.append(
            pb.PlanStep(
                index=step.index,
                phase=step.phase,
                vm_id=step.vm_id,
                vm_name=record.names.get(planned.machine, ""),
                resource=step.resource.word,
                from_amount=step.from_amount,
                to_amount=step.to_amount,
                why=step.why,
                outcome=_outcome_text(outcome),
            )
        )
    return reply


def verdict_word(view: View, record: PlanRecord) -> str:
    if record.verdict == WAITING and view.approvals.find(record.plan.plan_id) is None:
        return "not approved in time"
    return record.verdict


def quantile(forecast: Forecast, machine: int, resource: Resource, share: float) -> int | None:
    """Demand that is not exceeded with probability `share`; None where there is no forecast."""
    values = forecast.quantile[machine, resource]
    if bool(np.isnan(values).any()):
        return None
    return round(float(np.interp(share, forecast.probability, values)))


def _forecast_age_ns(view: View, machine: int) -> int:
    ages = [] if view.forecast is None else [int(view.forecast.age_ns[machine])]
    if view.judged is not None:
        ages.append(int(view.judged.said.made_ns_ago[machine]))
    return max([0, *ages])


def _tell_forecast(view: View, machine: int, resource: Resource, amounts: pb.Amounts) -> None:
    """What this series is forecast with, and how good that was so far."""
    forecast, judged, at = view.forecast, view.judged, (machine, resource)
    if forecast is None:
        return
    if not np.isnan(forecast.skill[at]):
        amounts.forecast_skill = round(float(forecast.skill[at]), 4)
    if judged is None:
        return
    amounts.forecast_outcomes = int(judged.outcomes[at])
    if not np.isnan(judged.coverage[at]):
        amounts.forecast_coverage = round(float(judged.coverage[at]), 4)
    if not np.isnan(forecast.quantile[at]).any():
        otherwise = BORROWED if judged.said.borrowed[at] else EMPIRICAL
        amounts.forecast_method = forecast.method if judged.said.learnt[at] else otherwise
    novelty = novelty_of(view, machine, resource)
    if novelty is not None:
        amounts.forecast_novelty = round(novelty, 3)
        assert judged.said.archetype is not None
        amounts.forecast_archetype = int(judged.said.archetype[at])


def novelty_of(view: View, machine: int, resource: Resource) -> float | None:
    """How unlike what the network was taught; None where that is not known."""
    if view.judged is None or view.judged.said.novelty is None:
        return None
    found = float(view.judged.said.novelty[machine, resource])
    return None if np.isnan(found) else found


def known(amount: int) -> int | None:
    return None if amount == MISSING else int(amount)


def _short(view: View, machine: int, resource: Resource) -> int:
    """How far the newest decision leaves the VM below what its violation budget asks for."""
    if view.decision is None:
        return 0
    return shortfall(view.decision.bins, view.decision.allocation, machine, resource)


def _movement(view: View, machine: int) -> str:
    """What the newest plans do with the VM; memory speaks first, it is what people watch."""
    words: dict[Resource, str] = {}
    for record in view.present_plans():
        for step in record.plan.steps:
            if step.machine == machine:
                word = _step_word(view, record, step.index, shrinks=step.shrinks)
                words[step.resource] = word
    for resource in (Resource.MEMORY, Resource.CPU, Resource.IO):
        if words.get(resource):
            return words[resource]
    return ""


def _step_word(view: View, record: PlanRecord, index: int, *, shrinks: bool) -> str:
    if record.verdict == REJECTED:
        broken = record.broken[0]
        return f"held: {broken.invariant}: {broken.detail}"
    outcome = record.step_outcome(index)
    if (outcome is None and record.verdict == WAITING) or record.verdict.startswith("held"):
        return f"held: {verdict_word(view, record).removeprefix('held: ')}"
    result = None if outcome is None else outcome.result
    if result in DONE:
        return ""
    if result in MOVING:
        return "shrinking" if shrinks else "growing"
    assert outcome is not None
    return f"held: {outcome.detail or outcome.result.value}"


def _outcome_text(outcome: StepOutcome | None) -> str:
    if outcome is None:
        return ""
    return outcome.result.value + (f": {outcome.detail}" if outcome.detail else "")


def _broken_message(record: PlanRecord, broken: Broken) -> pb.Broken:
    machine = record.ids.get(broken.machine, "")
    return pb.Broken(node_id=machine, invariant=broken.invariant, detail=broken.detail)


def _node_row(view: View, node: NodeInfo, machine: int | None, now_tick_ns: int) -> pb.NodeRow:
    snapshot = view.snapshot
    agent = view.agents.get(node.node_id)
    row = pb.NodeRow(
        node_id=node.node_id,
        name=node.name,
        role=node.role,
        connected=agent is not None and agent.connected,
        age_ms=max(now_tick_ns - node.received_tick_ns, 0) // MILLISECOND_NS,
        levers=node.levers,
        inside=inside_message(node),
    )
    if snapshot is None or machine is None:
        return row
    parent = int(snapshot.parent[machine])
    row.parent_id = snapshot.ids[parent] if parent >= 0 else ""
    row.vms = len(snapshot.children(machine))
    row.clone = snapshot.hold[machine] == Hold.CLONE
    for resource in Resource:
        amounts = _amounts(view, snapshot, machine, resource)
        table = snapshot.capacity if parent < 0 else snapshot.limit
        capacity = known(table[machine, resource])
        if capacity is not None:
            amounts.capacity = capacity
        price = price_micro(view, machine, resource)
        if price is not None:
            amounts.price_micro = price
        row.resources.append(amounts)
    return row


def price_micro(view: View, machine: int, resource: Resource) -> int | None:
    """Shadow price of a quantum at a host, in millionths of a quantum of use."""
    if view.decision is None:
        return None
    price = float(view.decision.allocation.price[machine, resource])
    return None if np.isnan(price) else round(price * 1_000_000 / VALUE_SCALE)


def _amounts(view: View, snapshot: Snapshot, machine: int, resource: Resource) -> pb.Amounts:
    forecast, decision = view.forecast, view.decision
    at = machine, resource
    planned = None
    if decision is not None and snapshot.parent[machine] >= 0:
        planned = known(decision.allocation.level[at])
    amounts = pb.Amounts(
        resource=resource.word,
        short=_short(view, machine, resource) or None,
        used=known(snapshot.used[at]),
        limit=known(snapshot.limit[at]),
        wanted=known(snapshot.wanted[at]),
        floor=known(snapshot.floor[at]),
        ceiling=known(snapshot.ceiling[at]),
        forecast_p50=None if forecast is None else quantile(forecast, machine, resource, 0.5),
        forecast_p95=None if forecast is None else quantile(forecast, machine, resource, 0.95),
        planned=planned,
    )
    _tell_forecast(view, machine, resource, amounts)
    return amounts
