"""The grants of a snapshot against brute force, flat and nested, and what is said of them."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core.allocate.grants import allocate
from controller.core.allocate.value import values
from controller.core.bins import to_bins
from controller.core.state import MISSING, Mode
from controller.testing import (
    SMALL_POLICY,
    Machine,
    host,
    make_forecast,
    make_snapshot,
    random_fleet,
)
from shared.resources import GIB, MIB, Resource


def solved(machines):
    snapshot, forecast = make_snapshot(machines), make_forecast(machines)
    bins = to_bins(snapshot, forecast, SMALL_POLICY, Mode.ENFORCE)
    return snapshot, forecast, bins, allocate(snapshot, forecast, bins, SMALL_POLICY)


def by_enumeration(machines, resource):
    """(fewest weighted misses, then most value) over the whole tree, by trying everything."""
    snapshot, forecast = make_snapshot(machines), make_forecast(machines)
    bins = to_bins(snapshot, forecast, SMALL_POLICY, Mode.ENFORCE)
    value = values(snapshot, forecast, bins, SMALL_POLICY)[:, resource]
    quantum = SMALL_POLICY.quantum[resource]
    vms = range(1, len(machines))
    kept = (snapshot.overhead + snapshot.reserve)[:, resource]
    own = bins.own[:, resource]
    options = []
    for vm in vms:
        level = bins.level[vm, resource, : bins.count[vm, resource]].tolist()
        floor = bins.needed[vm, resource]
        weight = int(snapshot.priority[vm])
        options.append(
            [
                (one, weight * (len(level) > 1 and one < min(floor, level[-1])), int(value[vm, k]))
                for k, one in enumerate(level)
            ]
        )

    def beside_guests(node, size):
        shrinks = node and size < snapshot.limit[node, resource]
        return int(max(kept[node], own[node]) if shrinks else kept[node])

    best = None
    for pick in itertools.product(*options):
        size = dict(zip(vms, (p[0] for p in pick), strict=True))
        size[0] = int(snapshot.capacity[0, resource])
        fits = all(
            sum(-(-size[c] // quantum) for c in snapshot.children(node))
            <= (size[node] - beside_guests(node, size[node])) // quantum
            for node in (0, *vms)
            if snapshot.children(node)
        )
        found = (-sum(p[1] for p in pick), sum(p[2] for p in pick))
        if fits and (best is None or found > best):
            best = found
    return best


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.3, 1.0))
def test_a_nested_tree_is_jointly_optimal_with_the_fewest_misses(seed, share):
    root, *vms = random_fleet(seed, roots=1, vms=2, nested=1)
    cpu, memory, disk = root.capacity
    machines = [replace(root, capacity=(cpu, int(memory * share), disk)), *vms]
    snapshot, forecast = make_snapshot(machines), make_forecast(machines)
    bins = to_bins(snapshot, forecast, SMALL_POLICY, Mode.ENFORCE)
    combinations = np.prod(np.maximum(bins.count[1:, Resource.MEMORY], 1))
    if combinations > 20_000:
        return
    allocation = allocate(snapshot, forecast, bins, SMALL_POLICY)
    best = by_enumeration(machines, Resource.MEMORY)
    word = allocation.status[0][Resource.MEMORY]
    if word in {"optimal", "short"}:
        assert best is not None
        assert int(allocation.total[0, Resource.MEMORY]) == best[1]
        assert (word == "optimal") == (best[0] == 0)
        given_short = (allocation.level[1:, 1] < bins.needed[1:, 1]) & (bins.count[1:, 1] > 1)
        assert int(snapshot.priority[1:][given_short].sum()) == -best[0]
    elif word == "over":
        assert best is None, "a combination that fits was overlooked"


def test_random_fleets_are_solved_in_every_way():
    """The test above would prove little if its fleets were all alike."""
    words = set()
    for seed in range(60):
        root, *vms = random_fleet(seed, roots=1, vms=2, nested=1)
        cpu, memory, disk = root.capacity
        share = 0.4 + seed / 100
        machines = [replace(root, capacity=(cpu, int(memory * share), disk)), *vms]
        words.add(solved(machines)[-1].status[0][Resource.MEMORY])
    assert words == {"optimal", "short", "over", "unknown"}


def test_memory_goes_to_the_guest_that_needs_it():
    machines = [
        host("h", GIB),
        Machine("busy", "h", used=(50, 200 * MIB, 0), demand=(50, 300 * MIB, 0),
                memory_free=40 * MIB),
        *(
            Machine(f"idle{i}", "h", used=(50, 50 * MIB, 0), demand=(50, 50 * MIB, 0),
                    memory_free=180 * MIB)
            for i in range(3)
        ),
    ]  # fmt: skip
    _, _, _, allocation = solved(machines)
    memory = allocation.level[:, Resource.MEMORY]
    assert memory[1] >= 354 * MIB + 64 * MIB - 8 * MIB
    assert (memory[2:] < 256 * MIB).all()
    assert memory[1:].sum() <= GIB


def test_an_inner_guest_raises_the_hypervisor_vm_above_it():
    machines = [
        host("h", GIB),
        Machine("l1", "h", overhead=(0, 64 * MIB, 0), limit=(1000, 320 * MIB, None),
                used=(50, 150 * MIB, 0), demand=(50, 150 * MIB, 0), memory_free=100 * MIB),
        Machine("l2", "l1", used=(50, 180 * MIB, 0), demand=(50, 300 * MIB, 0),
                memory_free=10 * MIB),
        Machine("other", "h", limit=(1000, 512 * MIB, None), used=(50, 60 * MIB, 0),
                demand=(50, 60 * MIB, 0), memory_free=400 * MIB),
    ]  # fmt: skip
    _, _, _, allocation = solved(machines)
    memory = allocation.level[:, Resource.MEMORY]
    assert memory[2] > 256 * MIB
    assert memory[1] >= memory[2] + 64 * MIB, "the L1 must hold its guest and its own overhead"
    assert memory[1] + memory[3] <= GIB


def test_scarcity_is_called_short_and_shares_by_value():
    machines = [
        host("h", 512 * MIB),
        *(
            Machine(f"v{i}", "h", used=(50, 150 * MIB, 0), demand=(50, 400 * MIB, 0),
                    memory_free=40 * MIB, priority=1 + 2 * i)
            for i in range(2)
        ),
    ]  # fmt: skip
    _, _, bins, allocation = solved(machines)
    assert allocation.status[0][Resource.MEMORY] == "short"
    low, high = allocation.level[1:, Resource.MEMORY]
    assert high > 256 * MIB > low, "shortage weighs by priority"
    assert (allocation.level[1:, 1] >= bins.lowest[1:, 1]).all()


def test_a_quantum_has_a_price_where_memory_is_scarce_and_none_where_it_abounds():
    def price(capacity):
        machines = [host("h", capacity)]
        machines += [
            Machine(f"v{i}", "h", used=(50, 90 * MIB, 0), demand=(50, 250 * MIB, 0),
                    memory_free=100 * MIB)
            for i in range(3)
        ]  # fmt: skip
        allocation = solved(machines)[-1]
        assert allocation.status[0][Resource.MEMORY] == "optimal"
        assert np.isnan(allocation.price[1:]).all(), "only hosts have a price"
        return float(allocation.price[0, Resource.MEMORY])

    assert price(8 * GIB) == 0
    assert price(1100 * MIB) > 0


def test_a_short_host_has_a_price_in_the_same_units():
    machines = [host("h", 512 * MIB)]
    machines += [
        Machine(f"v{i}", "h", used=(50, 150 * MIB, 0), demand=(50, 400 * MIB, 0)) for i in range(2)
    ]
    allocation = solved(machines)[-1]
    assert allocation.status[0][Resource.MEMORY] == "short"
    assert 0 < allocation.price[0, Resource.MEMORY] < 100_000


def test_amounts_beyond_all_sense_stop_their_own_tree_only():
    machines = [
        host("h", 1 << 62),
        Machine("absurd", "h", limit=(1000, 1 << 61, None), maximum=(1000, 1 << 61, None),
                demand=(50, 1 << 60, 0)),
        host("g", GIB),
        Machine("sane", "g", demand=(50, 300 * MIB, 0)),
    ]  # fmt: skip
    allocation = solved(machines)[-1]
    words = [status[Resource.MEMORY] for status in allocation.status]
    assert words == ["unknown", "optimal"]
    assert allocation.level[1, Resource.MEMORY] == 1 << 61


def test_over_capacity_only_goes_back():
    machines = [
        host("h", 400 * MIB),
        Machine("a", "h", used=(50, 100 * MIB, 0), demand=(50, 400 * MIB, 0)),
        Machine("b", "h", used=(50, 190 * MIB, 0), demand=(50, 400 * MIB, 0), memory_free=0),
    ]
    snapshot, _, bins, allocation = solved(machines)
    assert allocation.status[0][Resource.MEMORY] == "over"
    assert (allocation.level[1:, 1] <= snapshot.limit[1:, 1]).all()
    assert (allocation.level[1:, 1] == bins.lowest[1:, 1]).all()


def test_over_capacity_a_pin_still_holds():
    """Or the verifier turns the whole plan down, and the host stays too full for ever (I8)."""
    pins = [(None, 192 * MIB, None), (None, 224 * MIB, None), (None, 320 * MIB, None)]
    limits = [192 * MIB, 256 * MIB, 256 * MIB]
    machines = [host("h", 800 * MIB), Machine("a", "h")]
    for name, pin, limit in zip("bcd", pins, limits, strict=True):
        machines.append(Machine(name, "h", pin=pin, limit=(1000, limit, None)))
    _, _, bins, allocation = solved(machines)
    assert allocation.status[0][Resource.MEMORY] == "over"
    grants = [192 * MIB, 224 * MIB, 256 * MIB]  # at it, towards it, and not up to it now
    assert allocation.level[2:, Resource.MEMORY].tolist() == grants
    assert allocation.level[1, Resource.MEMORY] == bins.lowest[1, Resource.MEMORY] < 256 * MIB


@pytest.mark.parametrize("gap", ["capacity", "limit"])
def test_what_is_not_known_is_left_alone(gap):
    machines = [
        host("h", None if gap == "capacity" else GIB),
        Machine("a", "h", demand=(50, 400 * MIB, 0)),
        Machine("b", "h", limit=(1000, None if gap == "limit" else 256 * MIB, None)),
    ]
    snapshot, _, _, allocation = solved(machines)
    assert allocation.status[0][Resource.MEMORY] == "unknown"
    known = snapshot.limit[1:, 1] != MISSING
    assert (allocation.level[1:, 1][known] == snapshot.limit[1:, 1][known]).all()
    assert (allocation.level[1:, 1][~known] == MISSING).all()
