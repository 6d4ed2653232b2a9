"""What scenarios compute from what the witness saw, and what they draw of it."""

import json
import sys
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
sys.path.insert(0, str(DEPLOY))

from testbed.figures import (  # noqa: E402 - the path first
    breaches,
    cpu_used,
    first_quota_rise_at,
    first_rise_at,
    least_and_most,
    pressure,
    stalled_s,
)
from testbed.layout import L1_OVERHEAD_MIB, VM_OVERHEAD_MIB, Places, layout  # noqa: E402
from testbed.plot import Burst, plot_burst  # noqa: E402
from testbed.records import Records, Sight  # noqa: E402

FULL = layout("full")
L1A, L1B = FULL.l1s


def seen(at, actual, *, rss=100.0, usable=100.0, cpu_s=None, quota=None):
    return Sight(at, actual, rss, usable, None, cpu_s, quota)


def at_rest():
    """Everything as it starts, which fills L0 but for its reserve."""
    sights = {}
    for l1 in FULL.l1s:
        sights[l1.name] = [seen(at, float(l1.current_mib)) for at in (1.0, 2.0, 3.0)]
        for guest in l1.guests:
            sights[guest.name] = [seen(at, float(guest.current_mib)) for at in (1.1, 2.1, 3.1)]
    return sights


def test_a_balloon_that_leaves_more_is_a_rise():
    sights = [seen(1, 320.0), seen(2, 320.4), seen(3, 352.0), seen(4, 400.0)]
    assert first_rise_at(sights, 1.5) == 3
    assert first_rise_at(sights, 3.5) == 4
    assert first_rise_at(sights, 4.5) is None
    assert first_rise_at(sights, 0.0, 60.0) == 4


def test_a_rise_of_quota_counts_to_no_limit_at_all():
    sights = [seen(1, 1.0, quota=300.0), seen(2, 1.0, quota=300.0), seen(3, 1.0, quota=None)]
    assert first_quota_rise_at(sights, 1.5) == 3
    assert first_quota_rise_at(sights[2:], 0.0) is None
    assert first_quota_rise_at([seen(1, 1.0), seen(2, 1.0, quota=500.0)], 1.5) is None


def test_the_range_of_a_balloon_is_of_the_time_asked_for():
    sights = [seen(1, 320.0), seen(2, None), seen(3, 288.0), seen(9, 512.0)]
    assert least_and_most(sights, 0, 5) == (288.0, 320.0)
    with pytest.raises(LookupError):
        least_and_most(sights, 4, 5)


def test_cpu_used_is_millicores_between_two_looks():
    sights = [seen(1, 1.0, cpu_s=10.0), seen(2, 1.0), seen(3, 1.0, cpu_s=11.0)]
    assert cpu_used(sights) == [(3, 500.0)]


def test_pressure_is_the_share_of_time_and_its_sum_the_stall():
    readings = [
        {"at": 1.0, "psi_memory_total_us": 0},
        {"at": 2.0},
        {"at": 3.0, "psi_memory_total_us": 500_000},
        {"at": 4.0, "psi_memory_total_us": 500_000},
    ]
    assert pressure(readings, "memory") == [(3.0, 25.0), (4.0, 0.0)]
    assert stalled_s(readings, "memory") == 0.5
    with pytest.raises(LookupError):
        stalled_s(readings, "cpu")


def test_a_bed_at_rest_breaches_nothing():
    assert breaches(FULL, at_rest()) == []


def test_an_l2_that_grows_before_its_l1_is_a_breach_of_that_l1_alone():
    sights = at_rest()
    sights["l2a1"].append(seen(3.5, 360.0))
    found = breaches(FULL, sights)
    assert [one.what for one in found] == [
        f"l1a gives {L1A.current_mib + 40} MiB of {L1A.current_mib}"
    ]
    assert found[0].at == 3.5


def test_an_l1_that_grows_before_another_gave_is_a_breach_of_l0():
    sights = at_rest()
    slack = FULL.memory_allocatable_mib - sum(l1.current_mib + VM_OVERHEAD_MIB for l1 in FULL.l1s)
    sights["l1a"].append(seen(3.5, L1A.current_mib + slack + 2.0))
    assert breaches(FULL, sights) == []
    sights["l1a"].append(seen(3.7, L1A.current_mib + slack + 20.0))
    assert {one.what[:8] for one in breaches(FULL, sights)} == {"L0 gives"}


def test_resident_memory_beyond_what_an_l1_has_is_a_breach():
    sights = at_rest()
    room = L1A.current_mib - L1_OVERHEAD_MIB
    sights["l2a1"].append(seen(3.5, 320.0, rss=room - 50.0))
    (found,) = breaches(FULL, sights)
    assert found.what.startswith("L2s of l1a use")


def test_a_guest_with_nothing_left_is_a_breach_and_one_that_is_silent_is_not():
    sights = at_rest()
    sights["l2b2"].append(seen(3.5, 320.0, usable=1.5))
    sights["l2b1"].append(seen(3.5, 320.0, usable=None))
    (found,) = breaches(FULL, sights)
    assert found.what == "l2b2 has 1.5 MiB left to use"


def test_a_vm_that_is_gone_is_not_counted_for_ever():
    sights = at_rest()
    sights["l1b"].append(seen(100.0, FULL.memory_allocatable_mib - VM_OVERHEAD_MIB - 1.0))
    del sights["l2b1"][:], sights["l2b2"][:]
    assert breaches(FULL, sights) == []


def test_a_picture_is_drawn_also_where_much_is_missing(tmp_path):
    pytest.importorskip("matplotlib")
    records = Records(Places(state=tmp_path, run=tmp_path))
    burst = Burst("l2a1", "burst", ("l1a", "l1b"), ("l2b1",), 0.0, 20.0)
    marks = {"burst": 5.0, "first loan": None}
    plot_burst(records, burst, marks, tmp_path / "none.png", "nothing was seen")
    with (tmp_path / "witness.jsonl").open("w") as file:
        for at in range(20):
            reading = {
                "at": at,
                "vm": "l2a1",
                "actual_kib": 1024 * (320 + at),
                "cpu_ns": at * 10**8,
            }
            file.write(json.dumps(reading) + "\n")
    plot_burst(records, burst, marks, tmp_path / "some.png", "something was seen")
    sizes = [(tmp_path / name).stat().st_size for name in ("none.png", "some.png")]
    assert 0 < sizes[0] < sizes[1]
