"""Who has a machine that several nodes report: migrations, restarts, clones, lies, the dead."""

from dataclasses import replace

import numpy as np
import pytest
from fleet_reports import (
    GUEST,
    HOST,
    L1,
    OTHER,
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
from controller.fleet import CLONE_CLEARS_NS, GONE_NS, Fleet
from controller.overrides import NODE, VM, Freeze, ModeChange, Overrides, Pin
from controller.picture import Streams
from controller.settings import ControllerSettings
from shared.clock import SECOND_NS
from shared.resources import GIB, MIB, Resource
from shared.telemetry import VmState
from shared.wire import decode, encode

L1B, STRANGER = machine(5), machine(6)
NESTED = "host+guest"
STEP = 10 * SECOND_NS
DEAD_LEVERS = dict.fromkeys(("cpu", "memory", "io"), "libvirt is away")


class Story:
    """Nodes that report every ten seconds what was last set for them."""

    def __init__(self, settings=None):
        self.fleet = Fleet(settings or ControllerSettings())
        self.now = START
        self.reports = {}
        self.streams = {}

    def set(self, node_id, vms=(), **said):
        """From the next tick on the node reports this; None: nothing any more."""
        self.reports[node_id] = None if vms is None else sample(node_id, vms, **said)
        self.streams[node_id] = ""

    def tick(self, count=1):
        """Time passes, everybody reports, and a cycle looks."""
        for _ in range(count):
            self.now += STEP
            for report in self.reports.values():
                if report is not None:
                    self.hear(report)
            self.snapshot = self.look()
        return self.snapshot

    def hear(self, report):
        self.fleet.apply(decode(encode(report)), self.now, UNIX)

    def look(self, **said):
        return look(self.fleet, self.now, connected=tuple(self.streams), **said)

    def at(self, machine_id, name, resource=None):
        return at(self.snapshot, machine_id, name, resource)

    def hold(self, machine_id):
        return Hold(self.at(machine_id, "hold"))

    def host_of(self, machine_id):
        parent = self.at(machine_id, "parent")
        return None if parent < 0 else self.snapshot.ids[parent]

    def there(self, machine_id):
        return machine_id in self.snapshot.ids

    def kinds(self):
        return {trouble.kind for trouble in self.fleet.troubles}

    def counted(self, host_id, resource=Resource.MEMORY):
        """All that is counted against a host, less what an empty one would have counted."""
        snapshot, place = self.snapshot, self.snapshot.ids.index(host_id)
        guests = [int(snapshot.limit[c, resource]) for c in snapshot.children(place)]
        return sum(guests) + int(snapshot.overhead[place, resource])


def incoming(vm_id=GUEST, **said):
    return vm(vm_id, state=VmState.PAUSED, cpu_used_millicores=0, **said)


def two_hosts():
    story = Story()
    story.set(HOST, [vm(GUEST)])
    story.set(OTHER)
    story.tick()
    return story


def two_nested():
    """HOST and OTHER are physical; L1 on one and L1B on the other are nested hosts."""
    story = Story()
    story.set(HOST, [vm(L1)])
    story.set(OTHER, [vm(L1B)])
    story.set(L1, [vm(GUEST)], role=NESTED)
    story.set(L1B, role=NESTED)
    story.tick()
    return story


# ---- migration ----


@pytest.mark.parametrize(
    ("world", "source", "target"),
    [(two_hosts, HOST, OTHER), (two_nested, L1, L1B), (two_nested, L1, OTHER)],
)
def test_a_migration_holds_still_counts_once_at_each_host_and_keeps_the_history(
    world, source, target
):
    story = world()
    story.tick(30)
    before = story.counted(source)
    empty = story.counted(target)
    assert story.hold(GUEST) is Hold.NONE
    beside = [vm(L1B)] if target == OTHER and source == L1 else []
    leaving = {"role": NESTED} if source == L1 else {}
    role = {"role": NESTED} if target == L1B else {}
    story.set(source, [vm(GUEST, state=VmState.MIGRATING)], **leaving)
    story.set(target, [*beside, incoming()], **role)
    story.tick(3)
    assert (story.host_of(GUEST), story.hold(GUEST)) == (source, Hold.MIGRATING)
    assert story.counted(source) == before
    assert story.counted(target) == empty + 512 * MIB + 32 * MIB
    story.set(target, [*beside, vm(GUEST)], **role)  # the switch: both say that it runs
    story.tick()
    assert story.counted(target) == empty + 512 * MIB + 32 * MIB
    story.set(source, **leaving)
    story.tick()
    assert (story.host_of(GUEST), story.hold(GUEST)) == (target, Hold.NONE)
    assert story.counted(target) == empty + 512 * MIB + 32 * MIB
    assert story.counted(source) == before - 512 * MIB - 32 * MIB
    assert story.kinds() == set()
    history = story.fleet.history(story.snapshot, story.now)
    row = story.snapshot.ids.index(GUEST)
    mean, _ = windows(history)
    assert np.isfinite(mean[row, Resource.CPU]).sum() >= 5
    assert np.nanmin(mean[row, Resource.CPU]) == 300


def test_a_vm_on_its_way_whose_size_is_not_told_yet_counts_with_what_it_had():
    story = two_hosts()
    story.set(OTHER, [incoming(memory_limit_bytes=None, memory_maximum_bytes=None)])
    story.tick()
    assert story.counted(OTHER) == 512 * MIB + 32 * MIB


def test_overrides_follow_a_vm_to_its_new_host():
    story = two_hosts()
    said = Overrides(
        (
            Pin(GUEST, Resource.CPU, 800),
            ModeChange(VM, GUEST, Mode.ENFORCE),
            ModeChange(NODE, OTHER, Mode.RECOMMEND),
        )
    )
    for where in (HOST, OTHER):
        story.set(HOST, [vm(GUEST)] if where == HOST else ())
        story.set(OTHER, [vm(GUEST)] if where == OTHER else ())
        story.tick()
        snapshot = story.look(overrides=said)
        assert at(snapshot, GUEST, "pin", Resource.CPU) == 800
        assert at(snapshot, GUEST, "mode") == Mode.ENFORCE
    assert at(story.look(overrides=said), OTHER, "hold") == Hold.NONE


def test_a_nested_host_s_word_holds_a_vm_still_only_while_its_host_says_that_it_leaves():
    story = two_nested()
    story.set(L1B, [incoming()], role=NESTED)
    story.tick()
    assert story.hold(GUEST) is Hold.NONE
    story.set(L1, [vm(GUEST, state=VmState.MIGRATING)], role=NESTED)
    story.tick()
    assert story.hold(GUEST) is Hold.MIGRATING
    story.set(L1, [vm(GUEST)], role=NESTED)  # it did not come to that
    story.tick()
    assert (story.host_of(GUEST), story.hold(GUEST)) == (L1, Hold.NONE)


# ---- restarts ----


def test_a_vm_that_restarts_keeps_its_history_and_host():
    story = two_hosts()
    story.tick(12)
    story.set(HOST)
    story.tick(6)
    assert not story.there(GUEST)
    story.set(HOST, [vm(GUEST, cpu_used_millicores=900)])
    story.tick(12)
    assert (story.host_of(GUEST), story.hold(GUEST)) == (HOST, Hold.NONE)
    mean, _ = windows(story.fleet.history(story.snapshot, story.now))
    cpu = mean[story.snapshot.ids.index(GUEST), Resource.CPU]
    assert {300, 900} <= set(cpu[np.isfinite(cpu)].tolist())
    assert story.kinds() == set()


def test_a_nested_host_that_reboots_loses_its_guests_and_gets_them_back():
    story = two_nested()
    story.tick(6)
    story.set(L1, role=NESTED, boot_id="second", generation=0, tick_ns=1, sequence=1)
    story.tick()
    assert not story.there(GUEST)
    assert story.at(L1, "generation") == 0
    story.set(L1, [vm(GUEST)], role=NESTED, boot_id="second", generation=1, tick_ns=2)
    story.tick()
    assert (story.host_of(GUEST), story.hold(GUEST)) == (L1, Hold.NONE)
    assert (story.at(L1, "generation"), story.at(L1, "tick_ns")) == (1, 2)
    assert story.kinds() == set()


def test_a_physical_host_that_reboots_loses_the_whole_tree_and_gets_it_back():
    story = two_nested()
    nested = story.reports[L1]
    story.set(HOST, None)
    story.set(L1, None)
    story.tick(4)
    story.set(HOST, boot_id="second", generation=0)
    story.tick(int(GONE_NS // STEP) + 1)
    assert not story.there(L1)
    assert not story.there(GUEST)
    story.set(HOST, [vm(L1)], boot_id="second")
    story.reports[L1] = replace(nested, boot_id="third", generation=0)
    story.tick()
    assert (story.host_of(GUEST), story.host_of(L1)) == (L1, HOST)
    assert story.kinds() == set()


def test_an_agent_that_does_not_see_its_hypervisor_has_not_lost_its_vms():
    story = two_nested()
    story.set(L1, role=NESTED, levers=DEAD_LEVERS)  # started anew while libvirt is away
    story.tick(5)
    assert story.host_of(GUEST) == L1
    assert story.at(GUEST, "sample_age_ns") == 5 * STEP
    story.set(L1, role=NESTED, levers=DEAD_LEVERS, boot_id="second")  # after a reboot it has
    story.tick()
    assert not story.there(GUEST)


# ---- re-definition ----


def test_a_vm_defined_anew_is_taken_as_it_is_now_and_keeps_its_past():
    story = two_hosts()
    story.tick(12)
    anew = replace(
        vm(GUEST),
        name="renamed",
        memory_maximum_bytes=2 * GIB,
        memory_limit_bytes=2 * GIB,
        cpu_maximum_millicores=8000,
        cpu_limit_millicores=8000,
    )
    story.set(HOST, [anew])
    story.tick()
    place = story.snapshot.ids.index(GUEST)
    assert story.snapshot.names[place] == "renamed"
    assert story.at(GUEST, "limit", Resource.MEMORY) == 2 * GIB
    assert story.at(GUEST, "ceiling", Resource.CPU) == 8000
    history = story.fleet.history(story.snapshot, story.now)
    assert history.maximum[place, Resource.CPU] == 8000
    mean, _ = windows(history)
    past = mean[place, Resource.CPU]
    assert set(past[np.isfinite(past)].tolist()) == {300}  # amounts, not shares of the old size


# ---- clones ----


def test_a_vm_that_runs_on_two_hosts_for_too_long_is_a_clone_until_one_is_gone():
    story = two_hosts()
    story.set(OTHER, [vm(GUEST, cpu_limit_millicores=700)])
    story.tick()
    assert story.hold(GUEST) is Hold.MIGRATING
    story.tick(7)
    assert story.hold(GUEST) is Hold.CLONE
    assert story.host_of(GUEST) == HOST
    assert story.at(OTHER, "overhead", Resource.CPU) == 700
    (trouble,) = story.fleet.troubles
    assert trouble.kind == "clone"
    assert set(trouble.hosts) == {"node 1", "node 2"}
    assert GUEST in trouble.text
    assert "<uuid>" in trouble.advice
    story.set(HOST)
    story.tick()
    assert (story.host_of(GUEST), story.hold(GUEST)) == (OTHER, Hold.NONE)
    assert story.kinds() == set()


def test_a_host_that_died_is_no_second_one():
    story = two_hosts()
    story.set(HOST, None)
    story.set(OTHER, [vm(GUEST)])  # started there by whatever keeps it available
    story.tick(30)
    assert story.hold(GUEST) is Hold.MIGRATING
    story.tick(40)
    assert (story.host_of(GUEST), story.hold(GUEST)) == (OTHER, Hold.NONE)
    assert story.kinds() == set()


def test_a_cloned_nested_host_and_all_its_guests_are_held_and_nobody_else():
    bystander = machine(30)
    story = two_nested()
    story.set(HOST, [vm(L1), vm(bystander)])
    story.set(OTHER, [vm(L1B), vm(L1)])  # the clone of L1
    story.tick(9)
    assert {story.hold(L1), story.hold(GUEST)} == {Hold.CLONE}
    assert {story.hold(L1B), story.hold(bystander)} == {Hold.NONE}


def test_two_machines_that_speak_under_one_id_are_held_and_released_with_time():
    story = two_nested()
    story.fleet.note_clone(L1, story.now)
    story.tick()
    assert {story.hold(L1), story.hold(GUEST)} == {Hold.CLONE}
    assert {story.hold(HOST), story.hold(L1B)} == {Hold.NONE}
    (trouble,) = story.fleet.troubles
    assert "two machines" in trouble.text
    assert "node_id" in trouble.advice
    story.tick(CLONE_CLEARS_NS // STEP)
    assert story.hold(L1) is Hold.NONE
    assert story.kinds() == set()


def test_two_agents_of_one_physical_host_hold_its_whole_tree():
    story = two_nested()
    streams = Streams(story.streams, frozenset({HOST}))
    story.snapshot = story.fleet.snapshot(
        tick_ns=story.now, unix_ns=UNIX, epoch=1, cycle=1, streams=streams
    )
    assert {story.hold(each) for each in (HOST, L1, GUEST)} == {Hold.CLONE}
    assert {story.hold(each) for each in (OTHER, L1B)} == {Hold.NONE}


def test_a_clone_stays_a_clone_where_an_operator_froze_it_too():
    story = two_hosts()
    story.fleet.note_clone(GUEST, story.now)
    story.set(GUEST, role="guest")
    story.tick()
    story.fleet.note_clone(GUEST, story.now)
    frozen = story.look(overrides=Overrides((Freeze(GUEST),)))
    assert at(frozen, GUEST, "hold") == Hold.CLONE


def test_steps_wait_until_telemetry_and_stream_are_of_one_boot():
    story = two_hosts()
    for boot_id, hold in (("boot", Hold.NONE), ("another", Hold.UNMANAGED)):
        snapshot = story.fleet.snapshot(
            tick_ns=story.now, unix_ns=UNIX, epoch=1, cycle=1, streams=Streams({HOST: boot_id})
        )
        assert at(snapshot, GUEST, "hold") == hold


# ---- lies ----


def everybody(story):
    return [each for each in story.reports if each != L1B] + [GUEST]


def test_a_nested_host_that_reports_everybody_s_vms_gets_and_holds_none():
    beside, sibling = machine(31), machine(32)
    story = two_nested()
    story.set(OTHER, [vm(L1B), vm(beside)])
    story.set(L1, [vm(GUEST), vm(sibling)], role=NESTED)
    story.tick()
    honest = {each: (story.host_of(each), story.hold(each)) for each in story.snapshot.ids}
    loot = [vm(each, cpu_limit_millicores=1) for each in (*story.snapshot.ids, STRANGER)]
    for nodes in ([*story.reports], [L1B, *story.reports]):  # whoever speaks first
        story.set(L1B, loot, role=NESTED)
        story.reports = {each: story.reports[each] for each in dict.fromkeys(nodes)}
        story.tick(20)
        for each, said in honest.items():
            assert (story.host_of(each), story.hold(each)) == said
            if each != HOST:
                assert story.at(each, "limit", Resource.CPU) != 1
    (trouble,) = story.fleet.troubles  # one line, however many it claims
    assert (trouble.kind, trouble.machine_id) == ("claim", L1B)


def test_a_liar_that_was_there_first_gives_everything_back():
    """The controller starts while only the hostile one is heard."""
    story = Story()
    story.set(L1, [vm(each) for each in (HOST, OTHER, GUEST, L1)], role=NESTED)
    story.tick(3)
    story.set(HOST, [vm(L1)])
    story.set(OTHER, [vm(GUEST)])
    story.tick()
    assert story.hold(GUEST) is Hold.MIGRATING
    story.tick(7)
    assert (story.host_of(HOST), story.host_of(OTHER)) == (None, None)
    assert (story.host_of(L1), story.host_of(GUEST)) == (HOST, OTHER)
    assert {story.hold(each) for each in (HOST, OTHER, L1, GUEST)} == {Hold.NONE}
    mean, _ = windows(story.fleet.history(story.snapshot, story.now))
    cpu = mean[story.snapshot.ids.index(GUEST), Resource.CPU]
    assert np.isfinite(cpu).sum() == 1  # what the liar said of its use is forgotten


def test_a_liar_does_not_inherit_for_good():
    """Its victim is stopped, or its host is silent, for a while."""
    for gone in ((), None):
        story = two_nested()
        story.set(L1B, [vm(GUEST)], role=NESTED)
        story.tick(3)
        assert (story.host_of(GUEST), story.hold(GUEST)) == (L1, Hold.NONE)
        role = {} if gone is None else {"role": NESTED}
        story.set(L1, gone, **role)
        story.set(HOST, [] if gone is None else [vm(L1)])
        story.tick(70 if gone is None else 20)
        story.set(HOST, [vm(L1)])
        story.set(L1, [vm(GUEST)], role=NESTED)
        story.tick()
        assert (story.host_of(GUEST), story.hold(GUEST)) == (L1, Hold.NONE)


def test_a_guest_cannot_host_its_own_host_whoever_speaks_first():
    """A three-storey house: HOST has L1, L1 has L1B, and L1B claims both."""
    honest = [
        sample(HOST, [vm(L1)]),
        sample(L1, [vm(L1B)], role=NESTED),
        sample(L1B, [vm(HOST), vm(L1), vm(GUEST)], role=NESTED),
    ]
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)):
        fleet = fed(*(honest[i] for i in order))
        for i in order:
            fleet.apply(decode(encode(replace(honest[i], sequence=2))), START, UNIX)
        snapshot = look(fleet)
        assert snapshot.ids == (HOST, L1, L1B, GUEST)
        assert snapshot.parent.tolist() == [-1, 0, 1, 2]
        assert fleet.counters.circular == 0


def test_nested_hosts_that_report_each_other_are_nobody_s_until_a_physical_one_speaks():
    one, two = sample(L1, [vm(L1B)], role=NESTED), sample(L1B, [vm(L1)], role=NESTED)
    fleet = fed(one, two, one, two)
    assert look(fleet).parent.tolist() == [-1, -1]
    assert {trouble.kind for trouble in fleet.troubles} == {"claim"}
    physical = sample(HOST, [vm(L1)])
    for each in (physical, one, two, physical, one, two):
        fleet.apply(decode(encode(each)), START, UNIX)
    snapshot = look(fleet)
    assert snapshot.ids == (HOST, L1, L1B)
    assert snapshot.parent.tolist() == [-1, 0, 1]


def test_a_machine_that_says_it_is_none_is_nobody_s_vm():
    fleet = fed(sample(vms=[vm(OTHER)]), sample(OTHER, [vm(HOST)]), sample(L1, [vm(GUEST)]))
    snapshot = look(fleet)
    assert (
        snapshot.parent[[snapshot.ids.index(each) for each in (HOST, OTHER)]].tolist() == [-1] * 2
    )
    assert {trouble.kind for trouble in fleet.troubles} == {"claim"}


def test_one_who_lies_about_being_a_vm_weighs_no_more_for_it():
    story = two_nested()
    story.set(OTHER, [vm(L1B), vm(STRANGER)])
    story.set(L1B, [vm(GUEST), vm(STRANGER)], role="host")  # it is a VM of OTHER
    story.tick(12)
    assert (story.host_of(GUEST), story.hold(GUEST)) == (L1, Hold.NONE)
    assert (story.host_of(STRANGER), story.hold(STRANGER)) == (OTHER, Hold.NONE)


def test_a_nested_host_that_nobody_reports_is_said_to_be_alone():
    fleet = fed(sample(), sample(L1, [vm(GUEST)], role=NESTED))
    look(fleet)
    (trouble,) = fleet.troubles
    assert trouble.kind == "orphan"
    assert "product UUID" in trouble.advice
    alone = fed(sample(L1, [vm(GUEST)], role=NESTED))  # as in any cloud: nothing to say
    look(alone)
    assert alone.troubles == ()


# ---- the dead ----


def test_a_nested_host_whose_agent_is_dead_keeps_what_its_guests_have():
    story = two_nested()
    story.set(L1, None)
    story.tick(100)  # far beyond the expiry of nodes
    assert story.host_of(GUEST) == L1
    assert story.at(GUEST, "sample_age_ns") == 100 * STEP  # stale: nothing moves (I6)
    assert story.at(GUEST, "limit", Resource.MEMORY) == 512 * MIB  # and L1 must keep room for it
    story.set(HOST, [vm(L1, state=VmState.SHUT_DOWN)])
    story.tick()
    assert not story.there(GUEST)
    assert story.host_of(L1) == HOST


def test_a_nested_host_that_is_destroyed_leaves_soon_and_its_parent_counts_nothing_of_it():
    story = two_nested()
    empty = story.counted(HOST) - 512 * MIB - 32 * MIB
    story.set(HOST)
    story.set(L1, None)
    story.tick()
    assert story.counted(HOST) == empty
    story.tick(int(GONE_NS // STEP))
    assert not story.there(L1)
    assert not story.there(GUEST)
    assert story.there(L1B)


def test_a_nested_host_lives_on_where_its_own_host_s_agent_died():
    story = two_nested()
    story.set(HOST, None)
    story.tick(70)
    assert not story.there(HOST)
    assert story.host_of(L1) is None
    assert story.host_of(GUEST) == L1
    story.set(HOST, [vm(L1)])
    story.tick()
    assert story.host_of(L1) == HOST


# ---- whatever is said ----

IDS = [machine(i) for i in range(6)]
reports = st.builds(
    lambda node, ids, states, role: sample(
        node,
        [vm(vm_id, state=state) for vm_id, state in zip(ids, states, strict=False)],
        role=role,
    ),
    st.sampled_from(IDS),
    st.lists(st.sampled_from(IDS), unique=True, max_size=5),
    st.lists(st.sampled_from([VmState.RUNNING, VmState.PAUSED]), min_size=5, max_size=5),
    st.sampled_from(["host", "guest", NESTED, NESTED]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(reports, st.integers(0, 400)), min_size=1, max_size=25))
def test_whatever_is_reported_there_are_no_circles_and_every_row_counts_where_it_was_seen(story):
    fleet, now = Fleet(ControllerSettings()), START
    for report, seconds in story:
        now += seconds * SECOND_NS
        fleet.apply(decode(encode(report)), now, UNIX)
        snapshot = look(fleet, now)
        assert isinstance(snapshot, Snapshot)
        assert fleet.counters.circular == 0
        for node in fleet.nodes():
            counted = {s for s in node.vm_slots.tolist() if fleet.table.host_of[s] == node.slot}
            counted |= node.foreign.keys() | {node.slot}
            assert set(node.vm_slots.tolist()) <= counted
        for node in fleet.nodes():
            if node.role == "host":
                assert snapshot.parent[snapshot.ids.index(node.node_id)] == MISSING
