"""Who is told that its lease goes on."""

from dataclasses import replace

import numpy as np

from controller.core.cycle import decide
from controller.core.state import Hold
from controller.leases import renewals
from controller.testing import SMALL_POLICY, Machine, host, machine_id, make_forecast, make_snapshot
from shared.resources import GIB

MACHINES = [
    host("h", GIB),
    Machine("l1", "h"),
    Machine("l2", "l1"),
    host("other", GIB),
    Machine("v", "other"),
]


def told(*clones):
    """Names of the hosts whose lease goes on, where these are clones with all below them."""
    snapshot = make_snapshot(MACHINES)
    hold = snapshot.hold.copy()
    for name in clones:
        hold[snapshot.ids.index(machine_id(name))] = Hold.CLONE
    snapshot = replace(snapshot, hold=hold, is_host=snapshot.is_host | (np.arange(5) == 1))
    decision = decide(snapshot, make_forecast(MACHINES), SMALL_POLICY)
    due = renewals(snapshot, decision, snapshot.roots(), (), SMALL_POLICY)
    return {snapshot.names[snapshot.ids.index(one.node_id)] for one in due}


def test_leases_of_fresh_hosts_go_on():
    assert told() == {"h", "l1", "other"}


def test_nobody_speaks_to_a_host_that_there_are_two_of():
    assert told("l1", "l2") == {"h", "other"}
    assert told("h", "l1", "l2") == {"other"}


def test_a_vm_that_there_are_two_of_does_not_silence_its_host():
    assert told("v") == {"h", "l1", "other"}
