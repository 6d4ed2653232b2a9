"""Cycles out of turn: who cannot wait, and a tree decided alone from the last cycle's forecast."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core.cycle import decide
from controller.core.record import digests
from controller.core.state import MISSING, VerifiedPlan
from controller.early import is_behind, urgent_trees
from controller.testing import SMALL_POLICY, Machine, make_forecast, make_snapshot, random_fleet
from controller.urgency import AGAIN_NS_MAX, AGAIN_NS_MIN, Urgency
from shared.clock import SECOND_NS
from shared.resources import MIB, Resource
from shared.telemetry import Loan

NODE, VM = "node", "vm"


def loan(amount=300, wanted=300):
    return Loan(VM, Resource.MEMORY, 256, amount, wanted)


def test_what_is_lent_is_heard_once_and_again_when_it_grows():
    urgency = Urgency()
    assert urgency.hear(NODE, [loan()], 0)
    assert not urgency.hear(NODE, [loan()], 600 * SECOND_NS)
    assert urgency.hear(NODE, [loan(364, 364)], 601 * SECOND_NS)
    assert urgency.take() == {NODE}
    assert urgency.take() == frozenset()


def test_a_want_that_nobody_met_is_brought_up_later_and_later():
    urgency = Urgency()
    tick, heard = 0, []
    while tick < 600 * SECOND_NS:
        if urgency.hear(NODE, [loan(256, 400)], tick):
            heard.append(tick)
        tick += SECOND_NS
    pauses = np.diff(heard)
    assert pauses[0] == AGAIN_NS_MIN
    assert (pauses[1:] >= pauses[:-1]).all()
    assert pauses[-1] == AGAIN_NS_MAX


def test_paid_back_is_forgotten_and_the_next_burst_is_heard_at_once():
    urgency = Urgency()
    urgency.hear(NODE, [loan()], 0)
    assert not urgency.hear(NODE, [], 1)
    assert urgency.take() == frozenset(), "there is nothing to decide any more"
    assert urgency.hear(NODE, [loan()], 2)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_a_tree_decided_early_is_decided_as_in_a_whole_cycle(seed):
    machines = random_fleet(seed, roots=3, vms=2)
    snapshot, forecast = make_snapshot(machines), make_forecast(machines)
    whole = decide(snapshot, forecast, SMALL_POLICY)
    guests = [i for i in range(len(snapshot.ids)) if snapshot.parent[i] >= 0]
    node = snapshot.ids[guests[seed % len(guests)]]
    ((tree, early),) = urgent_trees(snapshot, forecast, snapshot.ids, [node])
    alone = decide(tree, early, SMALL_POLICY)
    root = snapshot.ids.index(tree.ids[0])
    assert digests(alone, tree, 0) == digests(whole, snapshot, root)


def test_a_snapshot_is_behind_when_an_agent_of_the_tree_has_moved_on():
    machines = random_fleet(1, roots=2, vms=1, nested=0)
    snapshot = make_snapshot(machines)
    one, other = (snapshot.ids[root] for root in snapshot.roots())
    now = {one: int(snapshot.generation[0]), other: 10**6}
    assert not is_behind(snapshot, now, [one])
    assert not is_behind(snapshot, {}, [one])
    assert is_behind(snapshot, now, [one, other])
    assert is_behind(snapshot, {one: now[one] + 1}, [snapshot.ids[1]])


def test_machines_come_and_go_between_a_forecast_and_an_early_cycle():
    host = Machine("h", capacity=(8000, 4096 * MIB, None))
    then = [host, Machine("gone", "h"), Machine("old", "h", demand=(100, 222 * MIB, 0))]
    now = [host, Machine("new", "h"), replace(then[2], wanted=(None, 400 * MIB, None))]
    snapshot, forecast = make_snapshot(now), make_forecast(then)
    later = replace(snapshot, taken_at_unix_ns=snapshot.taken_at_unix_ns + 30 * SECOND_NS)
    ids_then = make_snapshot(then).ids
    ((tree, early),) = urgent_trees(later, forecast, ids_then, [later.ids[0], "somebody gone"])
    new, old = tree.names.index("new"), tree.names.index("old")
    assert np.isnan(early.quantile[new]).all()
    assert early.age_ns[new] == MISSING
    assert early.age_ns[old] == 30 * SECOND_NS
    assert (early.quantile[old] == forecast.quantile[2]).all()
    verdict = decide(tree, early, SMALL_POLICY).trees[0].verdict
    assert isinstance(verdict, VerifiedPlan)
    moved = {(step.machine, step.resource): step.to_amount for step in verdict.plan.steps}
    assert moved[old, Resource.MEMORY] >= 400 * MIB
    assert all(machine != new for machine, _ in moved)
