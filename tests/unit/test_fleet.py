"""From blocks to a snapshot and a history: joins, ages, missing values, migrations, overrides."""

from dataclasses import replace

import numpy as np
from fleet_reports import (
    GUEST,
    HOST,
    L1,
    OTHER,
    READINGS,
    START,
    UNIX,
    at,
    fed,
    look,
    machine,
    sample,
    vm,
    windows,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core.state import MISSING, Hold, Mode, Snapshot
from controller.fleet import Fleet
from controller.overrides import FLEET, NODE, VM, Freeze, ModeChange, Overrides, Pin
from controller.settings import ControllerSettings, NodeSettings, VmSettings
from shared.clock import SECOND_NS
from shared.resources import GIB, MIB, Resource
from shared.telemetry import IDLE, IDLE_SHRINKING, Loan, NodeReadings, RoleUse, VmSample, VmState
from shared.wire import decode, encode


def test_a_node_keeps_its_newest_loans_and_roles_only():
    loan = Loan(GUEST, Resource.MEMORY, 512 * MIB, 640 * MIB, 768 * MIB)
    role = RoleUse("database", 2, 150, 90 * MIB)
    fleet = fed(sample(vms=[vm(GUEST)], loans=(loan,), roles=(role,)))
    (node,) = fleet.nodes()
    assert (node.loans, node.roles) == ((loan,), (role,))
    fleet.apply(decode(encode(sample(vms=[vm(GUEST)], sequence=2))), START, UNIX)
    assert (node.loans, node.roles) == ((), ())


def test_a_host_and_its_vm_as_reported():
    snapshot = look(fed(sample(vms=[vm(GUEST)])))
    assert snapshot.ids == (HOST, GUEST)
    assert snapshot.parent.tolist() == [-1, 0]
    assert at(snapshot, HOST, "capacity", Resource.MEMORY) == 8 * GIB
    assert at(snapshot, HOST, "used", Resource.MEMORY) == 4 * GIB
    assert at(snapshot, HOST, "overhead", Resource.MEMORY) == 32 * MIB
    assert at(snapshot, HOST, "reserve", Resource.CPU) == 300
    assert (at(snapshot, HOST, "generation"), at(snapshot, HOST, "tick_ns")) == (5, 77)
    assert at(snapshot, GUEST, "limit", Resource.MEMORY) == 512 * MIB
    assert at(snapshot, GUEST, "maximum", Resource.CPU) == 2000
    assert at(snapshot, GUEST, "floor", Resource.MEMORY) == 128 * MIB
    assert at(snapshot, GUEST, "ceiling", Resource.MEMORY) == 1024 * MIB
    assert at(snapshot, GUEST, "capacity", Resource.MEMORY) == MISSING
    assert at(snapshot, GUEST, "hold") == Hold.NONE
    assert at(snapshot, GUEST, "mode") == Mode.OBSERVE
    assert snapshot.lever.tolist() == [[False] * 3, [True] * 3]


def test_without_an_io_limit_a_vm_has_what_its_node_gives():
    snapshot = look(fed(sample(vms=[vm(GUEST)])))
    for name in ("limit", "maximum", "ceiling"):
        assert at(snapshot, GUEST, name, Resource.IO) == 100 * MIB
    silent = replace(READINGS, io_allocatable_bytes_per_s=None)
    snapshot = look(fed(sample(vms=[vm(GUEST)], node=silent)))
    for name in ("limit", "maximum", "ceiling"):
        assert at(snapshot, GUEST, name, Resource.IO) == MISSING


def test_a_lever_that_did_nothing_is_left_alone_on_its_vm_and_one_that_only_grows_does_not_shrink():
    bits = IDLE << Resource.CPU | IDLE_SHRINKING << Resource.MEMORY
    stubborn = vm(GUEST, idle_levers=bits, io_limit_bytes_per_s=MIB)
    snapshot = look(fed(sample(vms=[stubborn, vm(L1, io_limit_bytes_per_s=MIB)])))
    assert snapshot.lever[snapshot.ids.index(GUEST)].tolist() == [False, True, True]
    assert snapshot.lever[snapshot.ids.index(L1)].all()
    assert at(snapshot, GUEST, "floor", Resource.MEMORY) == 512 * MIB
    assert at(snapshot, L1, "floor", Resource.MEMORY) < 512 * MIB
    for resource in (Resource.CPU, Resource.IO):
        floors = [at(snapshot, one, "floor", resource) for one in (GUEST, L1)]
        assert floors[0] == floors[1]


def test_a_vm_that_reports_is_a_nested_host_and_parents_come_first():
    inner = sample(L1, [vm(GUEST)], role="host+guest", generation=9)
    snapshot = look(fed(inner, sample(vms=[vm(L1)])))
    assert snapshot.ids == (HOST, L1, GUEST)
    assert snapshot.parent.tolist() == [-1, 0, 1]
    assert at(snapshot, L1, "generation") == 9
    assert at(snapshot, L1, "capacity", Resource.MEMORY) == MISSING
    # Its operator keeps 8 of 16 GiB from VMs, its one guest costs a process.
    assert at(snapshot, L1, "overhead", Resource.MEMORY) == 8 * GIB + 32 * MIB
    assert at(snapshot, L1, "reserve", Resource.CPU) == 50


def test_what_a_guest_says_of_itself_is_kept_and_moves_nothing():
    report = sample(GUEST, role="guest", node=replace(READINGS, cpu_used_millicores=1))
    fleet = fed(sample(vms=[vm(GUEST)]), report)
    assert at(look(fleet), GUEST, "used", Resource.CPU) == 300
    assert not look(fleet).is_host[1]
    assert {node.node_id for node in fleet.nodes()} == {HOST, GUEST}


def test_a_guest_whose_host_is_not_heard_is_no_machine_of_the_picture():
    assert look(fed(sample(GUEST, role="guest"))).ids == ()


def test_a_vm_that_is_gone_leaves_at_once_and_a_silent_node_with_time():
    fleet = fed(sample(vms=[vm(GUEST)]), sample(OTHER, [vm(L1)]))
    fleet.apply(decode(encode(sample(sequence=2))), START + 10 * SECOND_NS, UNIX)
    snapshot = look(fleet, START + 30 * SECOND_NS)
    assert set(snapshot.ids) == {HOST, OTHER, L1}
    assert at(snapshot, L1, "sample_age_ns") == 30 * SECOND_NS
    assert at(snapshot, L1, "memory_stats_age_ns") == 31 * SECOND_NS
    assert look(fleet, START + 605 * SECOND_NS).ids == (HOST,)
    assert fleet.counters.expired == 1


def test_slots_and_rings_are_used_again_after_a_while():
    fleet = fed(sample(vms=[vm(GUEST)]))
    hours = 3 * 3600 * SECOND_NS
    look(fleet, START + hours)
    assert fleet.table.slot_of == {}
    fleet.apply(decode(encode(sample(vms=[vm(L1)]))), START + hours, UNIX)
    mean, _ = windows(fleet.history(look(fleet, START + hours), START + hours))
    assert np.isfinite(mean).any(axis=1).sum(axis=1).tolist() == [1, 1]


def test_two_hosts_that_report_one_vm_hold_it_still_until_one_stops():
    fleet = fed(sample(vms=[vm(GUEST)]), sample(OTHER, [vm(GUEST, cpu_limit_millicores=700)]))
    snapshot = look(fleet)
    assert sorted(snapshot.ids) == [HOST, OTHER, GUEST]
    assert snapshot.names[snapshot.ids.index(GUEST)] == "name of 4"
    assert at(snapshot, GUEST, "hold") == Hold.MIGRATING
    assert at(snapshot, GUEST, "limit", Resource.CPU) == 1000
    assert at(snapshot, OTHER, "overhead", Resource.CPU) == 700  # room kept where it arrives
    assert fleet.counters.contested == 1
    fleet.apply(decode(encode(sample(sequence=2))), START, UNIX)
    snapshot = look(fleet)
    assert at(snapshot, GUEST, "hold") == Hold.NONE
    assert snapshot.parent[snapshot.ids.index(GUEST)] == snapshot.ids.index(OTHER)
    assert at(snapshot, GUEST, "limit", Resource.CPU) == 700
    assert at(snapshot, OTHER, "overhead", Resource.CPU) == 0


def test_a_nested_host_cannot_lay_claim_to_vms_beside_it():
    honest = sample(vms=[vm(L1), vm(GUEST)])
    liar = sample(L1, [vm(GUEST, cpu_limit_millicores=1), vm(L1)], role="host+guest")
    for order in ((honest, liar), (liar, honest)):
        fleet = fed(*order)
        fleet.apply(decode(encode(replace(liar, sequence=2))), START, UNIX)
        snapshot = look(fleet)
        assert snapshot.parent.tolist() == [-1, 0, 0]
        assert at(snapshot, GUEST, "hold") == Hold.NONE
        assert at(snapshot, GUEST, "limit", Resource.CPU) == 1000
        assert fleet.counters.claimed >= 2


def test_holds_name_the_weightiest_reason():
    paused = vm(GUEST, state=VmState.PAUSED)
    fleet = fed(sample(vms=[paused, vm(L1, state=VmState.MIGRATING)]))
    assert at(look(fleet), GUEST, "hold") == Hold.NOT_RUNNING
    assert at(look(fleet), L1, "hold") == Hold.MIGRATING
    frozen = Overrides((Freeze(GUEST),))
    assert at(look(fleet, overrides=frozen), GUEST, "hold") == Hold.FROZEN
    calm = fed(sample(vms=[vm(GUEST)]))
    assert at(look(calm, connected=()), GUEST, "hold") == Hold.UNMANAGED


def test_a_loan_to_a_vm_of_ones_own_is_demand_and_to_no_other():
    """Whatever it names: a host speaks of the VMs that it runs."""
    lent = Loan(GUEST, Resource.MEMORY, 512 * MIB, 640 * MIB, 900 * MIB)
    unmet = Loan(L1, Resource.CPU, 500, 500, 800)
    squeezed = Loan(machine(10), Resource.MEMORY, 512 * MIB, 448 * MIB, 448 * MIB)
    fleet = fed(
        sample(vms=[vm(L1)], loans=(unmet,)),
        sample(L1, role="host+guest", vms=[vm(GUEST)], loans=(lent,)),
        sample(OTHER, vms=[vm(GUEST)], loans=(replace(lent, wanted_amount=2**40),)),
        sample(machine(9), vms=[vm(machine(10))], loans=(squeezed,)),
    )
    snapshot = look(fleet)
    assert at(snapshot, L1, "wanted", Resource.CPU) == 800
    assert at(snapshot, GUEST, "wanted", Resource.MEMORY) == 900 * MIB
    assert (snapshot.wanted != MISSING).sum() == 2
    fleet.apply(decode(encode(sample(vms=[vm(L1)], sequence=2, tick_ns=78))), START, UNIX)
    assert at(look(fleet), L1, "wanted", Resource.CPU) == MISSING


def test_a_vm_that_starts_is_held_and_keeps_its_place():
    fleet = fed(sample(vms=[vm(GUEST, state=VmState.STARTING)]))
    assert at(look(fleet), GUEST, "hold") == Hold.STARTING


def test_the_nearest_word_on_the_mode_counts():
    said = ControllerSettings(
        mode="recommend",
        nodes={OTHER: NodeSettings(mode="observe")},
        vms={L1: VmSettings(mode="enforce")},
    )
    inner = sample(L1, [vm(GUEST)], role="host+guest")
    fleet = fed(sample(vms=[vm(L1)]), inner, settings=said)
    assert at(look(fleet), L1, "mode") == Mode.ENFORCE
    assert at(look(fleet), GUEST, "mode") == Mode.RECOMMEND  # that of L1 is about L1 alone
    words = Overrides().with_(ModeChange(FLEET, "", Mode.OBSERVE))
    assert at(look(fleet, overrides=words), GUEST, "mode") == Mode.OBSERVE
    words = words.with_(ModeChange(NODE, HOST, Mode.ENFORCE, expires_tick_ns=START + 5))
    assert at(look(fleet, overrides=words), GUEST, "mode") == Mode.ENFORCE
    assert at(look(fleet, START + 5, words), GUEST, "mode") == Mode.OBSERVE
    words = words.with_(ModeChange(VM, L1, Mode.OBSERVE))
    assert at(look(fleet, overrides=words), L1, "mode") == Mode.OBSERVE


def test_bounds_and_pins_as_operators_say_them():
    said = ControllerSettings(
        vms={
            GUEST: VmSettings(
                memory_floor_mib=300,
                memory_ceiling_mib=4096,
                cpu_ceiling_millicores=1500,
                priority=7,
                violation_ppm=10,
            )
        }
    )
    pins = Overrides((Pin(GUEST, Resource.CPU, 800), Pin(machine(99), Resource.CPU, 1)))
    snapshot = look(fed(sample(vms=[vm(GUEST)]), settings=said), overrides=pins)
    assert at(snapshot, GUEST, "floor", Resource.MEMORY) == 300 * MIB
    assert at(snapshot, GUEST, "ceiling", Resource.MEMORY) == 1024 * MIB  # all that it can have
    assert at(snapshot, GUEST, "ceiling", Resource.CPU) == 1500
    assert at(snapshot, GUEST, "priority") == 7
    assert at(snapshot, GUEST, "violation_ppm") == 10
    assert at(snapshot, GUEST, "pin", Resource.CPU) == 800
    assert at(snapshot, GUEST, "pin", Resource.MEMORY) == MISSING


def test_history_holds_means_and_peaks_by_the_step_and_gaps_as_gaps():
    settings = ControllerSettings(window_steps=12)
    fleet = Fleet(settings)
    step = 60 * SECOND_NS
    zero = 100 * step
    for when, used in ((0, 100), (10, 200), (60, 500), (60 * 4, 50)):
        block = decode(encode(sample(vms=[vm(GUEST, cpu_used_millicores=used)])))
        fleet.apply(block, zero + when * SECOND_NS, UNIX)
    now = zero + 5 * step
    history = fleet.history(look(fleet, now), now)
    mean, peaks = windows(history)
    cpu, peak = mean[1, 0], peaks[1, 0]
    np.testing.assert_array_equal(cpu[-6:], [150, 500, np.nan, np.nan, 50, np.nan])
    np.testing.assert_array_equal(peak[-6:], [200, 500, np.nan, np.nan, 50, np.nan])
    assert np.isnan(cpu[:-6]).all()
    assert np.isnan(mean[1, 2]).all()
    assert history.age_ns.tolist() == [step, step]
    later = zero + 100 * step
    fleet.apply(block, later, UNIX)
    cpu = windows(fleet.history(look(fleet, later), later))[0][1, 0]
    np.testing.assert_array_equal(cpu, [np.nan] * 11 + [50])


maybe = st.none() | st.integers(0, 2**40)
vm_samples = st.builds(
    VmSample,
    st.sampled_from([machine(i) for i in range(6)]),
    st.just("vm"),
    state=st.sampled_from(VmState),
    memory_limit_bytes=maybe,
    memory_maximum_bytes=maybe,
    memory_used_bytes=maybe,
    memory_free_bytes=maybe,
    memory_stats_age_ns=maybe,
    cpu_limit_millicores=maybe,
    cpu_maximum_millicores=maybe,
    cpu_used_millicores=maybe,
    io_limit_bytes_per_s=maybe,
    io_used_bytes_per_s=maybe,
)
nodes = st.builds(
    NodeReadings,
    memory_total_bytes=maybe,
    memory_available_bytes=maybe,
    memory_allocatable_bytes=maybe,
    cpu_allocatable_millicores=maybe,
    cpu_used_millicores=maybe,
    io_allocatable_bytes_per_s=maybe,
)
samples = st.builds(
    sample,
    st.sampled_from([machine(i) for i in range(4)]),
    st.lists(vm_samples, max_size=5, unique_by=lambda each: each.vm_id),
    role=st.sampled_from(["host", "guest", "host+guest"]),
    node=nodes,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(samples, st.integers(0, 900)), max_size=12))
