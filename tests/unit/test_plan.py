"""Steps in an order that is safe after every prefix, and a way back from each."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core.allocate.grants import allocate
from controller.core.bins import to_bins
from controller.core.cycle import decide
from controller.core.plan import cut_grow, to_plan
from controller.core.state import MISSING, Hold, Mode, VerifiedPlan
from controller.core.verify import verify
from controller.testing import (
    SMALL_POLICY,
    Machine,
    host,
    make_forecast,
    make_snapshot,
    random_fleet,
)
from shared.resources import GIB, MIB, Resource


def planned(machines):
    snapshot, forecast = make_snapshot(machines), make_forecast(machines)
    bins = to_bins(snapshot, forecast, SMALL_POLICY, Mode.ENFORCE)
    allocation = allocate(snapshot, forecast, bins, SMALL_POLICY)
    return snapshot, to_plan(snapshot, forecast, SMALL_POLICY, bins, allocation, 0)


def room_left(snapshot, size, node, resource):
    """Capacity minus children's sizes; the reserve is left out, it is the planner's own."""
    own = size[node, resource] if node else int(snapshot.capacity[0, resource])
    inside = sum(size[c, resource] for c in snapshot.children(node))
    return own - int(snapshot.overhead[node, resource]) - inside


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 10**6))
def test_no_prefix_takes_room_that_was_not_there(seed):
    """Walks every prefix and, at each, the way back by growth alone (I1, I5, I9)."""
    snapshot, plan = planned(random_fleet(seed, vms=4))
    size = {(m, r): int(snapshot.limit[m, r]) for m in range(len(snapshot.ids)) for r in Resource}
    hosts = [h for h in range(len(snapshot.ids)) if snapshot.children(h)]
    before = {(h, r): room_left(snapshot, size, h, r) for h in hosts for r in Resource}
    for step in (None, *plan.steps):
        if step is not None:
            size[step.machine, step.resource] = step.to_amount
        grown = dict(size)
        for entry in plan.fallback:
            key = (entry.machine, entry.resource)
            grown[key] = max(grown[key], entry.amount)
        for node in hosts:
            for resource in Resource:
                if any(size[c, resource] == MISSING for c in snapshot.children(node)):
                    continue
                if node == 0 and snapshot.capacity[0, resource] == MISSING:
                    continue
                floor = min(0, before[node, resource])
                assert room_left(snapshot, size, node, resource) >= floor
                assert room_left(snapshot, grown, node, resource) >= floor
    for one in plan.lend:
        assert room_left(snapshot, grown, one.node, one.resource) >= one.amount > 0


def test_a_burst_is_fed_from_an_idle_guest_of_another_l1_in_one_plan():
    """Through both levels: out of one L1 and into the other, each step safe after those before."""
    l1 = Machine("", "h", limit=(2000, 1200 * MIB, None), maximum=(2000, 2 * GIB, None),
                 used=(100, 1000 * MIB, 0), demand=(100, 1000 * MIB, 0), memory_free=100 * MIB,
                 memory_cache=50 * MIB, overhead=(0, 350 * MIB, 0))  # fmt: skip
    guest = Machine("", "", limit=(500, 400 * MIB, None), maximum=(1000, 800 * MIB, None))
    machines = [
        host("h", 2400 * MIB),
        replace(l1, name="l1a"),
        replace(guest, name="idle", parent="l1a", used=(20, 60 * MIB, 0), memory_free=330 * MIB,
                demand=(20, 60 * MIB, 0)),
        replace(guest, name="calm", parent="l1a", used=(20, 250 * MIB, 0), memory_free=100 * MIB,
                demand=(20, 250 * MIB, 0)),
        replace(l1, name="l1b"),
        replace(guest, name="burst", parent="l1b", used=(20, 340 * MIB, 0), memory_free=10 * MIB,
                demand=(20, 300 * MIB, 0), wanted=(None, 600 * MIB, None)),
        replace(guest, name="rest", parent="l1b", used=(20, 250 * MIB, 0), memory_free=100 * MIB,
                demand=(20, 250 * MIB, 0)),
    ]  # fmt: skip
    snapshot, plan = planned(machines)
    memory = [s for s in plan.steps if s.resource is Resource.MEMORY]
    order = [(snapshot.names[s.machine], s.shrinks) for s in memory]
    assert order.index(("idle", True)) < order.index(("l1a", True))
    assert order.index(("l1a", True)) < order.index(("l1b", False))
    assert order.index(("l1b", False)) < order.index(("burst", False))
    grown = next(s for s in memory if snapshot.names[s.machine] == "burst")
    assert grown.to_amount >= 600 * MIB
    assert "asks for 600 MiB now" in grown.why
    assert isinstance(verify(plan, snapshot, SMALL_POLICY), VerifiedPlan)


def test_shrinks_come_before_the_grows_they_feed_inner_guests_first():
    machines = [
        host("h", GIB),
        Machine("l1", "h", limit=(1000, 512 * MIB, None), used=(50, 60 * MIB, 0),
                demand=(50, 60 * MIB, 0), memory_free=440 * MIB),
        Machine("l2", "l1", used=(50, 40 * MIB, 0), demand=(50, 40 * MIB, 0),
                memory_free=200 * MIB),
        Machine("hungry", "h", limit=(1000, 512 * MIB, None), maximum=(1000, GIB, None),
                used=(50, 430 * MIB, 0), demand=(50, 600 * MIB, 0), memory_free=10 * MIB),
    ]  # fmt: skip
    snapshot, plan = planned(machines)
    order = [
        (snapshot.names[s.machine], s.shrinks) for s in plan.steps if s.resource is Resource.MEMORY
    ]
    assert order == [("l2", True), ("l1", True), ("hungry", False)]
    assert all(a.phase <= b.phase for a, b in pairwise(plan.steps))


def test_a_quiet_plan_still_names_the_way_back():
    machines = [host("h", GIB), Machine("v", "h", demand=(50, 130 * MIB, 0), memory_free=40 * MIB,
                                        used=(50, 150 * MIB, 0))]  # fmt: skip
    _, plan = planned(machines)
    memory = [f.amount for f in plan.fallback if f.resource is Resource.MEMORY]
    assert memory == [512 * MIB], "with room for it, the full size is safe without a controller"


def test_what_may_not_move_has_no_way_back_to_go():
    """Silence is no leave to move what an operator holds still (I8)."""
    half = {"limit": (500, 256 * MIB, None), "demand": (50, 130 * MIB, 0)}
    machines = [
        host("h", 4 * GIB),
        Machine("seen", "h", mode=Mode.OBSERVE, **half),
        Machine("held", "h", hold=Hold.FROZEN, **half),
        Machine("twice", "h", hold=Hold.CLONE, **half),
        Machine("pin", "h", pin=(500, 256 * MIB, None), **half),
        Machine("free", "h", **half),
    ]
    snapshot, plan = planned(machines)
    memory = {
        snapshot.names[f.machine]: f.amount for f in plan.fallback if f.resource is Resource.MEMORY
    }
    assert memory == {"pin": 256 * MIB, "free": 512 * MIB}


def test_plans_of_one_cycle_have_names_of_their_own():
    """One maker's machines have ids that begin alike."""
    machines = [host("host a"), host("host b"), Machine("v", "host a"), Machine("w", "host b")]
    snapshot, forecast = make_snapshot(machines), make_forecast(machines)
    assert snapshot.ids[0][:8] == snapshot.ids[1][:8]
    plans = {tree.verdict.plan.plan_id for tree in decide(snapshot, forecast, SMALL_POLICY).trees}
    assert len(plans) == 2


