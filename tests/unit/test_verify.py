"""The verifier accepts what the planner makes and refuses every single thing done to it."""

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from controller.core.cycle import decide
from controller.core.state import (
    MISSING,
    Hold,
    Mode,
    Plan,
    Rejection,
    Step,
    VerifiedPlan,
)
from controller.core.verify import verify
from controller.testing import (
    MINUTE_NS,
    SMALL_POLICY,
    Machine,
    host,
    make_forecast,
    make_snapshot,
    random_fleet,
)
from shared.resources import GIB, MIB, Resource

VMS = {
    "busy": Machine("busy", "h", used=(50, 200 * MIB, 0), demand=(50, 300 * MIB, 0),
                    memory_free=40 * MIB),
    "idle": Machine("idle", "h", used=(50, 50 * MIB, 0), demand=(50, 50 * MIB, 0),
                    memory_free=180 * MIB, limit=(1000, 512 * MIB, None)),
    "calm": Machine("calm", "h", used=(50, 50 * MIB, 0), demand=(50, 50 * MIB, 0),
                    memory_free=0, memory_cache=0),
}  # fmt: skip
HOST = host("h", GIB, 8000)


def situation(**changed):
    """Snapshot of the small fleet with VMs replaced by name, and an honest plan for it."""
    honest = [HOST, *VMS.values()]
    machines = [changed.get("h", HOST), *(changed.get(n, vm) for n, vm in VMS.items())]
    decision = decide(make_snapshot(honest), make_forecast(honest), SMALL_POLICY)
    verdict = decision.trees[0].verdict
    assert isinstance(verdict, VerifiedPlan)
    return make_snapshot(machines), verdict.plan


def broken_by(plan, snapshot, lowest_mode=Mode.ENFORCE):
    verdict = verify(plan, snapshot, SMALL_POLICY, lowest_mode)
    return {b.invariant for b in verdict.broken} if isinstance(verdict, Rejection) else set()


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10**6))
def test_every_plan_the_planner_makes_is_verified(seed):
    machines = random_fleet(seed, roots=2)
    decision = decide(make_snapshot(machines), make_forecast(machines), SMALL_POLICY)
    for tree in decision.trees:
        assert isinstance(tree.verdict, VerifiedPlan), tree.verdict
        assert tree.advice is None or isinstance(tree.advice, VerifiedPlan), tree.advice


def test_the_honest_plan_moves_memory_both_ways():
    snapshot, plan = situation()
    ways = {s.shrinks for s in plan.steps if s.resource is Resource.MEMORY}
    assert ways == {True, False}
    assert broken_by(plan, snapshot) == set()


@pytest.mark.parametrize(
    ("changed", "invariant"),
    [
        ({"h": replace(HOST, capacity=(8000, GIB - 64 * MIB, None))}, "I1"),
        ({"h": replace(HOST, reserve=(0, 64 * MIB, 0))}, "I1"),
        ({"h": replace(HOST, capacity=(8000, None, None))}, "I6"),
        ({"h": replace(HOST, generation=7)}, "I7"),
        ({"calm": replace(VMS["calm"], limit=(1000, None, None))}, "I6"),
        ({"idle": replace(VMS["idle"], floor=(100, 500 * MIB, 0))}, "I2"),
        ({"idle": replace(VMS["idle"], used=(50, 400 * MIB, 0))}, "I3"),
        ({"idle": replace(VMS["idle"], memory_free=8 * MIB)}, "I4"),
        ({"idle": replace(VMS["idle"], stats_age_ns=MINUTE_NS)}, "I6"),
        ({"idle": replace(VMS["idle"], stats_age_ns=None)}, "I6"),
        ({"idle": replace(VMS["idle"], used=(50, None, None))}, "I6"),
        ({"idle": replace(VMS["idle"], sample_age_ns=MINUTE_NS)}, "I6"),
        ({"idle": replace(VMS["idle"], mode=Mode.OBSERVE)}, "I8"),
        ({"idle": replace(VMS["idle"], mode=Mode.RECOMMEND)}, "I8"),
        ({"idle": replace(VMS["idle"], hold=Hold.MIGRATING)}, "I8"),
        ({"idle": replace(VMS["idle"], hold=Hold.FROZEN)}, "I8"),
        ({"idle": replace(VMS["idle"], lever=(True, False, True))}, "I8"),
        ({"idle": replace(VMS["idle"], pin=(None, 512 * MIB, None))}, "I8"),
        ({"busy": replace(VMS["busy"], maximum=(1000, 300 * MIB, None))}, "I2"),
        ({"busy": replace(VMS["busy"], limit=(1000, 248 * MIB, None))}, "I5"),
    ],
)
def test_a_changed_world_refuses_the_plan(changed, invariant):
    snapshot, plan = situation(**changed)
    assert invariant in broken_by(plan, snapshot)


