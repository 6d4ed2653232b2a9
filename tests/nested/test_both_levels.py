"""The short share: both levels are seen, memory moves through both, a killed agent comes back.

Judged by the bed's witness, which asks the hypervisors itself.
"""

import json
import time

import pytest
from testbed.figures import breaches
from testbed.layout import layout

from shared.pb import admin_pb2 as pb

BURST_MIB = 240
GROWTH_MIB = 160  # more than the L1 has left
NEAR_MIB = 8.0  # a balloon ends up beside what it was asked for
WITNESS_S = 1.5  # between two looks of the witness
WITHIN_S = 240.0  # far more than it takes: other work may have most of this machine


def test_the_controller_sees_the_tree(bed):
    """Nothing says who runs on whom but the UUIDs that agents and libvirts report."""

    def tree():
        nodes = bed.controller.ListNodes(pb.NodesRequest(), timeout=10).nodes
        vms = bed.controller.ListVms(pb.VmsRequest(), timeout=10).vms
        names = {node.node_id: node.name for node in nodes}
        if not {"l0", *bed.uuids} <= set(names.values()):
            return None
        hosts = {vm.vm_id: names.get(vm.node_id) for vm in vms}
        parents = {node.name: names.get(node.parent_id) for node in nodes}
        return {name: (hosts.get(uuid), parents[name]) for name, uuid in bed.uuids.items()}

    expected = {name: (bed.host_of(name),) * 2 for name in bed.uuids}
    bed.wait_for(lambda: tree() == expected, WITHIN_S, f"the tree {expected}", tree)


def actual_mib(bed, vm):
    sights = bed.records.series(vm, since=time.time() - 10)
    return sights[-1].actual_mib if sights else None


def sizes(bed):
    return {name: actual_mib(bed, name) for name in bed.uuids}


def test_what_an_operator_asks_for_grows_and_shrinks_through_both_levels(bed):
    """More for an L2 than its L1 has: that grows first. Back again: the L2 gives, then its L1.

    At every look what an L1 gives its guests fits into what it has.
    """
    before = {name: actual_mib(bed, name) for name in ("l1a", "l2a1")}
    began = time.time()
    pinned(bed, "l2a1", before["l2a1"] + GROWTH_MIB)
    grown = {name: first_at(bed, name, began, before[name] + NEAR_MIB) for name in before}
    assert grown["l1a"] <= grown["l2a1"] + WITNESS_S

    turned = time.time()
    high = actual_mib(bed, "l1a")
    pinned(bed, "l2a1", before["l2a1"])
    pinned(bed, "l1a", before["l1a"])
    guest = first_at(bed, "l2a1", turned, before["l2a1"] + GROWTH_MIB - NEAR_MIB, falls=True)
    host = first_at(bed, "l1a", turned, high - NEAR_MIB, falls=True)
    assert guest <= host + WITNESS_S
    names = ("l1a", "l2a1", "l2a2")
    sights = {name: bed.records.series(name, began) for name in names}
    assert lasting(breaches(layout("short"), sights)) == []
    for name in before:
        pin_of(bed, name, release=True)


def lasting(found):
    """Those that were seen for longer than two levels' looks can be apart."""
    return [
        one
        for one in found
        if any(WITNESS_S < later.at - one.at < 4 * WITNESS_S for later in found)
    ]


def pinned(bed, name, amount_mib):
    """The wish is taken, and comes true as the hypervisor says."""
    whole = int(amount_mib) // 8 * 8
    pin_of(bed, name, amount=whole << 20)
    bed.wait_for(
        lambda: abs(actual_mib(bed, name) - whole) <= NEAR_MIB,
        WITHIN_S,
        f"{name} comes to {whole} MiB",
        lambda: (sizes(bed), states(bed)),
    )


def pin_of(bed, name, **wish):
    request = pb.PinRequest(vm=bed.uuids[name], resource="memory", by="test", **wish)
    bed.controller.Pin(request, timeout=10)


def states(bed):
    vms = bed.controller.ListVms(pb.VmsRequest(), timeout=10).vms
    return {vm.name: vm.state for vm in vms}


def first_at(bed, name, since, amount_mib, *, falls=False):
    """When the witness first saw the balloon above that amount, or below it."""
    for sight in bed.records.series(name, since):
        if sight.actual_mib is not None and (sight.actual_mib > amount_mib) != falls:
            return sight.at
    raise AssertionError(f"{name} never passed {amount_mib} MiB")


@pytest.mark.full
def test_memory_moves_through_both_levels(bed):
    """Two guests that fill up need more than their L1 has: it grows first; then all of it shrinks.

    A load takes what is there and waits for the rest, so it has all of it only when L2 grew.
    """
    before, began = actual_mib(bed, "l1a"), time.time()
    for l2 in ("l2a1", "l2a2"):
        bed.start_load(l2, "burst", "memory", [(0, BURST_MIB)])

    def satisfied():
        times = [bed.records.satisfied_at(l2, "burst", BURST_MIB, began) for l2 in ("l2a1", "l2a2")]
        return all(times) and times

    bed.wait_for(satisfied, WITHIN_S, "both loads have what they want", lambda: sizes(bed))
    grown = actual_mib(bed, "l1a")
    assert grown > before + 64
    assert not bed.records.events("load-ended", began)

    for l2 in ("l2a1", "l2a2"):
        bed.stop_load(l2, "burst")
    take_back(bed, before)


def take_back(bed, amount_mib):
    """An operator takes from the L1 what it had lent its guests: these shrink before it does."""
    pin = {"vm": bed.uuids["l1a"], "resource": "memory", "by": "test"}
    bed.controller.Pin(pb.PinRequest(amount=int(amount_mib) << 20, **pin), timeout=10)
    guests = sum(actual_mib(bed, l2) for l2 in ("l2a1", "l2a2"))
    bed.wait_for(
        lambda: actual_mib(bed, "l1a") <= amount_mib + 1,
        WITHIN_S,
        f"the L1 is back at {amount_mib} MiB",
        lambda: sizes(bed),
    )
    bed.controller.Pin(pb.PinRequest(release=True, **pin), timeout=10)
    assert sum(actual_mib(bed, l2) for l2 in ("l2a1", "l2a2")) < guests - 64


def test_a_killed_agent_of_an_l1_comes_back_and_takes_nothing(bed):
    """systemd starts it again, its memory is on the disk, and nobody shrinks meanwhile."""
    highest = epoch_of(bed)
    old = main_pid(bed)
    began, before = time.time(), actual_mib(bed, "l2a1")
    bed.kill("l1a/agent")
    bed.wait_for(lambda: main_pid(bed) not in {0, old}, WITHIN_S, "systemd starts it again")
    away = [sight.actual_mib for sight in bed.records.series("l2a1", since=began)]

    def connected():
        nodes = bed.controller.ListNodes(pb.NodesRequest(), timeout=10).nodes
        return any(node.name == "l1a" and node.connected for node in nodes)

    bed.wait_for(connected, WITHIN_S, "the controller has it back")
    assert min(away, default=before) >= 0.9 * before  # a step that was on its way may end
    assert epoch_of(bed) >= highest > 0


def main_pid(bed):
    return int(bed.check("l1a", "systemctl show --property=MainPID --value hrapaq-agent"))


def epoch_of(bed):
    """The highest epoch that the L1's agent ever saw, as it keeps it on its disk."""
    return json.loads(bed.check("l1a", "cat /var/lib/hrapaq-agent/guard.json"))["epoch_highest"]
