"""Limits follow demand, not the breath of a forecast nor the places of a grid."""

from dataclasses import replace

import numpy as np
import pytest

from controller.core.allocate.grants import allocate
from controller.core.bins import to_bins
from controller.core.state import Mode, Policy
from controller.testing import Machine, host, make_forecast, make_snapshot
from shared.resources import GIB, MIB, Resource

VMS = 20
CYCLES = 12
DEFAULT = (Policy(),)
SETTLED = 5  # cycles after which a steady demand has its grants


def moves(tight, breath=0.0, policies=DEFAULT, seed=1):
    """(cycles,) bytes that move per cycle while demand stays and its forecast breathes.

    `tight`: the host's memory as a share of what all VMs ask for.
    """
    rng = np.random.default_rng(seed)
    demand = rng.uniform(4, 40, VMS) * GIB
    capacity = int(demand.sum() * 1.3 * tight)
    limit = (demand * 1.1).astype(np.int64)
    moved = []
    for cycle in range(CYCLES):
        seen = demand * (1 + breath * rng.standard_normal(VMS))
        machines = [host("h", capacity)]
        machines += [
            Machine(
                f"v{i}",
                "h",
                limit=(1000, int(limit[i]), None),
                maximum=(1000, 64 * GIB, None),
                used=(50, int(demand[i] / 2), 0),
                demand=(50, seen[i], 0),
                memory_free=max(0, int(limit[i] - demand[i] / 2)),
                memory_cache=0,
            )
            for i in range(VMS)
        ]
        snapshot, forecast = make_snapshot(machines), make_forecast(machines)
        policy = policies[cycle % len(policies)]
        bins = to_bins(snapshot, forecast, policy, Mode.ENFORCE)
        now = allocate(snapshot, forecast, bins, policy).level[1:, Resource.MEMORY]
        moved.append(int(np.abs(now - limit).sum()))
        limit = now
    return np.array(moved)


@pytest.mark.parametrize("tight", [0.8, 0.9, 1.0, 1.2])
def test_a_steady_forecast_moves_nothing_once_it_has_settled(tight):
    moved = moves(tight)
    assert moved[0] > 0
    assert moved[SETTLED:].tolist() == [0] * (CYCLES - SETTLED)


@pytest.mark.parametrize("tight", [0.8, 0.9, 1.0, 1.2])
def test_other_grids_of_the_same_forecast_move_nothing(tight):
    grids = [Policy(bins_max=places) for places in (32, 28, 24, 20)]
    assert moves(tight, policies=grids)[SETTLED:].sum() == 0


@pytest.mark.parametrize("tight", [0.9, 1.2])
def test_limits_do_not_follow_a_breath_of_the_forecast(tight):
    """Two thousandths of 20 VMs' demand are about a GiB; without tolerance it all keeps moving."""
    calm = moves(tight, breath=0.002)[SETTLED:].mean()
    assert calm < 0.2 * GIB
    restless = moves(0.9, breath=0.002, policies=[Policy(floor_tolerance=0.0)])[SETTLED:].mean()
    assert restless > 1 * GIB


def test_what_a_vm_asks_for_does_not_depend_on_what_it_has():
    """Or a grant changes the floor that led to it, and both go in circles."""
    vm = Machine("v", "h", maximum=(1000, 64 * GIB, None), demand=(50, 20 * GIB, 0))
    needed = []
    for limit in (10 * GIB, 15 * GIB, 60 * GIB):
        used = replace(vm, limit=(1000, limit, None), used=(50, GIB, 0), memory_free=limit - GIB)
        machines = [host("h", 64 * GIB), used]
        bins = to_bins(make_snapshot(machines), make_forecast(machines), Policy(), Mode.ENFORCE)
        needed.append(int(bins.needed[1, Resource.MEMORY]))
    assert len(set(needed)) == 1
    p95 = 20 * GIB * 1.18
    assert p95 / 0.95 <= needed[0] < p95 / 0.95 + 100 * MIB