def memory_step(plan: Plan, shrinks: bool) -> Step:
    return next(s for s in plan.steps if s.resource is Resource.MEMORY and s.shrinks == shrinks)


def with_step(plan: Plan, step: Step) -> Plan:
    return replace(plan, steps=tuple(step if s.index == step.index else s for s in plan.steps))


def test_a_changed_plan_is_refused():
    snapshot, plan = situation()
    shrink, grow = memory_step(plan, shrinks=True), memory_step(plan, shrinks=False)
    cases = {
        "I7": replace(plan, epoch=plan.epoch + 1),
        "I2": with_step(plan, replace(grow, to_amount=4 * GIB)),
        "I1": with_step(plan, replace(grow, to_amount=512 * MIB)),
        "I3": with_step(plan, replace(shrink, to_amount=100 * MIB)),
        "I4": with_step(plan, replace(shrink, to_amount=shrink.to_amount - 200 * MIB)),
        "I5": replace(plan, steps=tuple(reversed(plan.steps))),
        "I9": replace(plan, fallback=()),
    }
    for invariant, tampered in cases.items():
        assert invariant in broken_by(tampered, snapshot), invariant


def test_a_grow_before_the_shrink_that_feeds_it_is_refused():
    snapshot, plan = situation(h=replace(HOST, capacity=(8000, GIB, None)))
    shrink, grow = memory_step(plan, shrinks=True), memory_step(plan, shrinks=False)
    swapped = replace(
        plan,
        steps=(replace(grow, index=0, phase=0), replace(shrink, index=1, phase=1)),
        fallback=tuple(f for f in plan.fallback if f.resource is Resource.MEMORY),
    )
    together = replace(swapped, steps=tuple(replace(s, phase=0) for s in swapped.steps))
    assert broken_by(swapped, snapshot) == {"I1"}
    assert broken_by(together, snapshot) == {"I1"}, "what may run at the same time must fit so too"


def test_a_fallback_that_does_not_fit_is_refused():
    snapshot, plan = situation()
    greedy = tuple(
        replace(f, amount=512 * MIB) if f.resource is Resource.MEMORY else f for f in plan.fallback
    )
    assert broken_by(replace(plan, fallback=greedy), snapshot) == {"I9"}


@pytest.mark.parametrize(
    "void",
    [
        {"machine": 99},
        {"machine": 0},
        {"vm_id": "00000000-0000-4000-8000-000000000000"},
        {"node": 2},
        {"node": -1},
    ],
)
def test_a_plan_for_another_state_is_refused_without_a_crash(void):
    snapshot, plan = situation()
    step = plan.steps[0]
    assert "I7" in broken_by(with_step(plan, replace(step, **void)), snapshot)
    entry = replace(plan.fallback[0], **void)
    assert "I7" in broken_by(replace(plan, fallback=(entry, *plan.fallback[1:])), snapshot)


def test_approval_lowers_the_mode_that_is_enough():
    snapshot, plan = situation(idle=replace(VMS["idle"], mode=Mode.RECOMMEND))
    assert broken_by(without_leashes(plan), snapshot, Mode.RECOMMEND) == set()


