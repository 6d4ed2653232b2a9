"""Who waits for whose CPUs, in trees of three levels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.state import MISSING, Ints
from controller.steal import Wait, short_host, waiting, waits_of
from controller.view import NodeInfo
from shared.telemetry import NodeReadings

HOST, OTHER, L1, L1_B, L2, L2_B = range(6)
IDS = ("host", "other", "l1", "l1-b", "l2", "l2-b")
PARENT = np.array([-1, -1, HOST, HOST, L1, L1])


def node(machine: int, delays: dict[int, int] | None = None, steal: int | None = None) -> NodeInfo:
    """What the agent of a machine says of its VMs (us/s) and of itself (millicores)."""
    said = delays or {}
    return NodeInfo(
        IDS[machine],
        IDS[machine],
        "host",
        0,
        {},
        NodeReadings(cpu_steal_millicores=steal),
        vm_ids=tuple(IDS[vm] for vm in said),
        vm_delay_us_per_s=tuple(said.values()),
    )


def ints(*amounts: int) -> Ints:
    return np.array(amounts, dtype=np.int64)


def test_outside_and_inside_are_one_measure() -> None:
    """120,000 us of waiting in a second are 0.12 cores."""
    found = waiting(IDS, PARENT, [node(HOST, {L1: 120_000, L1_B: 0}), node(L1, {L2: 40_000})])
    assert found.tolist() == [MISSING, MISSING, 120, 0, 40, MISSING]


def test_the_hosts_word_counts_before_the_machines_own() -> None:
    """A guest that claims to starve is believed only where its host cannot tell."""
    liar, host = node(L1, steal=9000), node(HOST, {L1: 10_000})
    assert waiting(IDS, PARENT, [host, liar])[L1] == 10
    assert waiting(IDS, PARENT, [liar, host])[L1] == 10
    assert waiting(IDS, PARENT, [liar])[L1] == 9000
    assert waiting(IDS, PARENT, [node(HOST, {L1: MISSING}), node(L1, steal=70)])[L1] == 70


def test_nobody_says_what_a_vm_of_another_waits_for() -> None:
    found = waiting(IDS, PARENT, [node(OTHER, {L1: 500_000}), node(HOST, {L1: 1000})])
    assert found[L1] == 1
    assert waiting(IDS, PARENT, [node(OTHER, {L1: 500_000})])[L1] == MISSING


def test_a_host_that_is_no_vm_waits_for_nobody() -> None:
    assert waiting(IDS, PARENT, [node(HOST, steal=300)])[HOST] == MISSING


def test_what_is_lost_below_is_shared_by_what_ran() -> None:
    """The clock of l2 shows 0.12 cores; that l1 lost 0.40 at the host shows only there. Half of
    what l1 ran was l2's, so half of its loss was."""
    wait = ints(MISSING, MISSING, 400, 0, 120, 0)
    used = ints(3000, 0, 1000, 500, 500, 100)
    waits = waits_of(PARENT, wait, used, L2)
    assert waits == (Wait(L2, L1, 120, 120), Wait(L1, HOST, 400, 200))
    assert short_host(waits) == HOST, "the level that is short is not the nearest one"
    beside = waits_of(PARENT, wait, used, L2_B)
    assert sum(wait.share_millicores or 0 for wait in beside) == 40
    assert short_host(beside) is None, "too little to speak of"


def test_the_nearest_level_may_be_the_short_one() -> None:
    wait = ints(MISSING, MISSING, 20, 0, 300, 0)
    waits = waits_of(PARENT, wait, ints(900, 0, 800, 0, 400, 300), L2)
    assert short_host(waits) == L1


def test_a_level_that_nobody_tells_of_is_left_out() -> None:
    wait = ints(MISSING, MISSING, 400, 0, MISSING, 0)
    waits = waits_of(PARENT, wait, ints(0, 0, 1000, 0, 250, 0), L2)
    assert waits == (Wait(L1, HOST, 400, 100),)


@pytest.mark.parametrize(
    ("used_of_vm", "used_of_l1", "share"),
    [(MISSING, 1000, None), (500, MISSING, None), (0, 0, 0), (1200, 1000, 400)],
)
def test_a_share_is_known_only_where_both_uses_are(
    used_of_vm: int, used_of_l1: int, share: int | None
) -> None:
    wait = ints(MISSING, MISSING, 400, 0, 0, 0)
    _, of_l1 = waits_of(PARENT, wait, ints(0, 0, used_of_l1, 0, used_of_vm, 0), L2)
    assert of_l1.share_millicores == share


AMOUNTS = st.lists(st.integers(MISSING, 64_000), min_size=6, max_size=6).map(np.array)


@given(AMOUNTS, AMOUNTS, st.sampled_from([HOST, L1, L2]))
def test_shares_are_no_more_than_what_is_waited_for(wait: Ints, used: Ints, machine: int) -> None:
    waits = waits_of(PARENT, wait, used, machine)
    assert all(0 <= (one.share_millicores or 0) <= one.millicores for one in waits)
    short = short_host(waits)
    assert short is None or short in {one.host for one in waits}
