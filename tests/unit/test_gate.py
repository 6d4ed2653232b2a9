"""The gate: what each mode lets through, and how approvals come and go."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from controller.core.cycle import decide
from controller.core.state import (
    Broken,
    Hold,
    Mode,
    Plan,
    Policy,
    Rejection,
    Snapshot,
    TreeDecision,
    VerifiedPlan,
)
from controller.gate import Apply, Approvals, Ask, Held, Nothing, gate, reverify
from controller.testing import Machine, host, make_forecast, make_snapshot
from shared.resources import MIB

MODES = st.sampled_from(list(Mode))


def fleet(*modes: Mode) -> list[Machine]:
    """A host that is full; its first VM has far too much, the others far too little."""
    vms = []
    for index, mode in enumerate(modes):
        rich = index == 0
        vms.append(
            Machine(
                f"v{index}",
                "h",
                limit=(1000, (640 if rich else 128) * MIB, None),
                maximum=(1000, 640 * MIB, None),
                used=(100, 64 * MIB, None),
                demand=(1000, (60 if rich else 300) * MIB, 0),
                spread=0.01,
                memory_free=480 * MIB if rich else 10 * MIB,
                mode=mode,
            )
        )
    return [host("h", memory=(640 + 128 * (len(modes) - 1)) * MIB), *vms]


def decided(*modes: Mode) -> tuple[Snapshot, TreeDecision]:
    machines = fleet(*modes)
    snapshot = make_snapshot(machines)
    decision = decide(snapshot, make_forecast(machines), Policy())
    return snapshot, decision.trees[0]


def test_enforced_vms_are_moved():
    snapshot, tree = decided(Mode.ENFORCE, Mode.ENFORCE)
    gated = gate(tree, snapshot)
    assert isinstance(gated, Apply)
    assert gated.plan.plan.steps
    assert gated.advice is None


def test_recommended_vms_are_asked_for_and_not_moved():
    snapshot, tree = decided(Mode.RECOMMEND, Mode.RECOMMEND)
    gated = gate(tree, snapshot)
    assert isinstance(gated, Ask)
    assert gated.plan.steps


def test_advice_stands_beside_what_is_enforced_under_its_own_name():
    snapshot, tree = decided(Mode.ENFORCE, Mode.RECOMMEND)
    gated = gate(tree, snapshot)
    assert isinstance(gated, Apply)
    assert {step.machine for step in gated.plan.plan.steps} == {1}
    assert gated.advice is not None
    assert gated.advice.plan_id != gated.plan.plan.plan_id


def test_observed_vms_are_left_alone():
    snapshot, tree = decided(Mode.OBSERVE, Mode.OBSERVE)
    assert isinstance(gate(tree, snapshot), Nothing)


@given(made=st.lists(MODES, min_size=2, max_size=4), now=st.lists(MODES, min_size=2, max_size=4))
def test_no_step_on_an_observed_vm_passes_whatever_the_plan_was_verified_for(made, now):
    _, tree = decided(*made)
    modes = [*now, *made][: len(made)]
    snapshot = make_snapshot(fleet(*modes))  # the modes have changed since
    gated = gate(tree, snapshot)
    if isinstance(gated, Apply):
        assert all(snapshot.mode[s.machine] == Mode.ENFORCE for s in gated.plan.plan.steps)
    if isinstance(gated, Ask):
        assert all(snapshot.mode[s.machine] >= Mode.RECOMMEND for s in gated.plan.steps)


def test_a_plan_for_a_vm_that_is_observed_by_now_is_held_and_says_which():
    _, tree = decided(Mode.ENFORCE, Mode.ENFORCE)
    gated = gate(tree, make_snapshot(fleet(Mode.OBSERVE, Mode.ENFORCE)))
    assert isinstance(gated, Held)
    assert "v0" in gated.why
    assert "I8" in gated.why


def test_a_rejection_is_held_with_its_invariant():
    snapshot, tree = decided(Mode.ENFORCE, Mode.ENFORCE)
    rejected = Rejection(tree.verdict.plan, (Broken("I3", 1, "below its working set"),))
    gated = gate(replace(tree, verdict=rejected), snapshot)
    assert gated == Held("I3: below its working set")


def asked() -> tuple[Snapshot, Plan]:
    snapshot, tree = decided(Mode.RECOMMEND, Mode.RECOMMEND)
    gated = gate(tree, snapshot)
    assert isinstance(gated, Ask)
    return snapshot, gated.plan


def test_an_approved_plan_is_verified_again_in_the_newest_epoch_and_generation():
    _, plan = asked()
    machines = fleet(Mode.RECOMMEND, Mode.RECOMMEND)
    machines[0] = replace(machines[0], generation=7)
    newest = make_snapshot(machines, epoch=5, cycle=9)
    verdict = reverify(plan, newest, Policy())
    assert isinstance(verdict, VerifiedPlan)
    assert verdict.lowest_mode is Mode.RECOMMEND
    assert (verdict.plan.epoch, dict(verdict.plan.generations)[0]) == (5, 7)


def test_an_approved_plan_finds_its_machines_at_their_new_places():
    _, plan = asked()
    machines = fleet(Mode.RECOMMEND, Mode.RECOMMEND)
    newest = make_snapshot([host("other"), *machines])
    verdict = reverify(plan, newest, Policy())
    assert isinstance(verdict, VerifiedPlan)
    assert all(newest.ids[step.machine] == step.vm_id for step in verdict.plan.steps)
    assert newest.names[verdict.plan.root] == "h"


def test_an_approved_plan_is_rejected_when_the_limits_have_moved_since():
    _, plan = asked()
    machines = fleet(Mode.RECOMMEND, Mode.RECOMMEND)
    machines[1] = replace(machines[1], limit=(1000, 560 * MIB, None))
    assert isinstance(reverify(plan, make_snapshot(machines), Policy()), Rejection)


def test_an_approved_plan_is_rejected_when_a_vm_is_observed_or_frozen_by_now():
    _, plan = asked()
    for change in ({"mode": Mode.OBSERVE}, {"hold": Hold.FROZEN}):
        machines = fleet(Mode.RECOMMEND, Mode.RECOMMEND)
        machines[1] = replace(machines[1], **change)
        verdict = reverify(plan, make_snapshot(machines), Policy())
        assert isinstance(verdict, Rejection)
        assert {one.invariant for one in verdict.broken} == {"I8"}


def test_an_approved_plan_is_held_when_its_vm_is_gone():
    _, plan = asked()
    machines = fleet(Mode.RECOMMEND, Mode.RECOMMEND)
    assert isinstance(reverify(plan, make_snapshot([machines[0], machines[2]]), Policy()), Held)


def test_a_waiting_plan_ends():
    _, plan = asked()
    approvals = Approvals().ask(plan, now_tick_ns=100, patience_ns=50)
    assert approvals.at(149).find(plan.plan_id) == plan
    assert approvals.at(150).find(plan.plan_id) is None


def test_the_same_wish_of_a_later_cycle_keeps_its_name_and_gets_more_time():
    _, plan = asked()
    approvals = Approvals().ask(plan, 100, 50).ask(replace(plan, plan_id="later"), 120, 50)
    assert [one.plan_id for one in approvals.open()] == [plan.plan_id]
    assert approvals.at(160).find(plan.plan_id) == plan


def test_a_declined_plan_is_not_asked_for_again_until_its_end():
    _, plan = asked()
    approvals = Approvals().ask(plan, 100, 50).declining(plan.plan_id)
    assert approvals.open() == ()
    again = replace(plan, plan_id="again")
    assert approvals.ask(again, 120, 50).open() == ()
    assert approvals.ask(again, 151, 50).open() == (again,)