# ---- what agents may do by themselves ----


def without_leashes(plan):
    loose = tuple(replace(e, low_amount=MISSING, high_amount=MISSING) for e in plan.fallback)
    return replace(plan, fallback=loose, lend=())


def leash_of(plan, name, snapshot):
    place = snapshot.names.index(name)
    return next(e for e in plan.fallback if e.machine == place and e.resource is Resource.MEMORY)


def with_leash(plan, old, new):
    return replace(plan, fallback=tuple(new if e is old else e for e in plan.fallback))


def lending(reserve_bytes=64 * MIB):
    """The small fleet with a reserve, and its plan."""
    machines = [replace(HOST, reserve=(500, reserve_bytes, 0)), *VMS.values()]
    snapshot = make_snapshot(machines)
    plan = decide(snapshot, make_forecast(machines), SMALL_POLICY).trees[0].verdict.plan
    return snapshot, plan


def test_what_may_be_lent_is_the_reserve_as_far_as_it_is_free():
    snapshot, plan = lending()
    assert broken_by(plan, snapshot) == set()
    assert {(one.resource, one.amount) for one in plan.lend} == {
        (Resource.CPU, 500),
        (Resource.MEMORY, 64 * MIB),
    }


@pytest.mark.parametrize("more", [MIB, 512 * MIB])
def test_lending_what_is_not_there_is_refused(more):
    """The fallbacks have all the rest, so a byte above the reserve is somebody's way back."""
    snapshot, plan = lending()
    memory = next(one for one in plan.lend if one.resource is Resource.MEMORY)
    lend = (replace(memory, amount=memory.amount + more),)
    assert broken_by(replace(plan, lend=lend), snapshot) == {"I9"}


@pytest.mark.parametrize(
    ("changed", "invariant"),
    [
        ({"high_amount": 2**40}, "I2"),
        ({"low_amount": 1}, "I2"),
        ({"plan_amount": 5}, "I5"),
    ],
)
def test_a_leash_beyond_its_bounds_is_refused(changed, invariant):
    snapshot, plan = lending()
    entry = leash_of(plan, "busy", snapshot)
    assert broken_by(with_leash(plan, entry, replace(entry, **changed)), snapshot) == {invariant}


@pytest.mark.parametrize(
    "changed",
    [{"mode": Mode.OBSERVE}, {"hold": Hold.FROZEN}, {"pin": (None, 256 * MIB, None)}],
)
def test_nothing_that_must_not_move_is_on_a_leash(changed):
    calm = replace(VMS["calm"], **changed)
    snapshot, plan = situation(calm=calm)
    assert "I8" in broken_by(plan, snapshot)
    machines = [HOST, VMS["busy"], VMS["idle"], calm]
    honest = decide(make_snapshot(machines), make_forecast(machines), SMALL_POLICY)
    plan = honest.trees[0].verdict.plan
    leashed = {e.machine for e in plan.fallback if e.has_leash and e.resource is Resource.MEMORY}
    assert leashed == {1, 2}


def test_a_starting_vm_moves_by_no_plan_but_may_be_lent_to():
    starting = replace(VMS["calm"], hold=Hold.STARTING)
    machines = [HOST, VMS["busy"], VMS["idle"], starting]
    snapshot = make_snapshot(machines)
    plan = decide(snapshot, make_forecast(machines), SMALL_POLICY).trees[0].verdict.plan
    assert all(step.machine != 3 for step in plan.steps)
    assert leash_of(plan, "calm", snapshot).has_leash


# ---- a host that gives back what its guests gave back ----


def nest():
    """An L1 whose memory is all but in use, by a guest that needs little of it."""
    return [
        host("h", 4 * GIB, 8000),
        Machine("l1", "h", limit=(2000, GIB, None), maximum=(2000, 2 * GIB, None),
                used=(100, 900 * MIB, 0), demand=(100, 500 * MIB, 0), memory_free=60 * MIB,
                memory_cache=64 * MIB, overhead=(0, 300 * MIB, 0)),
        Machine("l2", "l1", limit=(1000, 512 * MIB, None), used=(50, 60 * MIB, 0),
                demand=(50, 60 * MIB, 0), memory_free=420 * MIB),
    ]  # fmt: skip


