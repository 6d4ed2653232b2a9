"""How the bounds of the reflex come with commands and renewals, hold, and end."""

from dataclasses import replace

import pytest

from agent import guard
from agent.admission import Readings
from agent.guard import GuardState, grant_of, judge
from agent.leash import Bounds, Leash
from agent.messages import apply_message, bounds_messages, command_of, renewal_of
from agent.steps import Command, Header, Step
from shared.clock import SECOND_NS
from shared.pb import commands_pb2 as pb
from shared.resources import MIB, Resource
from shared.telemetry import NodeReadings, VmSample

NOW_NS = 1000 * SECOND_NS
A, B = ("a", Resource.MEMORY), ("b", Resource.CPU)
OLD = Bounds({A: Leash(64 * MIB, 512 * MIB, 256 * MIB), B: Leash(500, 2000, 1000)}, {A[1]: MIB})
NEW = Bounds({A: Leash(128 * MIB, 256 * MIB, 256 * MIB)}, {Resource.CPU: 500})
HEADER = Header("c1", "p1", 5, 1, 0, NOW_NS, 10_000, 60_000)
VM = VmSample("a", "a", memory_limit_bytes=256 * MIB, memory_stats_age_ns=0)
READINGS = Readings(NodeReadings(memory_allocatable_bytes=1024 * MIB), {"a": VM}, SECOND_NS)
STATE = GuardState(
    epoch_highest=5,
    lease_until_tick_ns=NOW_NS + SECOND_NS,
    bounds=OLD,
    bounds_number=7,
    lent=frozenset({A, B}),
)


def obeyed(state=STATE, now=NOW_NS, bounds=Bounds(), steps=(), **header):  # noqa: B008 - frozen
    told = Command(replace(HEADER, agent_tick_ns=now, **header), steps, bounds=bounds)
    return judge(told, state, now, READINGS)[0]


def renewed(state=STATE, now=NOW_NS, bounds=Bounds(), **header):  # noqa: B008 - frozen
    told = replace(HEADER, agent_tick_ns=now, **header)
    return guard.renew(told, state, now, (), bounds)[0]


@pytest.mark.parametrize("told", [obeyed, renewed])
def test_new_bounds_replace_all_and_empty_ones_leave_them(told):
    state = told(bounds=NEW)
    assert state.bounds == NEW
    assert state.bounds_number > STATE.bounds_number
    assert state.lent == {A}  # what has no leash any more is the plan's
    kept = told()
    assert (kept.bounds, kept.lent) == (OLD, STATE.lent)


def test_the_same_renewal_again_is_no_new_word():
    assert renewed(bounds=OLD).bounds_number == STATE.bounds_number


def test_a_limit_that_a_plan_moves_without_a_word_loses_its_leash():
    step = Step(0, *A, 256 * MIB, 300 * MIB)
    state = obeyed(steps=(step,))
    assert set(state.bounds.leash) == {B}
    assert state.lent == {B}


@pytest.mark.parametrize("told", [obeyed, renewed])
def test_bounds_end_with_the_lease_and_no_renewal_brings_them_back(told):
    late = NOW_NS + 2 * SECOND_NS
    assert grant_of(STATE, NOW_NS).bounds == OLD
    assert grant_of(STATE, late) is None
    state = told(now=late)
    assert grant_of(state, late).bounds == Bounds()
    assert state.lent == frozenset()
    assert told(now=late, bounds=NEW).bounds == NEW


@pytest.mark.parametrize("told", [obeyed, renewed])
def test_a_newer_epoch_ends_what_the_older_one_allowed(told):
    assert told(epoch=6).bounds == Bounds()
    assert told(epoch=6, bounds=NEW).bounds == NEW


def test_a_newer_epochs_command_that_comes_late_ends_them_too():
    state, verdict = judge(
        Command(replace(HEADER, epoch=6, agent_tick_ns=0)), STATE, NOW_NS, READINGS
    )
    assert isinstance(verdict, guard.Refused)
    assert state.bounds == Bounds()


def test_a_dry_run_brings_none():
    assert obeyed(bounds=NEW, dry_run=True).bounds == OLD


def test_nobody_who_never_obeyed_has_a_grant():
    assert grant_of(GuardState(bounds=OLD), NOW_NS) is None


def test_bounds_travel_as_they_are():
    told = apply_message(Command(HEADER, bounds=OLD))
    assert command_of(told.apply).bounds == OLD
    leash, reserve = bounds_messages(NEW)
    header = told.apply.header
    assert renewal_of(pb.Renew(header=header, leash=leash, reserve=reserve))[2] == NEW


def test_a_leash_that_holds_nothing_is_a_broken_message():
    wrong = pb.Leash(vm_id="a", resource=pb.RESOURCE_CPU, low_amount=2, high_amount=1)
    header = apply_message(Command(HEADER)).apply.header
    with pytest.raises(ValueError, match="leash"):
        command_of(pb.Apply(header=header, leash=[wrong]))
