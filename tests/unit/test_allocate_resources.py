"""CPU, memory and I/O of the control loop: each its own optimum, nested, against every choice."""

from collections import Counter

import numpy as np
import pytest

from controller.core.allocate.grants import allocate
from controller.core.allocate.value import values
from controller.core.bins import to_bins
from controller.core.state import MISSING, Mode
from controller.testing import SMALL_POLICY, Machine, make_forecast, make_snapshot
from shared.resources import GIB, MIB, Resource

FULL = (4000, GIB, 64 * MIB)  # what a VM may have
SEEDS = range(24)


def fleet(seed):
    """A host with a VM and a hypervisor VM with a guest; each resource scarce or not by itself."""
    rng = np.random.default_rng(seed)

    def part(least, most):
        share = rng.uniform(least, most, 3)
        return tuple(int(s * full) for s, full in zip(share, FULL, strict=True))

    def machine(name, parent, **more):
        limit = part(0.2, 0.5)
        return Machine(
            name, parent, limit=limit, maximum=FULL, used=tuple(int(0.5 * x) for x in limit),
            demand=part(0.1, 0.8), spread=0.3, memory_free=limit[1] // 2, memory_cache=0,
            floor=(100, 32 * MIB, MIB), priority=int(rng.integers(1, 4)), **more,
        )  # fmt: skip

    return [
        Machine("h", capacity=part(0.9, 2.4), overhead=(100, 16 * MIB, MIB), reserve=part(0, 0.1)),
        machine("plain", "h"),
        machine("inner", "h", overhead=(50, 24 * MIB, MIB)),
        machine("guest", "inner"),
    ]


class Everything:
    """Every choice of candidates of the three VMs, of one resource: (p, 3) arrays."""

    def __init__(self, snapshot, bins, value, resource):
        quantum = SMALL_POLICY.quantum[resource]
        counts = bins.count[1:, resource]
        pick = np.indices(counts).reshape(3, -1).T
        vms = np.arange(1, 4)
        level = bins.level[vms, resource, pick]
        top = bins.level[vms, resource, counts - 1]
        needed = np.minimum(bins.needed[1:, resource], top)
        misses = (level < needed) & (counts > 1) & (bins.needed[1:, resource] != MISSING)
        kept = (snapshot.overhead + snapshot.reserve)[:, resource]
        steps = -(-level // quantum)
        outer = steps[:, 0] + steps[:, 1] <= (snapshot.capacity[0, resource] - kept[0]) // quantum
        inner = steps[:, 2] <= (level[:, 1] - kept[2]) // quantum
        self.level, self.fits = level, outer & inner
        self.worth = value[vms, resource, pick].sum(axis=1)
        self.missed = (snapshot.priority[1:] * misses).sum(axis=1)

    def best(self):
        """(fewest weighted misses, most value with those); None: nothing fits."""
        if not self.fits.any():
            return None
        least = self.missed[self.fits].min()
        return int(least), int(self.worth[self.fits & (self.missed == least)].max())


def solved(seed):
    machines = fleet(seed)
    snapshot, forecast = make_snapshot(machines), make_forecast(machines)
    bins = to_bins(snapshot, forecast, SMALL_POLICY, Mode.ENFORCE)
    value = values(snapshot, forecast, bins, SMALL_POLICY)
    return snapshot, bins, value, allocate(snapshot, forecast, bins, SMALL_POLICY)


@pytest.mark.parametrize("seed", SEEDS)
def test_each_resource_gets_its_optimum(seed):
    snapshot, bins, value, allocation = solved(seed)
    for resource in Resource:
        every = Everything(snapshot, bins, value, resource)
        word, best = allocation.status[0][resource], every.best()
        if word == "over":
            assert best is None, "a choice that fits was overlooked"
            continue
        assert word == ("short" if best[0] else "optimal")
        assert int(allocation.total[0, resource]) == best[1]
        granted = (every.level == allocation.level[1:, resource]).all(axis=1) & every.fits
        assert granted.sum() == 1, "the grants are candidates and fit"
        assert (int(every.missed[granted][0]), int(every.worth[granted][0])) == best
        assert allocation.price[0, resource] >= 0


def test_the_fleets_are_scarce_in_each_resource_and_the_guest_matters():
    """Or the test above would prove little."""
    words, bound, inner = Counter(), Counter(), Counter()
    for seed in SEEDS:
        snapshot, bins, value, allocation = solved(seed)
        for resource in Resource:
            every = Everything(snapshot, bins, value, resource)
            word = allocation.status[0][resource]
            words[resource, word] += 1
            if word == "optimal":
                free = every.worth[every.missed == 0].max()
                bound[resource] += int(allocation.total[0, resource]) < free
                alone = int(np.argmax(value[2, resource, : bins.count[2, resource]]))
                level = bins.level[2, resource, alone]
                inner[resource] += int(allocation.level[2, resource]) > level
    assert all(words[resource, "optimal"] >= 3 for resource in Resource), words
    assert all(words[resource, "short"] >= 3 for resource in Resource), words
    assert all(bound[resource] >= 3 for resource in Resource), bound
    assert sum(inner.values()) >= 3, "the hypervisor VM takes more than it would alone"


def test_a_resource_without_a_capacity_leaves_the_others_alone():
    machines = fleet(1)
    cpu, memory, _ = machines[0].capacity
    blind = [Machine("h", capacity=(cpu, memory, None), overhead=machines[0].overhead,
                     reserve=machines[0].reserve), *machines[1:]]  # fmt: skip
    found = []
    for each in (machines, blind):
        snapshot, forecast = make_snapshot(each), make_forecast(each)
        bins = to_bins(snapshot, forecast, SMALL_POLICY, Mode.ENFORCE)
        found.append((snapshot, allocate(snapshot, forecast, bins, SMALL_POLICY)))
    (_, whole), (snapshot, partly) = found
    assert partly.status[0][Resource.IO] == "unknown"
    assert partly.level[1:, Resource.IO].tolist() == snapshot.limit[1:, Resource.IO].tolist()
    for resource in (Resource.CPU, Resource.MEMORY):
        assert partly.level[:, resource].tolist() == whole.level[:, resource].tolist()