def test_an_l1_gives_back_what_its_l2_gave_back_and_no_more():
    machines = nest()
    snapshot = make_snapshot(machines)
    decision = decide(snapshot, make_forecast(machines), SMALL_POLICY)
    plan = decision.trees[0].verdict.plan
    steps = {s.machine: s for s in plan.steps if s.resource is Resource.MEMORY}
    assert broken_by(plan, snapshot) == set()
    assert steps[2].phase < steps[1].phase
    given = steps[2].from_amount - steps[2].to_amount
    working = 900 * MIB + 64 * MIB
    assert working - given <= steps[1].to_amount < working
    lower = replace(steps[1], to_amount=working - given - 8 * MIB)
    assert "I3" in broken_by(with_step(plan, lower), snapshot)
    together = replace(steps[1], phase=steps[2].phase)
    assert "I3" in broken_by(with_step(plan, together), snapshot)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 10**5), st.data())
def test_random_tampering_never_gets_more_room_than_there_is(seed, data):
    """Whatever a broken planner proposes, what passes keeps I1 at the root and I3 for each VM."""
    machines = random_fleet(seed, vms=3, nested=0)
    snapshot, forecast = make_snapshot(machines), make_forecast(machines)
    plan = decide(snapshot, forecast, SMALL_POLICY).trees[0].verdict.plan
    assume(plan.steps)
    steps = tuple(
        replace(s, to_amount=max(1, s.to_amount + data.draw(st.integers(-300, 300)) * MIB))
        if s.resource is Resource.MEMORY
        else s
        for s in plan.steps
    )
    verdict = verify(replace(plan, steps=steps), snapshot, SMALL_POLICY)
    if isinstance(verdict, Rejection):
        return
    size = {c: int(snapshot.limit[c, Resource.MEMORY]) for c in snapshot.children(0)}
    before = sum(size.values())
    for step in verdict.plan.steps:
        if step.resource is not Resource.MEMORY:
            continue
        size[step.machine] = step.to_amount
        assert sum(size.values()) <= max(before, int(snapshot.capacity[0, Resource.MEMORY]))
        if step.shrinks:
            assert step.to_amount >= snapshot.used[step.machine, 1] + 64 * MIB


def test_a_tree_is_decided_by_itself():
    machines = random_fleet(11, roots=3)
    decision = decide(make_snapshot(machines), make_forecast(machines), SMALL_POLICY)
    for tree in decision.trees:
        name = machines[tree.root].name
        alone = [m for m in machines if m.name.startswith(name)]
        single = decide(make_snapshot(alone), make_forecast(alone), SMALL_POLICY).trees[0]
        together = [(s.vm_id, s.resource, s.to_amount) for s in tree.verdict.plan.steps]
        assert together == [(s.vm_id, s.resource, s.to_amount) for s in single.verdict.plan.steps]
        assert [f.amount for f in tree.verdict.plan.fallback] == [
            f.amount for f in single.verdict.plan.fallback
        ]


def test_a_way_back_that_ends_beyond_the_capacity_is_refused_on_an_over_full_host():
    booting = replace(VMS["busy"], limit=(1000, 512 * MIB, None), memory_free=100 * MIB)
    machines = [replace(HOST, capacity=(8000, 900 * MIB, None)), booting, *list(VMS.values())[1:]]
    snapshot = make_snapshot(machines)
    plan = decide(snapshot, make_forecast(machines), SMALL_POLICY).trees[0].verdict.plan
    assert broken_by(plan, snapshot) == set()
    stays = tuple(
        replace(f, amount=int(snapshot.limit[f.machine, f.resource])) for f in plan.fallback
    )
    assert broken_by(replace(plan, fallback=stays), snapshot) == {"I9"}