def test_any_blocks_give_a_sound_snapshot_and_history(story):
    fleet = Fleet(ControllerSettings(window_steps=10))
    now = START
    for each, seconds in story:
        now += seconds * SECOND_NS
        fleet.apply(decode(encode(each)), now, UNIX)
        snapshot = look(fleet, now)  # its assertions: unique ids, parents first, shapes
        assert isinstance(snapshot, Snapshot)
        known = (snapshot.floor != MISSING) & (snapshot.ceiling != MISSING)
        assert (snapshot.floor[known] <= snapshot.ceiling[known]).all()
        mean, peak = windows(fleet.history(snapshot, now))
        assert mean.shape == peak.shape == (len(snapshot.ids), 3, 10)
        seen = np.isfinite(mean)
        assert (mean[seen] <= peak[seen] + 1e-6 * peak[seen]).all()


@settings(max_examples=100, deadline=None)
@given(vm_samples, nodes)
def test_what_is_missing_never_becomes_zero(guest, readings):
    guest = replace(guest, vm_id=GUEST)
    fleet = fed(sample(vms=[guest], node=readings))
    snapshot = look(fleet)
    pairs = (
        ("limit", Resource.CPU, guest.cpu_limit_millicores),
        ("limit", Resource.MEMORY, guest.memory_limit_bytes),
        ("maximum", Resource.MEMORY, guest.memory_maximum_bytes),
        ("used", Resource.CPU, guest.cpu_used_millicores),
        ("used", Resource.IO, guest.io_used_bytes_per_s),
        ("memory_free", None, guest.memory_free_bytes),
        ("memory_stats_age_ns", None, guest.memory_stats_age_ns),
    )
    for name, resource, said in pairs:
        assert at(snapshot, GUEST, name, resource) == (MISSING if said is None else said)
    said = readings.memory_allocatable_bytes
    assert at(snapshot, HOST, "capacity", Resource.MEMORY) == (MISSING if said is None else said)
    mean, _ = windows(fleet.history(snapshot, START))
    for resource, said in enumerate((guest.cpu_used_millicores, guest.memory_used_bytes)):
        assert np.isfinite(mean[1, resource]).any() == (said is not None)
