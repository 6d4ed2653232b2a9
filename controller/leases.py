"""Whose lease goes on after a cycle, and where it would walk back to. Pure; DESIGN section 7."""

from collections.abc import Collection, Iterable

from controller.core.state import MISSING, Decision, Hold, Mode, Policy, Snapshot, VerifiedPlan
from controller.dispatch import Renewal
from controller.outcome import PlanOutcome, Result
from controller.overrides import Overrides

DONE = {Result.APPLIED, Result.UNCHANGED, Result.GONE}


def renewals(
    snapshot: Snapshot,
    decision: Decision,
    roots: Collection[int],
    outcomes: Iterable[PlanOutcome],
    policy: Policy,
) -> tuple[Renewal, ...]:
    """One for each host below `roots` that got no command in this cycle, whose readings are fresh
    and whose VMs are not merely observed. Hosts where nobody may move anything are never spoken
    to, nor is one of which there are two: whose grants would go on? Both walk back by themselves,
    within what each has."""
    by_root = {outcome.root: outcome for outcome in outcomes}
    commanded = {
        one.step.node for outcome in by_root.values() for one in outcome.steps if one.command_id
    }
    found = []
    for tree in decision.trees:
        if tree.root not in roots:
            continue
        plan = tree.verdict.plan
        stands = isinstance(tree.verdict, VerifiedPlan) and _is_done(
            by_root.get(tree.root), bool(plan.steps)
        )
        for host in spoken_to(snapshot, tree.root, policy):
            if host not in commanded:
                # A plan that stopped half-way leaves the fallbacks that were in force.
                fallback = tuple(e for e in plan.fallback if e.node == host) if stands else ()
                lend = tuple(e for e in plan.lend if e.node == host) if stands else ()
                found.append(Renewal(snapshot.ids[host], plan.plan_id, fallback, lend))
    return tuple(found)


def net_limits(
    snapshot: Snapshot, overrides: Overrides, roots: Collection[int], policy: Policy
) -> dict[str, dict[str, int]]:
    """Bytes/s by VM of each host that is spoken to, by its id; only where the mode lets it."""
    wanted = {pin.vm_id: pin.amount for pin in overrides.net_pins()}
    hosts = (host for root in roots for host in spoken_to(snapshot, root, policy))
    return {
        snapshot.ids[host]: {
            snapshot.ids[vm]: wanted[snapshot.ids[vm]]
            for vm in snapshot.children(host)
            if snapshot.ids[vm] in wanted and snapshot.mode[vm] == Mode.ENFORCE
        }
        for host in hosts
    }


def _is_done(outcome: PlanOutcome | None, has_steps: bool) -> bool:
    if outcome is None:
        return not has_steps
    return all(one.result in DONE for one in outcome.steps)


def spoken_to(snapshot: Snapshot, root: int, policy: Policy) -> Iterable[int]:
    """Hosts below `root` with fresh readings where somebody may move something."""
    for host in (machine for machine in snapshot.tree(root) if snapshot.children(machine)):
        age_ns = int(snapshot.sample_age_ns[host])
        fresh = age_ns != MISSING and age_ns <= policy.sample_age_ns_max
        modes = snapshot.mode[list(snapshot.children(host))]
        is_one = snapshot.hold[host] != Hold.CLONE
        if fresh and is_one and bool((modes > Mode.OBSERVE).any()):
            yield host