def test_every_step_says_why():
    machines = [
        host("h", GIB),
        Machine("up", "h", demand=(50, 300 * MIB, 0)),
        Machine("down", "h", demand=(50, 60 * MIB, 0), memory_free=150 * MIB, used=(50, MIB, 0)),
    ]
    _, plan = planned(machines)
    memory = {s.vm_id: s.why for s in plan.steps if s.resource is Resource.MEMORY}
    assert len(memory) == 2
    assert any("needs more than 256 MiB" in why for why in memory.values())
    assert any("lends" in why and "p95 70.8" in why for why in memory.values())


@pytest.mark.parametrize(
    ("headroom", "granted"), [(200, 100), (100, 100), (99, 96), (16, 16), (7, None), (-50, None)]
)
def test_a_grow_is_cut_to_what_was_confirmed(headroom, granted):
    machines = [host("h", GIB), Machine("up", "h", demand=(50, 300 * MIB, 0))]
    _, plan = planned(machines)
    step = next(s for s in plan.steps if s.resource is Resource.MEMORY)
    wanted = step.to_amount - step.from_amount
    cut = cut_grow(step, headroom * wanted // 100, wanted * 8 // 100)
    if granted is None:
        assert cut is None
    else:
        assert cut is not None
        assert (cut.to_amount - cut.from_amount) * 100 // wanted in {granted, granted - 1}


def test_on_an_over_full_host_silence_does_not_lend_out_what_comes_down_by_itself():
    """Seen: a booting guest shows its full size; its fallback then did not fit beside others."""
    machines = [
        host("h", 640 * MIB),
        Machine("booting", "h", limit=(1000, 512 * MIB, None), used=(50, 60 * MIB, 0),
                memory_free=100 * MIB),
        *(Machine(f"v{i}", "h", limit=(1000, 152 * MIB, None), used=(50, 60 * MIB, 0),
                  memory_free=10 * MIB) for i in range(2)),
    ]  # fmt: skip
    snapshot, plan = planned(machines)
    memory = {f.machine: f.amount for f in plan.fallback if f.resource is Resource.MEMORY}
    assert sum(memory.values()) <= 640 * MIB
    assert all(amount >= snapshot.floor[m, Resource.MEMORY] for m, amount in memory.items())
    assert all(amount <= snapshot.limit[m, Resource.MEMORY] for m, amount in memory.items())
